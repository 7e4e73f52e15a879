"""Where the checksums of the overlay's packets must not be left to the network card.

A VXLAN device hands packets on with the inner checksum still to be filled in, by the card or, where
that can't, by the kernel just before sending. In some places neither does it right, and the
receiver drops what looks damaged: pings pass, TCP and DNS don't. Without "tx-checksum-ip-generic"
on the VXLAN device the kernel fills it in before encapsulation, which costs throughput, so it is
switched off only where it is known to be broken: `BROKEN` says where, why, and who found it.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from errno import ENODEV, EOPNOTSUPP
from fcntl import ioctl

from cni_plugin.kernel import messages, observe, overlaymessages
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.typed import NamedTuple

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GTXCSUM, _STXCSUM = 0x3, 0x16, 0x17  # include/uapi/linux/ethtool.h
_DRVINFO_BYTES, _DRIVER = 196, slice(4, 36)
_IFREQ = struct.Struct("16sP16x")
_DEPTH = 4  # a VLAN of a bond of network cards, and one more


class Broken(NamedTuple):
    """A place where the offload is broken: a driver ("" for any) below a kernel version (() for
    all), with the reason in words for the log."""

    driver: str
    below: tuple[int, ...]
    reason: str


BROKEN = (
    # Fixed by "netfilter: nat: never update the UDP checksum when it's 0", and worked around for
    # every kernel before by others: flannel-io/flannel#1279, projectcalico/felix#2811.
    Broken("", (5, 7), "kernels before 5.7 damage the UDP checksum when they translate addresses"),
    # The virtual card offloads tunnels, and the hypervisor knows them by its own choice of ports,
    # which a guest can't ask for: projectcalico/calico#4727, #9433, rancher/rancher#33399.
    Broken("vmxnet3", (), "vmxnet3 offloads only the tunnel ports that its hypervisor chooses"),
)


class Offload(NamedTuple):
    """Whether the VXLAN device may leave checksums to what comes behind it; `reason` says why, ""
    when nothing speaks against it."""

    on: bool
    reason: str = ""


def decide(
    mode: str, drivers: Iterable[str], release: str, broken: Sequence[Broken] = BROKEN
) -> Offload:
    """By `vxlan.checksumOffload`, the drivers below the overlay and the kernel's release."""
    if mode != "auto":
        return Offload(mode == "on", f'vxlan.checksumOffload is "{mode}"')
    version = _version(release)
    found = frozenset(drivers)
    for place in broken:
        if place.driver and place.driver not in found:
            continue
        if not place.below or version < place.below:
            return Offload(False, place.reason)
    return Offload(True)


def _version(release: str) -> tuple[int, ...]:
    """(6, 1) of "6.1.0-25-amd64"; a very new one when it can't be read."""
    numbers = release.split("-")[0].split(".")[:2]
    return tuple(map(int, numbers)) if all(n.isdigit() for n in numbers) else (999,)


def detect(route_socket: RouteSocket, mode: str, link: str) -> Offload:
    """What to do on this machine, where the overlay's packets leave by `link` ("" unknown)."""
    found = drivers(route_socket, link) if mode == "auto" and link else ()
    return decide(mode, found, os.uname().release, BROKEN)


# --- what the kernel says -----------------------------------------------------------------------


def drivers(route_socket: RouteSocket, name: str, depth: int = _DEPTH) -> frozenset[str]:
    """The drivers of a link and of those below it: a VLAN's parent, the ports of a bond."""
    link = observe.link(route_socket, name)
    if link is None or not depth:
        return frozenset()
    below = [_name_at(route_socket, index) for index in _lower(route_socket, name)]
    if link.kind in ("bond", "team", "bridge"):
        below += [port.name for port in observe.ports(route_socket, link.ifindex)]
    found = {_driver(route_socket, name)}
    for other in below:
        found |= drivers(route_socket, other, depth - 1)
    return frozenset(found - {""})


def _lower(route_socket: RouteSocket, name: str) -> list[int]:
    """The link a VLAN or macvlan is on, when it is of the same namespace."""
    entry = route_socket.get(messages.get_link(name))
    if entry is None or entry.get_attr("IFLA_LINK_NETNSID") is not None:
        return []
    index = entry.get_attr("IFLA_LINK")
    return [index] if index and index != entry["index"] else []


def _name_at(route_socket: RouteSocket, index: int) -> str:
    entry = route_socket.get(overlaymessages.get_link_at(index))
    return "" if entry is None else observe.state(entry).name


def _driver(route_socket: RouteSocket, name: str) -> str:
    info = array("B", struct.pack("=I", _GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"))
    if not _ask(route_socket, name, info):
        return ""
    return info.tobytes()[_DRIVER].rstrip(b"\0").decode("ascii", "replace")


def tx_checksum(route_socket: RouteSocket, name: str) -> bool:
    """Whether a link leaves checksums to what comes behind it."""
    value = array("I", (_GTXCSUM, 0))
    return _ask(route_socket, name, value) and bool(value[1])


def set_tx_checksum(route_socket: RouteSocket, name: str, on: bool) -> None:
    """Raises CniError 104 when the kernel refuses."""
    if not _ask(route_socket, name, array("I", (_STXCSUM, int(on)))):
        raise KernelError(EOPNOTSUPP, f"switch the checksum offload of {name}")


def _ask(route_socket: RouteSocket, name: str, request: array[int]) -> bool:
    """One request of ethtool's; `request` becomes the answer. False where there is none."""
    address, _ = request.buffer_info()
    try:
        ioctl(route_socket.fileno(), _SIOCETHTOOL, _IFREQ.pack(name.encode(), address))
    except OSError as e:
        if e.errno in (EOPNOTSUPP, ENODEV):
            return False
        raise KernelError(e.errno or 0, f"ask about the offloads of link {name}") from e
    return True
