"""Results as tables, for a terminal or as the page docs/performance.md. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from bench.contenders import PEER, PEER_IPAM, PODWIRE
from bench.ipam import FILLS, SCATTERED
from bench.results import Results, Series
from bench.statistic import ratio, summary

# Scenarios whose samples are whole processes, with their titles, in the order of the report.
PROCESSES = {
    "version": "Start of a process (VERSION)",
    "pod": "A pod with an IPv4 address",
    "dual": "A pod with an IPv4 and an IPv6 address",
}
GOALS = {
    "pod": "Goal without an agent: an ADD of at most 6 times the Go plugins'.",
    "ipam": "Goal: 60,000 reservations cost podwire at most 1.2 times what 10 do.",
}
_PAGE = """\
# Performance

Made by `python -m bench --markdown docs/performance.md`; do not edit. `make bench` measures anew.

podwire and the Go plugins took turns in one run, after warm-ups. Each side has a node (a network
namespace) with one pod on it already; each pod that was measured got a namespace of its own. Times
are of whole processes, from before fork to after exit. **Ratios are what counts**: absolute times
belong to this machine in this hour, and it may have done other work as well.

- *ratio*: the median divided by the median of the Go plugins.
- *of pairs*: the median of the ratios of calls that ran next to each other.
- *CPU*: user and system time, the processes that a plugin starts included.
"""


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


def processes(results: Results, scenario: str) -> str:
    """One line for each command and contender of a scenario; "" when it was not run."""
    head = ("ms", "runs", "min", "median", "p95", "CPU", "ratio", "of pairs")
    rows = [_process(series, results) for series in results.of(scenario)]
    return table(head, rows) if rows else ""


def _process(series: Series, results: Results) -> tuple[str, ...]:
    wall = summary(series.wall)
    against = ("", "")
    reference = results.find(series.scenario, series.what, PEER, series.size)
    if reference is not None and reference is not series:
        found = ratio(series.wall, reference.wall)
        against = (f"{found.of_medians:.2f}", f"{found.of_pairs:.2f}")
    return (
        f"{series.what}, {series.contender}",
        str(wall.runs),
        milliseconds(wall.least),
        milliseconds(wall.median),
        milliseconds(wall.p95),
        milliseconds(median(series.cpu)) if series.cpu else "",
        *against,
    )


# --- IPAM -------------------------------------------------------------------------------------


def ipam(results: Results) -> str:
    """One line for each number of reservations; "" when it was not run."""
    sizes = sorted({series.size for series in results.of("ipam") if series.size})
    if not sizes:
        return ""
    head = ["median ms at reservations", *(f"{size:,}" for size in sizes)]
    head.append(f"{sizes[-1]:,} / {sizes[0]:,}")
    rows = []
    for contender in (PODWIRE, SCATTERED, PEER_IPAM):
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


# --- whole reports ----------------------------------------------------------------------------


def _sections(results: Results) -> Iterator[tuple[str, str]]:
    for scenario, title in PROCESSES.items():
        if body := processes(results, scenario):
            goal = GOALS.get(scenario)
            yield title, f"{body}\n\n{goal}" if goal else body
    if body := ipam(results):
        yield (
            "IPAM: the cost of an address",
            f"{body}\n\n{_ipam_explained(results)}\n{GOALS['ipam']}",
        )


def _ipam_explained(results: Results) -> str:
    ours = results.find("ipam", "add", PODWIRE, FILLS[0])
    text = (
        f"podwire: {len(ours.wall) if ours else 0} calls in process, without the start of one."
        " *scattered*: as many addresses at random places of the /16, so that the search for a"
        " free one begins among taken ones."
    )
    theirs = results.find("ipam", "add", PEER_IPAM, FILLS[0])
    if theirs is not None:
        text += (
            f"\nGo: {len(theirs.wall)} processes, each less the time of a VERSION that ran just"
            " before; at 10 reservations, what is left is mostly noise."
        )
    return text


def text(results: Results) -> str:
    """The report for a terminal."""
    parts = [*results.notes, *(f"{title}\n{body}" for title, body in _sections(results))]
    machine = [f"{name}: {value}" for name, value in results.machine.items()]
    sides = [f"{name}: {value}" for name, value in results.contenders.items()]
    parts.append("\n".join(machine + sides))
    commands = [f"# {title}\n{command}" for title, command in results.commands.items()]
    if commands:
        parts.append("The commands, for `ip netns add node; ip netns add pod`:")
    parts += commands
    return "\n\n".join(parts) + "\n"


def page(results: Results) -> str:
    """The report as a Markdown page, with `aliases` in place of this machine's paths."""
    parts = [_PAGE.rstrip(), *results.notes]
    parts += [f"## {title}\n\n{body}" for title, body in _sections(results)]
    facts = {**results.machine, **results.contenders}
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    parts.append(f"## The machine and the versions\n\n{lines}")
    if results.commands:
        parts.append(
            "## The commands\n\nTo repeat a call by hand: `ip netns add node; ip netns add pod`,"
            " and then these. The benchmark itself enters the node's namespace and starts the"
            " plugin there, so `ip netns exec` is no part of the times."
        )
        parts += [f"{title}:\n```sh\n{command}\n```" for title, command in results.commands.items()]
    whole = "\n\n".join(parts) + "\n"
    for path, alias in results.aliases.items():
        whole = whole.replace(path, alias)
    return whole
