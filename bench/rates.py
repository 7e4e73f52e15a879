"""What went through in a second, as tables; and what took how long by the number of peers. Pure.

A function returns "" for what was not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.contenders import AGENT, AGENT_MASQUERADE, BY_HAND, CONTROL, MASQUERADE, PORTMAP
from bench.results import Rates, Results
from bench.statistic import Spread, pairs
from bench.tables import milliseconds, table

# Who is held against whom: the same without and with address translation.
REFERENCES = {AGENT: BY_HAND, CONTROL: BY_HAND, AGENT_MASQUERADE: MASQUERADE}


def paths(results: Results, scenario: str) -> str:
    """One line for each kind of transfer and side, with the ratio to what it is held against."""
    rows = []
    for rates in results.rates_of(scenario):
        held = against(results, rates)
        rows.append(
            (
                f"{rates.what}, {rates.contender}",
                str(len(rates.values)),
                rates.unit,
                digits(median(rates.values)),
                REFERENCES[rates.contender] if held else "",
                f"{held.median:.3f}" if held else "",
                f"{held.low:.3f} to {held.high:.3f}" if held else "",
            )
        )
    head = ("through", "slices", "unit", "median", "held against", "of pairs", "95 % of it")
    return table(head, rows) if rows else ""


def against(results: Results, rates: Rates) -> Spread | None:
    """The ratio to the reference; None for a reference, and without one."""
    reference = REFERENCES.get(rates.contender)
    if reference is None:
        return None
    other = results.rate(rates.scenario, rates.what, reference, rates.size)
    return None if other is None else pairs(rates.values, other.values)


def digits(value: float) -> str:
    """A rate with as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def connections(results: Results) -> str:
    """One line for each side: how many a second, by the number of mapped pods."""
    sizes = sorted({rates.size for rates in results.rates_of("connections")})
    if not sizes:
        return ""
    named = [f"{size:,} pods" if size > 1 else "1 pod" for size in sizes]
    head = ["a second", "rounds", *named, f"{sizes[-1]:,} / {sizes[0]:,}", "95 % of it"]
    rows = []
    for contender in (AGENT, PORTMAP):
        found = [results.rate("connections", "host port", contender, size) for size in sizes]
        present = [rates for rates in found if rates is not None]
        if len(present) == len(sizes):
            rows.append(_by_size(contender, present))
    return table(head, rows) if rows else ""


def _by_size(contender: str, found: Sequence[Rates]) -> list[str]:
    spread = pairs(found[-1].values, found[0].values)
    return [
        contender,
        str(len(found[0].values)),
        *(digits(median(rates.values)) for rates in found),
        f"{spread.median:.2f}",
        f"{spread.low:.2f} to {spread.high:.2f}",
    ]


def peers(results: Results) -> str:
    """One line for each way to the peers and each thing to do: the time by their number."""
    sizes = sorted({series.size for series in results.of("peers")})
    rows = []
    for what, contender in dict.fromkeys((s.what, s.contender) for s in results.of("peers")):
        found = [results.find("peers", what, contender, size) for size in sizes]
        runs = [str(len(series.wall)) for series in found if series is not None]
        times = ["" if s is None else milliseconds(median(s.wall)) for s in found]
        rows.append((f"{what}, {contender}", "/".join(dict.fromkeys(runs)), *times))
    head = ("median ms", "runs", *(f"{size:,} peers" for size in sizes))
    return table(head, rows) if rows else ""
