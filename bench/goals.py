"""What podwire wants to reach, and what a run says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from bench import (
    cluster,
    clustertables,
    connections,
    kubeready,
    peers,
    rates,
    sandboxes,
    statistic,
    throughput,
)
from bench.contenders import (
    AGENT,
    AGENT_MASQUERADE,
    ALONE,
    CHAIN,
    CHAIN_MASQUERADE,
    MASQUERADE,
    PEER,
    PODWIRE_IPAM,
    WHEEL,
)
from bench.crowd import AT_ONCE, MANY_PODS, PODS
from bench.results import Results
from bench.sandboxes_node import RUN
from bench.statistic import Spread, percentile
from bench.tables import calls_a_second, table

CANNOT_TELL = "can't tell"


class Goal(NamedTuple):
    """`measured` is to be at most `limit`, or at least; None: this run did not tell.

    `spread` is known where the ratio of pairs counts, and where chance decides about 1 or 2 %.
    """

    title: str
    limit: float
    measured: float | None
    at_least: bool = False
    unit: str = ""
    spread: Spread | None = None

    @property
    def verdict(self) -> str:
        """Of fewer samples the interval is wider: more of them tell."""
        spread = self.spread
        if not self.met and spread is not None and spread.low < self.limit <= spread.high:
            return CANNOT_TELL
        return "yes" if self.met else "no"

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def goals(results: Results) -> list[Goal]:
    """Those that the run tells something about."""
    return [goal for goal in _all(results) if goal.measured is not None]


def shown(results: Results) -> str:
    """One line for each goal; "" when there is none."""
    rows = [
        (
            goal.title,
            f"{'>=' if goal.at_least else '<='} {goal.limit:g}{goal.unit}",
            f"{goal.measured:.2f}{goal.unit}",
            goal.verdict,
        )
        for goal in goals(results)
    ]
    return table(("goal", "limit", "measured", "met"), rows) if rows else ""


_CHAINS = (AGENT_MASQUERADE, CHAIN_MASQUERADE)


def _all(results: Results) -> Iterator[Goal]:
    def of(scenario: str, what: str, one: str, other: str) -> float | None:
        return _quotient(results, (scenario, what, one, 0), (scenario, what, other, 0))

    alone = ALONE if results.find("pod", "ADD", ALONE) else WHEEL
    yield Goal("ADD / Go", 0.40, of("pod", "ADD", AGENT, PEER))
    yield Goal("DEL / Go", 0.12, of("pod", "DEL", AGENT, PEER))
    yield Goal("ADD without an agent / Go", 6, of("pod", "ADD", alone, PEER))
    masquerade = ("masquerade", AGENT_MASQUERADE, MASQUERADE)
    for title, scenario, one, other, add, delete in (
        ("with ipMasq / Go's", *masquerade, 0.18, 0.06),
        ("with host ports and bandwidth / Go chain", "chain", AGENT, CHAIN, 0.10, 0.10),
        ("with these and ipMasq / Go chain with it", "chain", *_CHAINS, 0.10, 0.10),
    ):
        yield Goal(f"ADD {title}", add, of(scenario, "ADD", one, other))
        yield Goal(f"DEL {title}", delete, of(scenario, "DEL", one, other))
    yield from _at_once(results)
    yield Goal("STATUS / Go's exec of it", 0.6, of("status", "STATUS", AGENT, PEER))
    yield Goal("VERSION / Go", 0.6, of("version", "VERSION", AGENT, PEER))
    yield Goal(
        f"ADD at {MANY_PODS:,} pods / at one",
        1.2,
        _quotient(results, ("thousand", "ADD", AGENT, MANY_PODS), ("thousand", "ADD", AGENT, 1)),
    )
    yield Goal(f"agent's RSS at {PODS} pods", 60, _rss(results), unit=" MiB")
    yield from _flat(results)
    yield from _traffic(results)
    yield from _known(results)
    yield from _followed(results)
    yield from _sandboxes(results)
    yield from _clusters(results)
    yield Goal(
        "an address at 60,000 reservations / at 10",
        1.2,
        _quotient(
            results, ("ipam", "add", PODWIRE_IPAM, 60_000), ("ipam", "add", PODWIRE_IPAM, 10)
        ),
    )


def _at_once(results: Results) -> Iterator[Goal]:
    for command, factor in (("ADD", 2.5), ("DEL", 1)):
        calls = f"{AT_ONCE} {command}s at once"
        yield Goal(f"{calls}, throughput / Go", factor, _throughput(results, command), True)
        yield Goal(f"{calls}, p95 / Go", 1, _p95(results, command))


Name = tuple[str, str, str, int]


def _quotient(results: Results, one: Name, other: Name) -> float | None:
    """The median of one series divided by that of another."""
    found = results.find(*one), results.find(*other)
    if found[0] is None or found[1] is None:
        return None
    return median(found[0].wall) / median(found[1].wall)


def _throughput(results: Results, command: str) -> float | None:
    ours, theirs = (calls_a_second(results, command, side) for side in (AGENT, PEER))
    return ours / theirs if ours and theirs else None


def _p95(results: Results, command: str) -> float | None:
    found = [results.find("parallel", command, side, AT_ONCE) for side in (AGENT, PEER)]
    if found[0] is None or found[1] is None:
        return None
    return percentile(found[0].wall, 95) / percentile(found[1].wall, 95)


# --- traffic ----------------------------------------------------------------------------------

_LEAST = {AGENT: 0.98, AGENT_MASQUERADE: 1.0}  # of what is made by hand, of Go's with ipMasq


def _traffic(results: Results) -> Iterator[Goal]:
    """The ratio of pairs: machines change their speed in the minutes that this takes."""
    for path in throughput.PATHS:
        for found in results.rates_of(path):
            held = rates.against(results, found)
            if held is not None and found.contender in _LEAST:
                title = f"{found.what}, {path} / {rates.REFERENCES[found.contender]}"
                yield Goal(title, _LEAST[found.contender], held.median, True, spread=held)
    few, many = (
        results.rate("connections", "host port", AGENT, size)
        for size in (connections.SIZES[0], connections.SIZES[-1])
    )
    if few is not None and many is not None:
        title = f"connections to a host port at {many.size:,} mapped pods / at {few.size:,}"
        held = statistic.pairs(many.values, few.values)
        yield Goal(title, 0.95, held.median, True, spread=held)


# Of the same messages; the kernel takes longer to put a route among five times as many.
_CONSTANT = 2.5


def _known(results: Results) -> Iterator[Goal]:
    """Programming 1,000 peers in a second; of a whole first ADD as well, which is more."""
    for series in results.of("peers"):
        if series.what in (peers.PROGRAM, peers.FIRST):
            title = f"{series.what}, {series.size:,} peers, {series.contender}"
            yield Goal(title, series.size / 1000, median(series.wall) / 1e9, unit=" s")
    few, many = peers.SIZES
    for backend in peers.BACKENDS:
        one = ("peers", peers.PROGRAM_MORE, backend)
        title = f"one more peer at {many:,} / at {few:,}, {backend}"
        yield Goal(title, _CONSTANT, _quotient(results, (*one, many), (*one, few)))


_NODE_KIB = 12  # of an agent's memory, for each node of its cluster
_CHANGE_MS = 20  # of its CPU, at the most nodes that are measured


def _followed(results: Results) -> Iterator[Goal]:
    """60 MiB and so much for each node; few requests; a change costs little among thousands."""
    many = cluster.SIZES[-1]
    for label in (cluster.LINK, cluster.ROUTER):
        for size in cluster.SIZES:
            rss = results.amount("cluster", cluster.RSS, label, size)
            limit = 60 + size * _NODE_KIB / 1024
            title = f"agent's RSS at {size:,} nodes, {label}"
            yield Goal(title, limit, rss.value / 1024 if rss else None, unit=" MiB")
        later = results.amount("cluster", cluster.LATER, label, many)
        title = f"requests at {many:,} nodes after the start, {label}"
        yield Goal(title, 0, later.value if later else None)
        for what in cluster.CHANGES:
            found = results.find("cluster", what, label, many)
            title = f"agent's CPU for {what} at {many:,} nodes, {label}"
            yield Goal(title, _CHANGE_MS, median(found.cpu) / 1e6 if found else None, unit=" ms")
    kib = clustertables.per_node(results)
    yield Goal("agent's RSS for each node", _NODE_KIB, kib, unit=" KiB")
    if kept := clustertables.kept(results):
        first, last = cluster.MANY[0], cluster.MANY[-1]
        title = f"agent's RSS after {last:,} changes of nodes / after {first:,}"
        yield Goal(title, 1.05, kept[1] / kept[0])


def _spread(results: Results, one: Name, other: Name) -> Spread | None:
    """Where the ratio of two series lies, by calls that ran next to each other."""
    found = results.find(*one), results.find(*other)
    if found[0] is None or found[1] is None:
        return None
    return statistic.pairs(found[0].wall, found[1].wall)


_SANDBOX = (0.9, 0.8)  # of Go's, by sandboxes.AT_ONCE: containerd's own work is in both


def _sandboxes(results: Results) -> Iterator[Goal]:
    """The whole call of a kubelet, with each containerd."""
    for scenario in sandboxes.TITLES:
        for size, limit in zip(sandboxes.AT_ONCE, _SANDBOX, strict=True):
            ours, go = ((scenario, RUN, name, size) for name in (AGENT, sandboxes.GO))
            at_once = f", {size} at once" if size > 1 else ""
            title = f"{sandboxes.TITLES[scenario]}{at_once} / Go's"
            spread = _spread(results, ours, go)
            yield Goal(title, limit, _quotient(results, ours, go), spread=spread)


def _clusters(results: Results) -> Iterator[Goal]:
    """No later than the Go plugins, which were put there by hand."""
    few, many = kubeready.AT_ONCE
    for title, what, size in (
        ("cluster start to nodes Ready", kubeready.step(kubeready.FIRST, kubeready.READY), 0),
        ("the same after a reboot", kubeready.step(kubeready.AGAIN, kubeready.READY), 0),
        ("pod create to Ready", kubeready.POD_READY, few),
        (f"{many} pods at once to Ready, all", kubeready.ALL_READY, many),
    ):
        ours, hand = ((kubeready.SCENARIO, what, side, size) for side in kubeready.SIDES)
        spread = _spread(results, ours, hand)
        yield Goal(f"{title} / Go's by hand", 1, _quotient(results, ours, hand), spread=spread)


# --- what the agent holds ---------------------------------------------------------------------


def _rss(results: Results) -> float | None:
    """In MiB, with PODS pods on the node."""
    found = [look.rss_kib / 1024 for look in results.held if look.scenario == "full"]
    return found[-1] if found else None


def _flat(results: Results) -> Iterator[Goal]:
    """From the second look on: until then an agent takes the memory that it works with."""
    looks = [look for look in results.held if look.scenario == "soak"][1:]
    if len(looks) < 2:
        return
    first, last = looks[0], looks[-1]
    over = f"from {first.pairs:,} to {last.pairs:,} pairs"
    yield Goal(f"agent's RSS {over}", 1.05, last.rss_kib / first.rss_kib)
    yield Goal(f"agent's descriptors {over}", 1, last.fds / first.fds)
    yield Goal(f"agent's threads {over}", 1, last.threads / first.threads)
