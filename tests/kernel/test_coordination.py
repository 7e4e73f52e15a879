"""Nodes that follow a cluster: inventory, kernel, configuration, and what the cluster is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.agent.clusternode import Place
from cni_plugin.agent.coordination import Coordination
from cni_plugin.conflists import default_template
from cni_plugin.fabric import Memory
from cni_plugin.sources import Away, Gone, Listed, Put
from tests.support import probe
from tests.support.fakesource import FakeSource, member
from tests.support.netns import Namespace, wait_until
from tests.support.topology import Split, Topology

MEMBERS = tuple(
    member(
        f"node-{number}",
        " ".join(address.partition("/")[0] for address in Split.ADDRESSES[number]),
        f"10.244.{number}.0/24 fd00:10:244:{number}::/64",
    )
    for number in range(3)
)


class Follower:
    """One node's coordination, which runs in this process."""

    def __init__(
        self,
        node: Namespace,
        number: int,
        folder: Path,
        failed: Callable[[], None] | None = None,
        **template: Any,
    ) -> None:
        self.node = node
        self.name = f"node-{number}"
        self.source = FakeSource()
        self.memory = Memory()
        self.inventory = folder / self.name / "nodes.json"
        self.conf_dir = folder / self.name / "net.d"
        self.conf_dir.mkdir(parents=True, exist_ok=True)
        ipam = {"type": "host-local", "dataDir": str(folder / self.name / "networks")}
        self.template = conflist = default_template()
        conflist["plugins"][0].update({"ipam": ipam, **template})
        server = ("the API server", ip_network("203.0.113.1/32"))
        place = Place(self.name, str(self.inventory), str(self.conf_dir), conflist, (server,))
        logger = logging.getLogger(f"test.{self.name}")
        self.failed: list[bool] = []
        end = failed or (lambda: self.failed.append(True))
        self._coordination = Coordination(self.source, place, self.memory, logger, end)

    def start(self) -> None:
        with self.node.entered():
            self._coordination.start()

    def stop(self) -> None:
        self._coordination.stop()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            return wait_until(condition, 15, f"{self.name}: {what}", 0.02)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.source.states[-3:]}") from e

    def wait_for_state(self, reason: str) -> None:
        self.wait(lambda: self.source.states and self.source.states[-1].reason == reason, reason)

    def conflist(self) -> dict[str, Any]:
        return json.loads((self.conf_dir / "05-podwire.conflist").read_text())

    def plugin(self) -> dict[str, Any]:
        return next(p for p in self.conflist()["plugins"] if p["type"] == "podwire")

    def has_conflist(self) -> bool:
        return (self.conf_dir / "05-podwire.conflist").exists()

    def owned(self, family: str = "-4") -> set[str]:
        """The destinations of podwire's routes."""
        listed = self.node.run("ip", "-j", family, "route", "show", "proto", "112").stdout
        return {route["dst"] for route in json.loads(listed or "[]")}


@pytest.fixture
def split(topology: Topology, tmp_path: Path) -> Split:
    return Split(topology, tmp_path)


