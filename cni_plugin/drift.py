"""CHECK, decided without the kernel: a pod's network as planned against what was observed.

`kernel` fills an `Observed`; `drift` lists every difference in words. Additions by others are no
drift: a chained plugin may add addresses, routes and rules of its own (CNI specification,
section 2, CHECK).
"""

from __future__ import annotations

from collections.abc import Iterator

from cni_plugin.datapath import SCOPE_LINK, Bridge, HostVeth, PodLink, PodNetwork
from cni_plugin.spec import IPAddress, IPInterface, IPNetwork, Route
from cni_plugin.typed import NamedTuple


class LinkState(NamedTuple):
    """A link as the kernel shows it. `master`, `peer` and `ifindex` are interface indexes, 0 for
    none; `peer` is a veth's other end, when that is in another network namespace."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    promisc: bool
    forwarding: bool
    master: int
    peer: int
    alias: str
    hairpin: bool
    isolated: bool


class RouteState(NamedTuple):
    """A unicast route."""

    dst: IPNetwork
    gw: IPAddress | None
    table: int
    scope: int


class Observed(NamedTuple):
    """What the kernel holds of one attachment; None for a link that does not exist."""

    pod: LinkState | None
    pod_addresses: tuple[IPInterface, ...] = ()
    pod_routes: tuple[RouteState, ...] = ()
    host: LinkState | None = None
    host_addresses: tuple[IPInterface, ...] = ()
    host_routes: tuple[RouteState, ...] = ()
    bridge: LinkState | None = None
    bridge_addresses: tuple[IPInterface, ...] = ()
    forwarding: tuple[int, ...] = ()


MAIN_TABLE = 254  # RT_TABLE_MAIN, include/uapi/linux/rtnetlink.h


def drift(network: PodNetwork, pod_mac: str, seen: Observed) -> list[str]:
    """Each difference as a sentence that names the object; [] when all is as it should be.

    `pod_mac` is the MAC address that prevResult names, "" if none: a chained plugin may have
    changed it, and then reported so.
    """
    found = list(_pod_drift(network.pod, pod_mac, seen))
    found += _host_drift(network.host, seen)
    if network.bridge is not None:
        found += _bridge_drift(network.bridge, network.host, seen)
    found += [
        f"IPv{version} forwarding is off on the node"
        for version in network.forwarding
        if version not in seen.forwarding
    ]
    return found


def _pod_drift(pod: PodLink, pod_mac: str, seen: Observed) -> Iterator[str]:
    link = seen.pod
    if link is None:
        yield f"the pod's interface {pod.name} does not exist"
        return
    if link.kind != "veth":
        yield f"the pod's interface {pod.name} is a {link.kind or 'device'}, not a veth"
    if seen.host is not None and link.peer != seen.host.ifindex:
        yield f"the pod's interface {pod.name} is not the other end of {seen.host.name}"
    if not link.up:
        yield f"the pod's interface {pod.name} is down"
    if pod_mac and link.mac != pod_mac:
        yield f"the pod's interface {pod.name} has MAC address {link.mac}, expected {pod_mac}"
    where = f"the pod's interface {pod.name}"
    yield from _missing_addresses(where, pod.addresses, seen.pod_addresses)
    for route in pod.routes:
        if not any(_same_route(route, state) for state in seen.pod_routes):
            via = f" via {route.gw}" if route.gw is not None else ""
            yield f"the pod's route to {route.dst}{via} is missing"


def _same_route(route: Route, state: RouteState) -> bool:
    scope = route.scope if route.scope is not None and route.dst.version == 4 else None
    return (
        route.dst == state.dst
        and route.gw == state.gw
        and (route.table or MAIN_TABLE) == state.table
        and (scope is None or scope == SCOPE_LINK or scope == state.scope)
    )


def _missing_addresses(
    where: str, wanted: tuple[IPInterface, ...], present: tuple[IPInterface, ...]
) -> Iterator[str]:
    for address in wanted:
        if address not in present:
            yield f"{where} lacks the address {address}"


def _host_drift(host: HostVeth, seen: Observed) -> Iterator[str]:
    link = seen.host
    if link is None:
        yield f"the host's interface {host.name} does not exist"
        return
    if not link.up:
        yield f"the host's interface {host.name} is down"
    where = f"the host's interface {host.name}"
    yield from _missing_addresses(where, host.addresses, seen.host_addresses)
    present = {route.dst for route in seen.host_routes}
    for dst in host.routes:
        if dst not in present:
            yield f"the host's route to {dst} through {host.name} is missing"


def _bridge_drift(bridge: Bridge, host: HostVeth, seen: Observed) -> Iterator[str]:
    link = seen.bridge
    if link is None:
        yield f"the bridge {bridge.name} does not exist"
        return
    if link.kind != "bridge":
        yield f"{bridge.name} is a {link.kind or 'device'}, not a bridge"
    if not link.up:
        yield f"the bridge {bridge.name} is down"
    if bridge.promisc and not link.promisc:
        yield f"the bridge {bridge.name} is not promiscuous"
    where = f"the bridge {bridge.name}"
    yield from _missing_addresses(where, bridge.gateways, seen.bridge_addresses)
    port = seen.host
    if port is None:
        return
    if port.master != link.ifindex:
        yield f"the host's interface {host.name} is not a port of the bridge {bridge.name}"
    else:
        for flag, wanted, actual in (
            ("hairpin", host.hairpin, port.hairpin),
            ("port isolation", host.isolated, port.isolated),
        ):
            if wanted != actual:
                yield f"{flag} of {host.name} is {_on(actual)}, expected {_on(wanted)}"


def _on(value: bool) -> str:
    return "on" if value else "off"
