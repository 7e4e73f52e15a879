"""What can be measured, by name; and a whole run of some of it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import NamedTuple

from bench import (
    chain,
    cluster,
    connections,
    contenders,
    crowd,
    demand,
    ipam,
    iperf,
    kubeready,
    machine,
    namespaces,
    peers,
    pods,
    sandboxes,
    soak,
    throughput,
)
from bench.contenders import Contender
from bench.nodes import Place
from bench.results import Amount, Held, Rates, Results, Series


class Found(NamedTuple):
    """What one scenario measured."""

    series: Sequence[Series] = ()
    held: Sequence[Held] = ()
    rates: Sequence[Rates] = ()
    amounts: Sequence[Amount] = ()


class _Scenario(NamedTuple):
    """`measure` gets the contenders, a place for files, and how often each is called. `missing`
    says why something can't be measured here, `versions` what it is measured with."""

    measure: Callable[[Sequence[Contender], Place, int], Found]
    root: bool = True  # makes network namespaces
    default: bool = True
    missing: Callable[[], list[str]] = list
    versions: Callable[[], dict[str, str]] = dict


def _only_series(measure: Callable[[Sequence[Contender], Place, int], list[Series]]) -> _Scenario:
    return _Scenario(lambda sides, place, runs: Found(series=measure(sides, place, runs)))


def _only_rates(measure: Callable[[Sequence[Contender], Place, int], list[Rates]]) -> _Scenario:
    return _Scenario(lambda sides, place, runs: Found(rates=measure(sides, place, runs)))


def _cluster(sides: Sequence[Contender], place: Place, _: int) -> Found:
    measured = cluster.cluster(sides, place)
    return Found(series=measured.series, amounts=measured.amounts)


SCENARIOS: Mapping[str, _Scenario] = {
    "version": _only_series(pods.versions)._replace(root=False),
    "status": _only_series(pods.statuses),
    "pod": _only_series(lambda sides, place, runs: pods.pods(sides, place, runs, "pod", (4,))),
    "dual": _only_series(lambda sides, place, runs: pods.pods(sides, place, runs, "dual", (4, 6))),
    "check": _only_series(pods.checks),
    "parallel": _only_series(crowd.parallel),
    "full": _Scenario(lambda sides, place, runs: Found(*crowd.full(sides, place, runs))),
    "thousand": _only_series(crowd.thousand),
    "demand": _only_series(demand.demand),
    "ipam": _only_series(
        lambda _, place, __: ipam.ipam(contenders.peer_ipam(), place.new("ipam"))
    )._replace(root=False),
    "masquerade": _only_series(pods.masquerade),
    "chain": _only_series(chain.chain),
    "throughput": _only_rates(throughput.throughput)._replace(missing=throughput.missing),
    "connections": _only_rates(connections.connections),
    "peers": _only_series(peers.peers),
    "sandboxes": _only_series(lambda sides, _, runs: sandboxes.sandboxes(sides, runs))._replace(
        missing=sandboxes.missing, versions=sandboxes.versions
    ),
    "kubernetes": _only_series(lambda _, place, runs: kubeready.kubernetes(place, runs))._replace(
        default=False, missing=kubeready.missing, versions=kubeready.versions
    ),
    "cluster": _Scenario(_cluster, default=False, missing=cluster.missing),
    "soak": _Scenario(lambda sides, place, _: Found(*soak.soak(sides, place)), default=False),
}
DEFAULT = tuple(name for name, scenario in SCENARIOS.items() if scenario.default)


def run(wanted: Sequence[str], runs: int, directory: str | None) -> Results:
    """Measure the scenarios of these names, one after the other.

    `directory`, if given, takes the files, which lie in memory otherwise.
    """
    sides = contenders.everyone()
    notes = contenders.missing()
    if os.geteuid() != 0:
        notes.append("Calls with pods were not measured: network namespaces need root.")
        wanted = [name for name in wanted if not SCENARIOS[name].root]
    for name in wanted:
        notes += SCENARIOS[name].missing()
    found: list[Found] = []
    begin = monotonic()
    with _folder(directory) as folder:
        about = machine.describe(folder)
        for name in wanted:
            about |= SCENARIOS[name].versions()
        place = Place(folder)
        for name in wanted:
            print(f"{monotonic() - begin:4.0f} s  measuring {name}", file=sys.stderr, flush=True)
            found.append(SCENARIOS[name].measure(sides, place, runs))
        peer_ipam = contenders.peer_ipam() if "ipam" in wanted else None
        described = [*sides, *contenders.newer(), *([peer_ipam] if peer_ipam else [])]
        versions = {s.name: contenders.describe(s.at("", place.runtime)) for s in described}
    about["load at the end"] = machine.load()
    about["duration"] = f"{monotonic() - begin:.0f} s"
    return Results(
        machine=about,
        contenders=versions,
        commands=_commands(wanted, sides, peer_ipam),
        series=tuple(series for each in found for series in each.series),
        notes=tuple(notes),
        aliases=_aliases(sides),
        held=tuple(held for each in found for held in each.held),
        rates=tuple(rates for each in found for rates in each.rates),
        amounts=tuple(amount for each in found for amount in each.amounts),
    )


@contextmanager
def _folder(directory: str | None) -> Iterator[str]:
    """For the files of a run. Raises ValueError for a directory that the run would not see."""
    root = os.geteuid() == 0
    if directory is None and root:
        with namespaces.memory() as folder:
            yield folder
        return
    within = os.path.abspath(directory) if directory else None
    if root and within and f"{os.path.realpath(within)}/".startswith("/run/"):
        raise ValueError(f"--dir {directory}: not below /run, which the run has one of its own of")
    with (
        tempfile.TemporaryDirectory(prefix="podwire-bench-", dir=within) as folder,
        namespaces.private_run() if root else nullcontext(),
    ):
        yield folder


def _commands(
    wanted: Sequence[str], sides: Sequence[Contender], peer_ipam: Contender | None
) -> dict[str, str]:
    found = pods.commands(sides)
    if "chain" in wanted:
        found |= chain.commands(sides)
    if "throughput" in wanted:
        found |= iperf.commands()
    if peer_ipam is not None:
        found |= ipam.commands(peer_ipam)
    return found


def _aliases(sides: Sequence[Contender]) -> dict[str, str]:
    """What stands for the folders of this machine in a page."""
    built = contenders.executable()
    names = {side.executable for side in sides if side.ours}
    return {os.path.dirname(path): "build" if path == built else ".venv/bin" for path in names}
