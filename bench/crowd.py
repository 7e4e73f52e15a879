"""Many pods: calls at once, and one pod more on a node that is full already."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter_ns, sleep

from bench.contenders import AGENT, ALONE, PEER, WHEEL, Contender
from bench.measure import Budget, rotated
from bench.nodes import Node, Place
from bench.pods import LEAST, WARM_UPS, alternate, series_of
from bench.results import Held, Series

AT_ONCE = 32
ROUNDS = 6
PODS = 110  # the kubelet's default limit
MANY_PODS = 1_000  # a bridge takes 1,023 ports
_SETTLE_S = 0.3  # the kernel deletes 32 links


def _few(sides: Sequence[Contender]) -> list[Contender]:
    """Without the wheel where the executable does without an agent as well: both take long."""
    names = {side.name for side in sides}
    return [side for side in sides if side.name != WHEEL or ALONE not in names]


def parallel(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """AT_ONCE ADDs at once, then as many DELs: the time of all, and of each.

    The series "ADDs" has one time for each round, from before the first fork to after the last
    exit; "ADD" has one for each call.
    """
    rounds = max(2, min(ROUNDS, runs))
    with ExitStack() as stack:
        nodes = [Node(side, place, stack, 1 + AT_ONCE) for side in _few(sides)]
        whole: dict[tuple[str, str], list[int]] = {}
        for node in nodes:
            node.run("ADD", 0)
        budget = Budget()
        for turn in range(-1, rounds):
            if budget.spent(turn, 2):
                break
            for node in rotated(nodes, turn + 1):
                for command in ("ADD", "DEL"):
                    taken = _at_once(node, command, keep=turn >= 0)
                    if turn >= 0:
                        whole.setdefault((command, node.contender.name), []).append(taken)
        for node in nodes:
            node.run("DEL", 0)
    found = [
        Series("parallel", f"{command}s", name, tuple(times), (), AT_ONCE)
        for (command, name), times in sorted(whole.items(), key=lambda entry: entry[0][0])
    ]
    return found + series_of("parallel", nodes, AT_ONCE)


def _at_once(node: Node, command: str, keep: bool) -> int:
    """The ns that all calls took together, the reading of their replies included."""
    start = perf_counter_ns()
    samples = node.run_all(command, range(1, 1 + AT_ONCE))
    taken = perf_counter_ns() - start
    if keep:
        for sample in samples:
            node.keep(command, sample)
    sleep(_SETTLE_S)
    return taken


def full(sides: Sequence[Contender], place: Place, runs: int) -> tuple[list[Series], list[Held]]:
    """ADD and DEL of one pod on a node that has PODS; and what the agent holds then."""
    with ExitStack() as stack:
        nodes = [Node(side, place, stack, PODS + WARM_UPS + runs) for side in _few(sides)]
        for node in nodes:
            node.run("ADD", 0)
            node.fill(range(1, PODS))
        alternate(nodes, range(PODS, PODS + WARM_UPS + runs), runs)
        used = [usage for node in nodes if (usage := node.usage()) is not None]
        pairs = WARM_UPS + len(nodes[0].samples["DEL"])
        return series_of("full", nodes, PODS), [Held("full", pairs, *usage) for usage in used]


def thousand(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """ADD and DEL of one pod with one other on the node, and with MANY_PODS, in turns.

    Of the agent and of Go without masquerading: the others take minutes to make so many pods.
    """
    wanted = [side for side in sides if side.name in (AGENT, PEER)]
    with ExitStack() as stack:
        more = WARM_UPS + runs
        nodes = [
            (size, Node(side, place, stack, size + more))
            for side in wanted
            for size in (1, MANY_PODS)
        ]
        for size, node in nodes:
            node.run("ADD", 0)
            node.fill(range(1, size))
        budget = Budget()
        for turn in range(more):
            if budget.spent(turn - WARM_UPS, LEAST):
                break
            for command in ("ADD", "DEL"):
                for size, node in rotated(nodes, turn):
                    sample = node.run(command, size + turn)
                    if turn >= WARM_UPS:
                        node.keep(command, sample)
        return [one for size, node in nodes for one in series_of("thousand", [node], size)]
