"""A contender's node: its namespace, its agent, its address directory, sandboxes for its pods."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench import contenders
from bench.agents import Agent, Usage
from bench.contenders import Contender
from bench.measure import Call, CallFailedError, Sample, execute, execute_all, succeeded
from bench.namespaces import Namespace
from bench.sites import new_namespace

AT_ONCE = 8  # calls that fill a node with pods
SETTLE_S = {"ADD": 0.01, "DEL": 0.04}  # the kernel finishes off links behind a call's back
_GONE_S = 60.0


class Place:
    """Where a run keeps its files: address directories, sockets, the executable's runtime."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._count = 0
        self.runtime = self.new("runtime")  # one for all: it is unpacked once

    def new(self, name: str) -> str:
        """A folder of that name that is not used yet."""
        self._count += 1
        path = os.path.join(self._folder, f"{self._count}-{name}")
        os.makedirs(path, mode=0o700)
        return path


class Node:
    """`pods` sandboxes, numbered from 0, that calls refer to. Everything ends with the stack.

    `namespace`: the node's, made and closed by the caller. `options` go into the configuration.
    """

    def __init__(
        self,
        contender: Contender,
        place: Place,
        stack: ExitStack,
        pods: int,
        families: Sequence[int] = (4,),
        namespace: Namespace | None = None,
        **options: Any,
    ) -> None:
        room_for_files(pods)
        folder = place.new(contender.type)
        self.socket = f"{folder}/agent.sock"
        self.contender = contender.at(self.socket, place.runtime)
        self.config = {**contenders.bridge_config(f"{folder}/networks", families), **options}
        self._addresses = len(families)
        self._results: dict[int, Any] = {}
        self.namespace = namespace or new_namespace(stack, node=True)
        self._sandboxes = [Namespace() for _ in range(pods)]
        stack.callback(self._close)
        self.agent: Agent | None = None
        if contender.agent:
            environ = {"PATH": os.defpath, **self.contender.environ}
            self.agent = Agent(contender.executable, self.socket, self.namespace, environ)
            stack.callback(self.agent.end)
        self.samples: dict[str, list[Sample]] = {}

    def _close(self) -> None:
        """Close the sandboxes, and wait until the kernel is done with them: the next scenario
        must not be measured beside that."""
        for sandbox in self._sandboxes:
            sandbox.close()
        end = time.monotonic() + _GONE_S
        while self.namespace.veths() and time.monotonic() < end:
            time.sleep(0.01)

    def sandbox(self, pod: int) -> Namespace:
        return self._sandboxes[pod]

    def result(self, pod: int) -> Any:
        """What the ADD of the pod printed."""
        return self._results[pod]

    def address(self, pod: int) -> str:
        """The first address of the pod, without its prefix."""
        found: str = self._results[pod]["ips"][0]["address"].partition("/")[0]
        return found

    def call(self, command: str, pod: int, **more: Any) -> Call:
        """ADD, DEL or CHECK of one pod; CHECK needs its ADD before it. `more` is configuration."""
        config = {**self.config, **more}
        if command == "CHECK":
            config["prevResult"] = self._results[pod]
        return self.contender.call(command, config, f"pod-{pod}", self._sandboxes[pod].path)

    def run(self, command: str, pod: int, settle: bool = True, **more: Any) -> Sample:
        """Execute one call; with `settle`, what it leaves to the kernel is done on return."""
        sample, said = execute(self.call(command, pod, **more), self.namespace)
        if command == "ADD":
            self._accept(pod, said)
        if settle:
            time.sleep(SETTLE_S.get(command, 0))
        return sample

    def run_all(self, command: str, pods: Sequence[int]) -> list[Sample]:
        """Execute the calls of these pods at once."""
        calls = [self.call(command, pod) for pod in pods]
        replies = execute_all(calls, self.namespace)
        for pod, call, reply in zip(pods, calls, replies, strict=True):
            said = succeeded(call, reply)
            if command == "ADD":
                self._accept(pod, said)
        return [reply.sample for reply in replies]

    def _accept(self, pod: int, said: bytes) -> None:
        result = json.loads(said)
        if len(result["ips"]) != self._addresses:
            raise CallFailedError(f"not {self._addresses} addresses: {said.decode()}")
        self._results[pod] = result

    def fill(self, pods: Sequence[int]) -> None:
        """ADD these pods, some at a time, as fast as that goes."""
        for start in range(0, len(pods), AT_ONCE):
            self.run_all("ADD", pods[start : start + AT_ONCE])

    def keep(self, command: str, sample: Sample) -> None:
        self.samples.setdefault(command, []).append(sample)

    def usage(self) -> Usage | None:
        return self.agent.usage() if self.agent else None


def room_for_files(more: int) -> None:
    """Let the process open `more` files than it has now, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/proc/self/fd")) + more + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
