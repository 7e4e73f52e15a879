"""The VXLAN device of this node.

Ours is a VXLAN device named pwvx<vni> that has our alias, or the link-layer address that is
derived for this node: a call that was killed may have left the alias out. Another link of that
name is an error. One with our alias and another name is of a network as it was configured before,
or somebody renamed it, and goes.

The device learns nothing, has no group and no link-local address: it knows what `overlayentries`
tells it.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterable
from ipaddress import ip_address

from cni_plugin.kernel import (
    device,
    messages,
    observe,
    offload,
    overlaymessages,
    overlayport,
    sysctl,
)
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.overlaymessages import Vxlan
from cni_plugin.spec import CniError, Code, IPInterface
from cni_plugin.typed import Any, NamedTuple

ALIAS = "podwire overlay"
_IPV6_LEAST_MTU = 1280  # RFC 8200, section 5
# IPv6 routers drop what is too large instead of fragmenting it, and say so to the node. It passes
# that on to the pod when a forwarded IPv4 packet is held against what was learned of the path,
# which is off by default.
_USE_LEARNED_MTU = "ipv4/ip_forward_use_pmtu"


class Device(NamedTuple):
    """The overlay's device as it should be or is. `checksums` is whether it leaves these to what
    comes behind it; `ifindex` is 0 where there is none yet. `plain` is whether it learns nothing,
    has no group and no TTL of its own, `sound` whether it is up and ours by its alias."""

    vxlan: Vxlan
    addresses: frozenset[IPInterface]
    checksums: bool
    ifindex: int = 0
    plain: bool = True
    sound: bool = True


def device_name(vni: int) -> str:
    return f"pwvx{vni}"


# --- looking ------------------------------------------------------------------------------------


def look(route_socket: RouteSocket, name: str, mac: str) -> Device | None:
    """The device of this name; None when there is none.

    Raises CniError 103 when it is not podwire's.
    """
    entry = route_socket.get(messages.get_link(name))
    if entry is None:
        return None
    link = observe.state(entry)
    if link.kind != "vxlan" or not (link.alias == ALIAS or link.mac == mac):
        raise CniError(
            Code.LINK_CONFLICT,
            f"vxlan.vni: the overlay's device is {name}, and this node has another link of that"
            f" name, a {link.kind or 'device'} that is not podwire's",
            f"see `ip -d link show {name}`: rename or remove it, or choose another vxlan.vni",
        )
    data = entry.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    vxlan = Vxlan(
        name,
        data.get_attr("IFLA_VXLAN_ID") or 0,
        data.get_attr("IFLA_VXLAN_PORT") or 0,
        link.mac,
        ip_address(data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6") or 0),
        data.get_attr("IFLA_VXLAN_LINK") or 0,
        link.mtu,
    )
    odd = data.get_attr("IFLA_VXLAN_LEARNING") or _has_group(data)
    odd = odd or data.get_attr("IFLA_VXLAN_TTL")  # too low a one ends at a router
    return Device(
        vxlan,
        frozenset(a for a in observe.addresses(route_socket, link.ifindex) if not _local(a)),
        offload.tx_checksum(route_socket, name),
        link.ifindex,
        not odd,
        link.up and link.alias == ALIAS and _minds_path(vxlan),
    )


def _minds_path(vxlan: Vxlan) -> bool:
    return vxlan.local.version == 4 or sysctl.read(_USE_LEARNED_MTU) == "1"


def _has_group(data: Any) -> bool:
    return bool(data.get_attr("IFLA_VXLAN_GROUP") or data.get_attr("IFLA_VXLAN_GROUP6"))


def _local(address: IPInterface) -> bool:
    return address.version == 6 and address.ip.is_link_local


def strays(route_socket: RouteSocket, kept: str = "") -> list[str]:
    """The names of our devices, without `kept`."""
    links = [observe.state(e) for e in route_socket.dump(messages.dump_links(kind="vxlan"))]
    return [link.name for link in links if link.name != kept and link.alias == ALIAS]


def make_room(route_socket: RouteSocket, names: Iterable[str], wanted: Device) -> None:
    """Remove those of our devices that have the wanted one's VNI and port."""
    for name in names:
        entry = route_socket.get(messages.get_link(name))
        if entry is not None and overlayport.holds(entry, wanted.vxlan):
            remove(route_socket, name)


# --- the device -----------------------------------------------------------------------------------


def fits(wanted: Device, present: Device) -> bool:
    """Whether the device can become as it should be without being made anew.

    One that was too narrow for IPv6 has lost its settings, and gets the usual ones when it widens.
    """
    lost = present.vxlan.mtu < _IPV6_LEAST_MTU and _carries_ipv6(wanted)
    return (
        not lost
        and present.plain
        and wanted.vxlan._replace(mtu=0, mac="") == present.vxlan._replace(mtu=0, mac="")
    )


