"""Which members this node can have for peers: one that can't must not cost all others their ways.

An inventory that a person writes is refused as a whole when something in it can't be. A cluster's
nodes come from many hands, so what does not fit is left out and said. What the kernel makes of the
others is `quarantine`'s.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence

from cni_plugin.membership import Refusal
from ipam.inventory import Node
from ipam.steps import step

UNFIT = "NodeUnfit"


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


def deciding(some: Sequence[Node], nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Some of the nodes that fit, and of those left out one without IPv4, as a node without pods:
    which family carries the overlay has to be the same here as where nobody is left out."""
    there = {node.name for node in some} if len(some) < len(nodes) else set()
    for node in nodes if there else ():
        if node.name not in there and not _has(node, 4):
            return tuple(sorted((*some, node._replace(pod_cidrs=())), key=_name))
    return tuple(some)


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
