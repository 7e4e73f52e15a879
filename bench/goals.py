"""What podwire wants to reach, and what a run says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from bench.contenders import AGENT, ALONE, MASQUERADE, PEER, PODWIRE_IPAM, WHEEL
from bench.crowd import AT_ONCE, MANY_PODS, PODS
from bench.results import Results
from bench.statistic import percentile
from bench.tables import table, throughput


class Goal(NamedTuple):
    """`measured` is to be at most `limit`, or at least; None: this run did not tell."""

    title: str
    limit: float
    measured: float | None
    at_least: bool = False
    unit: str = ""

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
            "yes" if goal.met else "no",
        )
        for goal in goals(results)
    ]
    return table(("goal", "limit", "measured", "met"), rows) if rows else ""


def _all(results: Results) -> Iterator[Goal]:
    def of(scenario: str, what: str, one: str, other: str) -> float | None:
        return _quotient(results, (scenario, what, one, 0), (scenario, what, other, 0))

    alone = ALONE if results.find("pod", "ADD", ALONE) else WHEEL
    yield Goal("ADD / Go", 0.40, of("pod", "ADD", AGENT, PEER))
    yield Goal("ADD / Go with ipMasq", 0.18, of("pod", "ADD", AGENT, MASQUERADE))
    yield Goal("DEL / Go", 0.12, of("pod", "DEL", AGENT, PEER))
    yield Goal("DEL / Go with ipMasq", 0.06, of("pod", "DEL", AGENT, MASQUERADE))
    yield Goal("ADD without an agent / Go", 6, of("pod", "ADD", alone, PEER))
    for command, factor in (("ADD", 2.5), ("DEL", 1)):
        calls = f"{AT_ONCE} {command}s at once"
        yield Goal(f"{calls}, throughput / Go", factor, _throughput(results, command), True)
        yield Goal(f"{calls}, p95 / Go", 1, _p95(results, command))
    yield Goal("STATUS / Go's exec of it", 0.6, of("status", "STATUS", AGENT, PEER))
    yield Goal("VERSION / Go", 0.6, of("version", "VERSION", AGENT, PEER))
    yield Goal(
        f"ADD at {MANY_PODS:,} pods / at one",
        1.2,
        _quotient(results, ("thousand", "ADD", AGENT, MANY_PODS), ("thousand", "ADD", AGENT, 1)),
    )
    yield Goal(f"agent's RSS at {PODS} pods", 60, _rss(results), unit=" MiB")
    yield from _flat(results)
    yield Goal(
        "an address at 60,000 reservations / at 10",
        1.2,
        _quotient(
            results, ("ipam", "add", PODWIRE_IPAM, 60_000), ("ipam", "add", PODWIRE_IPAM, 10)
        ),
    )


Name = tuple[str, str, str, int]


def _quotient(results: Results, one: Name, other: Name) -> float | None:
    """The median of one series divided by that of another."""
    found = results.find(*one), results.find(*other)
    if found[0] is None or found[1] is None:
        return None
    return median(found[0].wall) / median(found[1].wall)


def _throughput(results: Results, command: str) -> float | None:
    ours, theirs = (throughput(results, command, side) for side in (AGENT, PEER))
    return ours / theirs if ours and theirs else None


def _p95(results: Results, command: str) -> float | None:
    found = [results.find("parallel", command, side, AT_ONCE) for side in (AGENT, PEER)]
    if found[0] is None or found[1] is None:
        return None
    return percentile(found[0].wall, 95) / percentile(found[1].wall, 95)


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
