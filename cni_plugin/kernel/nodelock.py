"""A lock over what the ADDs of one node share: the bridge, and the routes to other nodes.

It is flock(2) on a file that only root can open, named by the network namespace it protects: two
containers that share a namespace share the lock, two nodes in namespaces of one machine don't.
(The namespace's own file would do without a name, but anybody may open and lock that.) The file
is removed by whoever is the last to hold it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from cni_plugin.kernel.netns import OWN
from cni_plugin.spec import CniError, Code

FOLDER = "/run/podwire"
_PATIENCE_S = 10.0


@contextmanager
def node_lock(exclusive: bool) -> Iterator[None]:
    """Hold the lock of the current network namespace.

    ADDs hold it shared while they use the bridge; who makes or removes something shared holds it
    exclusively. Raises CniError: 11 when it can't be had in time, 5 and 110 for its file.
    """
    path = f"{FOLDER}/node-{os.stat(OWN).st_ino}.lock"
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fd = _locked(path, operation | fcntl.LOCK_NB)
    except OSError as e:
        raise CniError(
            Code.IO_FAILURE,
            f"{path}: {e.strerror}",
            f"{FOLDER} must be a folder of root's that can be written",
        ) from e
    try:
        yield
    finally:
        _release(path, fd)


def _locked(path: str, operation: int) -> int:
    """The open lock file with the lock on it; one that was removed meanwhile is made anew."""
    deadline = monotonic() + _PATIENCE_S
    pause = 0.0002
    _make_folder()
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, operation)
            if _is_current(path, fd):
                return fd
        except BlockingIOError:
            pause = min(pause * 1.5, 0.01)
        os.close(fd)
        if monotonic() > deadline:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"{path}: another process holds this lock",
                "it is held for milliseconds only: see who has it (fuser), and why it hangs",
            )
        sleep(pause)


def _make_folder() -> None:
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
