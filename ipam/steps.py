"""What differs between two lists of nodes, found at the cost of what differs.

One node among thousands changes, and everything that is worked out of all nodes follows by that one
alone. Two lists share the nodes that did not change, as objects or as equal ones, and runs of those
are passed over (`alike`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import attrgetter

from cni_plugin.alike import same_ends
from cni_plugin.typed import NamedTuple
from ipam.nodes import Node

_FEW = 32  # nodes that are compared one by one
_name = attrgetter("name")


class Step(NamedTuple):
    """The nodes that are `gone` or were otherwise, as they were, and those that are `new` or are
    otherwise now."""

    gone: tuple[Node, ...] = ()
    new: tuple[Node, ...] = ()

    def concerns(self, name: str) -> bool:
        """Whether a node of this name came, went or changed."""
        return any(node.name == name for node in (*self.gone, *self.new))


_last: tuple[tuple[Node, ...], tuple[Node, ...], Step] = ((), (), Step())


def step(former: tuple[Node, ...], now: tuple[Node, ...]) -> Step:
    """What differs; within each list names are unique.

    Several ask for the same two lists one after the other, so the last answer is kept.
    """
    global _last
    known = _last
    if known[0] is former and known[1] is now:
        return known[2]
    gone: dict[str, Node] = {}
    new: dict[str, Node] = {}
    for before, after in _differing(former, now):
        gone.update((node.name, node) for node in before)
        new.update((node.name, node) for node in after)
    same = [name for name, node in gone.items() if new.get(name) == node]  # in another place
    for name in same:
        del gone[name], new[name]
    found = Step(tuple(gone.values()), tuple(new.values()))
    _last = former, now, found
    return found


def _differing(
    former: tuple[Node, ...], now: tuple[Node, ...]
) -> Iterator[tuple[tuple[Node, ...], tuple[Node, ...]]]:
    """Pairs of parts that differ; what is between them is the same."""
    begin, end = same_ends(former, now)
    former, now = former[begin : len(former) - end], now[begin : len(now) - end]
    if min(len(former), len(now)) <= _FEW:
        if former or now:
            yield former, now
        return
    middle = len(former) // 2
    # Where the names are not in order the parts hold more than what differs, and nothing is missed.
    other = bisect_left(now, former[middle].name, key=_name)
    yield from _differing(former[:middle], now[:other])
    yield from _differing(former[middle:], now[other:])
