"""Network namespaces and files that go when the process ends, however it ends.

Network namespaces are held by file descriptors, files lie on a tmpfs that only this process sees. A
plugin gets a namespace by the path /proc/<pid>/fd/<fd>. The benchmark enters a node's namespace
itself and starts the plugin there, so that no `nsenter` is part of what is measured.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_PRIVATE_TREE = 0x44000  # MS_REC | MS_PRIVATE
_MNT_DETACH = 2
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace of its own; `node` brings its loopback up. The caller closes it."""

    def __init__(self, node: bool = False) -> None:
        own = os.open(_OWN, os.O_RDONLY)
        try:
            _checked(_libc.unshare(_CLONE_NEWNET), "unshare")
            try:
                self._fd = os.open(_OWN, os.O_RDONLY)
                if node:
                    _loopback_up()
            finally:
                _checked(_libc.setns(own, _CLONE_NEWNET), "setns")
        finally:
            os.close(own)

    @property
    def path(self) -> str:
        """What a runtime would give as CNI_NETNS."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        os.close(self._fd)

    def veths(self) -> int:
        """How many host ends of pods it has, by the name that all sides give them."""
        with self.entered(), open("/proc/thread-self/net/dev") as lines:
            return len([line for line in lines if line.lstrip().startswith("veth")])

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and what it starts, is in the namespace for the block."""
        own = os.open(_OWN, os.O_RDONLY)
        try:
            _checked(_libc.setns(self._fd, _CLONE_NEWNET), "setns")
            try:
                yield
            finally:
                _checked(_libc.setns(own, _CLONE_NEWNET), "setns")
        finally:
            os.close(own)


@contextmanager
def private_run() -> Iterator[None]:
    """The process moves to a mount namespace of its own, and stays there.

    /run, where plugins keep what they know of a node, is a folder in memory of its own until the
    end of the block: what they keep for namespaces that are gone would stay there for ever.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, _MS_PRIVATE_TREE, None), "make / private")
    with _tmpfs("/run", 0o755):
        yield


@contextmanager
def memory() -> Iterator[str]:
    """A folder in memory, with `private_run`."""
    with (
        tempfile.TemporaryDirectory(prefix="podwire-bench-") as folder,
        private_run(),
        _tmpfs(folder, 0o700),
    ):
        yield folder


@contextmanager
def _tmpfs(path: str, mode: int) -> Iterator[None]:
    encoded = os.fsencode(path)
    options = f"mode={mode:o}".encode()
    _checked(_libc.mount(b"tmpfs", encoded, b"tmpfs", 0, options), f"mount {path}")
    try:
        yield
    finally:
        _libc.umount2(encoded, _MNT_DETACH)


def _checked(result: int, what: str) -> None:
    if result:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
