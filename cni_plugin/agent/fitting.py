"""Which members this node can have for peers: one that can't must not cost all others their ways.

An inventory that a person writes is refused as a whole when something in it can't be. A cluster's
nodes come from many hands, so what does not fit is left out, said, and tried again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from time import monotonic

from cni_plugin.membership import Refusal
from cni_plugin.spec import CniError, Code
from ipam.inventory import Node
from ipam.steps import step

UNFIT = "NodeUnfit"
_AGAIN_S = 300.0
_OWN = (Code.IO_FAILURE, Code.TRY_AGAIN_LATER, Code.PERMISSION_DENIED)  # no peer is at fault
_MOST = 16  # peers that are looked for one by one


class Fitting:
    """Which nodes fit together; a change of one among thousands costs what that one costs."""

    def __init__(self) -> None:
        self._nodes: tuple[Node, ...] = ()
        self._without: dict[int, dict[str, Node]] = {4: {}, 6: {}}  # an address of the family
        self._partly: dict[str, Node] = {}  # that have podCIDRs of families without an address

    def fit(self, nodes: tuple[Node, ...], backend: str) -> tuple[tuple[Node, ...], list[Refusal]]:
        """Nodes, sorted by their names, as far as they fit together, and what was left out; every
        node comes to the same.

        The overlay is carried by one family: that of most nodes, IPv4 where they are as many. With
        plain routes alone a podCIDR needs an address of its family.
        """
        change = step(self._nodes, nodes)
        self._nodes = nodes
        for node in change.gone:
            for kept in (*self._without.values(), self._partly):
                kept.pop(node.name, None)
        for node in change.new:
            lacking = {version for version in (4, 6) if not _has(node, version)}
            for version in lacking:
                self._without[version][node.name] = node
            if any(cidr.version in lacking for cidr in node.pod_cidrs):
                self._partly[node.name] = node
        if backend == "host-gw":
            return self._with_ways()
        lack = self._without
        version = 4 if len(lack[4]) <= len(lack[6]) else 6
        refusals = [_without(name, version) for name in sorted(lack[version])]
        return without(nodes, lack[version]), refusals

    def _with_ways(self) -> tuple[tuple[Node, ...], list[Refusal]]:
        refusals = []
        fitting = list(self._nodes)
        for name, node in sorted(self._partly.items()):
            kept = tuple(cidr for cidr in node.pod_cidrs if _has(node, cidr.version))
            fitting[bisect_left(fitting, name, key=_name)] = node._replace(pod_cidrs=kept)
            for cidr in node.pod_cidrs:
                if cidr not in kept:
                    what = f"node {name} has podCIDR {cidr} and no IPv{cidr.version} address"
                    refusals.append(Refusal(name, UNFIT, f"{what}: no plain route can lead there"))
        return tuple(fitting), refusals


def fitting(nodes: Sequence[Node], backend: str) -> tuple[tuple[Node, ...], list[Refusal]]:
    """As `Fitting`, for once."""
    return Fitting().fit(tuple(nodes), backend)


def without(nodes: tuple[Node, ...], names: Collection[str]) -> tuple[Node, ...]:
    """Nodes, sorted by their names, but for those of some names."""
    left = list(nodes)
    for name in names:
        at = bisect_left(left, name, key=_name)
        if at < len(left) and left[at].name == name:
            del left[at]
    return tuple(left)


def of_name(nodes: Sequence[Node], name: str) -> Node | None:
    """The one of a name among nodes that are sorted by their names."""
    at = bisect_left(nodes, name, key=_name)
    return nodes[at] if at < len(nodes) and nodes[at].name == name else None


def _name(node: Node) -> str:
    return node.name


def _without(name: str, version: int) -> Refusal:
    what = f"node {name} has no IPv{version} address, which the overlay needs that most nodes can"
    return Refusal(name, UNFIT, f"{what} have; give it one (kubelet: --node-ip)")


def _has(node: Node, version: int) -> bool:
    return any(address.version == version for address in node.addresses)


class Quarantine:
    """Peers that the kernel, or something of this node's, stands in the way of."""

    def __init__(self) -> None:
        self._out: dict[str, tuple[Node, str]] = {}
        self._since = 0.0
        self._good: tuple[Node, ...] = ()

    @property
    def refusals(self) -> list[Refusal]:
        return [
            Refusal(name, UNFIT, f"node {name} has to do without ways from here: {why}")
            for name, (_, why) in self._out.items()
        ]

    def trust(self, nodes: Sequence[Node]) -> None:
        """These were all right the last time."""
        self._good = tuple(nodes)

    def admitted(self, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """Those that nothing was found to stand in the way of; sorted by their names."""
        return without(nodes, self._still_out(nodes))

    def _still_out(self, nodes: tuple[Node, ...]) -> list[str]:
        return [name for name, (node, _) in self._out.items() if of_name(nodes, name) == node]

    def bring(
        self,
        own: str,
        nodes: tuple[Node, ...],
        attempt: Callable[[tuple[Node, ...]], None],
        search: bool = True,
    ) -> None:
        """Have `attempt` succeed with as many of the nodes as can be; raises CniError when it does
        not even with this node, `own`, alone, when too many stand in the way, and without a
        `search` for whoever does.

        Who was all right goes first, so that nobody loses its way to the search.
        """
        if monotonic() - self._since > _AGAIN_S:
            self._out = {}
        held = self.admitted(nodes)
        try:
            attempt(held)
        except CniError as e:
            if e.code in _OWN or not search:
                raise
            held = self._search(own, held, attempt, e)
        self._out = {name: self._out[name] for name in self._still_out(nodes)}
        self.trust(held)

    def _search(
        self,
        own: str,
        nodes: tuple[Node, ...],
        attempt: Callable[[tuple[Node, ...]], None],
        failure: CniError,
    ) -> tuple[Node, ...]:
        trusted = {node.name: node for node in self._good}
        good = tuple(node for node in nodes if node.name == own or trusted.get(node.name) == node)
        try:
            attempt(good)
        except CniError:
            good = tuple(node for node in nodes if node.name == own)
            attempt(good)
        known = set(good)
        groups = [[node for node in nodes if node not in known]]
        found: dict[str, tuple[Node, str]] = {}
        while groups:
            group = groups.pop()
            try:
                if group:
                    attempt(tuple(sorted((*good, *group), key=_name)))
                good = tuple(sorted((*good, *group), key=_name))
            except CniError as e:
                if len(group) == 1:
                    found[group[0].name] = (group[0], e.msg)
                else:
                    groups += [group[len(group) // 2 :], group[: len(group) // 2]]
                if len(found) > _MOST:
                    raise failure from e
        attempt(good)
        self._out |= found
        self._since = monotonic()
        return good
