"""The agent's socket: one agent for each path, never a moment without an owner.

The agent holds a lock beside its socket for as long as it lives, so a socket whose lock is free
was left by a dead agent and is replaced, by a rename. An agent that ends takes its socket's name
away first and serves whoever had connected by then: nobody's call is lost.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from socket import AF_UNIX, SHUT_RDWR, SOCK_CLOEXEC, SOCK_STREAM, socket

from cni_plugin.spec import CniError, Code

_BACKLOG = 4096
_LONGEST_PATH = 107  # sun_path of unix(7), less the zero at its end


class BusyError(CniError):
    """Another agent serves this socket."""


class Listener:
    """A listening UNIX socket at `path`, mode 0600. Raises BusyError (code 11), CniError 5, 7."""

    def __init__(self, path: str) -> None:
        if not os.path.isabs(path) or len(os.fsencode(path)) > _LONGEST_PATH:
            raise CniError(
                Code.INVALID_CONFIG,
                f"socket: {path} can't be the path of a socket",
                f"expected an absolute path of at most {_LONGEST_PATH} bytes",
            )
        self.path = path
        try:
            _make_folder(os.path.dirname(path))
            self._lock = _locked(lock_path(path))
            try:
                self.socket = _bound(path)
                self._identity = _identity(path)
            except OSError:
                os.close(self._lock)
                raise
        except OSError as e:
            raise CniError(Code.IO_FAILURE, f"socket: can't listen at {path}: {e.strerror}") from e

    def withdraw(self) -> None:
        """Take the name away: no new client finds us. `accept` then fails, after those who had
        come before."""
        with suppress(FileNotFoundError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)
        with suppress(OSError):  # it was withdrawn before
            self.socket.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """Give up socket and lock, after `withdraw`."""
        self.socket.close()
        with suppress(FileNotFoundError):
            os.unlink(lock_path(self.path))
        os.close(self._lock)


def lock_path(path: str) -> str:
    """The lock of the agent that serves the socket at `path`."""
    return path + ".lock"


def is_served(path: str) -> bool:
    """Whether an agent holds the socket's lock."""
    try:
        fd = os.open(lock_path(path), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


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


def _locked(path: str) -> int:
    """The lock file, with the lock on it; one that its last owner removed is made anew."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd)):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError as e:
            os.close(fd)
            raise BusyError(
                Code.TRY_AGAIN_LATER,
                f"socket: another agent serves {path.removesuffix('.lock')}",
                "stop that one first, or choose another socket",
            ) from e
        os.close(fd)


def _bound(path: str) -> socket:
    """Bound under a name of our own, then renamed: a dead agent's socket gives way at once."""
    listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    own = f"{path}.{os.getpid() % 10_000_000}"[-_LONGEST_PATH:]
    own = os.path.join(os.path.dirname(path), os.path.basename(own))
    try:
        before = os.umask(0o177)
        try:
            with suppress(FileNotFoundError):
                os.unlink(own)
            listening.bind(own)
        finally:
            os.umask(before)
        listening.listen(_BACKLOG)
        os.rename(own, path)
    except BaseException:
        listening.close()
        with suppress(OSError):
            os.unlink(own)
        raise
    return listening


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino
