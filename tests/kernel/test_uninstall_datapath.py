"""`podwire uninstall` on a node that had pods: nothing of podwire's is left in the kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.kernel.statefolder import node_key
from tests.kernel.conftest import Cluster
from tests.support.netns import Namespace
from tests.support.plugin import Config, Plugin
from tests.support.topology import Topology

_DOCKER = (
    "add table ip filter; "
    "add chain ip filter FORWARD {type filter hook forward priority 0; policy drop;}"
)


class Node:
    """The first of two nodes, with a foreign chain that drops what is forwarded."""

    def __init__(self, cluster: Cluster, plugin: Plugin, folder: Path) -> None:
        self.netns: Namespace = cluster.nodes[0]
        self.plugin = plugin.on(self.netns)
        self.folder = folder
        self.netns.run("nft", _DOCKER)
        self.netns.run("ip", "route", "add", "10.99.0.0/24", "via", "192.168.1.9")
        self.netns.run("sysctl", "-qw", "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1")
        self.before = self.world()
        with self.netns.entered():
            self.state = f"/run/podwire/node-{node_key()}"
        self.conf: Config = cluster.conf(
            0,
            backend="vxlan",
            ipMasq=True,
            runtimeConfig={
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**6} | _EGRESS,
            },
        )

    def world(self) -> Any:
        ruleset = self.netns.run("nft", "-s", "list", "ruleset").stdout
        localnet = self.netns.run("sh", "-c", "cat /proc/sys/net/ipv4/conf/*/route_localnet").stdout
        return self.netns.state(), ruleset, localnet.split().count("1")

    def uninstall(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.netns.run(
            *(self.plugin.executable, "uninstall", "--bin-dir", str(self.folder / "bin")),
            *("--socket", str(self.folder / "agent.sock"), *options),
            check=False,
            env={**os.environ, "PODWIRE_RUNTIME": str(self.folder / "runtime")},
        )


_EGRESS = {"egressRate": 10**6, "egressBurst": 10**6}


@pytest.fixture
def used(make_cluster: Callable[..., Cluster], podwire: Plugin, tmp_path: Path) -> Node:
    return Node(make_cluster(2), podwire, tmp_path)


def test_after_the_pods_nothing_is_left(used: Node, sandbox: Namespace) -> None:
    assert used.plugin.add(used.conf, sandbox).ok
    there = used.netns.links()
    assert {"cni0", "pwvx1"} <= set(there)
    assert any(name.startswith("pwi") for name in there)
    assert os.path.isdir(used.state)
    assert used.plugin.delete(used.conf, sandbox).ok
    done = used.uninstall()
    assert (done.returncode, done.stderr) == (0, "")
    assert used.world() == used.before
    assert not os.path.exists(used.state)
    for what in ("nftables table ip podwire", "link pwvx1", "link cni0", used.state):
        assert f"{what}: removed" in done.stdout
    again = used.uninstall()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_pods_are_in_the_way_unless_forced(used: Node, topology: Topology) -> None:
    pods = [topology.sandbox(name) for name in ("web", "db")]
    for number, pod in enumerate(pods):
        runtime = {"portMappings": [{"hostPort": 8080 + number, "containerPort": 80}]}
        runtime["bandwidth"] = used.conf["runtimeConfig"]["bandwidth"]
        assert used.plugin.add({**used.conf, "runtimeConfig": runtime}, pod).ok
    before = used.world()
    refused = used.uninstall()
    assert refused.returncode == 1
    assert refused.stderr.startswith("error 11: 2 pods are attached")
    assert "web (eth0)" in refused.stderr
    assert "hint: drain the node" in refused.stderr
    assert used.world() == before
    forced = used.uninstall("--force")
    assert (forced.returncode, forced.stderr) == (0, "")
    assert used.world() == used.before
    assert not os.path.exists(used.state)


def test_a_bridge_that_was_there_before_stays(used: Node, sandbox: Namespace) -> None:
    used.netns.run("ip", "link", "add", "cni0", "type", "bridge")
    assert used.plugin.add(used.conf, sandbox).ok
    assert used.plugin.delete(used.conf, sandbox).ok
    done = used.uninstall()
    assert "link cni0: kept, it was there before podwire" in done.stdout
    assert "cni0" in used.netns.links()