@pytest.fixture
def follow(split: Split, tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    """follow(0) is node 0 of three, which follows a cluster that has told nothing yet."""
    running: list[Follower] = []

    def make(number: int = 0, **template: Any) -> Follower:
        follower = Follower(split.nodes[number], number, tmp_path, **template)
        running.append(follower)
        follower.start()
        return follower

    yield make
    for follower in running:
        follower.stop()
        assert not follower.source.following
        assert not follower.failed


def subnets_of(plugin: dict[str, Any]) -> list[str]:
    return [one["subnet"] for (one,) in plugin["ipam"]["ranges"]]


def test_a_node_gets_a_network(follow):
    node = follow(0)
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    assert [state.ready for state in node.source.states] == [True]
    assert node.owned() == {"10.244.1.0/24", "10.244.2.0/24"}
    assert node.owned("-6") == {"fd00:10:244:1::/64", "fd00:10:244:2::/64"}
    plugin = node.plugin()
    assert subnets_of(plugin) == ["10.244.0.0/24", "fd00:10:244::/64"]
    assert (plugin["nodes"], plugin["nodeName"]) == (str(node.inventory), "node-0")
    assert plugin["mtu"] == 1450
    named = [entry["name"] for entry in json.loads(node.inventory.read_text())["nodes"]]
    assert named == ["node-0", "node-1", "node-2"]
    (announced,) = node.source.announced
    device = node.node.links()["pwvx1"]
    assert (announced.vtep_mac, str(announced.overlay_address)) == (
        device["address"],
        "192.168.1.2",
    )
    assert announced.backend == "auto vni=1 port=8472"


def test_pods_reach_each_other_by_what_was_written(follow, topology, podwire, split):
    """Real ADDs with the configurations that appeared, and real packets."""
    nodes = [follow(number) for number in range(3)]
    for node in nodes:
        node.source.tell(Listed(MEMBERS))
    for node in nodes:
        node.wait_for_state("PodwireReady")
    pods = []
    for number, node in enumerate(nodes):
        conflist = node.conflist()
        conf = {**node.plugin(), "name": conflist["name"], "cniVersion": "1.0.0"}
        sandbox = topology.sandbox(f"pod{number}")
        reply = podwire.on(node.node).add(conf, sandbox)
        pods.append((sandbox, reply.result["ips"][0]["address"].partition("/")[0]))
    for sandbox, address in pods:
        for peer, other in pods:
            if other != address:
                assert probe.tcp(sandbox, peer, other).source == address
        for node in nodes:
            assert probe.reaches(node.node, sandbox, address)
    for (sandbox, _), node in zip(pods, nodes, strict=True):
        conf = {**node.plugin(), "name": "podwire", "cniVersion": "1.0.0"}
        podwire.on(node.node).delete(conf, sandbox)


def test_nodes_come_change_and_go(follow):
    node = follow(0)
    node.source.tell(Listed(MEMBERS[:2]))
    node.wait(lambda: node.owned() == {"10.244.1.0/24"}, "the route to the first peer")
    node.source.tell(Put(MEMBERS[2]))
    node.wait(lambda: "10.244.2.0/24" in node.owned(), "the route to a new peer")
    moved = member("node-1", "192.168.1.3", "10.244.7.0/24")
    node.source.tell(Put(moved))
    node.wait(lambda: node.owned() == {"10.244.7.0/24", "10.244.2.0/24"}, "another podCIDR")
    node.source.tell(Gone("node-2"))
    node.wait(lambda: node.owned() == {"10.244.7.0/24"}, "one peer less")
    node.source.tell(Away("the API server is gone"))
    node.source.tell(Listed(MEMBERS))
    node.wait(lambda: node.owned() == {"10.244.1.0/24", "10.244.2.0/24"}, "a new list")


def test_no_subnet_no_configuration(follow):
    node = follow(0)
    lacking = member("node-0", "192.168.1.2 fd00:1::2", "")
    node.source.tell(Listed((lacking, *MEMBERS[1:])))
    node.wait_for_state("NoPodCIDR")
    assert not node.source.states[-1].ready
    assert "--allocate-node-cidrs" in node.source.states[-1].message
    assert not node.has_conflist()
    node.source.tell(Put(MEMBERS[0]))
    node.wait_for_state("PodwireReady")
    assert node.has_conflist()


def test_a_node_that_the_cluster_does_not_know(follow):
    node = follow(0)
    node.source.tell(Listed(MEMBERS[1:]))
    node.wait_for_state("NodeNotFound")
    assert not node.has_conflist()


def test_an_overlap_is_refused_and_reported(follow):
    """By the node that holds the subnet, as well: the other may have no agent."""
    node = follow(0)
    late = member("node-9", "192.168.1.19", "10.244.0.128/25", since="z")
    node.source.tell(Listed((*MEMBERS, late)))
    node.wait(lambda: node.source.reports, "a report")
    ((name, reason, message),) = node.source.reports
    assert (name, reason) == ("node-9", "PodCIDROverlap")
    assert "10.244.0.128/25" in message
    assert "node-0" in message
    node.wait_for_state("PodwireReady")
    assert "10.244.0.128/25" not in node.owned()
    node.source.tell(Gone("node-9"))
    node.wait(lambda: "192.168.1.19" not in node.inventory.read_text(), "its end")
    node.source.tell(Put(late))
    node.wait(lambda: len(node.source.reports) == 2, "a report of what came again")


def test_an_own_subnet_that_is_another_s(follow):
    node = follow(1)
    taken = member("node-1", "192.168.1.3", "10.244.0.0/24", since="z")
    node.source.tell(Listed((MEMBERS[0], taken)))
    node.wait_for_state("PodCIDROverlap")
    assert "node-0" in node.source.states[-1].message
    assert not node.has_conflist()


def test_a_peer_s_subnet_that_is_this_node_s_network(follow):
    """It costs that peer its pods, and nobody else."""
    node = follow(0)
    wrong = member("node-1", "192.168.1.3", "192.168.1.128/25")
    node.source.tell(Listed((MEMBERS[0], wrong, MEMBERS[2])))
    node.wait_for_state("PodwireReady")
    assert node.owned() == {"10.244.2.0/24"}


def test_a_peer_without_a_way_costs_nobody_else(follow, topology, podwire):
    """A typo in a node's address, a family without a default route."""
    node = follow(0)
    node.node.run("ip", "route", "del", "default")
    astray = member("node-1", "203.0.113.7", "10.244.1.0/24")
    node.source.tell(Listed((MEMBERS[0], astray)))
    node.wait_for_state("PodwireReady")
    assert "no way to 203.0.113.7 of node node-1" in node.source.states[-1].message
    assert node.plugin()["mtu"] == 1430  # of 1500, less the overlay's 70 over IPv6
    conf = {**node.plugin(), "name": "podwire", "cniVersion": "1.1.0"}
    sandbox = topology.sandbox("pod")
    plugin = podwire.on(node.node)
    assert plugin.status(conf).ok
    assert plugin.add(conf, sandbox).ok
    plugin.delete(conf, sandbox)


BAD_PEERS = {
    "another family": ("fd00:1::77", "10.244.77.0/24", "no IPv4 address"),
    "no pods, another family": ("fd00:1::77", "", "no IPv4 address"),
    "the broadcast address": ("192.168.1.255", "10.244.77.0/24", "has to do without ways"),
    "a foreign route": ("192.168.1.77", "172.17.0.0/16", "has to do without ways"),
}


@pytest.mark.parametrize("case", BAD_PEERS)
def test_a_peer_that_can_be_none_costs_nobody_else(follow, topology, podwire, case):
    """Whether it was there first or came later."""
    node = follow(0)
    node.node.run("ip", "route", "add", "172.17.0.0/16", "dev", "lo")
    address, subnet, said = BAD_PEERS[case]
    bad = member("node-7", address, subnet)
    good = [
        each._replace(addresses=each.addresses[:1], pod_cidrs=each.pod_cidrs[:1])
        for each in MEMBERS
    ]
    node.source.tell(Listed((*good[:2], bad)))
    node.wait_for_state("PodwireReady")
    node.wait(lambda: node.source.reports, "a report")
    assert [report[0] for report in node.source.reports] == ["node-7"]
    assert said in node.source.reports[0][2]
    assert node.owned() == {"10.244.1.0/24"}
    node.source.tell(Put(good[2]))
    node.wait(lambda: node.owned() == {"10.244.1.0/24", "10.244.2.0/24"}, "another peer")
    assert {state.reason for state in node.source.states} == {"PodwireReady"}
    conf = {**node.plugin(), "name": "podwire", "cniVersion": "1.1.0"}
    sandbox = topology.sandbox("pod")
    assert podwire.on(node.node).add(conf, sandbox).ok
    podwire.on(node.node).delete(conf, sandbox)
    node.source.tell(Put(member("node-7", "192.168.1.77", "10.244.77.0/24")))
    node.wait(lambda: "10.244.77.0/24" in node.owned(), "the peer, once it is right")


def test_plain_routes_to_a_peer_of_one_family(follow):
    node = follow(0, backend="host-gw")
    half = member("node-1", "192.168.1.3", "10.244.1.0/24 fd00:10:244:1::/64")
    node.source.tell(Listed((MEMBERS[0], half)))
    node.wait_for_state("PodwireReady")
    assert node.owned() == {"10.244.1.0/24"}
    assert node.owned("-6") == set()


def test_another_name_while_pods_run_is_refused(follow, topology, podwire, tmp_path):
    """The new network would give the old one's addresses away."""
    node = follow(0)
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    conf = {**node.plugin(), "name": "podwire", "cniVersion": "1.0.0"}
    sandbox = topology.sandbox("pod")
    plugin = podwire.on(node.node)
    assert plugin.add(conf, sandbox).ok
    node.stop()
    for keys, said in (({"name": "other"}, 'expected "podwire"'), ({}, 'expected "cni0"')):
        later = Follower(node.node, 0, tmp_path, **({} if keys else {"bridge": "cni9"}))
        later.template.update(keys)
        later.start()
        later.source.tell(Listed(MEMBERS))
        later.wait_for_state("NetworkNotReady")
        assert said in later.source.states[-1].message
        assert later.plugin()["bridge"] == "cni0"
        later.stop()
    plugin.delete(conf, sandbox)
    last = Follower(node.node, 0, tmp_path)
    last.template["name"] = "other"
    last.start()
    last.source.tell(Listed(MEMBERS))
    last.wait_for_state("PodwireReady")
    assert last.conflist()["name"] == "other"
    last.stop()


@pytest.mark.parametrize("versions", [{"cniVersion": "9.9.9"}, {"cniVersions": ["1.0.0", "2.0"]}])
def test_a_version_that_podwire_does_not_speak(follow, split, tmp_path, versions):
    wrong = Follower(split.nodes[0], 0, tmp_path)
    wrong.template.update(versions)
    wrong.start()
    wrong.source.tell(Listed(MEMBERS))
    wrong.wait_for_state("NetworkNotReady")
    assert "cniVersion" in wrong.source.states[-1].message
    assert not wrong.has_conflist()
    wrong.stop()


def test_a_foreign_configuration_that_comes_first_is_named(follow):
    node = follow(0)
    (node.conf_dir / "05-other.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "ptp"}]})
    )
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    assert "05-other.conflist, which sorts before" in node.source.states[-1].message


def test_a_mistake_of_ours_ends_the_agent(follow, split, tmp_path, monkeypatch):
    """Rather than leave one that looks as if it followed."""
    ended: list[bool] = []
    node = Follower(split.nodes[0], 0, tmp_path, failed=lambda: ended.append(True))
    monkeypatch.setattr("cni_plugin.agent.clusternode.ClusterNode.bring_about", lambda *_: 1 / 0)
    node.start()
    node.source.tell(Listed(MEMBERS))
    node.wait(lambda: ended, "the end")
    node.stop()


def test_a_peer_s_subnet_that_holds_the_api_server(follow):
    """With a route there, nobody would hear of the peer's end."""
    node = follow(0)
    wrong = member("node-1", "192.168.1.3", "203.0.113.0/24")
    node.source.tell(Listed((MEMBERS[0], wrong, MEMBERS[2])))
    node.wait_for_state("PodwireReady")
    node.wait(lambda: node.source.reports, "a report")
    assert "the API server" in node.source.reports[0][2]
    assert node.owned() == {"10.244.2.0/24"}


def test_a_configuration_that_somebody_removed_is_written_again(follow, monkeypatch):
    monkeypatch.setattr("cni_plugin.agent.coordination._WHOLE_S", 0.2)
    monkeypatch.setattr("cni_plugin.agent.coordination._TICK_S", 0.2)
    node = follow(0)
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    before = node.conflist()
    (node.conf_dir / "05-podwire.conflist").unlink()
    node.wait(node.has_conflist, "the configuration")
    assert node.conflist() == before


def test_the_mtu_follows_the_underlay(follow, split, monkeypatch):
    monkeypatch.setattr("cni_plugin.agent.coordination._WHOLE_S", 0.2)
    monkeypatch.setattr("cni_plugin.agent.coordination._TICK_S", 0.2)
    node = follow(0)
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    assert node.plugin()["mtu"] == 1450
    split.nodes[0].run("ip", "link", "set", "eth0", "mtu", "1400")
    node.memory.happened()  # as the upkeep does when the kernel tells of it
    node.wait(lambda: node.plugin()["mtu"] == 1350, "a smaller MTU")


def test_a_cluster_that_cannot_be_told(follow):
    """The network is there all the same, and the cluster is told later."""
    node = follow(0)
    node.source.broken = "the API server says 500"
    node.source.tell(Listed(MEMBERS))
    node.wait(node.has_conflist, "the configuration")
    assert node.source.states == []
    node.source.broken = ""
    node.wait_for_state("PodwireReady")
    assert node.source.announced


def test_what_was_known_lasts(follow, split):
    """A new agent, with the API away: the routes are there before anything is heard."""
    first = follow(0)
    first.source.tell(Listed(MEMBERS))
    first.wait_for_state("PodwireReady")
    first.stop()
    first.node.run("ip", "route", "flush", "proto", "112")
    second = follow(0)
    second.wait(lambda: second.owned() == {"10.244.1.0/24", "10.244.2.0/24"}, "routes")
    assert second.source.states == []
    assert second.has_conflist()


def test_another_subnet_after_a_rebuild(follow):
    node = follow(0)
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    anew = member("node-0", "192.168.1.2 fd00:1::2", "10.244.9.0/24 fd00:10:244:9::/64", uid="2")
    node.source.tell(Put(anew))
    node.wait(
        lambda: subnets_of(node.plugin()) == ["10.244.9.0/24", "fd00:10:244:9::/64"],
        "a new configuration",
    )
