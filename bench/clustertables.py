"""What it costs to follow a cluster, as tables. Pure.

A function returns "" for what was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from bench import cluster
from bench.cluster import CHANGES, HEARTBEAT, LINK, ROUTER, SERVER, START
from bench.results import Results
from bench.tables import milliseconds, table

_REQUESTS = "requests: "


def agent(results: Results) -> str:
    """One line for each thing that happens and each way to the peers."""
    sizes = _sizes(results)
    rows = [
        [
            f"{what}, {label}",
            *(cell for size in sizes for cell in _times(results, what, label, size)),
        ]
        for what in (START, *CHANGES, HEARTBEAT)
        for label in (LINK, ROUTER)
    ]
    shown = [row for row in rows if any(row[1:])]
    head = ["median ms at nodes"]
    head += [text for size in sizes for text in (f"{size:,}", "agent's CPU")]
    return table(head, shown) if shown else ""


def _times(results: Results, what: str, label: str, size: int) -> Iterator[str]:
    found = results.find("cluster", what, label, size)
    if found is None:
        yield from ("", "")
        return
    # What a heartbeat takes is the API's time: nothing follows from it.
    yield "" if what == HEARTBEAT else milliseconds(median(found.wall))
    yield milliseconds(median(found.cpu))


def held(results: Results) -> str:
    """One line for each way and number of nodes: memory, what is done at rest, requests."""
    rows = []
    for label in (LINK, ROUTER):
        for size in _sizes(results):
            rss, peak, rest = (
                results.amount("cluster", what, label, size)
                for what in (cluster.RSS, cluster.PEAK, cluster.REST)
            )
            if rss is not None and peak is not None and rest is not None:
                rows.append(
                    (
                        f"{label}, {size:,} nodes",
                        f"{rss.value / 1024:.1f}",
                        f"{peak.value / 1024:.1f}",
                        f"{rest.value / 600:.2f}",  # of 60,000 ms
                        _requests(results, label, size),
                    )
                )
    head = ("the agent", "RSS, MiB", "at most", "CPU at rest, %", "requests")
    return table(head, rows) if rows else ""


def _requests(results: Results, label: str, size: int) -> str:
    """As "20 list nodes, 1 watch nodes"."""
    return ", ".join(
        f"{amount.value:.0f} {amount.what.removeprefix(_REQUESTS)}"
        for amount in results.amounts
        if (amount.contender, amount.size) == (label, size) and amount.what.startswith(_REQUESTS)
    )


def server(results: Results) -> str:
    """What the API server pays: without watches, and with many."""
    sizes = _sizes(results)
    found = [a for a in results.amounts if a.contender == SERVER]
    rows = [
        [f"{what}, {unit}", *(_shown(results, what, size) for size in sizes)]
        for what, unit in dict.fromkeys((amount.what, amount.unit) for amount in found)
    ]
    head = ["the API server, at nodes", *(f"{size:,}" for size in sizes)]
    return table(head, rows) if rows else ""


def _shown(results: Results, what: str, size: int) -> str:
    found = results.amount("cluster", what, SERVER, size)
    return (
        ""
        if found is None
        else f"{found.value:,.0f}"
        if found.value >= 100
        else f"{found.value:.1f}"
    )


def per_node(results: Results) -> float | None:
    """How many KiB a node takes in the agent's memory: the steeper of the two ways."""
    sizes = _sizes(results)
    found = []
    for label in (LINK, ROUTER):
        few, many = (results.amount("cluster", cluster.RSS, label, size) for size in _ends(sizes))
        if few is not None and many is not None and few.size < many.size:
            found.append((many.value - few.value) / (many.size - few.size))
    return max(found, default=None)


def kept(results: Results) -> tuple[float, float] | None:
    """RSS in KiB after the first of many changes, and after all of them."""
    found = [
        next((a.value for a in results.amounts if a.what == cluster.KEPT.format(number)), None)
        for number in cluster.MANY
    ]
    if found[0] is None or found[-1] is None:
        return None
    return found[0], found[-1]


def _ends(sizes: Sequence[int]) -> tuple[int, int]:
    return (sizes[0], sizes[-1]) if sizes else (0, 0)


def _sizes(results: Results) -> list[int]:
    return sorted({series.size for series in results.of("cluster")})
