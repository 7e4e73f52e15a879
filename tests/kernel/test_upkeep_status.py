"""`podwire status` on what a network has beside its links: sizes, rules, host ports, bandwidth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import Cluster
from tests.support.netns import Namespace
from tests.support.plugin import Plugin

_DOCKER = (
    "add table ip filter; "
    "add chain ip filter FORWARD {type filter hook forward priority 0; policy drop;}"
)
_RUNTIME = {
    "portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
    ],
    "bandwidth": {
        "ingressRate": 10**6,
        "ingressBurst": 10**6,
        "egressRate": 10**6,
        "egressBurst": 10**6,
    },
}


class Node:
    """The first of two nodes, and what the tool says there."""

    def __init__(self, cluster: Cluster, plugin: Plugin, folder: Path) -> None:
        self.netns = cluster.nodes[0]
        self.plugin = plugin.on(self.netns)
        self.conf = cluster.conf(0, backend="vxlan", ipMasq=True)
        self.path = folder / "podwire.conf"
        self.path.write_text(json.dumps(self.conf))
        self.executable = plugin.executable

    def add(self, pod: Namespace, **runtime: Any) -> None:
        conf = {**self.conf, "runtimeConfig": runtime} if runtime else self.conf
        assert self.plugin.add(conf, pod).ok

    def text(self) -> str:
        return self.netns.run(self.executable, "status", "--config", str(self.path)).stdout

    def report(self) -> Any:
        argv = (self.executable, "status", "--json", "--config", str(self.path))
        return json.loads(self.netns.run(*argv).stdout)["networks"][0]


@pytest.fixture
def node(make_cluster: Callable[..., Cluster], podwire: Plugin, tmp_path: Path) -> Node:
    return Node(make_cluster(2), podwire, tmp_path)


def test_before_the_first_pod(node: Node) -> None:
    report = node.report()
    assert report["crossNode"] == {"backend": "vxlan", "underlay": "eth0", "device": "pwvx1"}
    assert report["mtu"] == {
        "underlay": 1500,
        "overlay": 1450,
        "device": 0,
        "newPods": 1450,
        "pods": [],
    }
    assert (report["rules"], report["masquerade"]) == ("none", True)
    assert (report["hostPorts"], report["shaped"]) == (0, 0)
    assert report["findings"] == []
    assert "overlay 1450 (no device yet), new pods 1450" in node.text()


def test_with_pods(node: Node, sandbox: Namespace, topology: Any) -> None:
    node.netns.run("nft", _DOCKER)
    node.add(sandbox, **_RUNTIME)
    node.add(topology.sandbox("plain"))
    report = node.report()
    assert report["mtu"]["device"] == 1450
    assert report["mtu"]["pods"] == [{"mtu": 1450, "count": 2}]
    assert report["rules"] == "ok"
    assert (report["hostPorts"], report["shaped"]) == (2, 1)
    assert report["forwardAccept"] == ["ip filter FORWARD"]
    assert report["findings"] == []
    text = node.text()
    for line in (
        "paths      backend vxlan by eth0, overlay pwvx1",
        "mtu        between nodes 1500, overlay 1450, new pods 1450, pods 1450 (2 pods)",
        "rules      as they should be; masquerade on, forwarding accepted in ip filter FORWARD",
        "ports      2 host ports, 1 pod with a limited bandwidth",
    ):
        assert line in text


def test_a_kernel_without_br_netfilter(node: Node) -> None:
    """Its folder of sysctls is hidden, which is how a kernel without the module looks."""
    hidden = "mount -t tmpfs none /proc/sys/net/bridge && exec"
    status = f"{node.executable} status --config {node.path}"
    done = node.netns.run("unshare", "-m", "sh", "-c", f"{hidden} {status}")
    assert "finding    br_netfilter is not loaded" in done.stdout
    assert "modprobe br_netfilter" in done.stdout


def test_what_is_wrong_is_a_finding_with_a_remedy(
    node: Node, sandbox: Namespace, tmp_path: Path
) -> None:
    node.add(sandbox)
    node.netns.run("nft", "delete", "table", "ip", "podwire")
    node.netns.run("ip", "link", "set", "eth0", "mtu", "1400")
    report = node.report()
    assert report["rules"] == "wrong"
    problems = {finding["problem"]: finding["remedy"] for finding in report["findings"]}
    assert "the nftables table ip podwire is missing" in problems
    assert "new pods get an MTU of 1350, others have 1450 (1 pod)" in problems
    assert all(problems.values())
    text = node.text()
    assert "rules      NOT as they should be" in text
    assert "overlay 1350 (its device has 1450)" in text
    for problem, remedy in problems.items():
        assert f"finding    {problem}" in text
        assert f"hint: {remedy}" in text
