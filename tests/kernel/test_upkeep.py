"""The agent's upkeep: what somebody takes away of the node's network is back within a second."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel.statefolder import node_key
from cni_plugin.records import NetworkRecord, Records
from tests.kernel.conftest import Cluster
from tests.support import netns
from tests.support.agent import Agent
from tests.support.netns import Namespace

_WITHIN_S = 5.0  # milliseconds as a rule; all is looked at only after half a minute
_VXLAN = CrossNode(backend="vxlan")


def _key(node: Namespace) -> str:
    with node.entered():
        return node_key()


def _record(cluster: Cluster, number: int, **fields: Any) -> NetworkRecord:
    subnets = tuple(ip_network(cidr) for cidr in cluster.entries[number]["podCIDRs"])
    given = {"masquerade": True, "nodes": str(cluster.path), **fields}
    return NetworkRecord("podnet", subnets, bridge="cni0", **given)


class Kept:
    """A node with a record, and an agent that keeps it."""

    def __init__(self, cluster: Cluster, agent: Agent, record: NetworkRecord) -> None:
        self.cluster, self.agent, self.node = cluster, agent, agent.node
        self.record = record
        self.wait(lambda: self.agent.log("repaired"), "the first look", 10)
        self.settle()

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = _WITHIN_S) -> Any:
        try:
            return netns.wait_until(condition, timeout, what, 0.01)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.agent.text()}") from e

    def settle(self) -> None:
        """Until the log has been still for longer than a look takes."""
        lines, since = self.agent.text(), time.monotonic()
        while time.monotonic() - since < 0.4:
            time.sleep(0.02)
            if self.agent.text() != lines:
                lines, since = self.agent.text(), time.monotonic()

    def repaired(self) -> list[str]:
        return [record["what"] for record in self.agent.log("repaired")]

    def ruleset(self) -> str:
        return self.node.run("nft", "-s", "list", "ruleset").stdout

    def world(self) -> Any:
        """Routes of ours, the overlay's device and its entries, our tables."""
        run = self.node.run
        links = [
            (link["ifname"], link["mtu"], link["address"], link["linkinfo"]["info_data"])
            for link in self.node.links().values()
            if link["ifname"].startswith("pwvx")
        ]
        entries = [
            sorted(run(*words.split(), check=False).stdout.split("\n"))
            for words in ("bridge fdb show dev pwvx1", "ip neigh show dev pwvx1 nud permanent")
        ]
        tables = [table.strip() for table in self.ruleset().split("table ")]
        return self.cluster.owned(0), json.dumps(links), entries, sorted(tables)


@pytest.fixture
def kept(
    make_cluster: Callable[..., Cluster], podwire_executable: str, tmp_path: Path
) -> Iterator[Callable[..., Kept]]:
    """kept(cross_node=...) is the first of three nodes, with an agent that has looked once."""
    agents: list[Agent] = []

    def make(**fields: Any) -> Kept:
        cluster = make_cluster(3)
        node = cluster.nodes[0]
        Records(_key(node)).remember(_record(cluster, 0, **fields))
        agents.append(Agent(node, podwire_executable, str(tmp_path)).start())
        return Kept(cluster, agents[-1], _record(cluster, 0, **fields))

    yield make
    for agent in agents:
        if agent.lives():
            agent.terminate()
            assert agent.log("the upkeep ended") == []
        agent.close()


