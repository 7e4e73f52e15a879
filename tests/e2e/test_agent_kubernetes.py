"""Agents that follow a real API server, on three nodes of which one is behind routers.

No kubelets: the Node objects are the test's. What a runtime would do, an ADD with the network
configuration that appeared, is done by hand, so that this takes seconds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import probe, require
from tests.support.agent import Agent, AgentPlugin
from tests.support.controlplane import ControlPlane
from tests.support.netns import Namespace, Namespaces, wait_until
from tests.support.nodeobjects import node_object
from tests.support.topology import Split, Topology

NODES, EVENTS = "/api/v1/nodes", "/api/v1/namespaces/default/events"
SERVER = "192.168.1.8"  # on the link of nodes 0 and 1
_pods = count(1)
NETWORK = {
    "name": "podwire",
    "plugins": [{"type": "podwire", "bridge": "cni0", "ipMasq": True, "ipam": {}}],
}


def addresses(number: int) -> tuple[str, ...]:
    return tuple(address.partition("/")[0] for address in Split.ADDRESSES[number])


def subnets(number: int) -> tuple[str, ...]:
    return (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")


class Member:
    """One node: its agent and what that has made."""

    def __init__(self, site: Site, number: int) -> None:
        self.site, self.number = site, number
        self.name = f"node-{number}"
        self.node: Namespace = site.split.nodes[number]
        self.folder = site.folder / self.name
        self.conf_dir = self.folder / "net.d"
        self.conf_dir.mkdir(parents=True)
        network = json.loads(json.dumps(NETWORK))
        ipam = {"type": "host-local", "dataDir": str(self.folder / "networks")}
        network["plugins"][0]["ipam"] = ipam
        (self.folder / "network.json").write_text(json.dumps(network))
        self.agent = Agent(
            self.node,
            site.executable,
            str(self.folder),
            options=(
                *("--kubernetes", "--kubeconfig", site.plane.kubeconfig, "--node-name", self.name),
                *("--inventory", str(self.folder / "nodes.json")),
                *("--conf-dir", str(self.conf_dir)),
                *("--network", str(self.folder / "network.json")),
            ),
        )
        self.plugin = AgentPlugin(site.executable, self.node, socket=self.agent.socket)

    def object(self) -> dict[str, Any]:
        return self.site.plane.api.get(f"{NODES}/{self.name}")

    def condition(self) -> tuple[str, str]:
        for condition in self.object()["status"].get("conditions", ()):
            if condition["type"] == "NetworkUnavailable":
                return condition["status"], condition["reason"]
        return "", ""

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
        try:
            return wait_until(condition, timeout, f"{self.name}: {what}", 0.05)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.agent.text()}") from e

    def wait_until_ready(self) -> None:
        self.wait(lambda: self.condition() == ("False", "PodwireReady"), "NetworkUnavailable=False")

    def conf(self) -> dict[str, Any]:
        conflist = json.loads((self.conf_dir / "05-podwire.conflist").read_text())
        return {**conflist["plugins"][0], "name": conflist["name"], "cniVersion": "1.0.0"}

    def pod(self) -> Pod:
        return Pod(self)

    def owned(self) -> set[str]:
        listed = self.node.run("ip", "-j", "-4", "route", "show", "proto", "112").stdout
        return {route["dst"] for route in json.loads(listed or "[]")}


class Pod:
    def __init__(self, member: Member) -> None:
        self.member = member
        self.sandbox = member.site.topology.sandbox(f"pod{next(_pods)}")
        self.conf = member.conf()
        reply = member.plugin.add(self.conf, self.sandbox)
        self.addresses = [entry.partition("/")[0] for entry in reply.addresses()]

    def delete(self) -> None:
        self.member.plugin.delete(self.conf, self.sandbox)


class Plane(NamedTuple):
    """A control plane and the namespace in which it is."""

    place: Namespace
    control: ControlPlane


class Site:
    def __init__(self, topology: Topology, folder: Path, executable: str, plane: Plane) -> None:
        self.topology, self.folder, self.executable = topology, folder, executable
        self.split = Split(topology, folder)
        self.plane = plane.control
        self.split.switch.run(
            *("ip", "link", "add", "server", "master", "br0", "up", "type", "veth"),
            *("peer", "name", "eth0", "netns", plane.place.path),
        )
        plane.place.run("ip", "addr", "add", f"{SERVER}/24", "dev", "eth0")
        plane.place.run("ip", "link", "set", "eth0", "up")
        plane.place.run("ip", "route", "add", "default", "via", "192.168.1.1")
        self.members: list[Member] = []

    def register(self, number: int, *pod_cidrs: str) -> None:
        self.plane.api.create(
            NODES, node_object(number, addresses(number), pod_cidrs or subnets(number))
        )

    def start(self, number: int) -> Member:
        member = Member(self, number)
        self.members.append(member)
        member.agent.start()
        return member

    def close(self) -> None:
        for member in self.members:
            if member.agent.lives():
                member.agent.terminate()
            member.agent.close()


@contextlib.contextmanager
def running_plane(folder: Path) -> Iterator[Plane]:
    """Each test cables it anew, so the address is also on its loopback, where it stays."""
    namespaces = Namespaces()
    try:
        place = namespaces.make("server")
        place.run("ip", "addr", "add", f"{SERVER}/32", "dev", "lo")
        with ControlPlane(folder, place, address=SERVER) as control:
            yield Plane(place, control)
    finally:
        namespaces.close()


@pytest.fixture(scope="module")
def shared_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """For the tests that let it run."""
    require.root()
    with running_plane(tmp_path_factory.mktemp("plane")) as made:
        yield made


@pytest.fixture
def own_plane(_nothing_left: None, tmp_path: Path) -> Iterator[Plane]:
    with running_plane(tmp_path / "plane") as made:
        yield made


@contextlib.contextmanager
def cabled(plane: Plane, topology: Topology, folder: Path, executable: str) -> Iterator[Site]:
    """Without Nodes; afterwards there are none again."""
    made = Site(topology, folder, executable, plane)
    try:
        yield made
    finally:
        made.close()
        for path in (NODES, EVENTS):
            plane.control.api.delete(path)


@pytest.fixture
def site(
    shared_plane: Plane, topology: Topology, tmp_path: Path, podwire_executable: str
) -> Iterator[Site]:
    with cabled(shared_plane, topology, tmp_path, podwire_executable) as made:
        yield made


@pytest.fixture
def own_site(
    own_plane: Plane, topology: Topology, tmp_path: Path, podwire_executable: str
) -> Iterator[Site]:
    with cabled(own_plane, topology, tmp_path, podwire_executable) as made:
        yield made


def everybody_reaches_everybody(members: list[Member], pods: list[Pod]) -> None:
    probe.all_paths(
        [(pod.sandbox, pod.addresses) for pod in pods],
        [(member.node, addresses(member.number)[0]) for member in members],
    )


def test_a_cluster(site: Site) -> None:
    for number in range(3):
        site.register(number)
    members = [site.start(number) for number in range(3)]
    for member in members:
        member.wait_until_ready()
        annotations = member.object()["metadata"]["annotations"]
        device = member.node.links()["pwvx1"]
        assert annotations["podwire.io/vtep-mac"] == device["address"]
        assert annotations["podwire.io/overlay-address"] == addresses(member.number)[0]
        assert annotations["podwire.io/backend"] == "auto vni=1 port=8472"
    pods = [member.pod() for member in members]
    everybody_reaches_everybody(members, pods)
    for pod in pods:
        pod.delete()


def test_nodes_come_and_go(site: Site) -> None:
    site.register(0)
    first = site.start(0)
    first.wait_until_ready()
    site.register(1)
    first.wait(lambda: first.owned() == {"10.244.1.0/24"}, "a route to the new node")
    pods = [first.pod()]
    second = site.start(1)
    second.wait_until_ready()
    pods.append(second.pod())
    everybody_reaches_everybody([first, second], pods)
    pods.pop().delete()
    site.plane.api.delete(f"{NODES}/node-1")
    first.wait(lambda: first.owned() == set(), "the route's end")
    second.wait(lambda: "NodeNotFound" in second.agent.text(), "a word of it")
    site.register(1, "10.244.77.0/24")
    first.wait(lambda: first.owned() == {"10.244.77.0/24"}, "a route to the other subnet")
    second.wait_until_ready()
    second.wait(lambda: "10.244.77.0/24" in json.dumps(second.conf()), "another configuration")
    pods.append(second.pod())
    assert pods[1].addresses == ["10.244.77.2"]
    seen = probe.tcp(pods[0].sandbox, pods[1].sandbox, "10.244.77.2", probe.PATIENCE)
    assert seen.source == pods[0].addresses[0]
    for pod in pods:
        pod.delete()


def test_the_api_server_is_away(own_site: Site) -> None:
    """Pods go on coming up, with and without an agent; what changed meanwhile is made good."""
    site = own_site
    for number in range(2):
        site.register(number)
    members = [site.start(number) for number in range(2)]
    for member in members:
        member.wait_until_ready()
    site.plane.stop_api()
    members[0].wait(lambda: members[0].agent.log("the cluster is away"), "a word of it")
    pods = [member.pod() for member in members]
    everybody_reaches_everybody(members, pods)
    members[0].agent.kill()
    members[0].node.run("ip", "route", "flush", "proto", "112")
    members[0].agent.start()
    members[0].wait(lambda: members[0].owned() == {"10.244.1.0/24"}, "routes of what was known")
    pods.append(members[0].pod())
    site.plane.start_api()
    site.plane.api.delete(f"{NODES}/node-1")
    members[0].wait(lambda: members[0].owned() == set(), "what changed meanwhile", 120)
    for pod in pods:
        pod.delete()


def test_an_overlap_is_an_event(site: Site) -> None:
    site.register(0)
    member = site.start(0)
    member.wait_until_ready()
    site.plane.api.create(NODES, node_object(9, ("192.168.1.19",), ("10.244.0.0/25",)))

    def told() -> list[str]:
        events = site.plane.api.get(EVENTS)["items"]
        return [e["message"] for e in events if e["reason"] == "PodCIDROverlap"]

    (message,) = member.wait(told, "an Event")
    assert "10.244.0.0/25" in message
    assert "node-0" in message
    assert member.condition() == ("False", "PodwireReady")
    assert member.owned() == set()
    member.agent.terminate()
    late = site.start(1)
    site.register(1, "10.244.0.128/25")
    late.wait(lambda: late.condition() == ("True", "PodCIDROverlap"), "NetworkUnavailable=True")
    assert not (late.conf_dir / "05-podwire.conflist").exists()
