"""podwire's routes between nodes in the kernel's main table.

The kernel's side of `ipam.routes.RouteTable`. Ours are those with `ROUTE_PROTOCOL` and a gateway;
a route of somebody else is never changed, and one in the way is an error that shows it.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Sequence

from cni_plugin.datapath import ROUTE_PROTOCOL
from cni_plugin.drift import MAIN_TABLE
from cni_plugin.kernel import messages, observe
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork, Route
from cni_plugin.typed import NamedTuple, Protocol


class Hop(Protocol):
    """A destination and its gateway."""

    @property
    def dst(self) -> IPNetwork: ...
    @property
    def via(self) -> IPAddress: ...
    @property
    def node(self) -> str: ...


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


class KernelRouteTable:
    """The main table of the namespace that `route_socket` was opened in."""

    def __init__(self, route_socket: RouteSocket) -> None:
        self._socket = route_socket

    def owned(self) -> tuple[Owned, ...]:
        """Our routes, of both families; the kernel filters by protocol and table."""
        found = []
        for version in (4, 6):
            dump = messages.dump_routes(version, protocol=ROUTE_PROTOCOL, table=MAIN_TABLE)
            for entry in self._socket.dump(dump):
                dst, via = messages.network_of(entry), observe.gateway(entry)
                if dst is not None and via is not None and entry["proto"] == ROUTE_PROTOCOL:
                    found.append(Owned(dst, via))
        return tuple(found)

    def apply(self, changes: Changes) -> None:
        """All of the changes or none: after a failure the table is put back as it was."""
        before = self.owned()
        self.refuse_obstructed([*changes.add, *changes.replace])
        try:
            self._socket.batch([_delete(hop) for hop in changes.remove], ignore=(errnos.ESRCH,))
            for hop in changes.replace:
                # Not NLM_F_REPLACE: for IPv4 that takes the first route there, whoever's it is.
                old = [_delete(route) for route in before if route.dst == hop.dst]
                self._socket.batch(old, ignore=(errnos.ESRCH,))
                self._add(hop)
            for hop in changes.add:
                self._add(hop)
        except CniError:
            self._restore(before)
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
                dst = messages.network_of(entry)
                if dst in hops and entry["proto"] != ROUTE_PROTOCOL:
                    raise _obstructed(hops[dst])

    def refuse_distant(self, wanted: Sequence[Hop]) -> None:
        """Raises CniError 104 for a gateway that is behind another gateway, or nowhere."""
        for hop in wanted:
            try:
                entry = self._socket.get(messages.get_route(hop.via))
            except KernelError as e:
                raise _explained(e, hop) from e
            if entry is not None and observe.gateway(entry) is not None:
                raise _explained(KernelError(errnos.ENETUNREACH, f"reach {hop.via} directly"), hop)

    def _add(self, hop: Hop) -> None:
        try:
            self._socket.batch([messages.add_route(Route(hop.dst, hop.via), 0, ROUTE_PROTOCOL)])
        except KernelError as e:
            raise _explained(e, hop) from e

    def _restore(self, before: Sequence[Owned]) -> None:
        now = self.owned()
        batch = [_delete(hop) for hop in now if hop not in before]
        batch += [
            messages.add_route(Route(hop.dst, hop.via), 0, ROUTE_PROTOCOL)
            for hop in before
            if hop not in now
        ]
        self._socket.batch(batch, ignore=(errnos.ESRCH, errnos.EEXIST))


def _delete(hop: Hop) -> Message:
    return messages.delete_route(Route(hop.dst, hop.via), 0, ROUTE_PROTOCOL)


def _explained(error: KernelError, hop: Hop) -> CniError:
    """The failure in the user's terms: which node, and what stands in the way."""
    if error.errno == errnos.EEXIST:
        return _obstructed(hop)
    if error.errno in (errnos.ENETUNREACH, errnos.EHOSTUNREACH, errnos.EINVAL):
        return CniError(
            Code.KERNEL_REFUSED,
            f"route to {hop.dst} of node {hop.node}: its address {hop.via} is not on a link of"
            f" this node ({error.msg})",
            "plain routes need the nodes on one link: correct the address in the inventory",
        )
    return error


def _obstructed(hop: Hop) -> CniError:
    return CniError(
        Code.LINK_CONFLICT,
        f"route to {hop.dst} of node {hop.node}: this node already has another route there",
        f"see `ip route show {hop.dst}`; podwire changes only routes of protocol"
        f" {ROUTE_PROTOCOL}: remove that route, or give the node another podCIDR",
    )
