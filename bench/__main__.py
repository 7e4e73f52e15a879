"""`python -m bench`: measure, print, and write the results where they are asked for."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from bench import contenders, plot, report, results, scenarios
from bench.agents import AgentError
from bench.measure import CallFailedError
from bench.results import Results

RUNS, RUNS_OF_ALL = 30, 60
_WRITERS: dict[str, Callable[[Results], str]] = {
    "json": results.encode,
    "markdown": report.page,
    "svg": plot.svg,
}


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and clean up
    if options.profile:
        from bench import profiling

        return profiling.run(options.profile, options.runs)
    try:
        if options.read:
            found = _read(options.read)
        else:
            wanted = options.only or (scenarios.SCENARIOS if options.all else scenarios.DEFAULT)
            found = scenarios.run(tuple(wanted), options.runs, options.dir)
    except (AgentError, CallFailedError, OSError, ValueError) as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    for name, written in _WRITERS.items():
        if path := getattr(options, name):
            with open(path, "w", encoding="utf-8") as file:
                file.write(written(found))
    print(report.text(found))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="podwire beside the Go plugins of $CNI_PEER_PATH"
        f" (default {contenders.DEFAULT_PEER_PATH}), interleaved in one run. The executable is"
        " $PODWIRE_EXECUTABLE, or build/podwire; $PODWIRE_NEWER names a folder of Go plugins"
        " that know STATUS.",
    )
    parser.add_argument(
        "--runs",
        type=int,
        help=f"of each command, and twice as many slices of a transfer ({RUNS};"
        f" {RUNS_OF_ALL} with --all)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only",
        action="append",
        choices=tuple(scenarios.SCENARIOS),
        help="only this scenario; may be repeated",
    )
    which.add_argument(
        "--all", action="store_true", help="kubernetes, cluster and soak as well, more runs"
    )
    parser.add_argument("--json", metavar="FILE", help="write what was measured, every sample")
    parser.add_argument("--markdown", metavar="FILE", help="write the report as a page")
    parser.add_argument("--svg", metavar="FILE", help="write the medians as a plot")
    parser.add_argument(
        "--from", dest="read", metavar="FILE", help="report what --json wrote, measure nothing"
    )
    parser.add_argument(
        "--profile", choices=("add", "del"), help="show where the time of one call goes instead"
    )
    parser.add_argument("--dir", metavar="DIR", help="make all files here instead of in memory")
    options = parser.parse_args(argv)
    if options.runs is None:
        options.runs = RUNS_OF_ALL if options.all else RUNS
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    return options


def _read(path: str) -> Results:
    with open(path, encoding="utf-8") as file:
        return results.decode(file.read())


if __name__ == "__main__":
    sys.exit(main())
