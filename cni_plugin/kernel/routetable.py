"""podwire's routes between nodes in the kernel's main table.

The kernel's side of `ipam.routes.RouteTable`. Ours are those with `ROUTE_PROTOCOL` and a gateway;
a route of somebody else is never changed, and one in the way is an error that shows it.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from socket import inet_pton

from cni_plugin.datapath import ROUTE_PROTOCOL
from cni_plugin.drift import MAIN_TABLE
from cni_plugin.kernel import messages, observe, overlaymessages
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.underlay import NO_WAY
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple, Protocol


class Hop(Protocol):
    """A destination and its gateway, which is at the other end of the overlay or on a link."""

    @property
    def dst(self) -> IPNetwork: ...
    @property
    def via(self) -> IPAddress: ...
    @property
    def node(self) -> str: ...
    @property
    def overlay(self) -> bool: ...


class Changes(Protocol):
    """What to do to the table."""

    @property
    def add(self) -> Sequence[Hop]: ...
    @property
    def replace(self) -> Sequence[Hop]: ...
    @property
    def remove(self) -> Sequence[Hop]: ...


class Owned(NamedTuple):
    """A route of ours as the kernel has it; the kernel does not know whose node it leads to."""

    dst: IPNetwork
    via: IPAddress
    node: str = ""
    overlay: bool = False


Key = tuple[bytes, int, bytes, bool]
"""Destination, its prefix length, gateway, and whether it is through the overlay."""


def keys_of(wanted: Iterable[Hop]) -> set[Key]:
    """Routes as `KernelRouteTable.keys` has them."""
    return {
        (hop.dst.network_address.packed, hop.dst.prefixlen, hop.via.packed, hop.overlay)
        for hop in wanted
    }


def owned(keys: Iterable[Key]) -> tuple[Owned, ...]:
    """Routes that `KernelRouteTable.keys` has, as objects."""
    return tuple(
        Owned(
            IPv4Network((dst, length)) if len(dst) == 4 else IPv6Network((dst, length)),
            ip_address(via),
            overlay=overlay,
        )
        for dst, length, via, overlay in keys
    )


class KernelRouteTable:
    """The main table of the namespace that `route_socket` was opened in.

    `overlay` is the interface index of the overlay's device, 0 for none.
    """

    def __init__(self, route_socket: RouteSocket, overlay: int = 0) -> None:
        self._socket = route_socket
        self._overlay = overlay

    def owned(self) -> tuple[Owned, ...]:
        """Our routes, of both families; the kernel filters by protocol and table."""
        return owned(self.keys())

    def keys(self) -> list[Key]:
        """The same as the wire has it: in a third of the time, for the common case that all is
        well."""
        found: list[Key] = []
        for version in (4, 6):
            family = messages.family(version)
            dump = messages.dump_routes(version, protocol=ROUTE_PROTOCOL, table=MAIN_TABLE)
            for entry in self._socket.dump(dump):
                dst, via = entry.get_attr("RTA_DST"), entry.get_attr("RTA_GATEWAY")
                if via is None or entry["proto"] != ROUTE_PROTOCOL or entry["family"] != family:
                    continue
                packed = bytes(4 if version == 4 else 16) if dst is None else inet_pton(family, dst)
                overlay = entry.get_attr("RTA_OIF") == self._overlay if self._overlay else False
                found.append((packed, entry["dst_len"], inet_pton(family, via), overlay))
        return found

    def apply(self, changes: Changes) -> None:
        """All of the changes or none: after a failure the table is put back as it was."""
        before = self.owned()
        self.refuse_obstructed([*changes.add, *changes.replace])
        try:
            self.work(changes, before)
        except CniError:
            self.restore(before)
            raise

    def work(self, changes: Changes, before: Sequence[Hop]) -> None:
        """Make the changes to a table that holds `before`; after a failure some are made."""
        batch = [self._delete(hop) for hop in changes.remove]
        if changes.replace:
            # Not NLM_F_REPLACE: for IPv4 that takes the first route there, whoever's it is.
            old: dict[IPNetwork, list[Message]] = {}
            for hop in before:
                old.setdefault(hop.dst, []).append(self._delete(hop))
            for hop in changes.replace:
                batch += [*old.get(hop.dst, ()), self._add(hop)]
        batch += [self._add(hop) for hop in changes.add]
        try:
            self._socket.batch(batch, ignore=(errnos.ESRCH,))
        except KernelError as e:
            for hop in (*changes.replace, *changes.add):
                if e.msg.startswith(f"can't {self._add(hop).what}:"):
                    raise _explained(e, hop) from e
            raise

    def refuse_obstructed(self, wanted: Sequence[Hop]) -> None:
        """Raises CniError 103 when another program has a route to one of the destinations.

        Whatever its metric: of two routes to one network, one is never used.
        """
        if not wanted:
            return
        hops = {hop.dst: hop for hop in wanted}
        for version in {dst.version for dst in hops}:
            for entry in self._socket.dump(messages.dump_routes(version, table=MAIN_TABLE)):
                dst = observe.network_of(entry)
                if dst in hops and entry["proto"] != ROUTE_PROTOCOL:
                    raise _obstructed(hops[dst])

    def refuse_taken(self, wanted: Sequence[Hop]) -> None:
        """The same for a few: asks for each destination instead of for the whole table."""
        asked = [
            overlaymessages.get_way(hop.dst.network_address, configured=True) for hop in wanted
        ]
        answers = self._socket.batch(asked, ignore=NO_WAY)
        for hop, entry in zip(wanted, answers, strict=True):
            if entry is None or entry["proto"] == ROUTE_PROTOCOL:
                continue
            if observe.network_of(entry) == hop.dst:
                raise _obstructed(hop)

    def refuse_distant(self, wanted: Sequence[Hop]) -> None:
        """Raises CniError 104 for a gateway that is behind another gateway, or nowhere."""
        for hop in wanted:
            if hop.overlay:
                continue
            try:
                entry = self._socket.get(messages.get_route(hop.via))
            except KernelError as e:
                raise _explained(e, hop) from e
            if entry is not None and observe.gateway(entry) is not None:
                raise _explained(KernelError(errnos.ENETUNREACH, f"reach {hop.via} directly"), hop)

    def _add(self, hop: Hop) -> Message:
        device = self._overlay if hop.overlay else 0
        return overlaymessages.add_peer_route(hop.dst, hop.via, device)

    def _delete(self, hop: Hop) -> Message:
        device = self._overlay if hop.overlay else 0
        return overlaymessages.delete_peer_route(hop.dst, hop.via, device)

    def undo(self, changes: Changes, before: Sequence[Hop]) -> None:
        """Take back what `work` made of these changes to a table that held `before`."""
        made = [*changes.add, *changes.replace]
        touched = {hop.dst for hop in (*made, *changes.remove)}
        batch = [self._delete(hop) for hop in made]
        batch += [self._add(hop) for hop in before if hop.dst in touched]
        self._socket.batch(batch, ignore=(errnos.ESRCH, errnos.EEXIST))

    def restore(self, before: Sequence[Hop]) -> None:
        """Make the table hold `before`, what others took meanwhile left out."""
        now = frozenset((hop.dst, hop.via, hop.overlay) for hop in self.owned())
        then = frozenset((hop.dst, hop.via, hop.overlay) for hop in before)
        batch = [self._delete(Owned(dst, via, "", o)) for dst, via, o in now - then]
        batch += [self._add(hop) for hop in before if (hop.dst, hop.via, hop.overlay) not in now]
        self._socket.batch(batch, ignore=(errnos.ESRCH, errnos.EEXIST))


def _explained(error: KernelError, hop: Hop) -> CniError:
    """The failure in the user's terms: which node, and what stands in the way."""
    if error.errno == errnos.EEXIST:
        return _obstructed(hop)
    if error.errno in (errnos.ENETUNREACH, errnos.EHOSTUNREACH, errnos.EINVAL):
        return CniError(
            Code.KERNEL_REFUSED,
            f"route to {hop.dst} of node {hop.node}: its address {hop.via} is not on a link of"
            f" this node ({error.msg})",
            "plain routes need the nodes on one link: correct the address in the inventory, or set"
            ' "backend" to "auto" or "vxlan"',
        )
    return error


def _obstructed(hop: Hop) -> CniError:
    return CniError(
        Code.LINK_CONFLICT,
        f"route to {hop.dst} of node {hop.node}: this node already has another route there",
        f"see `ip route show {hop.dst}`; podwire changes only routes of protocol"
        f" {ROUTE_PROTOCOL}: remove that route, or give the node another podCIDR",
    )
