"""What was measured, as tables: one function for each kind of scenario. Pure.

A function returns "" for what was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median

from bench.contenders import (
    CHAIN,
    CHAIN_MASQUERADE,
    MASQUERADE,
    PEER,
    PEER_IPAM,
    PODWIRE_IPAM,
)
from bench.ipam import SCATTERED
from bench.results import Results, Series
from bench.statistic import percentile, ratio, summary

NS_PER_S = 1e9


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left and the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def shown(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([shown(lines[0]), shown(rule), *(shown(line) for line in lines[1:])])


def milliseconds(ns: float) -> str:
    """A time with as many digits as mean something."""
    ms = ns / 1e6
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}"


# --- processes --------------------------------------------------------------------------------


# The heads of the columns with ratios, and whom they are to.
_COLUMNS: Mapping[str, Sequence[tuple[str, str]]] = {
    "pod": (("ratio", PEER), ("of pairs", PEER), ("to ipMasq", MASQUERADE)),
    "masquerade": (("ratio", MASQUERADE), ("of pairs", MASQUERADE)),
    "chain": (("ratio", CHAIN), ("of pairs", CHAIN), ("to ipMasq", CHAIN_MASQUERADE)),
}


def processes(results: Results, scenario: str) -> str:
    """One line for each command and contender of a scenario, with ratios to Go's."""
    found = list(results.of(scenario))
    columns = _COLUMNS.get(scenario, _COLUMNS["pod"])
    present = {series.contender for series in found}
    shown = [entry for entry in columns if entry[1] in present]
    head = ["ms", "runs", "min", "median", "p95", "CPU", *(name for name, _ in shown)]
    rows = [[*_times(s), *(_against(results, s, *column) for column in shown)] for s in found]
    return table(head, rows) if rows else ""


def _times(series: Series) -> list[str]:
    wall = summary(series.wall)
    return [
        f"{series.what}, {series.contender}",
        str(wall.runs),
        milliseconds(wall.least),
        milliseconds(wall.median),
        milliseconds(wall.p95),
        milliseconds(median(series.cpu)) if any(series.cpu) else "",
    ]


def _against(results: Results, series: Series, column: str, reference: str) -> str:
    other = results.find(series.scenario, series.what, reference, series.size)
    if other is None or other is series:
        return ""
    found = ratio(series.wall, other.wall)
    return f"{found.of_pairs if column == 'of pairs' else found.of_medians:.2f}"


# --- many at once -----------------------------------------------------------------------------


def parallel(results: Results) -> str:
    """One line for each command and contender: how many a second, and how long each took."""
    head = ("at once", "rounds", "a second", "to Go", "p50 ms", "p95 ms", "p95 to Go")
    rows = []
    for each in results.of("parallel"):
        whole = results.find("parallel", f"{each.what}s", each.contender, each.size)
        if whole is not None:
            rate, rate_to_go = _beside_go(results, each, calls_a_second)
            p95, p95_to_go = _beside_go(results, each, _p95)
            rows.append(
                (
                    f"{each.size} {each.what}s, {each.contender}",
                    str(len(whole.wall)),
                    f"{rate:.0f}",
                    rate_to_go,
                    milliseconds(median(each.wall)),
                    milliseconds(p95),
                    p95_to_go,
                )
            )
    return table(head, rows) if rows else ""


def _beside_go(
    results: Results, series: Series, value: Callable[[Results, str, str], float]
) -> tuple[float, str]:
    """A value of the series' command and contender, and its ratio to Go's; "" for Go's own."""
    ours = value(results, series.what, series.contender)
    theirs = value(results, series.what, PEER)
    return ours, f"{ours / theirs:.2f}" if theirs and series.contender != PEER else ""


def _p95(results: Results, what: str, contender: str) -> float:
    """In ns, of single calls; 0 when that was not measured."""
    for series in results.of("parallel"):
        if (series.what, series.contender) == (what, contender):
            return percentile(series.wall, 95)
    return 0.0


def calls_a_second(results: Results, what: str, contender: str) -> float:
    """Calls a second, of the median round; 0 when that was not measured."""
    for series in results.of("parallel"):
        if (series.what, series.contender) == (f"{what}s", contender):
            return series.size * NS_PER_S / median(series.wall)
    return 0.0


# --- one more ---------------------------------------------------------------------------------


def thousand(results: Results) -> str:
    """One line for each command and contender: at few pods, at many, and the quotient."""
    sizes = sorted({series.size for series in results.of("thousand")})
    rows = []
    for many in results.of("thousand"):
        few = results.find("thousand", many.what, many.contender, sizes[0])
        if few is not None and many.size == sizes[-1]:
            against = ratio(many.wall, few.wall)
            rows.append(
                (
                    f"{many.what}, {many.contender}",
                    str(len(many.wall)),
                    *(milliseconds(median(series.wall)) for series in (few, many)),
                    f"{against.of_medians:.2f}",
                    f"{against.of_pairs:.2f}",
                )
            )
    if not rows:
        return ""
    pods = (f"{size:,} pods" if size > 1 else "1 pod" for size in sizes)
    return table(("median ms", "runs", *pods, "ratio", "of pairs"), sorted(rows))


def held(results: Results) -> str:
    """One line for each look at an agent."""
    rows = [
        (f"{look.pairs:,}", f"{look.rss_kib / 1024:.1f}", str(look.fds), str(look.threads))
        for look in results.held
    ]
    head = ("pairs of ADD and DEL", "RSS, MiB", "descriptors", "threads")
    return table(head, rows) if rows else ""


# --- IPAM -------------------------------------------------------------------------------------


def ipam(results: Results) -> str:
    """One line for each number of reservations."""
    sizes = sorted({series.size for series in results.of("ipam") if series.size})
    if not sizes:
        return ""
    head = ["median ms at reservations", *(f"{size:,}" for size in sizes)]
    head.append(f"{sizes[-1]:,} / {sizes[0]:,}")
    rows = []
    for contender in (PODWIRE_IPAM, SCATTERED, PEER_IPAM):
        for what in ("add", "release"):
            rows.append([f"{what}, {contender}", *_row(results, what, contender, sizes)])
    return table(head, (row for row in rows if any(row[1:])))


def _row(results: Results, what: str, contender: str, sizes: Sequence[int]) -> Iterator[str]:
    """One time for each size, and the last of them divided by the first."""
    times = [_time(results, what, contender, size) for size in sizes]
    for time in times:
        yield "" if time is None else milliseconds(time) if time > 0 else "~0"
    first, last = times[0], times[-1]
    if first is None or last is None or first <= 0:
        yield ""
    else:
        quotient = last / first
        yield f"{quotient:.2f}" if quotient < 10 else f"{quotient:.0f}"


def _time(results: Results, what: str, contender: str, size: int) -> float | None:
    """The median, less the start of a process where that was measured before each call."""
    series = results.find("ipam", what, contender, size)
    start = results.find("ipam", "VERSION", contender, size)
    if series is None or start is None:
        return None if series is None else median(series.wall)
    return median(a - b for a, b in zip(series.wall, start.wall, strict=True))