_DAMAGE = {
    "flush": "nft flush ruleset",
    "table": "nft delete table ip podwire",
    "set": "nft flush set ip podwire direct",
    "rule": "nft flush chain ip podwire postrouting",
    "routes": "ip route flush proto 112",
    "route": "ip route del 10.244.1.0/24",
    "route of IPv6": "ip -6 route del fd00:10:244:1::/64",
    "device": "ip link del pwvx1",
    "device down": "ip link set pwvx1 down",
    "mtu": "ip link set pwvx1 mtu 1280",
    "fdb": "bridge fdb flush dev pwvx1",
    "neighbours": "ip neigh flush dev pwvx1 nud permanent",
    "address": "ip addr flush dev pwvx1",
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_what_somebody_removes_comes_back(kept: Callable[..., Kept], damage: str) -> None:
    node = kept(cross_node=_VXLAN)
    before, lines = node.world(), len(node.repaired())
    node.node.run(*_DAMAGE[damage].split())
    node.wait(lambda: node.world() == before, f"all of it after: {_DAMAGE[damage]}")
    node.wait(lambda: len(node.repaired()) > lines, "a line of the log")
    for line in node.agent.log("repaired")[lines:]:
        assert line["what"]
        assert line["why"]
    node.settle()
    assert node.world() == before


def test_a_link_that_bounces_gets_its_routes_back(kept: Callable[..., Kept]) -> None:
    node = kept(cross_node=CrossNode(backend="host-gw"))
    before = node.cluster.owned(0)
    assert len(before) == 4
    node.node.run("ip", "link", "set", "eth0", "down")
    node.wait(lambda: not node.cluster.owned(0) - {r for r in before if ":" in r[0]}, "routes go")
    node.node.run("ip", "addr", "replace", "fd00:1::2/64", "dev", "eth0", "nodad")
    node.node.run("ip", "link", "set", "eth0", "up")
    node.node.run("ip", "addr", "replace", "fd00:1::2/64", "dev", "eth0", "nodad")
    node.wait(lambda: node.cluster.owned(0) == before, "the routes")


_ADDRESSES = ("192.168.1.2/24", "fd00:1::2/64")


class _Watched(threading.Thread):
    """Whether the overlay's device is there at any time, seen every few milliseconds."""

    def __init__(self, node: Namespace) -> None:
        super().__init__()
        self.seen = False
        self._node, self._ended = node, threading.Event()

    def run(self) -> None:
        with self._node.entered():
            while not self._ended.wait(0.005):
                self.seen = self.seen or "pwvx1" in dict(map(reversed, socket.if_nameindex()))

    def end(self) -> bool:
        self._ended.set()
        self.join()
        return self.seen


def _told(agent: Agent) -> list[dict[str, Any]]:
    return [line for line in agent.log() if line["level"] in ("warning", "error")]


@pytest.mark.parametrize("keeps_ipv6", [True, False])
def test_a_link_that_is_down_for_a_moment_changes_no_path(
    kept: Callable[..., Kept], topology: Any, podwire_executable: str, keeps_ipv6: bool
) -> None:
    """No overlay for peers on the link, no word of sizes, no pod with another size for life."""
    node = kept()
    plugin, conf = node.agent.plugin(podwire_executable), node.cluster.conf(0, ipMasq=True)
    pods = [topology.sandbox(f"pod-{number}") for number in range(12)]
    before, run = node.world(), node.node.run
    if keeps_ipv6:
        run("sysctl", "-qw", "net/ipv6/conf/eth0/keep_addr_on_down=1")
    watched = _Watched(node.node)
    watched.start()
    run("ip", "link", "set", "eth0", "down")
    until, replies = time.monotonic() + 0.5, []
    while time.monotonic() < until and len(replies) < 10:
        replies.append(plugin.add(conf, pods[len(replies)]))
    time.sleep(max(0, until - time.monotonic()))
    run("ip", "link", "set", "eth0", "up")
    if not keeps_ipv6:
        run("ip", "addr", "add", "fd00:1::2/64", "dev", "eth0", "nodad")
    node.wait(lambda: node.cluster.owned(0) == before[0], "the routes")
    node.settle()
    assert not watched.end()
    assert node.agent.log("underlay MTU changed") == []
    assert "inventory" not in json.dumps(_told(node.agent))
    refused = [reply for reply in replies if not reply.ok]
    assert refused
    assert {reply.code for reply in refused} == {104}
    assert plugin.add(conf, pods[11]).ok
    for pod in pods:
        assert pod.links().get("eth0", {}).get("mtu", 1500) == 1500


@pytest.mark.parametrize("backend", ["auto", "vxlan", "host-gw"])
@pytest.mark.parametrize("name", ["node-0", ""], ids=["named", "by address"])
def test_a_link_that_is_gone_is_told_soberly(
    kept: Callable[..., Kept], topology: Any, backend: str, name: str
) -> None:
    node = kept(cross_node=CrossNode(backend=backend), node_name=name)
    before, away = node.world(), topology.sandbox("away")
    node.node.run("ip", "link", "set", "eth0", "netns", away.path)
    [told] = node.wait(lambda: _told(node.agent), "a line", 2 * _WITHIN_S)
    time.sleep(1.5)  # it tries again meanwhile
    assert _told(node.agent) == [told]
    assert told["code"] == 104
    assert "inventory" not in told["remedy"]
    assert "now" in told["error"]
    away.run("ip", "link", "set", "eth0", "netns", node.node.path)
    for address in _ADDRESSES:
        dad = ("nodad",) if ":" in address else ()
        node.node.run("ip", "addr", "add", address, "dev", "eth0", *dad)
    node.node.run("ip", "link", "set", "eth0", "up")
    node.wait(lambda: node.cluster.owned(0) == before[0], "the routes", 2 * _WITHIN_S)
    # A look in the middle of it tells what is missing then: all that was told is taken back.
    node.wait(lambda: _all_taken_back(node.agent), "its end", 2 * _WITHIN_S)
    assert node.agent.log("underlay MTU changed") == []


def test_a_sync_with_another_configuration_stays(
    kept: Callable[..., Kept], podwire_executable: str, tmp_path: Path
) -> None:
    """The agent goes by it from then on, and what pods had before is not forgotten."""
    node = kept(cross_node=_VXLAN)
    file = tmp_path / "podwire.conf"
    file.write_text(json.dumps(node.cluster.conf(0, ipMasq=True, backend="auto")))
    argv = (podwire_executable, "routes", "sync", "--config", str(file))
    said = node.node.run(*argv).stdout
    assert "pwvx1" in said
    lines = len(node.repaired())
    time.sleep(1.5)  # it looks at the records once a second
    node.settle()
    assert "pwvx1" not in node.node.links()
    assert {gateway for _, gateway in node.cluster.owned(0)} == {
        *("192.168.1.3", "192.168.1.4", "fd00:1::3", "fd00:1::4")
    }
    assert [line for line in node.repaired()[lines:] if "pwvx1" in line] == []
    [record] = Records(_key(node.node)).all()
    assert record == node.record._replace(cross_node=CrossNode())
    assert node.node.run(*argv).stdout.startswith("nothing to do")


def _all_taken_back(agent: Agent) -> bool:
    ended = {line["error"] for line in agent.log("no longer")}
    return {line["error"] for line in _told(agent)} == ended


def _looks(agent: Agent) -> list[str]:
    return [record["why"] for record in agent.log("looked")]


def test_pods_that_come_and_go_need_no_look(
    make_cluster: Callable[..., Cluster],
    topology: Any,
    podwire_executable: str,
    tmp_path: Path,
) -> None:
    cluster = make_cluster(2)
    node, conf = cluster.nodes[0], cluster.conf(0, ipMasq=True)
    pods = [topology.sandbox(f"pod-{number}") for number in range(8)]
    agent = Agent(node, podwire_executable, str(tmp_path), options=["--log-level=debug"]).start()
    plugin = agent.plugin(podwire_executable)
    try:
        assert plugin.add(conf, pods[0]).ok  # the bridge, the rules, the routes: they may be heard
        time.sleep(1.5)
        before = _looks(agent)
        assert before
        for pod in pods[1:]:
            assert plugin.add(conf, pod).ok
        for pod in pods[1:]:
            assert plugin.delete(conf, pod).ok
        time.sleep(0.5)
        assert _looks(agent) == before
        assert agent.log("repaired") == []
        agent.terminate()
    finally:
        agent.close()


# --- inventories, sizes, failures -----------------------------------------------------------------


def test_a_changed_inventory_is_followed(kept: Callable[..., Kept]) -> None:
    node = kept(cross_node=CrossNode(backend="host-gw"))
    cluster = node.cluster
    assert {dst for dst, _ in cluster.owned(0)} >= {"10.244.1.0/24", "10.244.2.0/24"}
    del cluster.entries[2]
    cluster.entries[1]["podCIDRs"] = ["10.244.9.0/24", "fd00:10:244:9::/64"]
    cluster.write()

    def routes() -> bool:
        return {dst for dst, _ in cluster.owned(0)} == {"10.244.9.0/24", "fd00:10:244:9::/64"}

    node.wait(routes, "the new routes", 2 * _WITHIN_S)
    node.wait(lambda: "10.244.9.0/24" in node.ruleset(), "the new destinations")
    assert "10.244.2.0/24" not in node.ruleset()
    assert node.agent.log("repaired")[-1]["why"] == "an inventory changed"


def test_a_changed_inventory_is_followed_while_the_ruleset_changes(
    kept: Callable[..., Kept],
) -> None:
    """A look at the rules alone, which does not go over the ways to the peers, is not to pass for
    one that did: they would follow after half a minute."""
    node = kept(cross_node=CrossNode(backend="host-gw"))
    cluster = node.cluster
    for number in range(9, 13):
        cluster.entries[1]["podCIDRs"] = [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]
        cluster.write()
        node.node.run("nft", "add", "table", "inet", "other")
        node.node.run("nft", "delete", "table", "inet", "other")
        wanted = f"10.244.{number}.0/24"
        node.wait(lambda: any(dst == wanted for dst, _ in cluster.owned(0)), wanted)  # noqa: B023


def test_a_broken_inventory_is_told_once_and_costs_nothing_else(kept: Callable[..., Kept]) -> None:
    node = kept(cross_node=CrossNode(backend="host-gw"))
    before, text = node.world(), node.cluster.path.read_text()
    node.cluster.path.write_text("{")
    told = node.wait(lambda: node.agent.log("can't repair"), "a line", 2 * _WITHIN_S)
    assert str(node.cluster.path) in told[0]["error"]
    node.node.run("nft", "flush", "ruleset")
    node.wait(lambda: node.world() == before, "the rules, with the destinations known before")
    time.sleep(2.5)  # it tries again meanwhile
    assert len(node.agent.log("can't repair")) == 1
    node.cluster.path.write_text(text)
    node.wait(lambda: node.agent.log("no longer"), "its end", 2 * _WITHIN_S)
    assert node.world() == before


def test_a_narrower_underlay_is_told_and_followed(
    kept: Callable[..., Kept], topology: Any, podwire_executable: str
) -> None:
    node = kept(cross_node=_VXLAN)
    conf = node.cluster.conf(0, ipMasq=True, backend="vxlan")
    plugin = node.agent.plugin(podwire_executable)
    old, new = topology.sandbox("old"), topology.sandbox("new")
    assert plugin.add(conf, old).ok
    node.node.run("ip", "link", "set", "eth0", "mtu", "1400")

    def mtu(namespace: Namespace, link: str) -> int:
        return namespace.links()[link]["mtu"]

    node.wait(lambda: mtu(node.node, "pwvx1") == 1350, "the overlay's MTU")
    [told] = node.wait(lambda: node.agent.log("underlay MTU changed"), "a line")
    assert (told["was"], told["now"], told["new_pods"]) == (1500, 1400, 1350)
    assert told["old_pods"] == "1450 (1 pod)"
    assert plugin.add(conf, new).ok
    assert (mtu(old, "eth0"), mtu(new, "eth0")) == (1450, 1350)


# --- host ports and pods --------------------------------------------------------------------------


def _with_port(conf: dict[str, Any], port: int) -> dict[str, Any]:
    mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
    return {**conf, "runtimeConfig": {"portMappings": [mapping]}}


_PORT_DAMAGE = {
    "all": "nft flush ruleset",
    "map": "nft flush map ip podwire host_ports",
    "route_localnet": "sysctl -qw net/ipv4/conf/cni0/route_localnet=0",
}


@pytest.mark.parametrize("damage", ["all", "map"])
def test_host_ports_come_back(
    kept: Callable[..., Kept], topology: Any, podwire_executable: str, damage: str
) -> None:
    node = kept(cross_node=_VXLAN)
    conf = node.cluster.conf(0, ipMasq=True, backend="vxlan")
    plugin = node.agent.plugin(podwire_executable)
    for number in range(3):
        pod = topology.sandbox(f"pod-{number}")
        assert plugin.add(_with_port(conf, 8080 + number), pod).ok
    node.settle()
    before, ruleset = node.world(), node.ruleset()
    assert "8082" in ruleset
    node.node.run(*_PORT_DAMAGE[damage].split())
    node.wait(lambda: node.world() == before, f"the host ports after {_PORT_DAMAGE[damage]}")
    node.settle()
    assert node.world() == before


def test_pods_are_added_while_the_ruleset_is_flushed(
    kept: Callable[..., Kept], topology: Any, podwire_executable: str
) -> None:
    """Nobody waits for anybody, and in the end nothing is missing."""
    node = kept(cross_node=_VXLAN)
    conf = node.cluster.conf(0, ipMasq=True, backend="vxlan")
    served = node.agent.plugin(podwire_executable)
    alone = node.agent.plugin(podwire_executable).on(node.node)
    alone.socket = ""
    pods = [topology.sandbox(f"pod-{number}") for number in range(8)]

    def add(number: int) -> Any:
        plugin = (served, alone)[number % 2]
        return plugin.add(_with_port(conf, 8000 + number), pods[number])

    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            node.node.run("nft", "flush", "ruleset")
            node.node.run("ip", "route", "flush", "proto", "112")
            time.sleep(0.3)

    damage = threading.Thread(target=flush)
    damage.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(add, range(8)))
    finally:
        ended.set()
        damage.join()
    assert [reply.document for reply in replies if not reply.ok] == []

    def whole() -> bool:
        text = node.ruleset()
        return len(node.cluster.owned(0)) == 4 and all(f"{8000 + n}" in text for n in range(8))

    node.wait(whole, "everything", 35)
    for number, reply in enumerate(replies):
        checked = served.check(_with_port(conf, 8000 + number), pods[number], prev=reply.result)
        assert checked.ok, checked
