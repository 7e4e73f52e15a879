"""Nodes that follow a cluster: inventory, kernel, configuration, and what the cluster is told."""

from __future__ import annotations

import json
import pkgutil
from threading import Event
from time import sleep

import pytest

from cni_plugin.sources import Away, Gone, Listed, Put, Readiness
from tests.support import probe
from tests.support.fakesource import member
from tests.support.follower import MEMBERS, Follower, subnets_of


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
        pods.append((sandbox, [text.partition("/")[0] for text in reply.addresses()]))
    probe.all_paths(pods, [(node.node, "") for node in nodes])
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


def test_peers_are_followed_while_the_own_node_is_missing(follow, monkeypatch):
    """Its pods run on; and so they do while it has no subnet."""
    monkeypatch.setattr("cni_plugin.agent.coordination._WHOLE_S", 1000)
    node = follow(0)
    node.source.tell(Listed(MEMBERS[:2]))
    node.wait_for_state("PodwireReady")
    node.source.tell(Gone("node-0"))
    node.wait_for_state("NodeNotFound")
    node.source.tell(Put(MEMBERS[2]))
    node.wait(lambda: node.owned() == {"10.244.1.0/24", "10.244.2.0/24"}, "a new peer")
    node.source.tell(Gone("node-1"))
    node.wait(lambda: node.owned() == {"10.244.2.0/24"}, "a peer's end")
    named = {entry["name"]: entry for entry in json.loads(node.inventory.read_text())["nodes"]}
    assert named["node-0"]["podCIDRs"] == ["10.244.0.0/24", "fd00:10:244::/64"]
    node.source.tell(Put(member("node-0", "192.168.1.2 fd00:1::2", "")))
    node.wait_for_state("NoPodCIDR")
    node.source.tell(Put(MEMBERS[1]))
    node.wait(lambda: node.owned() == {"10.244.1.0/24", "10.244.2.0/24"}, "another peer")
    node.source.tell(Gone("node-2"))
    node.wait(lambda: node.owned() == {"10.244.1.0/24"}, "its end")
    node.source.tell(Put(MEMBERS[0]))
    node.wait_for_state("PodwireReady")
    assert node.owned() == {"10.244.1.0/24"}


def test_a_node_of_another_family_than_the_others(follow):
    """It has no peers, and the inventory has the others."""
    node = follow(0)
    others = [member(f"node-{n}", f"192.168.1.{n + 2}", f"10.244.{n}.0/24") for n in (1, 2)]
    node.source.tell(Listed((member("node-0", "fd00:1::2", "10.244.0.0/24"), *others)))
    node.wait_for_state("NodeUnfit")
    named = [entry["name"] for entry in json.loads(node.inventory.read_text())["nodes"]]
    assert named in (["node-1", "node-2"], ["node-0", "node-1", "node-2"])
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    unfit = member("node-0", "fd00:1::2", "10.244.0.0/24")
    node.source.tell(Listed((unfit, *others)))
    node.wait_for_state("NodeUnfit")
    node.source.tell(Put(member("node-5", "192.168.1.9", "10.244.5.0/24")))
    node.wait(lambda: "node-5" in node.inventory.read_text(), "the others")
    sleep(0.5)  # and nothing else after that
    named = [entry["name"] for entry in json.loads(node.inventory.read_text())["nodes"]]
    assert named == ["node-1", "node-2", "node-5"]


def test_what_a_missing_node_had_is_another_s(follow):
    """Who is there has it; the rest is as it was."""
    node = follow(0)
    node.source.tell(Listed(MEMBERS[:2]))
    node.wait_for_state("PodwireReady")
    node.source.tell(Gone("node-0"))
    node.source.tell(Put(member("node-5", "192.168.1.9", "10.244.0.0/24")))
    node.wait(lambda: "10.244.0.0/24" in node.owned(), "the route to the successor")
    named = {entry["name"]: entry for entry in json.loads(node.inventory.read_text())["nodes"]}
    assert named["node-0"]["podCIDRs"] == ["fd00:10:244::/64"]


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
    assert "remove that file" in node.source.states[-1].message


