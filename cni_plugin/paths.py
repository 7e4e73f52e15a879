"""This node's paths to the pods of its peers: what they should be, and what is there.

`survey` asks the kernel how the peers are reached and decides with `ipam.peers`; `State` is what
the kernel holds. `convergence` turns one into the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from cni_plugin.crossnode import CrossNode
from cni_plugin.fields import invalid
from cni_plugin.kernel import device as links
from cni_plugin.kernel import offload, overlay, overlayentries, underlay
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.observe import link
from cni_plugin.kernel.offload import Offload
from cni_plugin.kernel.overlay import Device
from cni_plugin.kernel.overlayentries import NOTHING, Entries
from cni_plugin.kernel.overlaymessages import Vxlan
from cni_plugin.kernel.routetable import KernelRouteTable, Key, Owned, keys_of, owned
from cni_plugin.kernel.underlay import Underlay, Ways
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam import peers as node_peers
from ipam import routes
from ipam.inventory import Inventory, Node
from ipam.peers import Peers

OVERHEAD = {4: 50, 6: 70}  # IP, UDP and VXLAN headers and the inner Ethernet header, in bytes
NONE_KEPT: Mapping[IPAddress, str] = {}
_LISTED = 5  # routes that are named one by one


class Survey(NamedTuple):
    """What this node needs for its peers as the network is now.

    `device` and `carrier` are None where no peer needs the overlay. `version` is the IP version
    that carries it, 0 without. `ways` knows those to the peers that were asked for. `waiting` are
    the plain routes that the kernel would refuse now, as it has no way to their gateways. `sized`
    is whether the overlay's MTU is configured, so that no path has to tell it.
    """

    peers: Peers
    device: Device | None
    entries: Entries
    carrier: Underlay | None
    offload: Offload
    ways: Ways
    version: int = 0
    waiting: tuple[routes.NodeRoute, ...] = ()
    sized: bool = False

    @property
    def cut_off(self) -> tuple[routes.NodeRoute, ...]:
        """The routes through the overlay to nodes that the kernel has no way to now."""
        lost = self.ways.lost()
        gone = frozenset(mac for mac, node in self.peers.tunnels.items() if node in lost)
        if not gone:
            return ()
        neighbours = self.peers.neighbours
        return tuple(r for r in self.peers.routes if r.overlay and neighbours[r.via] in gone)

    @property
    def possible(self) -> tuple[routes.NodeRoute, ...]:
        """The routes that can be there now."""
        if not self.waiting:
            return self.peers.routes
        waiting = frozenset(self.waiting)
        return tuple(route for route in self.peers.routes if route not in waiting)


class State(NamedTuple):
    """What the kernel holds of that. `strays` are overlay devices of ours with another name."""

    device: Device | None
    entries: Entries
    keys: list[Key]
    strays: tuple[str, ...]

    @property
    def routes(self) -> tuple[Owned, ...]:
        """The routes to the peers, which `keys` holds as the wire has them."""
        return owned(self.keys)


class Changes(NamedTuple):
    """What was changed: routes, and the overlay in words; false when nothing was."""

    routes: routes.Changes = routes.Changes()
    overlay: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.routes or self.overlay)

    def words(self) -> list[str]:
        """What was changed, a line for each thing; of many routes how many."""
        said = list(self.overlay)
        for verb in ("remove", "replace", "add"):
            routes = getattr(self.routes, verb)
            if len(routes) > _LISTED:
                said.append(f"{verb} {len(routes)} routes, that to {routes[0].dst} first")
                continue
            for route in routes:
                node = f" (node {route.node})" if route.node else ""
                said.append(f"{verb} route to {route.dst} via {route.via}{node}")
        return said


# --- what should be -----------------------------------------------------------------------------


def survey(inventory: Inventory, own: Node, cross: CrossNode, route_socket: RouteSocket) -> Survey:
    """Decide the path to each peer. Raises CniError 7 for an inventory or an underlay that the
    overlay can't use."""
    ways = Ways(route_socket)
    asked = node_peers.candidates(inventory, own, cross)
    lost = _lost(own, ways, asked, route_socket)
    ours = _ours(cross, route_socket) if lost else ()
    kept = node_peers.kept(inventory, own, lost, ours)
    decide = partial(node_peers.desired, inventory, own, cross, partial(reach, ways, kept=kept))
    decided = decide()
    waiting = _waiting(decided, lost, ours)
    if not decided.tunnels:
        return Survey(decided, None, NOTHING, None, Offload(True), ways, waiting=waiting)
    version = node_peers.underlay_version(inventory, cross)
    mine = node_peers.underlay_addresses(own, version, cross)

    def to_peers(near: IPNetwork | None) -> list[IPAddress]:
        nonlocal decided
        if near is not None:
            decided = decide(near)
        return list(decided.tunnels.values())

    carrier = underlay.choose(route_socket, cross, tuple(mine), to_peers, ways)
    wanted = offload.detect(route_socket, cross.checksum_offload, carrier.name)
    device = _device(own, cross, carrier, wanted)
    entries, sized = entries_of(decided), bool(cross.mtu)
    found = Survey(decided, device, entries, carrier, wanted, ways, version, waiting, sized)
    if found.cut_off and not sized:
        return found._replace(device=_no_wider(device, route_socket))
    return found


def reach(ways: Ways, address: IPAddress, kept: Mapping[IPAddress, str] = NONE_KEPT) -> str:
    """The word of `ipam.peers` for the way to an address; `kept` holds it for lost ones."""
    if address in kept:
        return kept[address]
    way = ways.of(address)
    if way is None:
        return node_peers.UNREACHABLE
    return node_peers.ROUTED if way.routed else node_peers.DIRECT


