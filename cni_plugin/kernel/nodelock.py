"""A lock over what the ADDs of one node share: the bridge, and the routes to other nodes.

It is flock(2) on a file that only root can open, named by the network namespace it protects: two
containers that share a namespace share the lock, two nodes in namespaces of one machine don't.
(The namespace's own file would do without a name, but anybody may open and lock that.) The file
is removed by whoever is the last to hold it, and by an agent when it ends.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from cni_plugin.kernel.netns import OWN
from cni_plugin.lockwait import LockWait
from cni_plugin.spec import CniError, Code

FOLDER = "/run/podwire"
_PATIENCE_S = 10.0


class NodeLock:
    """The lock of the network namespace that the first caller is in; one thread uses it.

    A `resident` one keeps the file open, and leaves it in place, until `close`.
    """

    def __init__(self, resident: bool = False) -> None:
        self._resident = resident
        self._path = ""
        self._fd: int | None = None

    def close(self) -> None:
        if self._fd is not None:
            _release(self._path, self._fd)
            self._fd = None

    @contextmanager
    def held(self, exclusive: bool) -> Iterator[None]:
        """Hold the lock: shared while using the bridge, exclusively for making or removing it.

        Raises CniError: 11 when it can't be had in time, 5 and 110 for its file.
        """
        if not self._path:
            self._path = f"{FOLDER}/node-{os.stat(OWN).st_ino}.lock"
        kept, self._fd = self._fd, None
        operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fd = _locked(self._path, operation | fcntl.LOCK_NB, kept)
        except OSError as e:
            raise CniError(
                Code.IO_FAILURE,
                f"{self._path}: {e.strerror}",
                f"{FOLDER} must be a folder of root's that can be written",
            ) from e
        try:
            yield
        finally:
            if self._resident and _unlocked(fd):
                self._fd = fd
            else:
                _release(self._path, fd)


def node_lock(exclusive: bool) -> AbstractContextManager[None]:
    """Hold the lock of the current network namespace: see `NodeLock.held`."""
    return NodeLock().held(exclusive)


def _locked(path: str, operation: int, fd: int | None) -> int:
    """The open lock file with the lock on it; one that was removed meanwhile is made anew.

    `fd` is the file, if it is open already; whatever fails closes it.
    """
    wait = LockWait(path, _PATIENCE_S)
    while True:
        if fd is None:
            make_folder()
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if _taken(path, fd, operation):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        fd = None
        wait.pause()


def _taken(path: str, fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        return False
    return _is_current(path, fd)


def _unlocked(fd: int) -> bool:
    """Give the lock back, and keep the file open; False when that failed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:
        return False
    return True


def make_folder() -> None:
    """The folder of what lives as long as the kernel; CniError 110 when it is somebody else's."""
    with suppress(FileExistsError):
        os.mkdir(FOLDER, 0o700)
    status = os.lstat(FOLDER)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise CniError(
            Code.PERMISSION_DENIED,
            f"{FOLDER} is not a folder of user {os.geteuid()}",
            "somebody else made it: remove it",
        )


def _is_current(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _release(path: str, fd: int) -> None:
    """Give the lock back; its file goes when nobody else holds it."""
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(path, fd):
                os.unlink(path)
    finally:
        os.close(fd)