@pytest.mark.parametrize("kind", ["multus", "multus-shim"])
def test_multus_may_come_first(follow, kind):
    """It has to; nobody is told to remove it."""
    node = follow(0)
    (node.conf_dir / "00-multus.conf").write_text(
        json.dumps({"cniVersion": "0.3.1", "name": "multus-cni-network", "type": kind})
    )
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    assert "00-multus.conf: podwire's is the pods' network" in node.source.states[-1].message
    assert "remove" not in node.source.states[-1].message


def test_a_mistake_of_ours_ends_the_agent(follow, split, tmp_path, monkeypatch):
    """Rather than leave one that looks as if it followed."""
    ended: list[bool] = []
    node = Follower(split.nodes[0], 0, tmp_path, failed=lambda: ended.append(True))
    monkeypatch.setattr("cni_plugin.agent.clusternode.ClusterNode.bring_about", lambda *_: 1 / 0)
    node.start()
    node.source.tell(Listed(MEMBERS))
    node.wait(lambda: ended, "the end")
    node.stop()


@pytest.mark.parametrize(
    "step",
    [
        "membership.Membership.apply",
        "agent.fitting.Fitting.fit",
        "agent.clusternode.ClusterNode.bring_about",
    ],
)
def test_a_mistake_of_ours_in_one_step_costs_a_look_at_all(follow, monkeypatch, caplog, step):
    """It is logged as one, nothing of the change is lost, and the node goes on following."""
    node = follow(0)
    node.source.tell(Listed(MEMBERS[:2]))
    node.wait(lambda: node.owned() == {"10.244.1.0/24"}, "the first peer's route")
    right = pkgutil.resolve_name(f"cni_plugin.{step}")
    wrong = iter([True])

    def once(*arguments):
        return [][0] if next(wrong, False) else right(*arguments)

    monkeypatch.setattr(f"cni_plugin.{step}", once)
    node.source.tell(Put(MEMBERS[2]))
    node.wait(lambda: node.owned() == {"10.244.1.0/24", "10.244.2.0/24"}, "the other's route")
    assert next(wrong, None) is None
    (record,) = [each for each in caplog.records if "a mistake of podwire" in each.message]
    assert record.exc_info
    node.source.tell(Gone("node-1"))
    node.wait(lambda: node.owned() == {"10.244.2.0/24"}, "the first one's end")


def test_a_peer_s_subnet_that_holds_the_api_server(follow):
    """With a route there, nobody would hear of the peer's end."""
    node = follow(0)
    wrong = member("node-1", "192.168.1.3", "203.0.113.0/24")
    node.source.tell(Listed((MEMBERS[0], wrong, MEMBERS[2])))
    node.wait_for_state("PodwireReady")
    node.wait(lambda: node.source.reports, "a report")
    assert "the API server" in node.source.reports[0][2]
    assert node.owned() == {"10.244.2.0/24"}


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


def test_a_cluster_that_takes_its_time(follow, monkeypatch):
    """What is told and not answered holds up no route; later only what is so now is told."""
    node = follow(0)
    answers = Event()
    say_ready = node.source.say_ready

    def slowly(state: Readiness) -> None:
        assert answers.wait(60)
        say_ready(state)

    monkeypatch.setattr(node.source, "say_ready", slowly)
    node.source.tell(Listed(MEMBERS[:2]))
    node.wait(lambda: node.owned() == {"10.244.1.0/24"}, "the route to the first peer")
    for state in (MEMBERS[2], member("node-0", "192.168.1.2", ""), MEMBERS[0]):
        node.source.tell(Put(state))
        node.wait(lambda: "10.244.2.0/24" in node.owned(), "the route to a new peer")
    node.wait(node.has_conflist, "the configuration")
    answers.set()
    node.wait_for_state("PodwireReady")


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