def _lost(
    own: Node, ways: Ways, asked: Sequence[IPAddress], route_socket: RouteSocket
) -> frozenset[IPAddress]:
    """Those of the addresses that the kernel has no way to, or only a detour: by a gateway, while
    this node's own link to them is down."""
    detours: list[IPAddress] = []
    if any(way.routed for way in ways.each(asked)):
        down = underlay.networks_down(route_socket, own.addresses)
        detours = [address for network in down for address in asked if address in network]
    return ways.lost().union(detours)


def _ours(cross: CrossNode, route_socket: RouteSocket) -> tuple[Owned, ...]:
    """Our routes to peers as they are, whatever is to become of them."""
    device = link(route_socket, overlay.device_name(cross.vni))
    return KernelRouteTable(route_socket, device.ifindex if device else 0).owned()


def _waiting(
    decided: Peers, lost: Collection[IPAddress], ours: Iterable[Owned]
) -> tuple[routes.NodeRoute, ...]:
    """The plain routes by lost gateways that are not there: one that is may stay."""
    if not lost:
        return ()
    there = {(route.dst, route.via) for route in ours}
    return tuple(
        route
        for route in decided.routes
        if not route.overlay and route.via in lost and (route.dst, route.via) not in there
    )


def _device(own: Node, cross: CrossNode, carrier: Underlay, wanted: Offload) -> Device:
    vxlan = Vxlan(
        overlay.device_name(cross.vni),
        cross.vni,
        cross.port,
        node_peers.vtep(cross.vni, own),
        carrier.local,
        carrier.link,
        cross.mtu or max(0, carrier.mtu - OVERHEAD[carrier.local.version]),
    )
    return Device(vxlan, frozenset(node_peers.carried(own)), wanted.on)


def _no_wider(device: Device, route_socket: RouteSocket) -> Device:
    """The device no wider than it is: while a path is lost nothing says that it got wider."""
    present = link(route_socket, device.vxlan.name)
    if present is None:
        return device
    mtu = min(device.vxlan.mtu or present.mtu, present.mtu)
    return device._replace(vxlan=device.vxlan._replace(mtu=mtu))


def entries_of(peers: Peers) -> Entries:
    """The overlay's entries as the wire has them."""
    macs = {mac: bytes.fromhex(mac.replace(":", "")) for mac in peers.tunnels}
    return Entries(
        {address.packed: macs[mac] for address, mac in peers.neighbours.items()},
        frozenset((macs[mac], address.packed) for mac, address in peers.tunnels.items()),
    )


def plain_mtu(found: Survey, route_socket: RouteSocket) -> int:
    """The least MTU of the plain routes' paths, in bytes; 0 when there are none."""
    return underlay.path_mtu(route_socket, found.ways.each(found.peers.plain))


# --- what is ------------------------------------------------------------------------------------


def observe(found: Survey, cross: CrossNode, mac: str, route_socket: RouteSocket) -> State:
    """What the kernel holds; `mac` is the link-layer address of this node's own end.

    Raises CniError 103 when the name of the overlay's device is another link's.
    """
    name = overlay.device_name(cross.vni)
    device = None
    if found.device is not None:
        device = overlay.look(route_socket, name, mac)
    strays = overlay.strays(route_socket, name if found.device is not None else "")
    entries = overlayentries.present_on(route_socket, device.ifindex) if device else NOTHING
    index = device.ifindex if device else 0
    if found.device is None and strays:  # one that is to go: routes may lead through it
        index = links.index(route_socket, strays[0])
    keys = KernelRouteTable(route_socket, index).keys()
    return State(device, entries, keys, tuple(strays))


def in_line(found: Survey, state: State) -> bool:
    """Whether there is nothing to do."""
    if found.device is not None and (
        state.device is None or not overlay.same(found.device, state.device)
    ):
        return False
    return (
        not state.strays
        and found.entries == state.entries
        and len(state.keys) == len(found.possible)
        and keys_of(found.possible) == set(state.keys)
    )


def refuse_waiting(found: Survey) -> None:
    """Raises CniError 104 while the kernel has no way to a peer: one that needs a plain route, or
    one in the overlay, whose path's MTU can't be told."""
    routes = found.waiting or (() if found.sized else found.cut_off)
    if not routes:
        return
    route, others = routes[0], len({route.node for route in routes}) - 1
    peers = found.peers
    address = peers.tunnels[peers.neighbours[route.via]] if route.overlay else route.via
    more = f" nor to {others} other node{'' if others == 1 else 's'}" if others else ""
    lacking = "its pods can't be reached" if route.overlay else "there is no route to its pods"
    raise CniError(
        Code.KERNEL_REFUSED,
        f"this node has no way to {address} of node {route.node}{more} now, so {lacking}",
        "bring up the link, or give back the address or the route, that leads there",
    )


def refuse_unfit(found: Survey, route_socket: RouteSocket) -> None:
    """Raises CniError where the overlay could not work: 7 when the address that peers send to is
    not this machine's or `vxlan.mtu` is more than the underlay leaves, 104 when what it leaves is
    too little for IPv6 or while a link is missing."""
    if found.device is None or found.carrier is None:
        return
    underlay.refuse_elsewhere(route_socket, found.carrier)
    overlay.refuse_small_mtu(found.device)
    carrier, size = found.carrier, found.device.vxlan.mtu
    overhead = OVERHEAD[carrier.local.version]
    if carrier.mtu and size > carrier.mtu - overhead:
        raise invalid(
            "vxlan.mtu",
            size,
            f"expected at most {carrier.mtu - overhead}: the path to the peers takes {carrier.mtu}"
            f" bytes, and the overlay adds {overhead}",
            "leave vxlan.mtu out, and it follows the underlay",
        )
