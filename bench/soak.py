"""Thousands of pods through one agent: whether it keeps anything of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from bench.contenders import AGENT, Contender
from bench.crowd import PODS
from bench.measure import execute
from bench.nodes import Node, Place
from bench.pods import series
from bench.results import Held, Series

PAIRS = 10_000
LOOKS = (0, 1_000, 5_000, 10_000)  # pairs after which the agent is looked at


def soak(
    sides: Sequence[Contender], place: Place, pairs: int = PAIRS
) -> tuple[list[Series], list[Held]]:
    """ADD and DEL of one pod, `pairs` times, beside PODS others; what the agent held meanwhile.

    The pairs follow each other without a pause, so the kernel is still busy with earlier links.
    """
    side = next(side for side in sides if side.name == AGENT)
    looks: list[Held] = []
    with ExitStack() as stack:
        node = Node(side, place, stack, PODS + 1)
        node.run("ADD", 0)
        node.fill(range(1, PODS))
        calls = [node.call(command, PODS) for command in ("ADD", "DEL")]
        for done in range(pairs + 1):
            if done in LOOKS or done == pairs:
                usage = node.usage()
                assert usage is not None
                looks.append(Held("soak", done, *usage))
            if done < pairs:
                for command, call in zip(("ADD", "DEL"), calls, strict=True):
                    node.keep(command, execute(call, node.namespace)[0])
        found = [series("soak", what, AGENT, taken) for what, taken in node.samples.items()]
    return found, looks
