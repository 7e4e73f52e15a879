"""A Kubernetes cluster whose nodes are made anew, again and again, beside one control plane.

Control plane, nodes and podwire's manifest are those of the tests (tests/support/kubernetes). A
node's machine has its images, and the Go plugins' executables, before anything is measured.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from time import perf_counter_ns, time_ns
from typing import Any, NamedTuple

import pytest

from bench import kubereadywatch as watch
from bench.contenders import peer_path
from bench.kubereadywatch import Watch
from bench.measure import CallFailedError
from tests.support import machine, netns
from tests.support.kubernetes import checks, manifest, nodeconfig, objects
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.ground import PLACES, Ground
from tests.support.kubernetes.node import Node

NAMES = tuple(PLACES)
PLUGINS = ("bridge", "host-local", "portmap")
_CONFLISTS = {True: "05-podwire.conflist", False: "10-by-hand.conflist"}  # by whether it is ours
_KEPT = (nodeconfig.CONF_DIR, nodeconfig.BIN_DIR, "/var/lib/cni", "/var/lib/podwire")
_STRATEGIC = "application/strategic-merge-patch+json"
_ADMIN_PATHS = {"nodes": "/api/v1/nodes", "pods": "/api/v1/namespaces/default/pods"}


class Start(NamedTuple):
    """What happened after the kubelets' start, in ns, each on the last of the nodes to have it.

    `configured`: the network configuration is in its place. When nodes start again, only `ready`
    means something.
    """

    registered: int
    subnets: int
    configured: int
    ready: int


@contextmanager
def as_failures() -> Iterator[None]:
    """What the tests' harness says is wrong, as an error of the benchmark."""
    try:
        yield
    except pytest.skip.Exception as e:
        raise CallFailedError(f"no cluster: {e}") from None
    except AssertionError as e:
        raise CallFailedError(str(e)) from None


