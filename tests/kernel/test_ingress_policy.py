"""ingressPolicy: who reaches pods on bridges that are open, closed, and closed in themselves.

`plain` and `br_netfilter` are the two ways of the kernel with packets inside a bridge: past the
packet filter of IP, or through it.
"""

from __future__ import annotations

import pytest

from tests.support import packetfilter, probe
from tests.support.netns import Namespace

POLICIES = ("open", "same-bridge", "isolated")
WORLD, WORLD_V6 = "192.168.1.9", "fd00:1::9"


@pytest.fixture(params=["plain", "br_netfilter"])
def world(request, node) -> Namespace:
    """A machine beside the node that knows the way to its pods."""
    node.filtered = request.param == "br_netfilter"
    packetfilter.bridge_netfilter(node, False)
    return node.world


@pytest.fixture
def node(topology) -> Namespace:
    node, world = topology.node("node"), topology.node("world")
    topology.cable(
        {node: ("192.168.1.2/24", "fd00:1::2/64"), world: (f"{WORLD}/24", f"{WORLD_V6}/64")}
    )
    world.run("ip", "route", "add", "10.0.0.0/8", "via", "192.168.1.2")
    world.run("ip", "route", "add", "fd00:10::/32", "via", "fd00:1::2")
    node.world = world
    return node


class Site:
    """Two pods on each of two bridges; `policies` are those of the bridges."""

    def __init__(self, plugin, topology, make_conf, node, *policies: str) -> None:
        self.pods: list[list[Namespace]] = []
        networks = []
        for number, policy in enumerate(policies):
            subnets = (f"10.{number}.0.0/24", f"fd00:10:{number}::/64")
            conf = make_conf(
                name=f"net{number}",
                bridge=f"br{number}",
                ipam={"ranges": [[{"subnet": subnet}] for subnet in subnets]},
                **({"portIsolation": True} if policy == "isolated" else {}),
            )
            pods = [topology.sandbox(f"pod{number}{which}") for which in "ab"]
            for pod in pods:
                assert plugin.add(conf, pod).ok
            packetfilter.bridge_netfilter(node, node.filtered, f"br{number}")
            self.pods.append(pods)
            networks.append(
                packetfilter.network(*subnets, bridge=f"br{number}", ingress_policy=policy)
            )
        self.rules = packetfilter.node_rules(networks)
        packetfilter.firewall(node).ensure(self.rules)

    def hold(self, client: tuple[int, int], server: tuple[int, int], reached: bool) -> None:
        """Hold the one pod to reach the other, or not to."""
        hold(self.pods[client[0]][client[1]], self.pods[server[0]][server[1]], server, reached)


def hold(client: Namespace, server: Namespace, which: tuple[int, int], reached: bool) -> None:
    """Hold the client to reach the pod in both families, or in none. A yes may take its time."""
    number, host = which[0], which[1] + 2
    for address in (f"10.{number}.0.{host}", f"fd00:10:{number}::{host}"):
        assert probe.reaches(client, server, address, 5 if reached else 0.4) is reached


@pytest.fixture
def make_site(plugin, topology, make_conf, node, world):
    return lambda *policies: Site(plugin, topology, make_conf, node, *policies)


@pytest.mark.parametrize("policy", POLICIES)
def test_within_a_bridge(make_site, policy):
    site = make_site(policy)
    site.hold((0, 0), (0, 1), policy != "isolated")


@pytest.mark.parametrize("first", POLICIES)
@pytest.mark.parametrize("second", POLICIES)
def test_between_bridges(make_site, first, second):
    """Closed are two bridges to each other only when both are closed, as in the reference."""
    site = make_site(first, second)
    free = "open" in (first, second)
    site.hold((0, 0), (1, 0), free)
    site.hold((1, 1), (0, 1), free)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_node_and_the_world_reach_and_are_reached(make_site, node, world, policy):
    site = make_site(policy)
    pod = site.pods[0][0]
    for outside, address in ((node, "10.0.0.1"), (world, WORLD)):
        hold(outside, pod, (0, 0), reached=True)
        assert probe.tcp(pod, outside, address).source == "10.0.0.2"


def test_an_isolated_pod_gets_no_way_round_through_the_gateway(make_site, node):
    """A route through the gateway to a pod on the same bridge is no way in either."""
    site = make_site("isolated")
    for number, pod in enumerate(site.pods[0]):
        pod.run("ip", "route", "replace", f"10.0.0.{3 - number}/32", "via", "10.0.0.1")
    assert not probe.reaches(*site.pods[0], "10.0.0.3", 0.4)


def test_the_stricter_policy_of_two_networks_on_a_bridge_holds(node):
    networks = [
        packetfilter.network("10.0.0.0/24", bridge="br0", ingress_policy=policy)
        for policy in POLICIES
    ]
    for count, within in ((1, None), (2, 1), (3, 0)):
        family = packetfilter.node_rules(networks[:count]).families[0]
        assert (len(family.within) if family.closed else None) == within


def test_a_policy_that_is_given_up_leaves_no_rule(make_site, node):
    make_site("same-bridge")
    assert "chain forward" in packetfilter.listing(node)
    own = packetfilter.firewall(node)
    own.ensure(packetfilter.rules("10.0.0.0/24", "fd00:10:0::/64", bridge="br0"))
    assert "chain forward" not in packetfilter.listing(node)
    assert own.ensure(packetfilter.rules("10.0.0.0/24", "fd00:10:0::/64", bridge="br0")) is False
