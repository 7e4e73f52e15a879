"""A pod with two host ports and a bandwidth: one call of podwire, a chain of plugins with Go.

The chain is executed as a runtime does it: each plugin gets what the one before it printed, a DEL
runs backwards with what the ADD printed in the end. The time of a chain is from before the first
fork to after the last exit, the handing on of results included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter_ns, sleep
from typing import Any, NamedTuple

from bench import contenders
from bench.contenders import CHAIN, CHAIN_MASQUERADE, MASQUERADE, PEER, Contender
from bench.measure import Budget, Call, Sample, execute, rotated
from bench.nodes import SETTLE_S, Node, Place
from bench.pods import LEAST, WARM_UPS, series
from bench.results import Series

PORTS = 2
_FIRST_PORT = 20_000
_MEGABIT = 1_000_000
# Far above what a pod without traffic sends; a burst of a tenth of a second.
BANDWIDTH = {
    "ingressRate": 1000 * _MEGABIT,
    "ingressBurst": 100 * _MEGABIT,
    "egressRate": 500 * _MEGABIT,
    "egressBurst": 50 * _MEGABIT,
}
NAMES = {PEER: CHAIN, MASQUERADE: CHAIN_MASQUERADE}  # of a bridge with the others behind it


class Step(NamedTuple):
    """A plugin behind the bridge: what the runtime hands it is `capability`."""

    type: str
    capability: str


STEPS = (Step("portmap", "portMappings"), Step("bandwidth", "bandwidth"))


def asked(pod: int, ports: int = PORTS, bandwidth: bool = True) -> dict[str, Any]:
    """The runtimeConfig of a pod, with host ports that no other pod has."""
    first = _FIRST_PORT + ports * pod
    mappings = [
        {"hostPort": first + port, "containerPort": 8080 + port, "protocol": "tcp"}
        for port in range(ports)
    ]
    return {"portMappings": mappings} | ({"bandwidth": BANDWIDTH} if bandwidth else {})


class Chained:
    """A node whose pods have host ports, and a bandwidth if `bandwidth`: podwire's or a chain's."""

    def __init__(self, node: Node, steps: Sequence[Step]) -> None:
        self.node = node
        self.steps = () if node.contender.ours else steps
        self._results: dict[int, Any] = {}
        self._bandwidth = any(step.type == "bandwidth" for step in steps)
        self.samples: dict[str, list[Sample]] = {}

    def run(self, command: str, pod: int, ports: int = PORTS) -> Sample:
        """The whole ADD or DEL of one pod; what it leaves to the kernel is done on return.

        Raises CallFailedError when one of the plugins fails.
        """
        wanted = asked(pod, ports, self._bandwidth)
        begin = perf_counter_ns()
        if not self.steps:
            sample = self.node.run(command, pod, settle=False, runtimeConfig=wanted)
        elif command == "ADD":
            cpu = self._add(pod, wanted)
            sample = Sample(perf_counter_ns() - begin, cpu)
        else:
            cpu = self._del(pod, wanted)
            sample = Sample(perf_counter_ns() - begin, cpu)
        sleep(SETTLE_S[command])
        return sample

    def _add(self, pod: int, wanted: Mapping[str, Any]) -> int:
        cpu = self.node.run("ADD", pod, settle=False).cpu
        result = self.node.result(pod)
        for step in self.steps:
            sample, said = execute(self.call("ADD", pod, step, wanted, result), self.node.namespace)
            cpu += sample.cpu
            result = json.loads(said)
        self._results[pod] = result
        return cpu

    def _del(self, pod: int, wanted: Mapping[str, Any]) -> int:
        cpu = 0
        result = self._results.pop(pod)
        for step in reversed(self.steps):
            call = self.call("DEL", pod, step, wanted, result)
            cpu += execute(call, self.node.namespace)[0].cpu
        return cpu + self.node.run("DEL", pod, settle=False, prevResult=result).cpu

    def call(
        self, command: str, pod: int, step: Step, wanted: Mapping[str, Any], result: Any
    ) -> Call:
        """A call of a plugin behind the bridge; `result` is what the one before it printed."""
        plugin = step_of(self.node.contender, step)
        config = step_config(self.node.config, step, wanted) | {"prevResult": result}
        return plugin.call(command, config, f"pod-{pod}", self.node.sandbox(pod).path)


def step_of(bridge: Contender, step: Step) -> Contender:
    """The plugin that runs behind a bridge, of the same folder."""
    folder = bridge.cni_path
    return Contender(step.type, os.path.join(folder, step.type), step.type, folder)


def step_config(
    network: Mapping[str, Any], step: Step, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """What a runtime gives a plugin of a list: the network's name, and its capability only."""
    config = {
        "cniVersion": network["cniVersion"],
        "name": network["name"],
        "capabilities": {step.capability: True},
        "runtimeConfig": {step.capability: wanted[step.capability]},
    }
    return config | ({"snat": True} if step.type == "portmap" else {})


def chain(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """ADD and DEL of one pod after the other, with and without masquerading."""
    count = 1 + WARM_UPS + runs
    with ExitStack() as stack:
        nodes = {side.name: Node(side, place, stack, count) for side in _sides(sides)}
        chained = [Chained(node, STEPS) for node in nodes.values()]
        for node in chained:
            node.run("ADD", 0)
        _alternate(chained, range(1, count))
        for node in chained:
            node.run("DEL", 0)
        return [
            series("chain", command, NAMES.get(name, name), node.samples[command])
            for command in ("ADD", "DEL")
            for name, node in zip(nodes, chained, strict=True)
        ]


def _sides(sides: Sequence[Contender]) -> Iterator[Contender]:
    """podwire with its agent, and Go where it has all the plugins; each with and without ipMasq."""
    for side in (*sides, *contenders.masquerading(sides)):
        if side.agent if side.ours else installed(side.cni_path, STEPS):
            yield side


def installed(folder: str, steps: Sequence[Step]) -> bool:
    return all(os.access(os.path.join(folder, step.type), os.X_OK) for step in steps)


def _alternate(nodes: Sequence[Chained], numbers: Sequence[int]) -> None:
    budget = Budget()
    for turn, pod in enumerate(numbers, -WARM_UPS):
        if budget.spent(turn, LEAST):
            break
        for command in ("ADD", "DEL"):
            for node in rotated(nodes, turn + WARM_UPS):
                sample = node.run(command, pod)
                if turn >= 0:
                    node.samples.setdefault(command, []).append(sample)


def commands(sides: Sequence[Contender]) -> dict[str, str]:
    """The calls as one repeats them by hand, in the namespaces `node` and `pod`."""
    found: dict[str, str] = {}
    for side in sides:
        config = contenders.bridge_config(f"/tmp/bench-{side.type}", (4,))
        if side.ours and side.agent:
            call = side.at("/tmp/bench/agent.sock").call(
                "ADD", config | {"runtimeConfig": asked(1)}, "pod-1", "/run/netns/pod"
            )
            found[f"ADD with host ports and bandwidth, {side.name}"] = call.shell("node")
        elif side.name == PEER and installed(side.cni_path, STEPS):
            for step in STEPS:  # behind the bridge
                behind = step_config(config, step, asked(1)) | {"prevResult": "RESULT"}
                call = step_of(side, step).call("ADD", behind, "pod-1", "/run/netns/pod")
                found[f"ADD, Go {step.type}"] = call.shell("node")
    return found
