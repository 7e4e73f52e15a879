"""The bridge of a node that follows a cluster, kept as the pods on it need it: up, with the
gateways.

Who sets a bridge down takes its IPv6 addresses away; setting it up again brings none of them back.

Rules:
- Only a bridge that podwire made or adopted, and that has ports. Without pods the next ADD is soon
  enough.
- Nothing is taken off it: a gateway that another address is in the way of stays away, and STATUS
  says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EEXIST

from cni_plugin.drift import LinkState
from cni_plugin.kernel import bridge, messages, observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.nodelock import node_lock
from cni_plugin.kernel.sysctl import enable_ipv6
from cni_plugin.netconf import NetConf
from cni_plugin.spec import IPInterface


def regain(route_socket: RouteSocket, conf: NetConf, gateways: Sequence[IPInterface]) -> list[str]:
    """Put back what the bridge of `conf` lacks; what was done, in words. Raises CniError 104 when
    the kernel refuses, and 11 for the lock."""
    link, missing = _lacking(route_socket, conf, gateways)
    if link is None:
        return []
    with node_lock(exclusive=True):
        link, missing = _lacking(route_socket, conf, gateways)
        if link is None:
            return []
        done = []
        if not link.up:
            up = messages.set_bridge(link.ifindex, link.name, conf.promisc, mac="", alias="")
            route_socket.batch([up])
            done.append(f"set bridge {link.name} up")
        for gateway in missing:
            if gateway.version == 6:
                enable_ipv6(link.name)
            add = messages.add_address(gateway, link.ifindex, link.name, conf.enable_dad)
            route_socket.batch([add], ignore=(EEXIST,))
            done.append(f"gave bridge {link.name} the address {gateway}")
    return done


def _lacking(
    route_socket: RouteSocket, conf: NetConf, gateways: Sequence[IPInterface]
) -> tuple[LinkState | None, list[IPInterface]]:
    """The bridge, if it is not as it is to be, and the gateways that it lacks."""
    nothing = None, list[IPInterface]()
    if conf.mode != "bridge":
        return nothing
    link = observe.link(route_socket, conf.bridge)
    if link is None or link.kind != "bridge":
        return nothing
    if link.alias not in (bridge.ALIAS_MADE, bridge.ALIAS_ADOPTED):
        return nothing
    missing = _missing(route_socket, link, gateways) if conf.is_gateway else []
    if (link.up and not missing) or not observe.ports(route_socket, link.ifindex):
        return nothing
    return link, missing


def _missing(
    route_socket: RouteSocket, link: LinkState, gateways: Sequence[IPInterface]
) -> list[IPInterface]:
    present = observe.addresses(route_socket, link.ifindex)
    others = [address for address in present if address not in gateways]
    return [
        gateway
        for gateway in gateways
        if gateway not in present
        and not any(bridge.in_conflict(gateway, other) for other in others)
    ]
