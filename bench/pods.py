"""VERSION, ADD and DEL as whole processes, each contender on a node of its own.

Every pod that is measured gets a sandbox that was made before and never used. One pod stays on each
node throughout, so that the bridge exists and has a port, as on a node that is in use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench import contenders
from bench.contenders import Contender
from bench.measure import Budget, CallFailedError, Sample, execute, rotated
from bench.namespaces import Namespace
from bench.results import Series

WARM_UPS = 3
_LEAST = 5  # runs, however slow the machine is
_SETTLE_S = 0.005  # the kernel finishes off deleted links behind a call's back


class _Node:
    """A contender's node: its namespace, its address directory, sandboxes for its pods."""

    def __init__(
        self,
        contender: Contender,
        folder: str,
        families: Sequence[int],
        pods: int,
        stack: ExitStack,
    ) -> None:
        self.contender = contender
        self.config = contenders.bridge_config(f"{folder}/{contender.type}", families)
        self._addresses = len(families)
        self._namespace = self._made(stack, node=True)
        self._sandboxes = [self._made(stack) for _ in range(pods)]
        self.samples: dict[str, list[Sample]] = {"ADD": [], "DEL": []}

    @staticmethod
    def _made(stack: ExitStack, node: bool = False) -> Namespace:
        namespace = Namespace(node)
        stack.callback(namespace.close)
        return namespace

    def run(self, command: str, pod: int) -> Sample:
        """ADD or DEL of one pod."""
        call = self.contender.call(command, self.config, f"pod-{pod}", self._sandboxes[pod].path)
        sample, said = execute(call, self._namespace)
        if command == "ADD" and len(json.loads(said)["ips"]) != self._addresses:
            raise CallFailedError(f"not {self._addresses} addresses: {said.decode()}")
        return sample


def versions(sides: Sequence[Contender], runs: int) -> list[Series]:
    """The start of a process, and nothing else: VERSION."""
    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    for turn in range(WARM_UPS + runs):
        for side in rotated(sides, turn):
            sample = execute(side.version())[0]
            if turn >= WARM_UPS:
                samples[side.name].append(sample)
    return [_series("version", "VERSION", name, taken) for name, taken in samples.items()]


def pods(
    sides: Sequence[Contender], folder: str, runs: int, scenario: str, families: Sequence[int]
) -> list[Series]:
    """ADD and DEL of one pod after the other. `folder` takes the address directories."""
    with ExitStack() as stack:
        pods = 1 + WARM_UPS + runs
        nodes = [_Node(side, f"{folder}/{scenario}", families, pods, stack) for side in sides]
        for node in nodes:
            node.run("ADD", 0)
        budget = Budget()
        for pod in range(1, pods):
            if budget.spent(pod - 1 - WARM_UPS, _LEAST):
                break
            for command in ("ADD", "DEL"):
                for node in rotated(nodes, pod):
                    sample = node.run(command, pod)
                    if pod > WARM_UPS:
                        node.samples[command].append(sample)
                    time.sleep(_SETTLE_S)
        for node in nodes:
            node.run("DEL", 0)
    return [
        _series(scenario, command, node.contender.name, node.samples[command])
        for command in ("ADD", "DEL")
        for node in nodes
    ]


def _series(scenario: str, what: str, contender: str, samples: Sequence[Sample]) -> Series:
    wall, cpu = zip(*samples, strict=True)
    return Series(scenario, what, contender, wall, cpu)


def commands(sides: Sequence[Contender], families: Sequence[int]) -> dict[str, str]:
    """The calls as one repeats them by hand, in the namespaces `node` and `pod`."""
    found: dict[str, str] = {}
    for side in sides:
        config: dict[str, Any] = contenders.bridge_config(f"/tmp/bench-{side.type}", families)
        for command in ("ADD", "DEL"):
            call = side.call(command, config, "pod-1", "/run/netns/pod")
            found[f"{command}, {side.name}"] = call.shell("node")
        found[f"VERSION, {side.name}"] = side.version().shell()
    return found
