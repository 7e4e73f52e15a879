"""`python -m bench`: measure, print, and write the results where they are asked for."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from time import monotonic

from bench import contenders, ipam, machine, namespaces, pods, report, results
from bench.contenders import Contender
from bench.measure import CallFailedError
from bench.results import Results, Series

RUNS = 30
SCENARIOS = ("version", "pod", "dual", "ipam")
_FAMILIES = {"pod": (4,), "dual": (4, 6)}


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and clean up
    if options.profile:
        from bench import profiling

        return profiling.run(options.profile, options.runs)
    try:
        found = _read(options.read) if options.read else _measure(options)
    except (CallFailedError, OSError, ValueError) as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    for path, content in (
        (options.json, results.encode(found)),
        (options.markdown, report.page(found)),
    ):
        if path:
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
    print(report.text(found))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="podwire beside the Go plugins of $CNI_PEER_PATH"
        f" (default {contenders.DEFAULT_PEER_PATH}), interleaved in one run.",
    )
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each command ({RUNS})")
    parser.add_argument(
        "--only", action="append", choices=SCENARIOS, help="only this scenario; may be repeated"
    )
    parser.add_argument("--json", metavar="FILE", help="write what was measured, every sample")
    parser.add_argument("--markdown", metavar="FILE", help="write the report as a page")
    parser.add_argument(
        "--from", dest="read", metavar="FILE", help="report what --json wrote, measure nothing"
    )
    parser.add_argument(
        "--profile", choices=("add", "del"), help="show where the time of one call goes instead"
    )
    parser.add_argument(
        "--dir", metavar="DIR", help="make the address directories here instead of in memory"
    )
    options = parser.parse_args(argv)
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    return options


def _read(path: str) -> Results:
    with open(path, encoding="utf-8") as file:
        return results.decode(file.read())


def _measure(options: argparse.Namespace) -> Results:
    wanted = options.only or SCENARIOS
    peer, peer_ipam = contenders.peer(), contenders.peer_ipam()
    sides = [side for side in (contenders.podwire(), peer) if side is not None]
    notes = [] if peer else [contenders.missing_peer()]
    if os.geteuid() != 0 and _FAMILIES.keys() & set(wanted):
        notes.append("ADD and DEL were not measured: network namespaces need root.")
        wanted = [name for name in wanted if name not in _FAMILIES]
    with _folder(options.dir) as folder:
        about = machine.describe(folder)
        series: list[Series] = []
        begin = monotonic()
        for name in wanted:
            print(f"{monotonic() - begin:4.0f} s  measuring {name}", file=sys.stderr, flush=True)
            series += _scenario(name, sides, peer_ipam, folder, options.runs)
    about["load at the end"] = machine.load()
    measured = [*sides, peer_ipam] if peer_ipam else sides
    return Results(
        machine=about,
        contenders={side.name: contenders.describe(side) for side in measured},
        commands=_commands(wanted, sides, peer_ipam),
        series=tuple(series),
        notes=tuple(notes),
        aliases={os.path.dirname(sides[0].executable): ".venv/bin"},
    )


def _folder(directory: str | None) -> AbstractContextManager[str]:
    if directory is None and os.geteuid() == 0:
        return namespaces.memory()
    return tempfile.TemporaryDirectory(prefix="podwire-bench-", dir=directory)


def _scenario(
    name: str, sides: Sequence[Contender], peer_ipam: Contender | None, folder: str, runs: int
) -> list[Series]:
    if name == "version":
        return pods.versions(sides, runs)
    if name == "ipam":
        return ipam.ipam(peer_ipam, folder)
    return pods.pods(sides, folder, runs, name, _FAMILIES[name])


def _commands(
    wanted: Sequence[str], sides: Sequence[Contender], peer_ipam: Contender | None
) -> dict[str, str]:
    found: dict[str, str] = {}
    if "pod" in wanted or "version" in wanted:
        found |= pods.commands(sides, _FAMILIES["pod"])
    elif "dual" in wanted:
        found |= pods.commands(sides, _FAMILIES["dual"])
    if "ipam" in wanted and peer_ipam is not None:
        found |= ipam.commands(peer_ipam)
    return found


if __name__ == "__main__":
    sys.exit(main())