class Site(Cluster):
    """See the module. It begins without nodes: `boot` makes them, `start` has them join."""

    def __init__(self, folder: str) -> None:
        machine.sweep()  # what a run that was killed has left
        super().__init__(folder)
        self._by_hand: list[str] = []

    def __enter__(self) -> Site:
        with ExitStack() as stack:
            namespaces = netns.Namespaces()
            stack.callback(namespaces.close)
            self._ground = Ground(namespaces)
            self._write_archives()
            stack.callback(self._close_nodes)
            self.plane = stack.enter_context(self._make_plane())
            self.plane.start_scheduler(self._kubeconfig("system:kube-scheduler"))
            self._manifest = manifest.objects(self)
            checks.default_account(self)
            self.node_events = self._watch("nodes", watch.of_node, stack)
            self.pod_events = self._watch("pods", watch.of_pod, stack)
            self._stack = stack.pop_all()
        return self

    def _watch(self, what: str, words: Any, stack: ExitStack) -> Watch:
        plane = self.plane
        place = self._ground.plane.entered()
        path = _ADMIN_PATHS[what]
        made = Watch(plane.url, plane.ca, plane.admin_token, path, words, place)
        return stack.enter_context(closing(made))

    # --- machines -------------------------------------------------------------------------------

    def boot(self) -> None:
        """Machines that have just been installed, with a runtime and nothing else."""
        for name in NAMES:  # here, for they end with the thread that made them
            self.nodes.append(Node(name, self._ground, self.pod_cidrs))
        with ThreadPoolExecutor(len(NAMES)) as pool:
            list(pool.map(self._prepare, self.nodes))

    def _prepare(self, node: Node) -> None:
        super()._prepare(node)
        for name in PLUGINS:
            shutil.copy(os.path.join(peer_path(), name), node.path(f"{nodeconfig.BIN_DIR}/{name}"))

    def reboot(self) -> None:
        """All machines off, then on: only what lies on disks is left, and the API calls them away,
        as the controller manager does when it has not heard of them for 40 s."""
        disks = os.path.join(self.folder, "disks")
        for node in self.nodes:
            for path in _KEPT:
                if os.path.isdir(node.path(path)):
                    shutil.copytree(node.path(path), disks + f"/{node.name}{path}", symlinks=True)
        self._close_nodes()
        unknown = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
        for name in NAMES:
            self.plane.api.patch(f"{_ADMIN_PATHS['nodes']}/{name}/status", unknown, _STRATEGIC)
        self.boot()
        for node in self.nodes:
            _restore(f"{disks}/{node.name}", node)
        shutil.rmtree(disks)

    def _close_nodes(self) -> None:
        while self.nodes:
            node = self.nodes.pop()
            # At once, for the next machine's; a namespace takes its time to end.
            node.run("ip", "link", "delete", "eth0", check=False)
            node.close()

    # --- the cluster's start --------------------------------------------------------------------

    def start(self, ours: bool, again: bool = False) -> Start:
        """Start all kubelets, and install the network in that moment, unless it is there from
        before (`again`): podwire by its manifest, or the Go plugins by hand. Until all are Ready.
        """
        events = self.node_events
        events.forget()
        began, clock = perf_counter_ns(), time_ns()
        for node in self.nodes:
            self.start_node(node)
        if not again:
            self._install(ours)
        registered, subnets, ready = (
            events.wait(word(name) for name in NAMES) - began
            for word in (watch.registered, watch.has_subnet, watch.ready)
        )
        written = max(os.stat(_conflist(node, ours)).st_mtime_ns for node in self.nodes)
        return Start(registered, subnets, written - clock, ready)

    def _install(self, ours: bool) -> None:
        if ours:
            self.apply_podwire()
            return
        with ThreadPoolExecutor(len(NAMES)) as pool:
            list(pool.map(self.install_by_hand, self.nodes))

    def apply_podwire(self, node_name: str = "") -> None:
        """kubectl apply of the manifest, for one node alone when it is named."""
        made = copy.deepcopy(self._manifest)
        if node_name:
            (daemon_set,) = (each for each in made if each["kind"] == "DaemonSet")
            selector = daemon_set["spec"]["template"]["spec"]["nodeSelector"]
            selector["kubernetes.io/hostname"] = node_name
        self.kubectl("apply", "--validate=false", "-f", "-", stdin=_list(made))

    def install_by_hand(self, node: Node) -> None:
        """The conflist of the Go plugins as soon as the node has a subnet, and the routes to it."""
        self.node_events.wait([watch.has_subnet(node.name)])
        subnet = self.node_events.objects[node.name]["spec"]["podCIDR"]
        text = json.dumps(conflist(subnet))
        node.write(f"{nodeconfig.CONF_DIR}/{_CONFLISTS[False]}", text)
        link, way = PLACES[node.name].link, ("via", node.addresses[0])
        self._ground.router.run("ip", "route", "replace", subnet, *way)
        for other in self.nodes:
            if other is not node and PLACES[other.name].link == link:
                other.run("ip", "route", "replace", subnet, *way)
        self._by_hand.append(subnet)

    # --- its end --------------------------------------------------------------------------------

    def clear(self) -> None:
        """Machines off; the API has no Node, no pod and no podwire any more."""
        self._close_nodes()
        for subnet in self._by_hand:
            self._ground.router.run("ip", "route", "delete", subnet, check=False)
        self._by_hand.clear()
        gone = ("--ignore-not-found", "--wait=false")
        self.kubectl("delete", *gone, "-f", "-", stdin=_list(reversed(self._manifest)))
        self.kubectl("delete", *gone, "nodes", *NAMES)

        def left() -> Any:
            for pod in self.pods(namespace=manifest.NAMESPACE):
                away = ("--force", "--grace-period=0", f"--namespace={manifest.NAMESPACE}")
                self.kubectl("delete", "pod", pod.name, *gone, *away)
            return self.get(f"/api/v1/namespaces/{manifest.NAMESPACE}")

        self.wait("podwire's end", left, lambda seen: seen is None)

    # --- pods -----------------------------------------------------------------------------------

    def make_pods(self, node_name: str, names: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Create them, one right after the other, and wait until the API calls all of them Ready.

        Of each: the moments (ns of perf_counter) of its request and of that event.
        """
        asked = {}
        for name in names:
            made = objects.pod(name, node_name, script="echo runs; exec sleep 100000")
            asked[name] = perf_counter_ns()
            self.plane.api.create(_ADMIN_PATHS["pods"], made)
        events = self.pod_events
        return {name: (asked[name], events.wait([watch.ready(name)])) for name in names}

    def ran_at(self, node: Node, name: str) -> int:
        """When the pod's container ran, in ns of the clock: by the runtime's log of its output."""
        found = self.pod_events.objects[name]["metadata"]
        path = f"/var/log/pods/default_{name}_{found['uid']}/main/0.log"
        said = netns.wait_until(lambda: node.read(path), what=f"a word of {name}")
        return nanoseconds(said.partition(" ")[0])


def conflist(subnet: str) -> Mapping[str, Any]:
    """Of the Go plugins, as a person writes it: what podwire's manifest has, of host ports too."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "by-hand", "plugins": [bridge, ports]}


def nanoseconds(stamp: str) -> int:
    """Of a time as Go prints it, 2024-01-01T00:00:00.000001234Z: ns since 1970, to the µs."""
    return round(datetime.fromisoformat(stamp).timestamp() * 1e6) * 1000


def _conflist(node: Node, ours: bool) -> str:
    return node.path(f"{nodeconfig.CONF_DIR}/{_CONFLISTS[ours]}")


def _restore(disk: str, node: Node) -> None:
    """Bring back what a machine had; the runtime's own loopback is there already."""
    os.unlink(node.path(f"{nodeconfig.BIN_DIR}/loopback"))
    for path in _KEPT:
        if os.path.isdir(disk + path):
            shutil.copytree(disk + path, node.path(path), symlinks=True, dirs_exist_ok=True)


def _list(items: Any) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(items)})
