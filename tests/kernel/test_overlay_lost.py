"""The overlay of a node where something is in its way, is gone or was renamed: what is refused, and
that STATUS says the same."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import cluster as clusters
from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.paths import Changes
from cni_plugin.spec import CniError, Code
from tests.support.netns import Namespace, wait_until
from tests.support.plugin import Plugin
from tests.support.topology import Split, Topology


@pytest.fixture
def split(topology: Topology, tmp_path: Path) -> Split:
    return Split(topology, tmp_path)


def sync(site: Split, number: int, cross: CrossNode) -> Changes:
    with site.nodes[number].entered(), RouteSocket() as route_socket:
        cluster = clusters.join(str(site.path), "", cross, route_socket)
        return clusters.sync(cluster, route_socket, patient=True)


def shown(node: Namespace) -> list[str]:
    """The overlay's device, what it knows, and the routes."""
    data = node.links()["pwvx1"]["linkinfo"]["info_data"]
    commands = ("ip neigh show dev pwvx1", "bridge fdb show dev pwvx1", "ip route show proto 112")
    words = [" ".join(sorted(node.run(*c.split()).stdout.splitlines())) for c in commands]
    return [str(data), str(sorted(node.addresses("pwvx1"))), *words]


# --- no way to peers in the overlay ---------------------------------------------------------------


@pytest.mark.parametrize("way", ["process", "agent"], indirect=True)
@pytest.mark.parametrize("backend", ["auto", "vxlan"])
def test_no_pod_gets_a_guessed_mtu_while_the_link_is_down(
    split: Split,
    topology: Topology,
    podwire: Plugin,
    untouched: Callable[..., Any],
    backend: str,
) -> None:
    """All peers are in the overlay, and the route to them is narrower than the link."""
    node, plugin = split.nodes[2], podwire.on(split.nodes[2])
    conf = split.conf(2, backend=backend)
    for gateway in ("192.168.2.1", "fd00:2::1"):
        node.run("ip", "route", "replace", "default", "via", gateway, "mtu", "1350")
    first, second = topology.sandbox("first"), topology.sandbox("second")
    assert plugin.add(conf, first).ok
    assert first.links()["eth0"]["mtu"] == node.links()["pwvx1"]["mtu"] == 1300
    node.run("sysctl", "-qw", "net/ipv6/conf/eth0/keep_addr_on_down=1")
    node.run("ip", "link", "set", "eth0", "down")
    with untouched(node, second):
        refused, status = plugin.add(conf, second), plugin.status(conf)
    assert refused.code == 104
    assert "no way to 192.168.1.2 of node node-0 nor to 1 other node now" in refused.error["msg"]
    assert (status.code, status.error["msg"]) == (50, refused.error["msg"])
    sync(split, 2, CrossNode(backend))
    assert node.links()["pwvx1"]["mtu"] == 1300
    node.run("ip", "link", "set", "eth0", "up")
    for gateway in ("192.168.2.1", "fd00:2::1"):
        node.run("ip", "route", "replace", "default", "via", gateway, "mtu", "1350")
    assert plugin.add(conf, second).ok
    assert second.links()["eth0"]["mtu"] == 1300


def test_one_lost_peer_of_the_overlay_is_enough(split: Split) -> None:
    """How wide its path is can't be told, and the others' say nothing of it."""
    node, cross = split.nodes[0], CrossNode("vxlan")
    node.run("ip", "route", "replace", "default", "via", "192.168.1.1", "mtu", "1350")
    sync(split, 0, cross)
    node.run("ip", "route", "del", "default")
    with node.entered(), RouteSocket() as route_socket:
        cluster = clusters.join(str(split.path), "", cross, route_socket)
        with pytest.raises(CniError, match=r"no way to 192\.168\.2\.2 of node node-2 now") as e:
            clusters.pod_mtu(cluster, route_socket)
        assert e.value.code == Code.KERNEL_REFUSED
    assert not sync(split, 0, cross)
    assert node.links()["pwvx1"]["mtu"] == 1300


