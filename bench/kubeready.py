"""A Kubernetes cluster's start and its pods: podwire by its manifest, the Go plugins by hand.

A real control plane, kubelets and containerds, those of the end-to-end tests. A cluster's start is
that of three kubelets on machines that have just been installed, beside an API server that is up:
until the API calls all of them Ready. podwire's manifest is applied in the moment of the kubelets'
start. By hand means, for each node, the conflist as soon as the API tells the node's podCIDR, and
static routes: at once, as no person does. Then the machines are turned off and on, with what lies
on their disks.

Pods are made on two nodes of one cluster, past the scheduler: one node has podwire, the other the
Go plugins. They stay until the end: to delete many takes a kubelet half a minute.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter_ns, sleep, time_ns
from typing import TYPE_CHECKING

from bench import contenders
from bench.contenders import AGENT
from bench.measure import Budget, rotated
from bench.nodes import Place
from bench.results import Series

if TYPE_CHECKING:
    from bench.kubereadysite import Site
    from tests.support.kubernetes.node import Node

SCENARIO = "kubernetes"
HAND = "Go, by hand"
SIDES = (AGENT, HAND)
FIRST, AGAIN = "first start", "start after a reboot"
REGISTERED, SUBNETS, CONFIGURED, READY = (
    "nodes registered",
    "pod subnets given",
    "network configured",
    "nodes Ready",
)
STEPS = (REGISTERED, SUBNETS, CONFIGURED, READY)
POD_RUNS, POD_READY, ALL_READY = "pod runs", "pod Ready", "all pods Ready"
AT_ONCE = (1, 10)  # pods
START_ROUNDS, CROWD_ROUNDS = 3, 4
LEAST_PODS = 10
PODS_S = 60.0
_GOLDEN = 0.618  # its multiples spread evenly over a second, however many there are
_GO_PLUGINS = ("bridge", "host-local", "portmap", "loopback")
_PACKAGES = ("pytest", "tests")
_PROGRAMS = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"),
    *("kubectl", "etcd", "containerd", "ctr", "runc", "busybox", "nft", "iptables", "openssl"),
)

Taken = dict[tuple[str, str], list[int]]  # times in ns by what it is and whose


def step(start: str, what: str) -> str:
    """The name of the series of one step of a start."""
    return f"{start}: {what}"


def kubernetes(place: Place, runs: int) -> list[Series]:
    """Clusters' starts, then pods: `runs` / 2 of each side, at least LEAST_PODS."""
    if missing():
        return []
    # With pytest and all that the tests' harness needs, which `missing` has looked for.
    from bench.kubereadysite import Site, as_failures

    os.environ.setdefault("PODWIRE_EXECUTABLE", contenders.executable())  # for the harness
    with as_failures(), ExitStack() as stack:
        site = stack.enter_context(Site(place.new("kubernetes")))
        found = _starts(site)
        site.boot()
        _share(site)
        found += _single(site, max(LEAST_PODS, runs // 2))
        found += _crowds(site)
        return found


# --- the cluster's start ----------------------------------------------------------------------


def _starts(site: Site) -> list[Series]:
    taken: Taken = {}
    for turn in range(START_ROUNDS):
        for side in rotated(SIDES, turn):
            ours = side == AGENT
            site.boot()
            for start in (FIRST, AGAIN):
                if start == AGAIN:
                    site.reboot()
                times = site.start(ours, again=start == AGAIN)
                for what, time in zip(STEPS, times, strict=True):
                    if start == FIRST or what == READY:
                        taken.setdefault((step(start, what), side), []).append(time)
            site.clear()
    return [_series(what, side, times) for (what, side), times in taken.items()]


def _series(what: str, side: str, times: Sequence[int], size: int = 0) -> Series:
    return Series(SCENARIO, what, side, tuple(times), size=size)


# --- pods -------------------------------------------------------------------------------------


def _share(site: Site) -> None:
    """One cluster of two nodes, each with another network, and one pod that stays on each."""
    ours, theirs = (_node(site, side) for side in SIDES)
    for node in (ours, theirs):
        site.start_node(node)
    site.apply_podwire(ours.name)
    site.install_by_hand(theirs)
    site.wait_for_nodes(ours.name, theirs.name)


def _node(site: Site, side: str) -> Node:
    return site.nodes[SIDES.index(side)]


def _single(site: Site, count: int) -> list[Series]:
    taken: Taken = {}
    looked = {side: _measure(site, side, [f"first-{SIDES.index(side)}"], {}) for side in SIDES}
    budget = Budget(PODS_S)
    for turn in range(count):
        if budget.spent(turn, LEAST_PODS):
            break
        for side in rotated(SIDES, turn):
            # The kubelet looks once a second at what runs, as it did at the last event. Both sides'
            # pods are asked for at the same part of that second, another one in each turn.
            since = (perf_counter_ns() - looked[side]) / 1e9
            sleep((turn * _GOLDEN - since) % 1)
            looked[side] = _measure(site, side, [f"single-{turn}-{SIDES.index(side)}"], taken)
    return [_series(what, side, times, 1) for (what, side), times in taken.items()]


def _crowds(site: Site) -> list[Series]:
    taken: Taken = {}
    size = AT_ONCE[-1]
    for turn in range(CROWD_ROUNDS):
        for side in rotated(SIDES, turn):
            names = [f"crowd-{turn}-{SIDES.index(side)}-{number}" for number in range(size)]
            _measure(site, side, names, taken)
    return [_series(what, side, times, size) for (what, side), times in taken.items()]


def _measure(site: Site, side: str, names: Sequence[str], taken: Taken) -> int:
    """Add the times of these pods of a side, and that of all of them when they are many; the moment
    (ns of perf_counter) at which the last of them was Ready."""

    def add(what: str, time: int) -> None:
        taken.setdefault((what, side), []).append(time)

    node = _node(site, side)
    found = site.make_pods(node.name, names)
    offset = time_ns() - perf_counter_ns()
    for name, (asked, ready) in found.items():
        add(POD_RUNS, site.ran_at(node, name) - offset - asked)
        add(POD_READY, ready - asked)
    last = max(ready for _, ready in found.values())
    if len(names) > 1:
        add(ALL_READY, last - min(asked for asked, _ in found.values()))
    return last


# --- who is there -----------------------------------------------------------------------------


def missing() -> list[str]:
    """What a reader must know when no cluster can be measured."""
    lacking = [name for name in _PROGRAMS if not _program(name)]
    lacking += [f"Python's {name}" for name in _PACKAGES if not importlib.util.find_spec(name)]
    paths = [os.path.join(contenders.peer_path(), name) for name in _GO_PLUGINS]
    lacking += [path for path in paths if not os.access(path, os.X_OK)]
    if not contenders.executable():
        lacking.append("executable of podwire (make build)")
    if not lacking:
        return []
    return [
        f"A Kubernetes cluster was not measured: there is no {', no '.join(lacking)}"
        " (KUBEBUILDER_ASSETS names a folder with Kubernetes' programs)."
    ]


def versions() -> dict[str, str]:
    """Which Kubernetes it is."""
    if missing():
        return {}
    said = subprocess.run(
        [_program("kubelet"), "--version"], capture_output=True, text=True, check=True
    )
    return {"Kubernetes": said.stdout.split()[-1]}


def _program(name: str) -> str:
    """Its path, as the tests' harness finds it; "" for none."""
    folders = (os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ.get("PATH", os.defpath))
    search = os.pathsep.join((*filter(None, folders), "/usr/sbin", "/sbin"))
    return shutil.which(name, path=search) or ""
