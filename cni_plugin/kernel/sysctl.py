"""Sysctls of the current network namespace, through /proc/sys/net.

/proc shows each thread the settings of its own network namespace; call from within
`netns.inside` for a pod's.

The kernel keeps an entry "ipv4" and one "ipv6" below /proc/sys/net for each namespace that anybody
looked into, all in one chain, and goes through it at each look-up: 0.3 µs for each pod of the
node, eight times in an ADD. A process that stays looks into an instance of procfs of its own
(`private_root`), and starts a new one before the chain gets long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EROFS

from cni_plugin.kernel import libc
from cni_plugin.spec import CniError, Code

_ROOT = "/proc/sys/net/"
_BELOW = "sys/net/"  # a private root
FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on all architectures
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_CMD_CREATE = 6  # FSCONFIG_CMD_CREATE
_RESTRICTED = 0x2 | 0x4 | 0x8  # MOUNT_ATTR_NOSUID, _NODEV and _NOEXEC
_USES = 64  # look-ups in a private root before the next one


class Folder:
    """Sysctls with a common path, such as "ipv6/conf/eth0/", in the namespace it was opened in."""

    def __init__(self, path: str, fd: int | None = None, below: str = "") -> None:
        """`fd` is the folder, or what has it as `below`, opened for its name only; it stays the
        caller's. None looks up each path from the root."""
        self._path = path
        self._fd = fd
        self._below = below

    def read(self, name: str) -> str | None:
        """The value; None where the kernel has no such sysctl."""
        try:
            fd = self._open(name, os.O_RDONLY)
        except OSError:
            return None
        try:
            return os.read(fd, 256).decode("ascii", "replace").strip()
        finally:
            os.close(fd)

    def write(self, name: str, value: str, required: bool = True) -> None:
        """Set a sysctl.

        One that can't be set and has the value already is no error; one that does not exist (a
        kernel without IPv6) is an error only when `required`.
        """
        try:
            fd = self._open(name, os.O_WRONLY)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as e:
            present = self.read(name)
            if present == value or (present is None and not required):
                return
            raise CniError(
                Code.KERNEL_REFUSED,
                f"can't set sysctl net/{self._path}{name} to {value}: {os.strerror(e.errno or 0)}",
                "is /proc/sys writable, and has the kernel IPv6?",
            ) from e

    def ensure(self, name: str, value: str) -> None:
        """Set a sysctl that most likely is set, and takes the kernel's locks when written."""
        if self.read(name) != value:
            self.write(name, value)

    def _open(self, name: str, flags: int) -> int:
        path = self._below + name if self._fd is not None else f"{_ROOT}{self._path}{name}"
        try:
            return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as e:
            if e.errno != EROFS:
                raise
            return _open_privately(self._path + name, flags, e)


def _open_privately(path: str, flags: int, refused: OSError) -> int:
    """A sysctl in a container that is not privileged: it has /proc/sys read-only, and may all the
    same have CAP_SYS_ADMIN. Raises OSError; `refused` where there is no private root."""
    try:
        root = private_root()
    except OSError:
        raise refused from None
    try:
        return os.open(f"sys/net/{path}", flags | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.close(root)


_NET = Folder("")


def read(name: str) -> str | None:
    """The value of "ipv6/conf/eth0/accept_ra" and the like; None where the kernel has no such."""
    return _NET.read(name)


def write(name: str, value: str, required: bool = True) -> None:
    """`Folder.write` of a sysctl named by its whole path."""
    _NET.write(name, value, required)


class Sysctls:
    """What a link of a pod needs set; `close` when done. One thread uses it.

    `resident` is for a process that serves many pods, and looks up by a private root where the
    kernel (Linux 5.8) and its security modules allow it.
    """

    def __init__(self, resident: bool = False) -> None:
        self._resident = resident
        self._root: int | None = None
        self._uses = 0

    def close(self) -> None:
        if self._root is not None:
            os.close(self._root)
            self._root = None

    @property
    def _all(self) -> Folder:
        """For who needs no more than one of a folder."""
        root = self._private()
        return _NET if root is None else Folder("", root, _BELOW)

    @contextmanager
    def folder(self, path: str) -> Iterator[Folder]:
        """The sysctls below `path`, which ends with a slash."""
        root = self._private()
        name = _ROOT + path if root is None else _BELOW + path
        try:
            fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        except FileNotFoundError:  # a kernel without IPv6
            yield Folder(path)
            return
        try:
            yield Folder(path, fd)
        finally:
            os.close(fd)

    def _private(self) -> int | None:
        if not self._resident:
            return None
        if self._uses == 0:
            self.close()
            with suppress(OSError):
                self._root = private_root()
        self._uses = (self._uses + 1) % _USES
        return self._root

    def quieten(self, link: str, dad: bool, ipv6: bool) -> None:
        """What a link must have before it comes up.

        No address or route by router advertisements (CVE-2020-10749). Without `dad`, no duplicate
        address detection for the link-local address either. With `ipv6`, IPv6 switched on: a
        runtime may have switched it off for new links.
        """
        with self.folder(f"ipv6/conf/{link}/") as folder:
            for name in ("accept_ra", "autoconf"):
                folder.write(name, "0", required=False)
            if not dad:
                folder.write("accept_dad", "0", required=False)
            if ipv6:
                folder.ensure("disable_ipv6", "0")

    @contextmanager
    def announcing(self, link: str, version: int) -> Iterator[None]:
        """For the block, the kernel announces a link's addresses when its MAC address is set."""
        name = "arp_notify" if version == 4 else "ndisc_notify"
        with self.folder(f"ipv{version}/conf/{link}/") as folder:
            before = folder.read(name)
            if before is None or before == "1":
                yield
                return
            folder.write(name, "1")
            try:
                yield
            finally:
                folder.write(name, before)

    def generate_link_local(self, link: str) -> None:
        """Let a link that was kept from it have its IPv6 link-local address, by the way that is
        usual in its namespace."""
        usual = self._all.read("ipv6/conf/default/addr_gen_mode")
        if usual is not None:
            self._all.write(f"ipv6/conf/{link}/addr_gen_mode", usual, required=False)

    def forward(self, version: int) -> None:
        """Let the node forward packets of an IP version."""
        self._all.ensure(FORWARDING[version], "1")


def private_root() -> int:
    """A descriptor of the root of an instance of procfs that is mounted nowhere (fsmount(2))."""
    context = libc.syscall(_FSOPEN, b"proc", _CLOEXEC)
    try:
        libc.syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return libc.syscall(_FSMOUNT, context, _CLOEXEC, _RESTRICTED)
    finally:
        os.close(context)


def enable_ipv6(link: str) -> None:
    """A runtime may have switched IPv6 off for new links; an IPv6 address needs it."""
    _NET.ensure(f"ipv6/conf/{link}/disable_ipv6", "0")
