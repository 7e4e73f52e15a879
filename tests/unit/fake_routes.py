"""A node's routing table in memory, as `ipam.routes.RouteTable` wants one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cni_plugin.spec import CniError, Code, IPNetwork
from ipam.routes import Changes, NodeRoute


class FakeRouteTable:
    """Several routes to one destination may be there, as in a kernel's table.

    A change to a destination in `refused` fails, and then nothing is changed. It is stricter than
    a kernel needs to be: to add what exists, or to replace or remove what does not, fails too.
    """

    def __init__(self, routes: Iterable[NodeRoute] = (), refused: Iterable[IPNetwork] = ()) -> None:
        self.routes = [NodeRoute(route.dst, route.via, overlay=route.overlay) for route in routes]
        self.refused = frozenset(refused)
        self.applied: list[Changes] = []

    def owned(self) -> Sequence[NodeRoute]:
        return tuple(self.routes)

    def apply(self, changes: Changes) -> None:
        after = list(self.routes)
        for route in changes.remove:
            self._check(route, route in after)
            after.remove(route)
        for route in changes.replace:
            same = [index for index, other in enumerate(after) if other.dst == route.dst]
            self._check(route, len(same) == 1)
            after[same[0]] = NodeRoute(route.dst, route.via, overlay=route.overlay)
        for route in changes.add:
            self._check(route, all(other.dst != route.dst for other in after))
            after.append(NodeRoute(route.dst, route.via, overlay=route.overlay))
        self.routes = after
        self.applied.append(changes)

    def _check(self, route: NodeRoute, possible: bool) -> None:
        if not possible or route.dst in self.refused:
            raise CniError(Code.KERNEL_REFUSED, f"route to {route.dst} via {route.via}")
