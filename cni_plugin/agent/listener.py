"""The agent's socket: one agent for each path, never a moment without an owner.

The agent holds a lock beside its socket for as long as it lives, so a socket whose lock is free
was left by a dead agent and is replaced, by a rename. An agent that ends takes its socket's name
away first and serves whoever had connected by then: nobody's call is lost.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from socket import AF_UNIX, SHUT_RDWR, SOCK_CLOEXEC, SOCK_STREAM, socket

from cni_plugin.agent import lock
from cni_plugin.spec import CniError, Code

_BACKLOG = 4096


class Listener:
    """A listening UNIX socket at `path`, mode 0600. `lock_fd` is its lock, if we were given that.

    Raises lock.BusyError (code 11), CniError 5, 7, 110.
    """

    def __init__(self, path: str, lock_fd: int = -1) -> None:
        _refuse_other(path)
        self.path = path
        try:
            self._lock = lock.take(path) if lock_fd < 0 else lock.inherited(lock_fd, path)
            try:
                self.socket = _bound(path)
                self._identity = _identity(path)
            except OSError:
                os.close(self._lock)
                raise
        except PermissionError as e:
            raise CniError(
                Code.PERMISSION_DENIED,
                f"socket: can't listen at {path}: {e.strerror}",
                "run it as root, or choose a folder of yours with --socket",
            ) from e
        except OSError as e:
            raise CniError(Code.IO_FAILURE, f"socket: can't listen at {path}: {e.strerror}") from e

    def is_ours(self) -> bool:
        """Whether clients still find us: the folder may have been removed, or the name taken."""
        try:
            return _identity(self.path) == self._identity
        except OSError:
            return False

    def withdraw(self) -> None:
        """Take the name away: no new client finds us. `accept` then fails, after those who had
        come before."""
        if self.is_ours():
            os.unlink(self.path)
        with suppress(OSError):  # it was withdrawn before
            self.socket.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """Give up socket and lock, after `withdraw`."""
        self.socket.close()
        lock.give_back(self.path, self._lock)


def _refuse_other(path: str) -> None:
    """Raises CniError 5 when something at this path is not a socket: it is not ours to replace."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):  # nothing is there, or what is wrong comes out at the next step
        return
    if not stat.S_ISSOCK(mode):
        raise CniError(
            Code.IO_FAILURE, f"socket: {path} exists, and is no socket", "name another path"
        )


def _bound(path: str) -> socket:
    """Bound under a name of our own, then renamed: a dead agent's socket gives way at once.

    The folder goes by its descriptor: that name may be longer than the socket's.
    """
    listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    own = f"/proc/self/fd/{folder}/.podwire-{os.getpid()}"
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
    finally:
        os.close(folder)
    return listening


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino
