"""The node's bridge: made by the first pod, shared by all, kept when the last one goes.

Many ADDs run at once on a fresh node, so each step tolerates that another did it first. What an
ADD made of the bridge is taken back when that ADD fails, unless somebody uses it by then; both
happen under the node's lock (`netns.node_lock`).
"""

from __future__ import annotations

import errno as errnos
import os
from contextlib import ExitStack

from cni_plugin.datapath import Bridge
from cni_plugin.drift import LinkState
from cni_plugin.kernel import messages, observe
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.nodelock import node_lock
from cni_plugin.kernel.sysctl import Sysctls, enable_ipv6
from cni_plugin.spec import CniError, Code, IPInterface

ALIAS_MADE = "podwire bridge"
ALIAS_ADOPTED = "podwire bridge (adopted)"


def ready(route_socket: RouteSocket, bridge: Bridge) -> LinkState | None:
    """The bridge, if an earlier ADD made it ready: the common case; a shared lock will do."""
    link = observe.link(route_socket, bridge.name)
    if link is None or link.alias not in (ALIAS_MADE, ALIAS_ADOPTED) or not link.up:
        return None
    refuse_other_kind(link)
    return None if bridge.promisc and not link.promisc else link


def ensure(route_socket: RouteSocket, bridge: Bridge, dad: bool, undo: ExitStack) -> LinkState:
    """The bridge, made if need be, up and marked. Call with the node's lock held exclusively.

    An earlier ADD may have been killed half way, so each step is looked at by itself.
    """
    alias = ALIAS_ADOPTED
    link = observe.link(route_socket, bridge.name)
    if link is None and _create(route_socket, bridge, undo):
        alias = ALIAS_MADE
    link = link or observe.link(route_socket, bridge.name)
    if link is None:
        raise KernelError(errnos.ENODEV, f"find bridge {bridge.name} after its creation")
    refuse_other_kind(link)
    Sysctls().quieten(link.name, dad, ipv6=False)
    mac = link.mac if _may_follow_ports(route_socket, link) else ""
    up = messages.set_bridge(
        link.ifindex, link.name, bridge.promisc, mac=mac, alias="" if link.alias else alias
    )
    route_socket.batch([up])
    return link


def _may_follow_ports(route_socket: RouteSocket, link: LinkState) -> bool:
    """Whether the bridge's MAC address may still be that of its lowest port.

    One that was set by hand, if only to itself, follows no longer; setting it again would make
    the node forget its neighbours.
    """
    macs = [port.mac for port in observe.ports(route_socket, link.ifindex)]
    return not macs or link.mac in macs


def refuse_other_kind(link: LinkState) -> None:
    """Raises CniError 103 when the bridge's name belongs to a link of another kind."""
    if link.kind != "bridge":
        raise CniError(
            Code.LINK_CONFLICT,
            f"bridge: {link.name} exists and is a {link.kind or 'device'}, not a bridge",
            'choose another name with "bridge" in the network configuration',
        )


def refuse_unusable(
    route_socket: RouteSocket, name: str, gateways: tuple[IPInterface, ...]
) -> None:
    """For STATUS: CniError 103 when the bridge exists and an ADD could not use it."""
    link = observe.link(route_socket, name)
    if link is None:
        return
    refuse_other_kind(link)
    if not gateways:
        return
    present = observe.addresses(route_socket, link.ifindex)
    missing = [gateway for gateway in gateways if gateway not in present]  # as an ADD looks at it
    for other in present:
        for gateway in missing:
            if other not in gateways and in_conflict(gateway, other):
                raise _conflict(name, gateway, other)


def _create(route_socket: RouteSocket, bridge: Bridge, undo: ExitStack) -> bool:
    """Make the bridge; False when somebody who does not know our lock was faster.

    Filtered: kube-proxy leads a pod that calls a Service to an endpoint which may be on the same
    bridge, and the endpoint's answer has to be led back on its way to that pod.
    """
    mac = bytearray(os.urandom(6))
    mac[0] = (mac[0] & 0xFC) | 0x02  # locally administered, unicast
    create = messages.create_bridge(bridge.name, mac.hex(":"), bridge.mtu, filtered=True)
    try:
        route_socket.batch([create])
    except KernelError as e:
        if e.errno != errnos.EEXIST:
            undo.callback(_remove_unused, route_socket, bridge.name)  # the reply may be lost
            raise
        return False
    undo.callback(_remove_unused, route_socket, bridge.name)
    return True


def _remove_unused(route_socket: RouteSocket, name: str) -> None:
    """Undo of a creation: the bridge goes, unless another pod has become its port."""
    with node_lock(exclusive=True):
        link = observe.link(route_socket, name)
        if link is not None and not observe.ports(route_socket, link.ifindex):
            route_socket.batch([messages.delete_link(name)], ignore=(errnos.ENODEV,))


def ensure_gateways(
    route_socket: RouteSocket, bridge: Bridge, link: LinkState, dad: bool, undo: ExitStack
) -> None:
    """The gateway addresses on the bridge; CniError 103 when another address is in the way."""
    if not bridge.gateways:
        return
    present = observe.addresses(route_socket, link.ifindex)
    ours = bridge.gateways + bridge.siblings
    missing = [gateway for gateway in bridge.gateways if gateway not in present]
    if any(gateway.version == 6 for gateway in missing):
        enable_ipv6(link.name)
    for gateway in missing:
        for other in present:
            if other not in ours and in_conflict(gateway, other):
                _make_way(route_socket, bridge, link, gateway, other)
                undo.callback(_restore, route_socket, link, other, dad)
        add = messages.add_address(gateway, link.ifindex, link.name, dad)
        undo.callback(_withdraw, route_socket, link, gateway)
        route_socket.batch([add], ignore=(errnos.EEXIST,))


def in_conflict(gateway: IPInterface, other: IPInterface) -> bool:
    """Whether the bridge may not carry both, by the reference's rule.

    One IPv4 network per bridge; several IPv6 networks unless they overlap.
    """
    if gateway.version != other.version:
        return False
    return gateway.version == 4 or gateway.network.overlaps(other.network)


def _make_way(
    route_socket: RouteSocket,
    bridge: Bridge,
    link: LinkState,
    gateway: IPInterface,
    other: IPInterface,
) -> None:
    """Remove an address that is in the gateway's way, if the configuration allows it."""
    if not bridge.force_address:
        raise _conflict(bridge.name, gateway, other)
    route_socket.batch(
        [messages.delete_address(other, link.ifindex, link.name)], ignore=(errnos.EADDRNOTAVAIL,)
    )


def _conflict(name: str, gateway: IPInterface, other: IPInterface) -> CniError:
    return CniError(
        Code.LINK_CONFLICT,
        f"bridge: {name} has the address {other}, the gateway would be {gateway}",
        'remove that address, choose another "bridge", or set "forceAddress": true',
    )


def _restore(route_socket: RouteSocket, link: LinkState, other: IPInterface, dad: bool) -> None:
    """Undo of `_make_way`."""
    route_socket.batch(
        [messages.add_address(other, link.ifindex, link.name, dad)],
        ignore=(errnos.EEXIST, errnos.ENODEV),
    )


def _withdraw(route_socket: RouteSocket, link: LinkState, gateway: IPInterface) -> None:
    """Undo of a gateway address, unless pods have come to use it."""
    with node_lock(exclusive=True):
        present = observe.link(route_socket, link.name)
        if present is None or present.ifindex != link.ifindex:
            return
        if not observe.ports(route_socket, link.ifindex):
            route_socket.batch(
                [messages.delete_address(gateway, link.ifindex, link.name)],
                ignore=(errnos.EADDRNOTAVAIL,),
            )
