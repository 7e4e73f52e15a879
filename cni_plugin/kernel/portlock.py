"""The lock over a node's records of host ports and the elements they tell of: flock(2) on a file.

Whoever forgets all records removes the file as well, under the lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cni_plugin.kernel.nodelock import make_folder
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.lockwait import LockWait
from cni_plugin.spec import CniError, Code

NAME = ".lock"  # begins like an unfinished file: `StateFolder.names` leaves it out
WHOLE = ".whole"
"""A file that is there since no element was without a record; it goes with the records, should
somebody remove them."""
_PATIENCE_S = 10.0
_LONGEST_PAUSE_S = 0.0002  # it is held for less than a millisecond


@contextmanager
def held(folder: StateFolder) -> Iterator[None]:
    """Hold the lock of a folder. Raises CniError: 11 when it can't be had in time, 5 for its
    file."""
    path = f"{folder.path}/{NAME}"
    try:
        fd = _locked(path)
    except OSError as e:
        remedy = "it must be a folder of root's that can be written"
        raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", remedy) from e
    try:
        yield
    finally:
        os.close(fd)


def _locked(path: str) -> int:
    """The open lock file with the lock on it; one that was removed meanwhile is made anew."""
    wait = LockWait(path, _PATIENCE_S, _LONGEST_PAUSE_S)
    while True:
        fd = _opened(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        wait.pause()


def _opened(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        make_folder()
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        return os.open(path, flags, 0o600)
