"""What one system call tells of a link, in a microsecond and without waiting: netlink takes thirty,
and its answers wait for the lock that every change of a link holds.

Rules:
- The ioctls of netdevice(7) are for links that are there. For a name that is not, they make the
  kernel run modprobe, which takes milliseconds.
- The namespace is that of the socket, whichever the thread is in.
"""

from __future__ import annotations

import struct
from errno import ENODEV, EPERM
from fcntl import ioctl

from cni_plugin.kernel import messages
from cni_plugin.kernel.netlink import KernelError, RouteSocket

_SIOCGIFNAME, _SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFINDEX = 0x8910, 0x8913, 0x8921, 0x8933
_IFF_RUNNING = 0x40
_IFREQ = struct.Struct("16si20x")  # struct ifreq: the name, and a number
_IFREQ_FLAGS = struct.Struct("16sH22x")  # the same, with a short one


def exists(route_socket: RouteSocket, name: str) -> bool:
    """Whether there is a link of this name.

    The socket is bound to the link that it finds (socket(7), SO_BINDTODEVICE), which means nothing
    to netlink; a socket is to be asked until it has found one.
    """
    try:
        route_socket.bind_to_device(name)
    except OSError as e:
        if e.errno == EPERM:  # before Linux 5.7 this needs CAP_NET_RAW
            return route_socket.get(messages.get_link(name)) is not None
        if e.errno == ENODEV:
            return False
        raise KernelError(e.errno or 0, f"look for link {name}") from e
    return True


def present(route_socket: RouteSocket, index: int) -> bool:
    """Whether there is a link with this interface index."""
    try:
        ioctl(route_socket.fileno(), _SIOCGIFNAME, _IFREQ.pack(b"", index))
    except OSError as e:
        if e.errno == ENODEV:
            return False
        raise KernelError(e.errno or 0, f"look for link {index}") from e
    return True


def index(route_socket: RouteSocket, name: str) -> int:
    """The interface index of a link that is there; 0 when it has gone."""
    return _number(route_socket, _SIOCGIFINDEX, name, "index")


def mtu(route_socket: RouteSocket, name: str) -> int:
    """The MTU of a link that is there, in bytes; 0 when it has gone."""
    return _number(route_socket, _SIOCGIFMTU, name, "MTU")


def runs(route_socket: RouteSocket, name: str) -> bool:
    """Whether the kernel sends by a link: up, and not found without a carrier. True when it has
    gone: there is nothing to wait for."""
    try:
        request = _IFREQ_FLAGS.pack(name.encode(), 0)
        reply = ioctl(route_socket.fileno(), _SIOCGIFFLAGS, request)
    except OSError as e:
        if e.errno == ENODEV:
            return True
        raise KernelError(e.errno or 0, f"read the flags of link {name}") from e
    return bool(_IFREQ_FLAGS.unpack(reply)[1] & _IFF_RUNNING)


def _number(route_socket: RouteSocket, request: int, name: str, what: str) -> int:
    try:
        reply = ioctl(route_socket.fileno(), request, _IFREQ.pack(name.encode(), 0))
    except OSError as e:
        if e.errno == ENODEV:
            return 0
        raise KernelError(e.errno or 0, f"read the {what} of link {name}") from e
    return int(_IFREQ.unpack(reply)[1])
