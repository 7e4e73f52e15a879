"""Putting the self-contained executable in place, and taking it away again.

Rules:
- What appears is whole: it is made in a folder of its own beside the name, and renamed. No other
  process knows that folder's name, and one that is left by a killed process goes with the next.
- Whoever calls has the runtime's folder for itself meanwhile (`madefolders`).
- What is ours can be told from the file itself: an executable by its trailer, a conflist as
  `conflists` tells. Nothing else is replaced or removed, an edited conflist included.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC

from cni_plugin import conflists, runtimefolder, wholefiles
from cni_plugin.agent import lock, readiness
from cni_plugin.spec import CniError, Code

NAME = "podwire"
IPAM_NAME = "podwire-ipam"
CONFLIST = conflists.NAME
_TRAILER_BYTES = 56
_MAGIC = b"podwire\x01"  # both as in launcher/archive.py, which no wheel has
_CHUNK = 1 << 20
_UNFINISHED = re.compile(r"\.podwire\.[0-9a-f]{16}\.new")


# --- the executable ---------------------------------------------------------------------------


def is_executable_of_ours(path: str) -> bool:
    """Whether this is a podwire executable, of whatever version; False when there is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a FIFO or a device would wait, or act
            return False
        with open(path, "rb", opener=wholefiles.without_waiting) as file:
            file.seek(-_TRAILER_BYTES, os.SEEK_END)
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:  # none, or shorter than a trailer
        return False


def refuse_foreign(path: str) -> None:
    """Raises CniError 5 when something at this path is not an executable of ours."""
    if os.path.lexists(path) and not is_executable_of_ours(path):
        raise CniError(
            Code.IO_FAILURE,
            f"{path} exists and is not podwire's executable",
            "move it away first, or choose another --bin-dir",
        )


def place_executable(source: str, bin_dir: str) -> list[str]:
    """Copy `source` to bin_dir/podwire and link podwire-ipam to it; the paths that changed.

    Raises CniError 5 for a file that is not ours, and 5 or 110 where the system refuses.
    """
    path, ipam = os.path.join(bin_dir, NAME), os.path.join(bin_dir, IPAM_NAME)
    refuse_foreign(path)
    refuse_foreign(ipam)
    changed = []
    try:
        _clear_unfinished(bin_dir)
        if not _same_content(source, path):
            _copy(source, path)
            changed.append(path)
        if not (os.path.exists(ipam) and os.path.samefile(path, ipam)):
            _link(path, ipam)
            changed.append(ipam)
    except OSError as e:
        raise failure(e, source if e.filename == source else path) from e
    return changed


def _same_content(source: str, path: str) -> bool:
    if not os.path.exists(path) or os.path.getsize(source) != os.path.getsize(path):
        return False
    if os.path.samefile(source, path):
        return True
    with open(source, "rb") as one, open(path, "rb") as other:
        while part := one.read(_CHUNK):
            if part != other.read(_CHUNK):
                return False
    return os.stat(path).st_mode & 0o777 == 0o755


def _copy(source: str, path: str) -> None:
    with _unfinished(path) as whole, open(source, "rb") as file:
        wholefiles.write(whole, 0o755, iter(lambda: file.read(_CHUNK), b""))
        os.replace(whole, path)


def _link(path: str, ipam: str) -> None:
    with _unfinished(ipam) as whole:
        try:
            os.link(path, whole)
        except OSError:  # a file system without hard links
            os.symlink(NAME, whole)
        os.replace(whole, ipam)


@contextmanager
def _unfinished(path: str) -> Iterator[str]:
    """Where to make what is to be renamed to `path`: in a folder beside it, which goes again."""
    bin_dir, name = os.path.split(path)
    folder = os.path.join(bin_dir, f".{NAME}.{os.urandom(8).hex()}.new")  # as _UNFINISHED
    os.mkdir(folder, 0o700)
    try:
        yield os.path.join(folder, name)
    finally:
        runtimefolder.remove_tree(folder)


