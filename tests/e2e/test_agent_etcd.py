"""Agents that lease their subnets from a real etcd: two nodes on a link, one behind routers."""

from __future__ import annotations

import json
import subprocess
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
            wait_until(owned, 20, f"node-{self.number}: {number} peers", 0.05)
            wait_until((self.folder / "net.d" / "05-podwire.conflist").exists, 20, "conflist")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.agent.text()}") from e

    def conf(self) -> dict[str, Any]:
        conflist = json.loads((self.folder / "net.d" / "05-podwire.conflist").read_text())
        return {**conflist["plugins"][0], "name": conflist["name"], "cniVersion": "1.0.0"}


@pytest.fixture
def nodes(topology: Topology, tmp_path: Path, podwire_executable: str) -> Iterator[list[Node]]:
    """Three nodes with an agent each, and etcd on the link of the first two."""
    split = Split(topology, tmp_path)
    server = topology.node("server")
    split.switch.run(
        *("ip", "link", "add", "server", "master", "br0", "up", "type", "veth"),
        *("peer", "name", "eth0", "netns", server.path),
    )
    server.run("ip", "addr", "add", f"{SERVER}/24", "dev", "eth0")
    server.run("ip", "link", "set", "eth0", "up")
    server.run("ip", "route", "add", "default", "via", "192.168.1.1")
    etcd = server.popen(
        *(require.program("etcd"), "--data-dir", str(tmp_path / "etcd")),
        *("--listen-client-urls", "http://0.0.0.0:2379"),
        *("--advertise-client-urls", f"http://{SERVER}:2379"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    made = [Node(split.nodes[n], n, tmp_path, podwire_executable) for n in range(3)]
    try:
        wait_until(lambda: ":2379" in server.run("ss", "-ltn").stdout, 20, "etcd listens", 0.05)
        for node in made:
            node.agent.start()
        yield made
    finally:
        for node in made:
            if node.agent.lives():
                node.agent.terminate()
            node.agent.close()
        etcd.kill()
        etcd.wait()


def test_three_nodes(nodes: list[Node], topology: Topology) -> None:
    """Each has a subnet of its own; pods and nodes see each other's own addresses."""
    for node in nodes:
        node.wait_for_peers(2)
    pods = []
    for node in nodes:
        sandbox = topology.sandbox(f"pod{next(_pods)}")
        reply = node.plugin.add(node.conf(), sandbox)
        pods.append((sandbox, reply.addresses()[0].partition("/")[0]))
    assert len({address.rpartition(".")[0] for _, address in pods}) == 3
    for sandbox, address in pods:
        for peer, other in pods:
            if other != address:
                assert probe.tcp(sandbox, peer, other).source == address
        for node in nodes:
            assert probe.reaches(node.node, sandbox, address)
    subnets = [node.conf()["ipam"]["ranges"] for node in nodes]
    nodes[0].agent.kill()
    nodes[0].agent.start()
    nodes[0].wait_for_peers(2)
    assert [node.conf()["ipam"]["ranges"] for node in nodes] == subnets
    for node, (sandbox, _) in zip(nodes, pods, strict=True):
        node.plugin.delete(node.conf(), sandbox)
