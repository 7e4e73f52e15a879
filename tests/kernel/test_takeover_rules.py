"""Pods that the Go reference plugins made, deleted by podwire: none of their rules may stay."""

from __future__ import annotations

import os

import pytest

from cni_plugin.kernel import goplugins
from cni_plugin.spec import Attachment
from tests.support import require
from tests.support.plugin import Plugin
from tests.support.throughports import INNER, NODE, PORT, ask, cabled, listening, pods_of

PLUGINS = ("bridge", "portmap", "bandwidth", "firewall")
RATES = {f"{way}{what}": 8_000_000 for way in ("ingress", "egress") for what in ("Rate", "Burst")}


class GoChain:
    """The four plugins one after the other, as a runtime runs them."""

    def __init__(self, node, folder, conf, backend=""):
        self.node, self.folder, self.conf, self.backend = node, folder, conf, backend
        self.stays = ""

    def _plugin(self, name):
        return Plugin(os.path.join(self.folder, name), self.node, self.folder)

    def _confs(self, port):
        mappings = [
            {"hostPort": port, "containerPort": INNER, "protocol": protocol}
            for protocol in ("tcp", "udp")
        ]
        masquerade = {"ipMasqBackend": self.backend} if self.backend else {}
        ours = {key: self.conf[key] for key in ("cniVersion", "name")}
        runtime = {"portMappings": mappings, "bandwidth": RATES}
        yield {**self.conf, "type": "bridge", "isGateway": True, "ipMasq": True, **masquerade}
        yield {
            **ours,
            "type": "portmap",
            "snat": True,
            "runtimeConfig": runtime,
            **({"backend": self.backend} if self.backend else {}),
        }
        yield {**ours, "type": "bandwidth", "runtimeConfig": runtime}
        yield {**ours, "type": "firewall", "backend": "iptables"}

    def add(self, sandbox, port, **more):
        """The result of the whole chain."""
        previous = None
        for conf in self._confs(port):
            plugin = self._plugin(conf["type"])
            previous = plugin.add(conf, sandbox, prev=previous, **more).result
        return previous


def rules(node):
    """All rules of others, as iptables and nft show them, without the packets counted, and the
    names of the links."""
    lines = []
    for tool in ("iptables-nft-save", "ip6tables-nft-save"):
        saved = node.run(tool).stdout.splitlines()
        lines += [line.split(" [")[0] for line in saved if not line.startswith("#")]
    listed = node.run("nft", "-s", "list", "ruleset").stdout
    return lines, listed, sorted(node.links())


@pytest.fixture(params=["iptables", "nftables"])
def backend(request):
    """How bridge and portmap write their rules."""
    return request.param


@pytest.fixture
def outside(topology):
    return topology.sandbox("outside")


@pytest.fixture
def go_chain(backend, topology, outside, make_conf, dual, tmp_path, monkeypatch):
    """The chain on a node with a pod "stays"; `iptables` is the one that writes nftables."""
    folder = require.go_plugins(*PLUGINS)
    if backend == "nftables":
        folder = os.path.join(require.newer(), "usr/lib/cni")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("iptables", "ip6tables"):
        (tools / name).symlink_to(require.program(f"{name}-nft"))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    node = cabled(topology, topology.node("node"), outside)
    conf = make_conf(bridge="cni9", ipam={"ranges": dual.ranges})
    chain = GoChain(node, folder, conf, "nftables" if backend == "nftables" else "")
    stays = topology.sandbox("stays")
    chain.stays = stays.name
    chain.add(stays, 8090)
    return chain


@pytest.fixture
def plugin(podwire, go_chain):
    return podwire.on(go_chain.node)


@pytest.mark.parametrize("way", ["process", "agent"], indirect=True)
@pytest.mark.parametrize("proof", ["prevResult", "reservation"])
def test_del_removes_what_the_go_plugins_left(go_chain, plugin, topology, reservations, proof):
    node, before = go_chain.node, rules(go_chain.node)
    kept, pod = reservations(), topology.sandbox("goes")
    result = go_chain.add(pod, PORT)
    assert rules(node) != before
    previous = result if proof == "prevResult" else None
    assert plugin.delete({**go_chain.conf, "bridge": "cni9"}, pod, prev=previous).ok
    assert rules(node) == before
    assert reservations() == kept
    assert plugin.delete(go_chain.conf, pod, prev=previous).ok
    assert rules(node) == before


