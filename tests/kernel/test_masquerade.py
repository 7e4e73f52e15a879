"""Masquerade: which source address who sees, for pods on a node that faces the world."""

from __future__ import annotations

import itertools
import socket
import struct

import pytest

from tests.support import packetfilter, probe
from tests.support.netns import Namespace

NODE, NODE_V6 = "192.168.1.2", "fd00:1::2"
WORLD, WORLD_V6 = "192.168.1.9", "fd00:1::9"
SUBNETS = ("10.244.0.0/24", "fd00:10:244::/64")


@pytest.fixture
def world(node_on_a_link) -> Namespace:
    """A machine beside the node that knows no way to pods: only masqueraded ones get answers."""
    return node_on_a_link[1]


@pytest.fixture
def node_on_a_link(topology):
    both = {
        topology.node("node"): (f"{NODE}/24", f"{NODE_V6}/64"),
        topology.node("world"): (f"{WORLD}/24", f"{WORLD_V6}/64"),
    }
    topology.cable(both)
    return tuple(both)


@pytest.fixture
def node(node_on_a_link) -> Namespace:
    return node_on_a_link[0]


@pytest.fixture
def pod(plugin, sandbox, make_conf, dual) -> Namespace:
    assert plugin.add(make_conf(ipam={"ranges": dual.ranges}), sandbox).ok
    return sandbox


@pytest.fixture
def masquerading(node):
    """The rules of one masquerading network, in force."""
    rules = packetfilter.rules(*SUBNETS, masquerade=True, bridge="cni0")
    assert packetfilter.firewall(node).ensure(rules) is True
    return rules


def echo(client: Namespace, server: Namespace, address: str) -> str:
    """Ping: the source address that the server sees; the answer has to come."""
    is_v4 = ":" not in address
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if is_v4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    request, reply = (8, 0) if is_v4 else (128, 129)
    with (
        server.socket(family, socket.SOCK_RAW, protocol) as theirs,
        client.socket(family, socket.SOCK_RAW, protocol) as ours,
    ):
        for each in (theirs, ours):
            each.settimeout(3)
        body = struct.pack(">HH", 77, 1)
        checksum = 0xFFFF - sum(struct.unpack(">3H", bytes((request, 0)) + body))
        ours.sendto(struct.pack(">BBH", request, 0, checksum) + body, (address, 0))
        source = _received(theirs, request, is_v4)
        assert _received(ours, reply, is_v4) == address
    return source


def _received(receiver: socket.socket, kind: int, is_v4: bool) -> str:
    """Who sent the first message of this kind."""
    while True:
        data, sender = receiver.recvfrom(128)
        if data[20 if is_v4 else 0] == kind:
            return sender[0]


@pytest.mark.parametrize(("address", "seen"), [(WORLD, NODE), (WORLD_V6, NODE_V6)])
def test_the_world_sees_the_nodes_address(node, pod, world, address, seen):
    assert not probe.reaches(pod, world, address, 0.3)  # no way back
    packetfilter.firewall(node).ensure(packetfilter.rules(*SUBNETS, masquerade=True))
    assert probe.tcp(pod, world, address).source == seen
    assert probe.udp(pod, world, address).source == seen
    assert echo(pod, world, address) == seen


def test_pods_and_the_node_see_each_others_own_addresses(
    plugin, topology, node, pod, make_conf, dual, masquerading
):
    other = topology.sandbox("other")
    assert plugin.add(make_conf(ipam={"ranges": dual.ranges}), other).ok
    for own, peers, gateway in zip(dual.hosts(2), dual.hosts(3), dual.hosts(1), strict=True):
        for talk in (probe.tcp, probe.udp):
            assert talk(pod, other, peers).source == own
            assert talk(node, pod, own).source == gateway
    for address, own in zip((NODE, NODE_V6), dual.hosts(2), strict=True):
        assert probe.tcp(pod, node, address).source == own


def test_pods_of_two_networks_see_each_others_own_addresses(plugin, topology, node, pod, make_conf):
    other, subnet = topology.sandbox("other"), "10.99.0.0/24"
    second = make_conf(name="othernet", bridge="br1", ipam={"ranges": [[{"subnet": subnet}]]})
    assert plugin.add(second, other).ok
    networks = [
        packetfilter.network(*SUBNETS, masquerade=True, bridge="cni0"),
        packetfilter.network(subnet, masquerade=False, bridge="br1"),
    ]
    packetfilter.firewall(node).ensure(packetfilter.node_rules(networks))
    assert probe.tcp(pod, other, "10.99.0.2").source == "10.244.0.2"
    assert probe.tcp(other, pod, "10.244.0.2").source == "10.99.0.2"


