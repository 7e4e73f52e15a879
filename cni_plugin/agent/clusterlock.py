"""One agent alone follows a cluster: in each network namespace, and with each inventory.

Two of them, at different sockets, would undo each other's routes, and take turns in saying that the
node is ready. Whoever follows holds two locks for as long as it lives, whatever way it ends: a file
of the namespace's state in /run/podwire, and one beside the inventory. Only root can open them.

A successor is often started a little before its predecessor has ended; it waits for that. Who takes
the node apart holds the same locks meanwhile, and removes their files before it lets go.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging import Logger
from time import monotonic, sleep

from cni_plugin.kernel.nodelock import FOLDER, make_folder
from cni_plugin.kernel.statefolder import node_key
from cni_plugin.spec import CniError, Code

PATIENCE_S = 10.0
_PAUSE_S = 0.1
_LOCKS = "/proc/locks"


def inventory_lock(inventory: str) -> str:
    """The lock of whoever writes the inventory at this path."""
    return inventory + ".lock"


def namespace_lock() -> str:
    """The lock of whoever follows a cluster in the current network namespace."""
    return os.path.join(FOLDER, f"node-{node_key()}", "cluster.lock")


def claim(inventory: str, logger: Logger) -> tuple[int, ...]:
    """The descriptors of both locks, locked, for the caller to keep.

    An inventory where nothing can be written has no lock; following the cluster tells of that.
    Raises CniError 11 naming the process that does not let go within 10 s, 5, and 110 for what is
    not a file of ours.
    """
    make_folder()
    with ExitStack() as undo:
        try:
            held = [_locked(namespace_lock(), "follows a cluster here", logger)]
        except OSError as e:
            remedy = f"{FOLDER} must be a folder of root's that can be written"
            raise CniError(Code.IO_FAILURE, f"{e.filename}: {e.strerror}", remedy) from e
        undo.callback(os.close, held[0])
        try:
            held.append(_locked(inventory_lock(inventory), f"writes {inventory}", logger))
        except OSError as e:
            logger.warning("no lock", extra={"fields": {"lock": e.filename, "why": e.strerror}})
        undo.pop_all()
    return tuple(held)


@contextmanager
def keep_out(inventory: str) -> Iterator[frozenset[str]]:
    """No agent follows a cluster in the current network namespace, or writes this inventory; the
    paths of the locks that are held for that.

    A node without state of ours has no lock, nor has one whose state is another user's: whoever may
    not open it may not remove it either. Raises CniError 11 naming the process that holds one, 5,
    and 110 for what is not a file of ours.
    """
    held = []
    with ExitStack() as undo:
        for path, doing, flags in (
            (namespace_lock(), "follows a cluster here", os.O_CREAT),  # its folder goes as a whole
            (inventory_lock(inventory), f"writes {inventory}", 0),
        ):
            with suppress(FileNotFoundError, PermissionError):
                undo.callback(os.close, _locked_now(path, doing, flags))
                held.append(path)
        yield frozenset(held)


def _locked_now(path: str, doing: str, flags: int) -> int:
    """The open file with the lock on it, without waiting for whoever holds it, who does `doing`."""
    try:
        fd, holder = _tried(path, flags)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as e:
        why = "it is no lock of an agent's"
        raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", why) from e
    if fd >= 0:
        return fd
    raise CniError(
        Code.TRY_AGAIN_LATER,
        f"an agent, {holder}, {doing}: it holds {path}",
        "stop the agent first: delete its DaemonSet, or by systemctl stop, or by kill",
    )


def _locked(path: str, doing: str, logger: Logger) -> int:
    """The open file with the lock on it; `doing` is what whoever holds it does."""
    deadline = monotonic() + PATIENCE_S
    told = False
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    while True:
        fd, holder = _tried(path, os.O_CREAT)
        if fd >= 0:
            return fd
        if monotonic() > deadline:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"another agent, {holder}, {doing}: it holds {path}",
                "stop that one first, or start this one without --kubernetes and --etcd",
            )
        if not told:
            logger.info("waiting", extra={"fields": {"lock": path, "holder": holder}})
            told = True
        sleep(_PAUSE_S)


def _tried(path: str, flags: int) -> tuple[int, str]:
    """The open file with the lock on it, or -1 and who holds it. Raises OSError, CniError 110."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o600)
    try:
        if _is_locked(fd, path):
            return fd, ""
        holder = _holder(fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return -1, holder


def _is_locked(fd: int, path: str) -> bool:
    """Lock it; False when another has it, or it is not the lock's file any more."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise CniError(
            Code.PERMISSION_DENIED,
            f"{path} is not a file of user {os.geteuid()}",
            "somebody else made it: remove it",
        )
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.stat(path, follow_symlinks=False), status)
    return False


def _holder(fd: int) -> str:
    """Who has locked the file, in words. The kernel knows it by the numbers of our namespace of
    processes, and says nothing of one that is not in there."""
    inode = os.fstat(fd).st_ino
    with suppress(OSError), open(_LOCKS, encoding="ascii") as file:
        for line in file:  # 1: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF
            fields = line.split()
            if "FLOCK" in fields[1:2] and fields[-3].rpartition(":")[2] == str(inode):
                return f"process {fields[-4]}"
    return "in another container"
