"""The lock of an agent's socket: who holds it serves there, or is about to.

It is a file beside the socket, locked for as long as an agent lives, whatever way it ends. The
lock belongs to the open file, so the one who starts an agent can take it and hand it on: of many
who want to start one, one does. What a dead agent left beside a free lock is anybody's to replace.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress

from cni_plugin.spec import CniError, Code

_LONGEST_PATH = 107  # sun_path of unix(7), less the zero at its end


class BusyError(CniError):
    """Another agent serves this socket."""


def lock_path(path: str) -> str:
    """The lock of the agent that serves the socket at `path`."""
    return path + ".lock"


def _make_folder(folder: str) -> None:
    """The socket's folder, for us alone: who can write there could take our place."""
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.stat(folder)
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if status.st_uid not in (0, os.geteuid()) or (others and not status.st_mode & stat.S_ISVTX):
        raise CniError(
            Code.PERMISSION_DENIED,
            f"socket: {folder} can be written by others",
            "choose a folder that belongs to root, or to the user of the agent, alone",
        )


def take(path: str) -> int:
    """The descriptor of the lock of the socket at `path`, locked; the caller's to close.

    Its folder is made where it is missing, and its file anew where the last owner removed it.
    Raises BusyError, CniError 7 for what is no path of a socket, 110 for a folder where others may
    write, OSError.
    """
    if not os.path.isabs(path) or len(os.fsencode(path)) > _LONGEST_PATH:
        raise CniError(
            Code.INVALID_CONFIG,
            f"socket: {path} can't be the path of a socket",
            f"expected an absolute path of at most {_LONGEST_PATH} bytes",
        )
    _make_folder(os.path.dirname(path))
    while True:
        fd = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if _is_locked(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def give_back(path: str, fd: int) -> None:
    """Remove the lock's file, unless it is a successor's by now, and close it."""
    try:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(lock_path(path), follow_symlinks=False), os.fstat(fd)):
                os.unlink(lock_path(path))
    finally:
        os.close(fd)


def inherited(fd: int, path: str) -> int:
    """The same of a lock that whoever started us has taken. Raises BusyError, OSError."""
    os.set_inheritable(fd, False)
    if not _is_locked(fd, path):
        raise _busy(path)
    return fd


def _is_locked(fd: int, path: str) -> bool:
    """Lock it; False when it is not the lock's file, or not any more."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.stat(lock_path(path), follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
    except BlockingIOError as e:
        raise _busy(path) from e


def _busy(path: str) -> BusyError:
    return BusyError(
        Code.TRY_AGAIN_LATER,
        f"socket: another agent serves {path}",
        "stop that one first, or choose another socket",
    )
