"""A node with a real containerd of its own, and one contender's plugins as its pods' network.

Namespaces, containerd and the CRI's client are those of the tests (tests/support), which need the
packages of the extra "test": whoever has none of them can import this module, and not make a node.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic, perf_counter_ns, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import agents
from bench.agents import AgentError
from bench.measure import CallFailedError
from bench.namespaces import Namespace

if TYPE_CHECKING:
    from tests.support.containerd import Containerd
    from tests.support.cri import Pod
    from tests.support.machine import Machine

RUN, STOP = "RunPodSandbox", "StopPodSandbox"
_METRICS_PORT = 1338  # of the node's own loopback
# The sums of how long all plugins of pods' networks took, containerd's own loopback included.
_DURATION = re.compile(
    r"^containerd_cri_network_plugin_operations_duration_seconds\w*_sum\{.*\} (\S+)$", re.MULTILINE
)
_START_S = 60.0  # an agent's first start unpacks the runtime
_POLL_S = 0.01


class Runtime(NamedTuple):
    """A containerd: `programs` is the folder of it, its shim and ctr, `plugins` the folder of the
    Go plugins of its time."""

    programs: str
    plugins: str


class Network(NamedTuple):
    """What a contender needs on a node: the conflist, and its executables by name.

    `agent`: podwire's resident one runs.
    """

    conflist: Mapping[str, Any]
    executables: Mapping[str, str]
    agent: bool = False


class Times(NamedTuple):
    """Of calls that began together, in ns: `each` from before the request to after the reply,
    `network` what containerd itself measured of its plugins, the mean of the calls."""

    each: Sequence[int]
    network: int


class Host:
    """A machine's namespaces with containerd in them. Everything ends with the stack."""

    def __init__(self, name: str, network: Network, runtime: Runtime, stack: ExitStack) -> None:
        """Returns when containerd calls the network ready. Raises CallFailedError where that
        cannot be, AgentError when no agent comes to serve."""
        self.name = name
        self._agent = network.agent
        self._count = 0
        with _refused():
            self._machine = _machine(stack)
            self._space = _Joined(f"/proc/{self._machine.pid}/ns/net", stack)
            folder = _plugin_folder(self._machine, network.executables)
            if network.agent:
                self._start_agent(os.path.join(folder, "podwire"))
            self._containerd = _containerd(self._machine, runtime, stack)
            self._containerd.configure(dict(network.conflist))
        self._threads = stack.enter_context(ThreadPoolExecutor())

    def _start_agent(self, executable: str) -> None:
        self._machine.start(executable, "agent", log="agent.log", env={"PATH": os.defpath})
        path = f"/proc/{self._machine.pid}/root/run/podwire/agent.sock"
        end = monotonic() + _START_S
        while agents.server(path) is None:
            if monotonic() > end:
                raise AgentError(f"no agent on the node: {self._machine.read('agent.log')}")
            sleep(_POLL_S)

    def run(self, pods: int) -> tuple[Times, list[Pod]]:
        """RunPodSandbox of so many new pods at once."""
        first = self._count
        self._count += pods
        names = [f"pod-{number}" for number in range(first, self._count)]
        return self._timed([_bound(self._containerd.cri.run_pod, name) for name in names])

    def stop(self, pods: Sequence[Pod]) -> Times:
        """StopPodSandbox of these pods at once. They are removed as well, which is not timed."""
        times, _ = self._timed([pod.stop for pod in pods])
        with _refused():
            for pod in pods:
                pod.remove()
        return times

    def check_agent(self) -> None:
        """Raises CallFailedError unless the agent, if there is one, has served every ADD."""
        served = self._machine.read("agent.log").count("msg=served command=ADD ")
        if self._agent and served != self._count:
            raise CallFailedError(f"the agent served {served} of {self._count} sandboxes")

    def _timed(self, calls: Sequence[Callable[[], Any]]) -> tuple[Times, list[Any]]:
        before = self._network_ns()
        with _refused():
            waiting = [self._threads.submit(_timed, call) for call in calls]
            done = [each.result() for each in waiting]
        network = (self._network_ns() - before) // len(calls)
        if network <= 0:
            raise CallFailedError(f"{self.name}: containerd's metrics tell no call of a plugin")
        return Times([taken for taken, _ in done], network), [found for _, found in done]

    def _network_ns(self) -> int:
        """How long containerd's calls of plugins took since it started."""
        return round(sum(map(float, _DURATION.findall(self._metrics()))) * 1e9)

    def _metrics(self) -> str:
        """What containerd counts, in the text format of Prometheus."""
        with self._space.entered():
            connected = socket.create_connection(("127.0.0.1", _METRICS_PORT))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connected
        with contextlib.closing(connection):
            connection.request("GET", "/v1/metrics")
            return connection.getresponse().read().decode()


class _Joined(Namespace):
    """A network namespace that somebody else has made; closed with the stack."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        stack.callback(self.close)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What the tests' harness and containerd say is wrong, as an error of the benchmark."""
    import grpc
    import pytest

    try:
        yield
    except pytest.skip.Exception as e:
        raise CallFailedError(f"no node with a containerd: {e}") from None
    except grpc.RpcError as e:
        raise CallFailedError(f"containerd: {e.details()}") from None
    except AssertionError as e:
        raise CallFailedError(str(e)) from None


def _machine(stack: ExitStack) -> Machine:
    from tests.support.machine import Machine, sweep

    sweep()  # what a run that was killed has left
    return stack.enter_context(contextlib.closing(Machine()))


def _plugin_folder(machine: Machine, executables: Mapping[str, str]) -> str:
    folder = machine.path("cni", "bin")
    os.makedirs(folder)
    for name, path in executables.items():
        shutil.copy(path, os.path.join(folder, name))
    return folder


def _containerd(machine: Machine, runtime: Runtime, stack: ExitStack) -> Containerd:
    """A containerd that also tells how long things take."""
    from tests.support.cnibin import PluginFolder
    from tests.support.containerd import Containerd

    class Metered(Containerd):
        def _config(self) -> str:
            return f'{super()._config()}\n[metrics]\n  address = "127.0.0.1:{_METRICS_PORT}"\n'

    made = Metered(machine, PluginFolder(machine, {}), runtime.programs)
    return stack.enter_context(contextlib.closing(made))


def _bound(call: Callable[[str], Any], name: str) -> Callable[[], Any]:
    return lambda: call(name)


def _timed(call: Callable[[], Any]) -> tuple[int, Any]:
    begin = perf_counter_ns()
    found = call()
    return perf_counter_ns() - begin, found
