"""Who has the overlay's VNI and UDP port on this node: other VXLAN devices, other programs.

The kernel refuses a second VXLAN device of one VNI and port, and devices share the port's socket
as long as they are alike; one that takes any VNI ("external", as Cilium's) is not. `refuse_taken`
tells the same beforehand, and only reads where nobody has the port.
"""

from __future__ import annotations

import errno as errnos
import socket

from cni_plugin.kernel import messages
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.overlaymessages import Vxlan
from cni_plugin.spec import CniError, Code
from cni_plugin.typed import Any

_SOCKETS = {4: ("udp", "udp6"), 6: ("udp6",)}  # a socket of both families is listed in udp6


def refuse_taken(route_socket: RouteSocket, vxlan: Vxlan, ours: str) -> None:
    """Raises CniError 103 as making the device would. Devices with the alias `ours` give way."""
    shared = False
    for entry in route_socket.dump(messages.dump_links(kind="vxlan"), whole=False):
        if not _is_at(entry, vxlan):
            continue
        if entry.get_attr("IFLA_IFNAME") == vxlan.name:
            return  # somebody is making it: its alias comes last
        if holds(entry, vxlan) and entry.get_attr("IFLA_IFALIAS") != ours:
            raise vni_taken(vxlan, entry.get_attr("IFLA_IFNAME") or "")
        up = bool(entry["flags"] & messages.IFF_UP)
        shared = shared or (up and not _data(entry).get_attr("IFLA_VXLAN_COLLECT_METADATA"))
    if not shared and _is_listed(vxlan) and _is_bound(vxlan):
        raise port_taken(vxlan)


def holds(entry: Any, vxlan: Vxlan) -> bool:
    """Whether a link, a VXLAN device, has the VNI and the port."""
    return _is_at(entry, vxlan) and _data(entry).get_attr("IFLA_VXLAN_ID") == vxlan.vni


def holder(route_socket: RouteSocket, vxlan: Vxlan) -> str:
    """The name of the device that has our VNI and port, "" if it can't be found."""
    for entry in route_socket.dump(messages.dump_links(kind="vxlan"), whole=False):
        if holds(entry, vxlan):
            return str(entry.get_attr("IFLA_IFNAME"))
    return ""


def vni_taken(vxlan: Vxlan, name: str) -> CniError:
    named = f", {name}," if name else ""
    return CniError(
        Code.LINK_CONFLICT,
        f"vxlan.vni: another VXLAN device of this node{named} has VNI {vxlan.vni} at port"
        f" {vxlan.port}",
        "choose another vxlan.vni or vxlan.port on all nodes, or remove that device",
    )


def port_taken(vxlan: Vxlan) -> CniError:
    return CniError(
        Code.LINK_CONFLICT,
        f"vxlan.port: UDP port {vxlan.port} of this node is taken",
        "choose another vxlan.port on all nodes; `ss -lunp` shows who has it",
    )


def _data(entry: Any) -> Any:
    return entry.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")


def _is_at(entry: Any, vxlan: Vxlan) -> bool:
    """Whether the device listens at the port, in the family that carries the overlay."""
    data = _data(entry)
    version = 6 if data.get_attr("IFLA_VXLAN_LOCAL6") or data.get_attr("IFLA_VXLAN_GROUP6") else 4
    return data.get_attr("IFLA_VXLAN_PORT") == vxlan.port and version == vxlan.local.version


def _is_listed(vxlan: Vxlan) -> bool:
    """Whether some socket has the port, at whatever address."""
    ending = f":{vxlan.port:04X}".encode()
    for name in _SOCKETS[vxlan.local.version]:
        try:
            with open(f"/proc/thread-self/net/{name}", "rb") as sockets:
                if any(line.split(None, 2)[1].endswith(ending) for line in sockets):
                    return True
        except OSError:  # a kernel without the family
            continue
    return False


def _is_bound(vxlan: Vxlan) -> bool:
    """Whether the kernel would refuse the port to the device. Only asked where somebody has it:
    for a moment this takes it from a call that makes the device."""
    family = socket.AF_INET if vxlan.local.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        if vxlan.local.version == 6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(("", vxlan.port))
        except OSError as e:
            return e.errno == errnos.EADDRINUSE
    return False
