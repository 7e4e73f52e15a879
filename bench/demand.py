"""The agent that the first call starts: `"agent": "auto"` in the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from time import monotonic, perf_counter_ns, sleep

from bench import agents
from bench.agents import AgentError
from bench.contenders import AGENT, Contender
from bench.measure import Budget, Sample
from bench.nodes import Node, Place
from bench.pods import LEAST, series
from bench.results import Series

FIRST, READY, NEXT = "first ADD", "agent ready after", "next ADD"
FOLLOWING = 4  # calls after each first one
_READY_S = 30.0
_POLL_S = 0.001


def demand(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """The first ADD, which starts an agent, and those after it, again and again.

    "agent ready after" is the time from the end of the first call until the agent takes calls.
    """
    side = next(side for side in sides if side.name == AGENT)._replace(agent=False)
    taken: dict[str, list[Sample]] = {FIRST: [], READY: [], NEXT: []}
    with ExitStack() as stack:
        node = Node(side, place, stack, pods=2 + FOLLOWING, agent="auto")
        stack.callback(agents.end_server, node.socket)
        node.run("ADD", 0)  # unpacks the runtime, if nobody did before
        _ready(node)
        budget = Budget()
        for turn in range(max(LEAST, runs // 3)):
            if budget.spent(turn, LEAST):
                break
            agents.end_server(node.socket)
            taken[FIRST].append(node.run("ADD", 1, settle=False))
            taken[READY].append(Sample(_ready(node), 0))
            taken[NEXT] += [node.run("ADD", 2 + number) for number in range(FOLLOWING)]
            for pod in range(1, 2 + FOLLOWING):
                node.run("DEL", pod)
        node.run("DEL", 0)
    return [series("demand", what, AGENT, samples) for what, samples in taken.items()]


def _ready(node: Node) -> int:
    """Wait until an agent serves the node; the ns that took. Raises AgentError if none does."""
    start = perf_counter_ns()
    end = monotonic() + _READY_S
    while agents.server(node.socket) is None:
        if monotonic() > end:
            raise AgentError('no agent was started by a call with "agent": "auto"')
        sleep(_POLL_S)
    return perf_counter_ns() - start
