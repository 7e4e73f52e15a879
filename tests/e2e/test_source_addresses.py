"""Nodes that change their address while they follow a cluster: they hear on.

By itself TCP gives a connection up only half a minute after the address that it comes from is gone.
"""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import pytest

from cni_plugin.sources import Announcement, Away, Change, Put
from tests.support import require
from tests.support.controlplane import ControlPlane
from tests.support.etcd import Bench, Etcd
from tests.support.netns import Namespace, Namespaces
from tests.support.nodeobjects import node_object

NODES = "/api/v1/nodes"
SERVER, BEFORE, AFTER = "192.168.1.2", "192.168.1.3", "192.168.1.4"
HEARD = 12.0  # seconds: milliseconds as a rule, and less than half of what TCP takes


@pytest.fixture
def server(namespaces: Namespaces) -> Namespace:
    """The node that the cluster is asked at."""
    return namespaces.make("server")


@pytest.fixture
def node(namespaces: Namespaces, server: Namespace) -> Namespace:
    made = namespaces.make("node")
    made.run("ip", "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", server.path)
    for place, address in ((server, SERVER), (made, BEFORE)):
        place.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        place.run("ip", "link", "set", "eth0", "up")
    return made


def move(node: Namespace) -> float:
    """Give the node its other address; when that was, by time.monotonic."""
    node.run("ip", "addr", "del", f"{BEFORE}/24", "dev", "eth0")
    node.run("ip", "addr", "add", f"{AFTER}/24", "dev", "eth0")
    return time.monotonic()


def test_of_kubernetes(server: Namespace, node: Namespace, tmp_path: Path) -> None:
    """What it hears and what it tells go by connections of their own."""
    require.modules("lightkube")
    from cni_plugin.sources.kubernetes import KubernetesSource, Options

    told: queue.Queue[Change] = queue.Queue()

    def wait_for(name: str) -> None:
        while True:
            change = told.get(timeout=20)
            if isinstance(change, Put) and change.member.name == name:
                return

    with ControlPlane(tmp_path, server, address=SERVER) as plane, node.entered():
        plane.api.create(NODES, node_object(1))
        source = KubernetesSource(Options("node-1", kubeconfig=plane.kubeconfig))
        thread = threading.Thread(target=source.follow, args=(told.put,))
        thread.start()
        try:
            told.get(timeout=20)
            source.announce(Announcement(backend="before"))
            wait_for("node-1")
            began = move(node)
            plane.api.create(NODES, node_object(2))
            wait_for("node-2")
            source.announce(Announcement(backend="after"))
            wait_for("node-1")
            assert time.monotonic() - began < HEARD
        finally:
            source.stop()
            thread.join(10)


def test_of_etcd(server: Namespace, node: Namespace, tmp_path: Path) -> None:
    with server.entered():
        bench = Bench(tmp_path, Etcd(tmp_path, listen="0.0.0.0"))
    try:
        with node.entered():
            follower = bench.follow(1, f"http://{SERVER}:{bench.etcd.port}")
        follower.listed()
        began = move(node)
        with server.entered():
            bench.put_node("n", "10.244.8.0/24", "192.168.1.7")
        assert follower.member("n")
        assert time.monotonic() - began < HEARD
        with node.entered():
            follower.source.announce(Announcement(backend="after"))
        assert sum(isinstance(change, Away) for change in follower.seen) <= 1
    finally:
        bench.close()
