"""The fewest ranges that hold many networks, kept while networks come and go.

Pure. `ruleset.ranges` says the same of all networks at once; here one more or less costs a search.
Networks either contain each other or share nothing, so what one adds or leaves behind lies within
it, and in what touches it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from cni_plugin.ruleset import Range
from cni_plugin.spec import IPNetwork

_WIDEST = 128  # host bits


class Numbers:
    """Sorted numbers, each as often as it was added, listed once."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._counts: dict[int, int] = {}
        for number in numbers:
            self._counts[number] = self._counts.get(number, 0) + 1
        self._sorted = sorted(self._counts)

    def add(self, number: int) -> None:
        if number not in self._counts:
            insort(self._sorted, number)
        self._counts[number] = self._counts.get(number, 0) + 1

    def remove(self, number: int) -> None:
        self._counts[number] -= 1
        if not self._counts[number]:
            del self._counts[number], self._sorted[bisect_left(self._sorted, number)]

    def all(self) -> tuple[int, ...]:
        return tuple(self._sorted)


class Coverage:
    """Networks of one family, each as often as it was added."""

    def __init__(self, networks: Iterable[IPNetwork] = ()) -> None:
        self._counts: dict[tuple[int, int], int] = {}  # by first address and number of host bits
        self._sizes: dict[int, int] = {}  # how many networks there are of each number of host bits
        for network in networks:
            place = _place(network)
            self._counts[place] = self._counts.get(place, 0) + 1
        self._firsts = sorted((first, -size) for first, size in self._counts)
        for _, size in self._counts:
            self._sizes[size] = self._sizes.get(size, 0) + 1
        self._ranges = list(_merged(self._in_order(self._firsts)))

    def ranges(self) -> tuple[Range, ...]:
        """Sorted; they don't overlap and don't touch."""
        return tuple(self._ranges)

    def add(self, network: IPNetwork) -> None:
        place = first, size = _place(network)
        if place in self._counts:
            self._counts[place] += 1
            return
        self._counts[place] = 1
        self._sizes[size] = self._sizes.get(size, 0) + 1
        insort(self._firsts, (first, -size))
        if not self._is_inside(place):
            self._put(first, first + (1 << size) - 1, ((first, first + (1 << size) - 1),))

    def remove(self, network: IPNetwork) -> None:
        """One that was added before."""
        place = first, size = _place(network)
        self._counts[place] -= 1
        if self._counts[place]:
            return
        del self._counts[place], self._firsts[bisect_left(self._firsts, (first, -size))]
        self._sizes[size] -= 1
        if not self._sizes[size]:
            del self._sizes[size]
        if not self._is_inside(place):
            self._put(first, first + (1 << size) - 1, self._within(first, size))

    def _is_inside(self, place: tuple[int, int]) -> bool:
        """Whether a wider network holds all of it."""
        first, size = place
        wider = (each for each in self._sizes if each > size)
        return any((first >> each << each, each) in self._counts for each in wider)

    def _within(self, first: int, size: int) -> Iterator[Range]:
        begin = bisect_left(self._firsts, (first, -size))
        end = bisect_left(self._firsts, (first + (1 << size), -_WIDEST))
        return self._in_order(self._firsts[begin:end])

    @staticmethod
    def _in_order(places: Iterable[tuple[int, int]]) -> Iterator[Range]:
        return ((first, first + (1 << -minus_size) - 1) for first, minus_size in places)

    def _put(self, first: int, last: int, inside: Iterable[Range]) -> None:
        """Between these addresses the ranges `inside` count from now on, and outside of them what
        did before."""
        ranges = self._ranges
        begin = max(0, bisect_left(ranges, (first, 0)) - 1)
        if begin < len(ranges) and ranges[begin][1] < first - 1:
            begin += 1
        end = bisect_left(ranges, (last + 2, 0))
        touched = ranges[begin:end]
        parts: list[Range] = []
        parts += ((f, min(t, first - 1)) for f, t in touched if f < first)
        parts += inside
        parts += ((max(f, last + 1), t) for f, t in touched if t > last)
        ranges[begin:end] = _merged(parts)


def _place(network: IPNetwork) -> tuple[int, int]:
    return int(network.network_address), network.max_prefixlen - network.prefixlen


def _merged(bounds: Iterable[Range]) -> Iterator[Range]:
    """Ranges that are in order, with those as one that overlap or touch."""
    current: Range | None = None
    for each in bounds:
        if current is None:
            current = each
        elif each[0] <= current[1] + 1:
            if each[1] > current[1]:
                current = current[0], each[1]
        else:
            yield current
            current = each
    if current is not None:
        yield current
