"""Which members this node can have for peers: one that can't must not cost all others their ways.

An inventory that a person writes is refused as a whole when something in it can't be. A cluster's
nodes come from many hands, so what does not fit is left out, said, and tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from cni_plugin.membership import Refusal
from cni_plugin.spec import CniError
from ipam.inventory import Node

UNFIT = "NodeUnfit"
_AGAIN_S = 300.0
_MOST = 16  # peers that are looked for one by one


def fitting(nodes: Sequence[Node], backend: str) -> tuple[list[Node], list[Refusal]]:
    """Nodes as far as they fit together, and what was left out; every node comes to the same.

    The overlay is carried by one family: that of most nodes, IPv4 where they are as many. With
    plain routes alone a podCIDR needs an address of its family.
    """
    if backend == "host-gw":
        return _with_ways(nodes)
    counts = {version: sum(_has(node, version) for node in nodes) for version in (4, 6)}
    if len(nodes) in counts.values():
        return list(nodes), []
    version = 4 if counts[4] >= counts[6] else 6
    refusals = [
        Refusal(
            node.name,
            UNFIT,
            f"node {node.name} has no IPv{version} address, which the overlay needs that most nodes"
            " can have; give it one (kubelet: --node-ip)",
        )
        for node in nodes
        if not _has(node, version)
    ]
    return [node for node in nodes if _has(node, version)], refusals


def _with_ways(nodes: Sequence[Node]) -> tuple[list[Node], list[Refusal]]:
    found, refusals = [], []
    for node in nodes:
        kept = tuple(cidr for cidr in node.pod_cidrs if _has(node, cidr.version))
        for cidr in node.pod_cidrs:
            if cidr not in kept:
                what = f"node {node.name} has podCIDR {cidr} and no IPv{cidr.version} address"
                refusals.append(Refusal(node.name, UNFIT, f"{what}: no plain route can lead there"))
        found.append(node._replace(pod_cidrs=kept) if kept != node.pod_cidrs else node)
    return found, refusals


def _has(node: Node, version: int) -> bool:
    return any(address.version == version for address in node.addresses)


class Quarantine:
    """Peers that the kernel, or something of this node's, stands in the way of."""

    def __init__(self) -> None:
        self._out: dict[str, tuple[Node, str]] = {}
        self._since = 0.0
        self._good: dict[str, Node] = {}

    @property
    def refusals(self) -> list[Refusal]:
        return [
            Refusal(name, UNFIT, f"node {name} has to do without ways from here: {why}")
            for name, (_, why) in self._out.items()
        ]

    def trust(self, nodes: Sequence[Node]) -> None:
        """These were all right the last time."""
        self._good = {node.name: node for node in nodes}

    def bring(
        self, own: str, nodes: Sequence[Node], attempt: Callable[[Sequence[Node]], None]
    ) -> None:
        """Have `attempt` succeed with as many of the nodes as can be; raises CniError when it does
        not even with this node, `own`, alone, or when too many stand in the way.

        Who was all right goes first, so that nobody loses its way to the search.
        """
        if monotonic() - self._since > _AGAIN_S:
            self._out = {}
        held = [node for node in nodes if self._out.get(node.name, (None, ""))[0] != node]
        try:
            attempt(held)
        except CniError as e:
            held = self._search(own, held, attempt, e)
        self._out = {name: out for name, out in self._out.items() if out[0] in nodes}
        self.trust(held)

    def _search(
        self,
        own: str,
        nodes: Sequence[Node],
        attempt: Callable[[Sequence[Node]], None],
        failure: CniError,
    ) -> list[Node]:
        good = [node for node in nodes if node.name == own or self._good.get(node.name) == node]
        try:
            attempt(good)
        except CniError:
            good = [node for node in nodes if node.name == own]
            attempt(good)
        groups = [[node for node in nodes if node not in good]]
        found: dict[str, tuple[Node, str]] = {}
        while groups:
            group = groups.pop()
            try:
                if group:
                    attempt([*good, *group])
                good += group
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
