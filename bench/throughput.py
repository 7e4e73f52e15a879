"""How much goes through: on one node, between nodes by plain routes, and by VXLAN.

podwire is held against the same topology made by hand, and podwire with masquerading against the Go
bridge with masquerading. All sides of a path stand at the same time and take turns. What is made by
hand is there twice: how far from 1 these two are is what the others' ratios are off as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from bench import byhand, iperf, plugged
from bench.contenders import (
    AGENT,
    AGENT_MASQUERADE,
    BY_HAND,
    CONTROL,
    MASQUERADE,
    Contender,
    masquerading,
)
from bench.measure import BUDGET_S, Budget, rotated
from bench.nodes import Place
from bench.results import Rates
from bench.sites import Site

SAME, ROUTE, VXLAN = "same node", "by route", "by VXLAN"
PATHS = (SAME, ROUTE, VXLAN)
STARTS = 6  # of the transfers of a kind: streams differ by how they began
# A side of podwire, whom it is held against, and in which paths.
PAIRS = (
    (AGENT, BY_HAND, PATHS),
    (CONTROL, BY_HAND, PATHS),
    (AGENT_MASQUERADE, MASQUERADE, (SAME, ROUTE)),
)
LEAST = 12  # rounds, however slow the machine is
PER_RUN = 2  # rounds, which are short

Build = Callable[[ExitStack], Site]


def throughput(sides: Sequence[Contender], place: Place, runs: int) -> list[Rates]:
    """Each kind of transfer over each path, in `runs` * PER_RUN slices and at least LEAST."""
    if not iperf.installed():
        return []
    rounds = max(LEAST, runs * PER_RUN)
    found: list[Rates] = []
    for path in PATHS:
        with ExitStack() as stack:
            sites = {name: build(stack) for name, build in _sites(path, sides, place).items()}
            for what in iperf.UNITS:
                found += _in_turns(path, what, sites, rounds)
    return found


def missing() -> list[str]:
    """What a reader must know when there is no iperf3."""
    if iperf.installed():
        return []
    return ["iperf3 is not installed: throughput was not measured (apt-get install iperf3)."]


def _sites(path: str, sides: Sequence[Contender], place: Place) -> Mapping[str, Build]:
    """How to make the sites of a path, by the names of the sides."""
    plugins = {SAME: plugged.same_node, ROUTE: plugged.by_route, VXLAN: plugged.by_vxlan}[path]
    hand = {SAME: byhand.same_node, ROUTE: byhand.by_route, VXLAN: byhand.by_vxlan}[path]
    wanted = {name for pair in PAIRS for name in pair[:2] if path in pair[2]}
    found: dict[str, Build] = {BY_HAND: hand, CONTROL: hand}
    for side in (*sides, *masquerading(sides)):
        if side.name in wanted:
            found[side.name] = _planned(plugins, side, place)
    return found


def _planned(
    make: Callable[[Contender, Place, ExitStack], Site], side: Contender, place: Place
) -> Build:
    return lambda stack: make(side, place, stack)


def _in_turns(path: str, what: str, sites: Mapping[str, Site], rounds: int) -> list[Rates]:
    """All sides' transfers, begun STARTS times; the slices between two starts take turns."""
    values: dict[str, list[float]] = {name: [] for name in sites}
    budget = Budget(BUDGET_S)
    for start in range(STARTS):
        if budget.spent(start * rounds // STARTS, LEAST):
            break
        with iperf.beside(), ExitStack() as stack:
            transfers = {name: iperf.Transfer(site, what, stack) for name, site in sites.items()}
            for turn in range(-1, max(1, rounds // STARTS)):
                for name in rotated(tuple(sites), turn + 1):
                    value = transfers[name].slice()
                    if turn >= 0:
                        values[name].append(value)
    unit = iperf.UNITS[what]
    return [Rates(path, what, name, unit, tuple(taken)) for name, taken in values.items()]
