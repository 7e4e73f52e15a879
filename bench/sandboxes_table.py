"""What pod sandboxes took, as a table. Pure."""

from __future__ import annotations

from statistics import median

from bench.results import Results, Series
from bench.sandboxes import GO, network_of
from bench.statistic import pairs, ratio, summary
from bench.tables import milliseconds, table

_HEAD = (
    *("ms", "at once", "calls", "min", "median", "p95"),
    *("ratio", "of pairs", "95 % of it", "network", "its share"),
)
EXPLAINED = (
    "*network*: how long containerd's calls of plugins took, by its own count; *its share*: of"
    " the whole call. What is left is the work of containerd, its shim and runc. No pod has a"
    " host port. *ratio* and *of pairs* are to Go with containerd's part in both."
)


def sandboxes(results: Results, scenario: str) -> str:
    """One line for each call, number at once and contender; "" for what was not measured."""
    rows = []
    for each in results.of(scenario):
        network = results.find(scenario, network_of(each.what), each.contender, each.size)
        if network is not None:
            rows.append(_row(results, each, network))
    return table(_HEAD, rows) if rows else ""


def _row(results: Results, each: Series, network: Series) -> list[str]:
    wall = summary(each.wall)
    part = median(network.wall)
    return [
        f"{each.what}, {each.contender}",
        str(each.size),
        *(str(wall.runs), milliseconds(wall.least)),
        *(milliseconds(wall.median), milliseconds(wall.p95)),
        *_to_go(results, each),
        milliseconds(part),
        f"{100 * part / wall.median:.0f} %",
    ]


def _to_go(results: Results, each: Series) -> tuple[str, str, str]:
    go = results.find(each.scenario, each.what, GO, each.size)
    if go is None or go is each:
        return "", "", ""
    found = ratio(each.wall, go.wall)
    spread = pairs(each.wall, go.wall)
    sure = f"{spread.low:.2f} to {spread.high:.2f}"
    return f"{found.of_medians:.2f}", f"{spread.median:.2f}", sure