def test_gc_removes_what_the_go_plugins_left(go_chain, plugin, topology):
    node, before = go_chain.node, rules(go_chain.node)
    pod = topology.sandbox("goes")
    go_chain.add(pod, PORT)
    pod.delete()
    assert plugin.gc({**go_chain.conf, "cniVersion": "1.1.0"}, [(go_chain.stays, "eth0")]).ok
    assert rules(node) == before


def test_the_address_and_the_port_serve_the_next_pod(go_chain, plugin, topology, outside):
    """Which is what rules that stayed would spoil."""
    first, second = topology.sandbox("goes"), topology.sandbox("comes")
    old = go_chain.add(first, PORT)
    mappings = [{"hostPort": PORT, "containerPort": INNER, "protocol": "tcp"}]
    conf = {**go_chain.conf, "runtimeConfig": {"portMappings": mappings}}
    refused = plugin.add(conf, second)
    assert refused.code == 103
    assert f"{PORT}/tcp" in refused.error["msg"]
    assert "chain ip " in refused.error["msg"]
    assert plugin.delete(go_chain.conf, first, prev=old).ok
    reply = plugin.add(conf, second)
    new = pods_of(reply)
    assert set(new.values()).isdisjoint({"10.244.0.2"})  # that of the pod that stays
    for version in (4, 6):
        with listening(second, version, INNER) as server:
            assert ask(outside, (NODE[version], PORT), server)


def test_a_free_port_of_a_go_node_is_podwires(go_chain, plugin, topology):
    pod = topology.sandbox("comes")
    mappings = [{"hostPort": 8091, "containerPort": INNER, "protocol": "tcp"}]
    assert plugin.add({**go_chain.conf, "runtimeConfig": {"portMappings": mappings}}, pod).ok


def test_an_address_that_another_holds_by_now_keeps_its_rules(go_chain, plugin, topology):
    """The runtime repeats a DEL long after: reserved is the address for another Go pod."""
    first, second = topology.sandbox("first"), topology.sandbox("second")
    old = go_chain.add(first, PORT)
    assert plugin.delete(go_chain.conf, first, prev=old).ok
    wanted = old["ips"][0]["address"].split("/")[0]
    new = go_chain.add(second, PORT, args=f"IgnoreUnknown=1;IP={wanted}")
    assert new["ips"][0]["address"] == old["ips"][0]["address"]
    before = rules(go_chain.node)
    assert plugin.delete(go_chain.conf, first, prev=old).ok
    assert rules(go_chain.node) == before


@pytest.mark.parametrize("backend", ["iptables"], indirect=True)  # the other has no such chains
def test_a_rule_of_the_owners_that_leads_there_is_kept(go_chain, plugin, topology):
    node, pod = go_chain.node, topology.sandbox("goes")
    old = go_chain.add(pod, PORT)
    chain = goplugins.names_of("podnet", Attachment(pod.name, "eth0")).chain
    for rule in (["-N", "MINE"], ["-A", "MINE", "-j", chain]):
        node.run("iptables-nft", "-t", "nat", *rule)
    assert plugin.delete(go_chain.conf, pod, prev=old).ok
    left = [line for line in rules(node)[0] if chain in line]
    assert left == [f":{chain} -", f"-A MINE -j {chain}"]


def test_podwires_own_pods_ask_nothing_of_the_ruleset(go_chain, plugin, topology, reservations):
    """A pod of podwire's whose link has gone: its prevResult says that podwire made it."""
    pod = topology.sandbox("own")
    own = plugin.add(go_chain.conf, pod).result
    before = rules(go_chain.node)[1]
    pod.delete()
    assert plugin.delete(go_chain.conf, None, cid=pod.name, prev=own).ok
    assert rules(go_chain.node)[1] == before
    assert len(reservations()) == 2