def _carries_ipv6(wanted: Device) -> bool:
    return any(address.version == 6 for address in wanted.addresses)


def same(wanted: Device, present: Device) -> bool:
    """Whether there is nothing to do to the device."""
    return (
        present.sound
        and wanted.vxlan == present.vxlan
        and present.plain
        and wanted.addresses == present.addresses
        and wanted.checksums == present.checksums
    )


def make(route_socket: RouteSocket, wanted: Device) -> int:
    """Make the device as it should be; its interface index. It exists whole or not at all.

    Raises CniError: 103 when another link has the name, the network identifier or the port, 104
    for what the kernel refuses otherwise.
    """
    name = wanted.vxlan.name
    refuse_small_mtu(wanted)
    try:
        route_socket.batch([overlaymessages.create_vxlan(wanted.vxlan)])
    except KernelError as e:
        raise _explained(route_socket, e, wanted.vxlan) from e
    try:
        index = device.index(route_socket, name)
        adjust(route_socket, wanted, Device(wanted.vxlan, frozenset(), True, index, sound=False))
    except BaseException:
        route_socket.batch([messages.delete_link(name)], ignore=(errnos.ENODEV,))
        raise
    return index


def adjust(route_socket: RouteSocket, wanted: Device, present: Device) -> None:
    """Turn a device that `fits` into the wanted one."""
    name, index = wanted.vxlan.name, present.ifindex
    batch = []
    if wanted.vxlan.mac != present.vxlan.mac:
        batch.append(messages.set_mac(index, name, wanted.vxlan.mac))
    if wanted.vxlan.mtu != present.vxlan.mtu:
        refuse_small_mtu(wanted)
        batch.append(overlaymessages.set_mtu(index, name, wanted.vxlan.mtu))
    try:
        route_socket.batch(batch)
        if not present.sound:
            _raise(route_socket, wanted, index)
        # First the new ones: with its last IPv4 address a link loses its routes and neighbours.
        for address in sorted(wanted.addresses - present.addresses, key=str):
            route_socket.batch(
                [messages.add_address(address, index, name, dad=False)], ignore=(errnos.EEXIST,)
            )
        for address in present.addresses - wanted.addresses:
            route_socket.batch(
                [messages.delete_address(address, index, name)], ignore=(errnos.EADDRNOTAVAIL,)
            )
    except KernelError as e:
        raise _explained(route_socket, e, wanted.vxlan) from e
    if wanted.checksums != offload.tx_checksum(route_socket, name):
        offload.set_tx_checksum(route_socket, name, wanted.checksums)


def _raise(route_socket: RouteSocket, wanted: Device, index: int) -> None:
    """Bring the device up, with nothing on it that nobody asked for."""
    name = wanted.vxlan.name
    route_socket.batch([messages.no_link_local(index, name)], ignore=(errnos.EAFNOSUPPORT,))
    sysctls = sysctl.Sysctls()
    try:
        sysctls.quieten(name, dad=False, ipv6=_carries_ipv6(wanted))
    finally:
        sysctls.close()
    if not _minds_path(wanted.vxlan):
        sysctl.write(_USE_LEARNED_MTU, "1")
    route_socket.batch([overlaymessages.raise_vxlan(index, name, ALIAS)])


def remove(route_socket: RouteSocket, name: str) -> None:
    """Delete a device, and with it its routes, neighbours and forwarding entries."""
    route_socket.batch([messages.delete_link(name)], ignore=(errnos.ENODEV,))


def refuse_small_mtu(wanted: Device) -> None:
    """Raises CniError 104 where IPv6 is wanted: the kernel has none on a link below 1280 bytes."""
    mtu = wanted.vxlan.mtu
    if mtu < _IPV6_LEAST_MTU and _carries_ipv6(wanted):
        raise CniError(
            Code.KERNEL_REFUSED,
            f"the overlay's MTU is {mtu} bytes, and IPv6 needs {_IPV6_LEAST_MTU}",
            "widen the path between the nodes or, if vxlan.mtu is set, that; or remove the IPv6"
            " podCIDRs",
        )


def _explained(route_socket: RouteSocket, error: KernelError, vxlan: Vxlan) -> CniError:
    if error.errno == errnos.EEXIST:
        return overlayport.vni_taken(vxlan, overlayport.holder(route_socket, vxlan))
    if error.errno == errnos.EADDRINUSE:
        return overlayport.port_taken(vxlan)
    if error.errno == errnos.EOPNOTSUPP:
        error.details = "the kernel lacks VXLAN: load the module vxlan, or set backend to host-gw"
    if error.errno == errnos.EINVAL and vxlan.mtu:
        error.details = f"is the MTU, {vxlan.mtu} bytes, more than the underlay leaves? (vxlan.mtu)"
    return error