def test_a_configured_mtu_needs_no_way_to_tell_it(split: Split) -> None:
    node, cross = split.nodes[0], CrossNode("vxlan", mtu=1280)
    node.run("ip", "route", "replace", "default", "via", "192.168.1.1")
    sync(split, 0, cross)
    node.run("ip", "route", "del", "default")
    with node.entered(), RouteSocket() as route_socket:
        cluster = clusters.join(str(split.path), "", cross, route_socket)
        assert clusters.pod_mtu(cluster, route_socket) == 1280


# --- a device that somebody renamed ---------------------------------------------------------------


@pytest.mark.parametrize("way", ["process", "agent"], indirect=True)
def test_a_renamed_device_is_made_anew(
    split: Split, podwire: Plugin, topology: Topology, way: str
) -> None:
    node, plugin = split.nodes[0], podwire.on(split.nodes[0])
    conf = split.conf(0, backend="vxlan")
    assert plugin.add(conf, topology.sandbox("first")).ok
    before = shown(node)
    for command in ("set pwvx1 down", "set pwvx1 name gnarl0", "set gnarl0 up"):
        node.run("ip", "link", *command.split())
    assert plugin.status(conf).ok
    if way == "agent":  # by itself, and within moments
        wait_until(lambda: "pwvx1" in node.links(), 5, "the device")
        wait_until(lambda: shown(node) == before, 5, "what it knows")
    assert plugin.add(conf, topology.sandbox("second")).ok
    assert "gnarl0" not in node.links()
    assert shown(node) == before


def test_a_renamed_device_is_removed_with_the_rest(split: Split) -> None:
    node = split.nodes[0]
    before = node.state()
    sync(split, 0, CrossNode("vxlan"))
    for command in ("set pwvx1 down", "set pwvx1 name gnarl0"):
        node.run("ip", "link", *command.split())
    with node.entered(), RouteSocket() as route_socket:
        assert "link gnarl0" in clusters.remove_overlay(route_socket)
    assert node.state() == before


# --- VNI and port are somebody else's -------------------------------------------------------------


def _refusals(plugin: Plugin, conf: Any, pod: Namespace) -> tuple[Any, Any]:
    refused, status = plugin.add(conf, pod), plugin.status(conf)
    assert refused.code == 103
    assert (status.code, status.error["msg"]) == (50, refused.error["msg"])
    return refused.error["msg"], status


@pytest.mark.parametrize("way", ["process"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("id 1 dstport 8472 local 192.168.1.2 dev eth0 nolearning", "VXLAN device of this node, f"),
        ("external dstport 8472", "UDP port 8472 of this node is taken"),
    ],
    ids=["same VNI", "any VNI"],
)
def test_status_tells_of_a_foreign_device(
    split: Split,
    topology: Topology,
    podwire: Plugin,
    untouched: Callable[..., Any],
    kind: str,
    words: str,
) -> None:
    node, pod = split.nodes[0], topology.sandbox("pod")
    node.run("ip", "link", "add", "flan0", "up", "type", "vxlan", *kind.split())
    with untouched(node, pod):
        assert words in _refusals(podwire.on(node), split.conf(0), pod)[0]


@pytest.mark.parametrize("way", ["process"], indirect=True)
@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.2", "::"])
def test_status_tells_of_a_taken_port(
    split: Split, topology: Topology, podwire: Plugin, address: str
) -> None:
    node, plugin = split.nodes[0], podwire.on(split.nodes[0])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with node.socket(family, socket.SOCK_DGRAM) as taken:
        taken.bind((address, 8472))
        message, _ = _refusals(plugin, split.conf(0), topology.sandbox("pod"))
        assert "vxlan.port: UDP port 8472 of this node is taken" in message
    assert plugin.status(split.conf(0)).ok


@pytest.mark.parametrize("way", ["process"], indirect=True)
def test_who_shares_the_port_is_in_nobodys_way(
    split: Split, topology: Topology, podwire: Plugin
) -> None:
    """Another VNI of the port, and the same VNI in packets of the other family."""
    node, plugin = split.nodes[0], podwire.on(split.nodes[0])
    for name, keys in (("one", "id 2 local 192.168.1.2"), ("two", "id 1 local fd00:1::2")):
        words = ("ip", "link", "add", name, "up", "type", "vxlan", "dstport", "8472")
        node.run(*words, *keys.split())
    with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 8473))
        assert plugin.status(split.conf(0)).ok
        assert plugin.add(split.conf(0), topology.sandbox("pod")).ok
