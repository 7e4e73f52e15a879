"""Whether pod subnets overlap, kept known while nodes come, change and go: a change costs a search.

For a process that stays. It takes an inventory in which nothing overlaps, and then what differs; of
what does overlap `ipam.overlaps` tells who and what, from the whole inventory.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from cni_plugin.spec import IPNetwork
from ipam.nodes import Node
from ipam.overlaps import Span, span, span_of_address
from ipam.steps import Step


class Claims:
    """What the nodes of an inventory claim; no pod subnet overlaps anything else.

    After `take` has found an overlap the rest is undefined, and another one has to be made.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        """Nothing overlaps in these (`overlaps.refuse_overlaps`)."""
        pods: list[Span] = []
        self._others: dict[Span, int] = {}  # node networks and addresses, by how many claim each
        for node in nodes:
            pods += map(span, node.pod_cidrs)
            for other in _others(node):
                self._others[other] = self._others.get(other, 0) + 1
        self._pods = sorted(pods)
        self._points = sorted(first for first, last in self._others if first == last)
        self._networks = {each for each in self._others if each[0] != each[1]}

    def take(self, step: Step) -> bool:
        """Take in what differs; False when a pod subnet overlaps something now."""
        for node in step.gone:
            for pods in map(span, node.pod_cidrs):
                del self._pods[bisect_left(self._pods, pods)]
            for other in _others(node):
                self._leave(other)
        return all(map(self._come, step.new))

    def meets(self, network: IPNetwork) -> bool:
        """Whether a network, nobody's claim, overlaps a pod subnet."""
        return self._meets_pods(span(network))

    # --- one by one -----------------------------------------------------------------------------

    def _come(self, node: Node) -> bool:
        for pods in map(span, node.pod_cidrs):
            if self._meets_pods(pods) or self._meets_others(pods):
                return False
            insort(self._pods, pods)
        return all(map(self._note, _others(node)))

    def _note(self, other: Span) -> bool:
        if other in self._others:
            self._others[other] += 1
            return True
        if self._meets_pods(other):
            return False
        self._others[other] = 1
        if other[0] == other[1]:
            insort(self._points, other[0])
        else:
            self._networks.add(other)
        return True

    def _leave(self, other: Span) -> None:
        self._others[other] -= 1
        if self._others[other]:
            return
        del self._others[other]
        if other[0] == other[1]:
            del self._points[bisect_left(self._points, other[0])]
        else:
            self._networks.remove(other)

    def _meets_pods(self, wanted: Span) -> bool:
        """They don't overlap each other: of those that begin before its end the last one counts."""
        first, last = wanted
        at = bisect_left(self._pods, (last + 1, 0))
        return at > 0 and self._pods[at - 1][1] >= first

    def _meets_others(self, wanted: Span) -> bool:
        """Networks of nodes are few; addresses are as many as nodes."""
        first, last = wanted
        at = bisect_left(self._points, first)
        if at < len(self._points) and self._points[at] <= last:
            return True
        return any(begin <= last and first <= end for begin, end in self._networks)


def _others(node: Node) -> Iterator[Span]:
    yield from map(span, node.networks)
    yield from map(span_of_address, node.addresses)
