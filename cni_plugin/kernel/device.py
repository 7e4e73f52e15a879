"""What one ioctl tells of a link (netdevice(7)): in a microsecond, where netlink takes thirty.

The namespace is that of the socket, whichever the thread is in.
"""

from __future__ import annotations

import struct
from errno import ENODEV
from fcntl import ioctl

from cni_plugin.kernel.netlink import KernelError, RouteSocket

_SIOCGIFMTU, _SIOCGIFINDEX = 0x8921, 0x8933
_IFREQ = struct.Struct("16si20x")  # struct ifreq: the name, and a number


def index(route_socket: RouteSocket, name: str) -> int:
    """The interface index of the link with this name; 0 when there is none."""
    return _asked(route_socket, _SIOCGIFINDEX, name, "index")


def mtu(route_socket: RouteSocket, name: str) -> int:
    """The MTU of the link with this name, in bytes; 0 when there is none."""
    return _asked(route_socket, _SIOCGIFMTU, name, "MTU")


def _asked(route_socket: RouteSocket, request: int, name: str, what: str) -> int:
    try:
        reply = ioctl(route_socket.fileno(), request, _IFREQ.pack(name.encode(), 0))
    except OSError as e:
        if e.errno == ENODEV:
            return 0
        raise KernelError(e.errno or 0, f"read the {what} of link {name}") from e
    return int(_IFREQ.unpack(reply)[1])
