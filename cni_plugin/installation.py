"""Putting the self-contained executable in place, and taking it away again.

Rules:
- What appears is whole: it is written under another name in the same folder, and renamed.
- What is ours can be told from the file itself: an executable by its trailer, a conflist by being
  exactly what `conflist` writes. Nothing else is replaced or removed, an edited conflist included.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from json import dumps, loads
from typing import Any

from cni_plugin import runtimes
from cni_plugin.agent import lock, readiness
from cni_plugin.spec import CniError, Code

NAME = "podwire"
IPAM_NAME = "podwire-ipam"
CONFLIST = "10-podwire.conflist"
_TRAILER_BYTES = 56
_MAGIC = b"podwire\x01"  # both as in launcher/archive.py, which no wheel has
_CHUNK = 1 << 20


# --- the executable ---------------------------------------------------------------------------


def is_executable_of_ours(path: str) -> bool:
    """Whether this is a podwire executable, of whatever version; False when there is none."""
    try:
        with open(path, "rb") as file:
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
    """Copy `source` to bin_dir/podwire and link podwire-ipam to it; the paths that changed."""
    path, ipam = os.path.join(bin_dir, NAME), os.path.join(bin_dir, IPAM_NAME)
    refuse_foreign(path)
    refuse_foreign(ipam)
    changed = []
    if not _same_content(source, path):
        _copy(source, path)
        changed.append(path)
    if not (os.path.exists(ipam) and os.path.samefile(path, ipam)):
        _link(path, ipam)
        changed.append(ipam)
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
    with open(source, "rb") as file:
        _write(path, 0o755, iter(lambda: file.read(_CHUNK), b""))


def _write(path: str, mode: int, parts: Any) -> None:
    """A file of these parts, under another name until it is whole."""
    partial = _partial(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(partial, flags, 0o600), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def _partial(path: str) -> str:
    """The name a file has until it is whole; what a killed process left under it goes."""
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.new")
    with suppress(FileNotFoundError):
        os.unlink(partial)
    return partial


def _link(path: str, ipam: str) -> None:
    partial = _partial(ipam)
    try:
        os.link(path, partial)
    except OSError:  # a file system without hard links
        os.symlink(NAME, partial)
    os.replace(partial, ipam)


def remove_executable(bin_dir: str) -> tuple[list[str], list[str]]:
    """Remove what `place_executable` makes: (paths removed, paths kept as they are not ours)."""
    removed, kept = [], []
    for name in (IPAM_NAME, NAME):  # the link first: it may be a symbolic one
        path = os.path.join(bin_dir, name)
        _partial(path)
        if not os.path.lexists(path):
            continue
        if is_executable_of_ours(path):
            os.unlink(path)
            removed.append(path)
        else:
            kept.append(path)
    return removed, kept


# --- the configuration ------------------------------------------------------------------------


def conflist(subnets: Sequence[str], nodes: str) -> str:
    """The configuration of a node: with an inventory of nodes, or with the node's own subnets."""
    ipam: dict[str, Any] = {"type": "host-local"}
    plugin: dict[str, Any] = {
        "type": NAME,
        "bridge": "cni0",
        "hairpinMode": True,
        "ipMasq": True,
        "capabilities": {"portMappings": True, "bandwidth": True},
    }
    if nodes:
        plugin["nodes"] = nodes
    else:
        plugin["isDefaultGateway"] = True
        ipam["ranges"] = [[{"subnet": subnet}] for subnet in subnets]
    document = {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": NAME,
        "plugins": [plugin | {"ipam": ipam}],
    }
    return dumps(document, indent=2) + "\n"


def is_conflist_of_ours(text: str) -> bool:
    """Whether `conflist` has written exactly this."""
    try:
        plugin = loads(text)["plugins"][0]
        ranges = plugin["ipam"].get("ranges", [])
        subnets = [one["subnet"] for (one,) in ranges]
        return conflist(subnets, plugin.get("nodes", "")) == text
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def place_conflist(conf_dir: str, text: str) -> bool:
    """Write the conflist unless it is there already; whether something changed.

    Raises CniError 5 for a file of that name that `conflist` has not written, or that was edited.
    """
    path = os.path.join(conf_dir, CONFLIST)
    refuse_edited(path)
    if _text(path) == text:
        return False
    _write(path, 0o644, [text.encode()])
    return True


def refuse_edited(path: str) -> None:
    found = _text(path)
    if found is not None and not is_conflist_of_ours(found):
        raise CniError(
            Code.IO_FAILURE,
            f"{path} exists and is not as `podwire install` writes it",
            "edit that file, or move it away first",
        )


def has_conflist(conf_dir: str) -> bool:
    """Whether there is one that `conflist` has written, or somebody who edited it."""
    return _text(os.path.join(conf_dir, CONFLIST)) is not None


def remove_conflist(conf_dir: str) -> bool | None:
    """Remove the conflist; False when there is none, None when it is kept as it is not ours."""
    path = os.path.join(conf_dir, CONFLIST)
    _partial(path)
    text = _text(path)
    if text is None:
        return False
    if not is_conflist_of_ours(text):
        return None
    os.unlink(path)
    return True


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


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
    removed = runtimes.remove_stale(folder, "", unused_s=-(1 << 40))
    runtimes.remove_leftovers(folder)
    kept = [name for name in _names(folder) if runtimes.is_runtime(name)]
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
