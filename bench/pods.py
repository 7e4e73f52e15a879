"""One call after the other: VERSION, STATUS, ADD, CHECK and DEL, each contender on its own node.

Every pod that is measured gets a sandbox that was made before and never used. One pod stays on each
node throughout, so that the bridge exists and has a port, as on a node that is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from bench import contenders
from bench.contenders import AGENT, ALONE, MASQUERADE, PEER, Contender
from bench.measure import Budget, Call, Sample, execute, execute_all, rotated
from bench.nodes import Node, Place
from bench.results import Series

T = TypeVar("T")
WARM_UPS = 3
LEAST = 5  # runs, however slow the machine is


def versions(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """The start of a process, and nothing else: VERSION."""
    calls = {}
    for side in sides:
        if side.name not in (MASQUERADE, ALONE):  # which start alike
            calls[side.name] = side.at(place.new("no-agent") + "/agent.sock").version()
    return _in_turns("version", "VERSION", calls, runs, lambda call: execute(call)[0])


def statuses(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """STATUS. Go's plugins before 1.5.0 don't know it: what counts is the exec, whatever they
    answer; $PODWIRE_NEWER brings some that do."""
    wanted = [side for side in sides if side.name != MASQUERADE] + contenders.newer()
    with ExitStack() as stack:
        nodes = {side.name: Node(side, place, stack, pods=1) for side in wanted}
        for node in nodes.values():
            node.run("ADD", 0)

        def status(node: Node) -> Sample:
            call = node.contender.status(node.config)
            return execute_all([call], node.namespace)[0].sample

        found = _in_turns("status", "STATUS", nodes, runs, status)
        for node in nodes.values():
            node.run("DEL", 0)
    return found


def checks(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """CHECK of a pod that is as it should be."""
    wanted = [side for side in sides if side.name != MASQUERADE]
    with ExitStack() as stack:
        nodes = {side.name: Node(side, place, stack, pods=1) for side in wanted}
        for node in nodes.values():
            node.run("ADD", 0)
        found = _in_turns("check", "CHECK", nodes, runs, lambda node: node.run("CHECK", 0))
        for node in nodes.values():
            node.run("DEL", 0)
    return found


def pods(
    sides: Sequence[Contender], place: Place, runs: int, scenario: str, families: Sequence[int]
) -> list[Series]:
    """ADD and DEL of one pod after the other."""
    with ExitStack() as stack:
        count = 1 + WARM_UPS + runs
        nodes = [Node(side, place, stack, count, families) for side in sides]
        for node in nodes:
            node.run("ADD", 0)
        alternate(nodes, range(1, count), runs)
        for node in nodes:
            node.run("DEL", 0)
    return series_of(scenario, nodes)


def masquerade(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """ADD and DEL of one pod after the other, on nodes that masquerade."""
    wanted = [side for side in sides if side.name == MASQUERADE]
    return pods([*contenders.masquerading(sides), *wanted], place, runs, "masquerade", (4,))


def alternate(nodes: Sequence[Node], numbers: Sequence[int], runs: int) -> None:
    """ADD and then DEL of each pod, on all nodes in turns; the first pods are warm-ups."""
    budget = Budget()
    warm_ups = len(numbers) - runs
    for turn, pod in enumerate(numbers):
        if budget.spent(turn - warm_ups, LEAST):
            break
        for command in ("ADD", "DEL"):
            for node in rotated(nodes, turn):
                sample = node.run(command, pod)
                if turn >= warm_ups:
                    node.keep(command, sample)


def series_of(scenario: str, nodes: Iterable[Node], size: int = 0) -> list[Series]:
    """What the nodes kept, one series for each command and node."""
    kept = list(nodes)
    return [
        series(scenario, command, node.contender.name, node.samples[command], size)
        for command in kept[0].samples
        for node in kept
    ]


def series(
    scenario: str, what: str, contender: str, samples: Sequence[Sample], size: int = 0
) -> Series:
    wall, cpu = zip(*samples, strict=True)
    return Series(scenario, what, contender, wall, cpu, size)


def _in_turns(
    scenario: str, what: str, sides: dict[str, T], runs: int, once: Callable[[T], Sample]
) -> list[Series]:
    """A call that leaves nothing, of all sides in turns."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    budget = Budget()
    for turn in range(-WARM_UPS, runs):
        if budget.spent(turn, LEAST):
            break
        for name in rotated(tuple(sides), turn + WARM_UPS):
            sample = once(sides[name])
            if turn >= 0:
                samples[name].append(sample)
    return [series(scenario, what, name, taken) for name, taken in samples.items()]


def commands(sides: Sequence[Contender]) -> dict[str, str]:
    """The calls as one repeats them by hand, in the namespaces `node` and `pod`."""
    found: dict[str, str] = {}
    for side in sides:
        if side.name == AGENT:
            found["The agent"] = (
                f"ip netns exec node {side.executable} agent --socket /tmp/bench/agent.sock &"
            )
        repeated = side.at(f"/tmp/bench/{'agent' if side.agent else 'none'}.sock")
        for title, call, namespace in _calls(repeated):
            found[f"{title}, {side.name}"] = call.shell(namespace)
    return found


def _calls(side: Contender) -> Iterable[tuple[str, Call, str]]:
    config = contenders.bridge_config(f"/tmp/bench-{side.type}", (4,))
    for command in ("ADD", "DEL"):
        yield command, side.call(command, config, "pod-1", "/run/netns/pod"), "node"
    if side.name in (AGENT, PEER):
        yield "STATUS", side.status(config), "node"
        yield "VERSION", side.version(), ""
        check = {**config, "prevResult": "RESULT"}  # what ADD printed
        yield "CHECK", side.call("CHECK", check, "pod-1", "/run/netns/pod"), "node"
