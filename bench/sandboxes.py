"""A pod sandbox through the CRI of a real containerd, as a kubelet asks for one.

Each contender has a containerd of its own, in network, mount and process namespaces of its own. All
stand at the same time and take turns; one pod stays on each node throughout. podwire has its agent.
Go has the chain that kind, flannel and their like put on a node: a bridge that masquerades, and
portmap. No pod asks for a host port, as most do not: portmap is executed nevertheless.

The time is that of the call, as its caller sees it: containerd makes the sandbox's namespace, calls
the network's plugins, mounts a root file system, and starts shim and pause process. How much of it
the plugins took is what containerd itself counts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from bench import contenders
from bench.contenders import AGENT, Contender
from bench.measure import Budget, rotated
from bench.results import Series
from bench.sandboxes_node import RUN, STOP, Host, Network, Runtime, Times

GO = "Go, bridge and portmap"
INSTALLED, NEWER = "sandboxes", "sandboxes, newer"  # the scenario of a series, by containerd
TITLES = {
    INSTALLED: "RunPodSandbox through containerd",
    NEWER: "RunPodSandbox through a newer containerd",
}
AT_ONCE = (1, 4)  # sandboxes
WARM_UPS = 2
LEAST = 5  # turns, however slow the machine is
_GO_PLUGINS = ("bridge", "host-local", "portmap", "loopback")
_PROGRAMS = ("containerd", "ctr", "runc", "busybox")
_PACKAGES = ("pytest", "grpc", "google.protobuf", "tests.support")


def network_of(what: str) -> str:
    """The name of the series that tells how much of `what` the plugins took."""
    return f"{what}, network"


def sandboxes(sides: Sequence[Contender], runs: int) -> list[Series]:
    """RunPodSandbox and StopPodSandbox, AT_ONCE at a time, with each containerd there is.

    A series of calls has one sample for each; that of `network_of` has one for each turn, the mean
    of its calls.
    """
    if missing():
        return []
    found: list[Series] = []
    for scenario, runtime in _runtimes().items():
        with ExitStack() as stack:
            wanted = _networks(sides, runtime.plugins)
            hosts = [Host(name, network, runtime, stack) for name, network in wanted.items()]
            for host in hosts:
                host.run(1)
            for size in AT_ONCE:
                found += _in_turns(scenario, hosts, size, max(LEAST, 2 * runs // (1 + size)))
            for host in hosts:
                host.check_agent()
    return found


def _in_turns(scenario: str, hosts: Sequence[Host], size: int, turns: int) -> list[Series]:
    kept: dict[tuple[str, str], list[Times]] = {}
    budget = Budget()
    for turn in range(-WARM_UPS, turns):
        if budget.spent(turn, LEAST):
            break
        for host in rotated(hosts, turn + WARM_UPS):
            started, pods = host.run(size)
            stopped = host.stop(pods)
            if turn >= 0:
                for what, times in ((RUN, started), (STOP, stopped)):
                    kept.setdefault((what, host.name), []).append(times)
    return [
        series
        for what in (RUN, STOP)
        for host in hosts
        for series in _series(scenario, what, host.name, kept[what, host.name], size)
    ]


def _series(
    scenario: str, what: str, name: str, kept: Sequence[Times], size: int
) -> Iterator[Series]:
    calls = tuple(taken for times in kept for taken in times.each)
    yield Series(scenario, what, name, calls, size=size)
    network = tuple(times.network for times in kept)
    yield Series(scenario, network_of(what), name, network, size=size)


# --- who is there -----------------------------------------------------------------------------


def _runtimes() -> dict[str, Runtime]:
    """By the name of the scenario: the containerd that is installed, and that of the folder
    $PODWIRE_NEWER, which tests/support/newer-components.sh fills."""
    found = {INSTALLED: Runtime("", contenders.peer_path())}
    newer = os.environ.get("PODWIRE_NEWER", "")
    runtime = Runtime(os.path.join(newer, "usr/bin"), os.path.join(newer, "usr/lib/cni"))
    if newer and os.access(os.path.join(runtime.programs, "containerd"), os.X_OK):
        found[NEWER] = runtime
    return found


def versions() -> dict[str, str]:
    """What each containerd says it is."""
    found = {}
    for scenario, runtime in _runtimes().items():
        program = os.path.join(runtime.programs, "containerd")
        if not _program(program):
            continue
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        found[f"containerd ({scenario})"] = said.stdout.split()[2]
    return found


def missing() -> list[str]:
    """What a reader must know when sandboxes cannot be measured."""
    lacking = [name for name in _PROGRAMS if not _program(name)]
    lacking += [f"Python's {name}" for name in _PACKAGES if not _importable(name)]
    for runtime in _runtimes().values():
        paths = [os.path.join(runtime.plugins, name) for name in _GO_PLUGINS]
        lacking += [path for path in paths if not os.access(path, os.X_OK)]
    if not lacking:
        return []
    return [
        f"Pod sandboxes were not measured: there is no {', no '.join(lacking)} (apt-get install"
        " containerd runc busybox-static containernetworking-plugins; pip install .[test])."
    ]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False


# --- their networks ---------------------------------------------------------------------------


def _networks(sides: Sequence[Contender], plugins: str) -> dict[str, Network]:
    """By the name of the contender; `plugins` is the folder of Go's. containerd 1.6 executes
    loopback on its own."""
    executables = {name: os.path.join(plugins, name) for name in _GO_PLUGINS}
    loopback = {"loopback": executables["loopback"]}
    ours = next(side.executable for side in sides if side.name == AGENT)
    return {
        AGENT: Network(conflist(AGENT), {"podwire": ours} | loopback, agent=True),
        GO: Network(conflist(GO), executables),
    }


def conflist(name: str) -> Mapping[str, Any]:
    """The same network of AGENT and of GO."""
    bridge = {
        "bridge": "cni0",
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]]},
    }
    ports = {"portMappings": True}
    chains = {
        AGENT: [{"type": "podwire", **bridge, "capabilities": {**ports, "bandwidth": True}}],
        GO: [{"type": "bridge", **bridge}, {"type": "portmap", "capabilities": ports}],
    }
    return {"cniVersion": "1.0.0", "name": "bench", "plugins": chains[name]}