def test_only_networks_that_ask_for_it_are_masqueraded(
    plugin, topology, node, pod, make_conf, world
):
    other, subnet = topology.sandbox("other"), "10.99.0.0/24"
    second = make_conf(name="othernet", bridge="br1", ipam={"ranges": [[{"subnet": subnet}]]})
    assert plugin.add(second, other).ok
    world.run("ip", "route", "add", subnet, "via", NODE)
    networks = [
        packetfilter.network(*SUBNETS, masquerade=True, bridge="cni0"),
        packetfilter.network(subnet, masquerade=False, bridge="br1"),
    ]
    packetfilter.firewall(node).ensure(packetfilter.node_rules(networks))
    assert probe.tcp(other, world, WORLD).source == "10.99.0.2"
    assert probe.tcp(pod, world, WORLD).source == NODE


@pytest.mark.parametrize("direct", [(f"{WORLD}/32", f"{WORLD_V6}/128"), ("0.0.0.0/0", "::/0")])
def test_direct_destinations_see_the_pods_own_address(node, pod, world, dual, direct):
    packetfilter.firewall(node).ensure(packetfilter.rules(*SUBNETS, masquerade=True, direct=direct))
    world.run("ip", "route", "add", SUBNETS[0], "via", NODE)
    world.run("ip", "-6", "route", "add", SUBNETS[1], "via", NODE_V6)
    for address, own in zip((WORLD, WORLD_V6), dual.hosts(2), strict=True):
        assert probe.tcp(pod, world, address).source == own


def test_source_ports_can_not_be_guessed(pod, world, masquerading):
    """Neither kept nor counted up: sixteen flows from one port come from sixteen places."""
    seen = []
    with world.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((WORLD, 0))
        receiver.settimeout(2)
        for number in range(16):
            with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind(("10.244.0.2", 20000 + number))
                sender.sendto(b"?", receiver.getsockname())
                seen.append(receiver.recvfrom(1)[1][1])
    assert not set(seen) & set(range(20000, 20016))
    steps = {later - earlier for earlier, later in itertools.pairwise(seen)}
    assert len(steps) > 12


def test_without_masquerade_there_is_no_such_rule(node):
    packetfilter.firewall(node).ensure(packetfilter.rules(*SUBNETS, host_ports=False))
    assert packetfilter.tables(node) == set()
    packetfilter.firewall(node).ensure(packetfilter.rules(*SUBNETS))
    assert "@masqueraded" not in packetfilter.listing(node)


def test_only_families_in_use_have_a_table(node):
    own = packetfilter.firewall(node)
    own.ensure(packetfilter.rules(SUBNETS[0], masquerade=True))
    assert packetfilter.tables(node) == {("ip", "podwire")}
    own.ensure(packetfilter.rules(*SUBNETS, masquerade=True))
    assert packetfilter.tables(node) == {("ip", "podwire"), ("ip6", "podwire")}
    own.ensure(packetfilter.rules(SUBNETS[1], masquerade=True))
    assert packetfilter.tables(node) == {("ip6", "podwire")}


# --- by the plugin ------------------------------------------------------------------------------


def test_ip_masq_is_all_that_a_configuration_needs(plugin, topology, node, world, make_conf, dual):
    conf = make_conf(ipMasq=True, ipam={"ranges": dual.ranges})
    first, second = topology.sandbox("first"), topology.sandbox("second")
    assert plugin.add(conf, first).ok
    node.run("nft", "flush", "ruleset")
    assert not probe.reaches(first, world, WORLD, 0.3)
    assert plugin.add(conf, second).ok  # puts it back, for both
    for pod in (first, second):
        assert probe.tcp(pod, world, WORLD).source == NODE
        assert probe.udp(pod, world, WORLD_V6).source == NODE_V6
    before = packetfilter.listing(node)
    assert plugin.delete(conf, second).ok
    assert packetfilter.listing(node) == before  # nothing is per pod