def _clear_unfinished(bin_dir: str) -> None:
    """Remove what killed installs left."""
    for name in _names(bin_dir):
        if _UNFINISHED.fullmatch(name):
            runtimefolder.remove_tree(os.path.join(bin_dir, name))


def remove_executable(bin_dir: str) -> tuple[list[str], list[str]]:
    """Remove what `place_executable` makes: (paths removed, paths kept as they are not ours)."""
    removed, kept = [], []
    _clear_unfinished(bin_dir)
    for name in (IPAM_NAME, NAME):  # the link first: it may be a symbolic one
        path = os.path.join(bin_dir, name)
        if not os.path.lexists(path):
            continue
        if is_executable_of_ours(path):
            os.unlink(path)
            removed.append(path)
        else:
            kept.append(path)
    return removed, kept


def failure(e: OSError, path: str) -> CniError:
    """The error for a system call that failed where files are installed."""
    if isinstance(e, PermissionError):
        return CniError(Code.PERMISSION_DENIED, f"{path}: {e.strerror}", "run it as root")
    remedy = "--bin-dir and --conf-dir have to be folders that can be written"
    if e.errno in (ENOSPC, EDQUOT):
        remedy = (
            "free some space on this file system, or choose another folder: the executable needs"
            " 12 MB, beside an older one until it has replaced it"
        )
    return CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", remedy)


# --- the configuration ------------------------------------------------------------------------


def conflist(subnets: Sequence[str], nodes: str) -> str:
    """The configuration of a node: with an inventory of nodes, or with the node's own subnets."""
    return conflists.plain(subnets, nodes)


def place_conflist(conf_dir: str, text: str) -> bool:
    """Write the conflist unless it is there already; whether something changed.

    Raises CniError 5 for a file of that name that podwire has not written, or that was edited.
    """
    return conflists.place(conf_dir, text, CONFLIST)


def refuse_edited(path: str) -> None:
    """Raises CniError 5 as `place_conflist`."""
    conflists.refuse_foreign(path)


def has_conflist(conf_dir: str) -> bool:
    """Whether there is one that podwire has written, or somebody who edited it."""
    return os.path.exists(os.path.join(conf_dir, CONFLIST))


def remove_conflist(conf_dir: str) -> bool | None:
    """Remove the conflist, be it an agent's; False when there is none, None when it is kept as it
    is not ours."""
    return conflists.remove(conf_dir, CONFLIST)


# --- what podwire makes at run time -----------------------------------------------------------


def refuse_agent(socket: str) -> None:
    """Raises CniError 11 when an agent serves at this socket."""
    try:
        fd = os.open(lock.lock_path(socket), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as e:
        raise CniError(
            Code.IO_FAILURE,
            f"{lock.lock_path(socket)}: {e.strerror}",
            "it is no lock of an agent's",
        ) from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        pid = _text(readiness.ready_path(socket))
        who = f"process {pid.strip()}" if pid else "an agent"
        raise CniError(
            Code.TRY_AGAIN_LATER,
            f"{who} serves at {socket}",
            "stop the agent first: by systemctl stop, or by kill; it ends what has begun",
        ) from e
    finally:
        os.close(fd)


def remove_runtimes(folder: str) -> tuple[list[str], list[str]]:
    """Remove the runtimes in this folder: (paths removed, paths kept as they are in use)."""
    if not _names(folder):
        return [], []
    removed = runtimefolder.remove_stale(folder, "", unused_s=-(1 << 40))
    runtimefolder.remove_leftovers(folder)
    kept = [name for name in _names(folder) if runtimefolder.is_runtime(name)]
    if not kept:
        _removed(os.path.join(folder, "runtime.lock"))
    return [os.path.join(folder, n) for n in removed], [os.path.join(folder, n) for n in kept]


def remove_folder(folder: str) -> bool:
    """Remove the folder if it is empty; whether it is gone by this."""
    try:
        os.rmdir(folder)
    except OSError:  # it holds something else, or was never there
        return False
    return True


def _text(path: str) -> str | None:
    data = wholefiles.read(path)
    return None if data is None else data.decode("utf-8", "replace")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _removed(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
