"""Agents that lease their subnets from a real etcd: two nodes on a link, one behind routers."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support import probe, require
from tests.support.agent import Agent, AgentPlugin
from tests.support.netns import Namespace, wait_until
from tests.support.topology import Split, Topology

SERVER = "192.168.1.8"  # on the link of nodes 0 and 1
_pods = count(1)


class Node:
    """One node: its agent and what that has made."""

    def __init__(self, node: Namespace, number: int, folder: Path, executable: str) -> None:
        self.node, self.number = node, number
        self.address = Split.ADDRESSES[number][0].partition("/")[0]
        self.folder = folder / f"node-{number}"
        (self.folder / "net.d").mkdir(parents=True)
        ipam = {"type": "host-local", "dataDir": str(self.folder / "networks")}
        network = {"name": "podwire", "plugins": [{"type": "podwire", "ipam": ipam}]}
        (self.folder / "network.json").write_text(json.dumps(network))
        self.agent = Agent(
            node,
            executable,
            str(self.folder),
            options=(
                *("--etcd", f"http://{SERVER}:2379", "--etcd-pool", "10.244.0.0/16"),
                *("--etcd-subnet-length", "24", "--node-address", self.address),
                *("--node-name", f"node-{number}"),
                *("--inventory", str(self.folder / "nodes.json")),
                *("--conf-dir", str(self.folder / "net.d")),
                *("--network", str(self.folder / "network.json")),
            ),
        )
        self.plugin = AgentPlugin(executable, node, socket=self.agent.socket)

    def wait_for_peers(self, number: int) -> None:
        def owned() -> bool:
            listed = self.node.run("ip", "-j", "route", "show", "proto", "112").stdout
            return len(json.loads(listed or "[]")) == number

        try:
            wait_until(owned, 60, f"node-{self.number}: {number} peers", 0.05)
            wait_until((self.folder / "net.d" / "05-podwire.conflist").exists, 60, "conflist")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.agent.text()}") from e

    def status(self, *options: str) -> subprocess.CompletedProcess[str]:
        """`podwire status` on the node, as people call it."""
        conflist = str(self.folder / "net.d" / "05-podwire.conflist")
        command = (self.plugin.executable, "status", "--config", conflist, *options)
        return self.node.run(*command, check=False)

    def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.status("--json").stdout)["cluster"]
        return found

    def conf(self) -> dict[str, Any]:
        conflist = json.loads((self.folder / "net.d" / "05-podwire.conflist").read_text())
        return {**conflist["plugins"][0], "name": conflist["name"], "cniVersion": "1.0.0"}


class Server:
    """An etcd that keeps what it stores from one start to the next."""

    def __init__(self, place: Namespace, folder: Path) -> None:
        self._place = place
        self._argv = (
            *(require.program("etcd"), "--data-dir", str(folder / "etcd")),
            *("--listen-client-urls", "http://0.0.0.0:2379"),
            *("--advertise-client-urls", f"http://{SERVER}:2379"),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self._process = self._place.popen(*self._argv, stdout=quiet, stderr=quiet)
        wait_until(lambda: ":2379" in self._place.run("ss", "-ltn").stdout, 20, "etcd", 0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def split(topology: Topology, tmp_path: Path) -> Split:
    return Split(topology, tmp_path)


@pytest.fixture
def etcd(split: Split, topology: Topology, tmp_path: Path) -> Iterator[Server]:
    """etcd on the link of the first two nodes."""
    place = topology.node("server")
    split.switch.run(
        *("ip", "link", "add", "server", "master", "br0", "up", "type", "veth"),
        *("peer", "name", "eth0", "netns", place.path),
    )
    place.run("ip", "addr", "add", f"{SERVER}/24", "dev", "eth0")
    place.run("ip", "link", "set", "eth0", "up")
    place.run("ip", "route", "add", "default", "via", "192.168.1.1")
    server = Server(place, tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def nodes(
    split: Split, etcd: Server, tmp_path: Path, podwire_executable: str
) -> Iterator[list[Node]]:
    """Three nodes with an agent each."""
    made = [Node(split.nodes[n], n, tmp_path, podwire_executable) for n in range(3)]
    try:
        for node in made:
            node.agent.start()
        yield made
    finally:
        for node in made:
            if node.agent.lives():
                node.agent.terminate()
            node.agent.close()


def test_three_nodes(nodes: list[Node], topology: Topology) -> None:
    """Each has a subnet of its own; pods and nodes see each other's own addresses."""
    for node in nodes:
        node.wait_for_peers(2)
    pods = []
    for node in nodes:
        sandbox = topology.sandbox(f"pod{next(_pods)}")
        reply = node.plugin.add(node.conf(), sandbox)
        pods.append((sandbox, [text.partition("/")[0] for text in reply.addresses()]))
    assert len({address.rpartition(".")[0] for _, (address,) in pods}) == 3
    probe.all_paths(pods, [(node.node, node.address) for node in nodes])
    subnets = [node.conf()["ipam"]["ranges"] for node in nodes]
    nodes[0].agent.kill()
    nodes[0].agent.start()
    nodes[0].wait_for_peers(2)
    assert [node.conf()["ipam"]["ranges"] for node in nodes] == subnets
    for node, (sandbox, _) in zip(nodes, pods, strict=True):
        node.plugin.delete(node.conf(), sandbox)


def test_the_status_of_a_node_tells_of_its_cluster(nodes: list[Node], etcd: Server) -> None:
    """That it is away keeps no pod from being added."""
    for node in nodes:
        node.wait_for_peers(2)
    node = nodes[0]
    wait_until(lambda: node.cluster()["said"], 30, "what is said", 0.2)
    cluster = node.cluster()
    assert (cluster["following"], cluster["state"], cluster["reason"]) == (True, "heard", "")
    assert (cluster["node"], cluster["said"]["reason"]) == ("node-0", "PodwireReady")
    assert (cluster["kind"], cluster["servers"]) == ("etcd", [f"http://{SERVER}:2379"])
    assert cluster["leaseUntil"] > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    etcd.kill()
    wait_until(lambda: node.cluster()["state"] == "away", 60, "etcd is away", 0.2)
    assert "refused" in node.cluster()["reason"]
    shown = node.status()
    assert shown.returncode == 0, shown.stdout
    assert "ready: a pod could be added now" in shown.stdout
    assert f"cluster    etcd http://{SERVER}:2379, lease until " in shown.stdout
    assert ", away since " in shown.stdout
    assert "warning    nothing new is heard of the cluster" in shown.stdout
    etcd.start()
    wait_until(lambda: node.cluster()["state"] == "heard", 60, "etcd is back", 0.2)
    node.agent.kill()
    assert node.cluster()["following"] is False
    assert "followed by no agent" in node.status().stdout
    node.agent.start()
    node.wait_for_peers(2)
    wait_until(lambda: node.cluster()["following"], 30, "the next agent", 0.2)
    node.agent.terminate()
    assert node.cluster() is None
    assert "the agent that keeps that file is gone" in node.status().stdout
