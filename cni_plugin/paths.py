"""This node's paths to the pods of its peers: what they should be, what is there, and how one
becomes the other.

`survey` asks the kernel how the peers are reached and decides with `ipam.peers`; `State` is what
the kernel holds, and `converge` turns one into the other: what is new comes first, then the routes
move, then what is stale goes. A failure puts back what was there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from cni_plugin.crossnode import CrossNode
from cni_plugin.fields import invalid
from cni_plugin.kernel import device as links
from cni_plugin.kernel import offload, overlay, underlay
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.observe import link
from cni_plugin.kernel.offload import Offload
from cni_plugin.kernel.overlay import NOTHING, Device, Entries
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


class Survey(NamedTuple):
    """What this node needs for its peers as the network is now.

    `device` and `carrier` are None where no peer needs the overlay. `version` is the IP version
    that carries it, 0 without. `ways` knows those to the peers that were asked for. `waiting` are
    the plain routes that the kernel would refuse now, as it has no way to their gateways.
    """

    peers: Peers
    device: Device | None
    entries: Entries
    carrier: Underlay | None
    offload: Offload
    ways: Ways
    version: int = 0
    waiting: tuple[routes.NodeRoute, ...] = ()

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
    return Survey(decided, device, entries_of(decided), carrier, wanted, ways, version, waiting)


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
    entries = overlay.entries(route_socket, device.ifindex) if device else NOTHING
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
    """Raises CniError 104 while the kernel has no way to a peer that needs a plain route."""
    if not found.waiting:
        return
    route, others = found.waiting[0], len({route.node for route in found.waiting}) - 1
    more = f" nor to {others} other node{'' if others == 1 else 's'}" if others else ""
    raise CniError(
        Code.KERNEL_REFUSED,
        f"this node has no way to {route.via} of node {route.node}{more} now, so there is no route"
        " to its pods",
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


# --- from one to the other ----------------------------------------------------------------------


def converge(found: Survey, state: State, route_socket: RouteSocket) -> Changes:
    """Make everything as it should be, or leave it as it was and raise CniError.

    Routes that wait for a way are left out.
    """
    refuse_unfit(found, route_socket)
    possible = found.possible
    changes = routes.difference(possible, state.routes)
    KernelRouteTable(route_socket).refuse_obstructed([*changes.add, *changes.replace])
    try:
        return _converge(found.device, found.entries, possible, state, route_socket)
    except CniError as failure:
        try:
            _put_back(found, state, route_socket)
        except CniError as e:
            failure.details = f"{failure.details}; undoing failed: {e.msg}".lstrip("; ")
        raise


def _converge(
    device: Device | None,
    entries: Entries,
    wanted: tuple[routes.NodeRoute, ...],
    state: State,
    route_socket: RouteSocket,
) -> Changes:
    words: list[str] = []
    index = 0
    present, before = state.entries, state.routes
    if device is not None:
        index, done = _make_device(device, state.device, route_socket)
        words += done
        if state.device is not None and index != state.device.ifindex:
            present = NOTHING  # they went with the device that was replaced
            before = KernelRouteTable(route_socket, index).owned()
        elif state.device is not None and state.device.vxlan.mac != device.vxlan.mac:
            present = present._replace(neighbours={})  # the kernel forgets them with the address
        if added := overlay.add_entries(route_socket, index, entries, present):
            words.append(f"set {added} neighbours and forwarding entries of {device.vxlan.name}")
    changes = routes.difference(wanted, before)
    if changes:
        KernelRouteTable(route_socket, index).work(changes, before)
    if device is not None and (
        removed := overlay.remove_entries(route_socket, index, entries, present)
    ):
        words.append(f"removed {removed} neighbours and forwarding entries of {device.vxlan.name}")
    for name in state.strays:
        overlay.remove(route_socket, name)
        words.append(f"removed the overlay's device {name}")
    return Changes(changes, tuple(words))


def _make_device(
    wanted: Device, present: Device | None, route_socket: RouteSocket
) -> tuple[int, list[str]]:
    """The device as it should be: its interface index, and what was done."""
    name = wanted.vxlan.name
    if present is not None and overlay.fits(wanted, present):
        if overlay.same(wanted, present):
            return present.ifindex, []
        overlay.adjust(route_socket, wanted, present)
        return present.ifindex, [f"set the overlay's device {name} right"]
    if present is not None:
        overlay.remove(route_socket, name)
    index = overlay.make(route_socket, wanted)
    verb = "made" if present is None else "replaced"
    return index, [f"{verb} the overlay's device {name}"]


def _put_back(found: Survey, state: State, route_socket: RouteSocket) -> None:
    """After a failure: the device, its entries and the routes as they were."""
    index = 0
    if found.device is not None:
        name, mac = found.device.vxlan.name, found.device.vxlan.mac
        now = overlay.look(route_socket, name, mac)
        if state.device is None:
            if now is not None:
                overlay.remove(route_socket, name)
        else:
            index, _ = _make_device(state.device, now, route_socket)
            there = overlay.entries(route_socket, index)
            overlay.add_entries(route_socket, index, state.entries, there)
            overlay.remove_entries(route_socket, index, state.entries, there)
    elif state.strays:  # the device that was to go
        index = links.index(route_socket, state.strays[0])
    KernelRouteTable(route_socket, index).restore(state.routes)
