"""The system calls of the client, under CPython; in the executable a C module has this name.

Both have the same functions (launcher/sysio/modsysio.c is the other), which raise OSError with
the errno. They wrap system calls and hold no policy. A call that a signal interrupts goes on.
Paths are str or bytes, and one with a zero byte is EINVAL. Descriptors that are made here don't
outlive execve, but for those of `dup2` and `inherit`.
"""

from __future__ import annotations

import _socket  # the module socket wraps this one, and takes 10 ms to import
import fcntl
import os
import select
import struct
import time
from errno import EINVAL, ENAMETOOLONG, EPIPE

_SOL_SOCKET = _socket.SOL_SOCKET
_LONGEST_SOCKET_PATH = 107  # unix(7): sun_path has 108 bytes, and a zero ends the path


# --- the process ------------------------------------------------------------------------------


def environ() -> bytes:
    """The environment as NAME=VALUE entries, each ended by a zero byte."""
    return b"".join(name + b"=" + value + b"\0" for name, value in os.environb.items())


def now() -> int:
    """Milliseconds of the monotonic clock."""
    return time.monotonic_ns() // 1_000_000


def clock() -> int:
    """Seconds since 1970."""
    return int(time.time())


def geteuid() -> int:
    return os.geteuid()


def getpid() -> int:
    return os.getpid()


def strerror(errno: int) -> str:
    return os.strerror(errno)


def execve(path: str | bytes, argv: list[str | bytes], environ: bytes) -> None:
    """Execute a program in place of this one; returns only by OSError.

    `environ`: as `environ()` returns it; entries without `=` are lost here, not in C.
    """
    entries = (entry.partition(b"=") for entry in environ.split(b"\0") if entry)
    words = [_path(word) for word in argv]
    os.execve(_path(path), words, {name: value for name, _, value in entries})  # noqa: S606


# --- descriptors ------------------------------------------------------------------------------


def open_path(path: str | bytes) -> int:
    """A descriptor that names the file and opens it for nothing (O_PATH): it never blocks."""
    return os.open(_path(path), os.O_PATH | os.O_CLOEXEC)


def open_file(path: str | bytes, flags: int, mode: int) -> int:
    """open(2)."""
    return os.open(_path(path), flags | os.O_CLOEXEC, mode)


def memfd(data: bytes) -> int:
    """A file in memory that holds `data`, positioned at its start."""
    fd = os.memfd_create("podwire", os.MFD_CLOEXEC)
    try:
        write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def close(fd: int) -> None:
    os.close(fd)


def dup2(fd: int, number: int) -> None:
    """Give the open file another number as well, under which it outlives execve."""
    if fd == number:  # dup2(2) leaves such a one as it is
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, number, inheritable=True)


def inherit(fd: int) -> None:
    """Let the descriptor outlive execve."""
    os.set_inheritable(fd, True)


def seek(fd: int, offset: int, whence: int) -> int:
    """lseek(2): the new position."""
    return os.lseek(fd, offset, whence)


def read(fd: int, size: int) -> bytes:
    """At most `size` bytes; b"" at the end."""
    return os.read(fd, size)


def write(fd: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def wait(fd: int, timeout_ms: int) -> bool:
    """Whether `fd` can be read, or has ended, within `timeout_ms`."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def lock(fd: int, exclusive: bool, timeout_ms: int) -> bool:
    """flock(2) on an open file, asked for until it is had; False after `timeout_ms`."""
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    deadline = now() + timeout_ms
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if now() >= deadline:
                return False
            time.sleep(0.005)
        else:
            return True


# --- UNIX sockets -----------------------------------------------------------------------------


def connect(path: str | bytes, timeout_ms: int) -> int:
    """A stream socket connected to the UNIX socket at `path`; connecting, sending and reading
    each fail with EAGAIN after `timeout_ms`."""
    address = _path(path)
    if len(address) > _LONGEST_SOCKET_PATH:
        raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG))
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        timeval = struct.pack("@ll", timeout_ms // 1000, timeout_ms % 1000 * 1000)
        connection.setsockopt(_SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)
        connection.setsockopt(_SOL_SOCKET, _socket.SO_RCVTIMEO, timeval)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection.detach()


def peer_uid(fd: int) -> int:
    """The user at the other end of a UNIX socket when it was connected, or began to listen."""
    connection = _borrow(fd)
    try:
        credentials = connection.getsockopt(_SOL_SOCKET, _socket.SO_PEERCRED, 12)
    finally:
        connection.detach()
    return int(struct.unpack("3i", credentials)[1])


def send(fd: int, data: bytes, passed: int = -1) -> None:
    """Send all of `data` (not empty); the descriptor `passed`, unless -1, goes with the first
    byte. A peer that has gone is EPIPE, never a signal."""
    connection = _borrow(fd)
    try:
        view = memoryview(data)
        rights = [] if passed < 0 else [(_SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", passed))]
        while view:
            sent = connection.sendmsg([view], rights, _socket.MSG_NOSIGNAL)
            if sent == 0:
                raise OSError(EPIPE, os.strerror(EPIPE))
            view = view[sent:]
            rights = []
    finally:
        connection.detach()


def _borrow(fd: int) -> _socket.socket:
    """The socket behind `fd`, to be detached again."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)


# --- files ------------------------------------------------------------------------------------


def inode(path: str | bytes) -> int:
    """The inode number of the file, symbolic links followed."""
    return os.stat(_path(path)).st_ino


def owner_mode(path: str | bytes) -> tuple[int, int]:
    """The user and the mode (st_mode, type of the file included); a link's own, if it is one."""
    found = os.lstat(_path(path))
    return found.st_uid, found.st_mode


def size(path: str | bytes) -> int:
    """Bytes of the file; of a link itself, if it is one."""
    return os.lstat(_path(path)).st_size


def mount_flags(path: str | bytes) -> int:
    """The flags ST_RDONLY, ST_NOEXEC, ... of the mount the file is on: statvfs(3)."""
    return os.statvfs(_path(path)).f_flag


def mtime(path: str | bytes) -> int:
    """When the file was last written, in seconds since 1970; of a link itself, if it is one."""
    return int(os.lstat(_path(path)).st_mtime)


def touch(path: str | bytes) -> None:
    """Set the file's times to now."""
    os.utime(_path(path))


def mkdir(path: str | bytes, mode: int) -> None:
    os.mkdir(_path(path), mode)


def chmod(path: str | bytes, mode: int) -> None:
    os.chmod(_path(path), mode)


def rename(path: str | bytes, to: str | bytes) -> None:
    os.rename(_path(path), _path(to))


def unlink(path: str | bytes) -> None:
    os.unlink(_path(path))


def rmdir(path: str | bytes) -> None:
    os.rmdir(_path(path))


def symlink(target: str | bytes, path: str | bytes) -> None:
    os.symlink(_path(target), _path(path))


def readlink(path: str | bytes) -> str:
    """What a symbolic link holds. Bytes that are no UTF-8 survive in it."""
    return os.fsdecode(os.readlink(_path(path)))


def listdir(path: str | bytes) -> list[str]:
    """The names in a folder, in no order. Bytes that are no UTF-8 survive in them."""
    return [os.fsdecode(name) for name in os.listdir(_path(path))]


def _path(path: str | bytes) -> bytes:
    try:
        encoded = os.fsencode(path)
    except UnicodeError as e:
        raise OSError(EINVAL, os.strerror(EINVAL)) from e
    if b"\0" in encoded:
        raise OSError(EINVAL, os.strerror(EINVAL))
    return encoded
