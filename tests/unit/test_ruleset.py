"""The node's ruleset as the union of what its networks want."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.ruleset import NetworkRules, NodeRules, Range, node_rules, ranges


def nets(*texts: str):
    return tuple(map(ip_network, texts))


def text(version: int, found: tuple[Range, ...]) -> list[str]:
    size = 4 if version == 4 else 16
    return [
        "-".join(str(ip_address(bound.to_bytes(size, "big"))) for bound in each) for each in found
    ]


def test_no_network_wants_nothing() -> None:
    assert node_rules([]) == NodeRules((), ())


def test_only_what_a_network_needs_is_there() -> None:
    plain = NetworkRules(nets("10.0.0.0/24"), host_ports=False, accept_forwarding=False)
    assert node_rules([plain]) == NodeRules((), ())
    assert node_rules([plain._replace(accept_forwarding=True)]).accept == plain.subnets
    [family] = node_rules([plain._replace(masquerade=True)]).families
    assert family.masquerade
    assert not family.host_ports
    assert not family.closed
    [family] = node_rules([plain._replace(host_ports=True)]).families
    assert family.host_ports
    assert family.masquerade == family.direct == ()


@pytest.mark.parametrize(
    ("subnets", "versions"),
    [(("10.0.0.0/24",), [4]), (("fd00::/64",), [6]), (("fd00::/64", "10.0.0.0/24"), [4, 6])],
)
def test_each_family_in_use_has_a_table(subnets, versions) -> None:
    found = node_rules([NetworkRules(nets(*subnets), masquerade=True)])
    assert [family.version for family in found.families] == versions


def test_all_own_subnets_and_multicast_are_direct() -> None:
    found = node_rules(
        [
            NetworkRules(nets("10.1.0.0/24", "fd00:1::/64"), masquerade=True),
            NetworkRules(nets("10.2.0.0/24"), direct=nets("192.168.1.2/32", "10.0.0.0/12")),
        ]
    )
    v4, v6 = found.families
    assert text(4, v4.masquerade) == ["10.1.0.0-10.1.0.255"]
    assert text(4, v4.pods) == ["10.1.0.0-10.1.0.255", "10.2.0.0-10.2.0.255"]
    assert text(4, v4.direct) == [
        "10.0.0.0-10.15.255.255",
        "192.168.1.2-192.168.1.2",
        "224.0.0.0-239.255.255.255",
        "255.255.255.255-255.255.255.255",
    ]
    assert text(6, v6.direct)[1] == "ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


def test_the_stricter_policy_on_a_bridge_holds() -> None:
    def family(*policies: str):
        networks = [
            NetworkRules(nets("10.0.0.0/24"), bridge="br0", ingress_policy=policy)
            for policy in policies
        ]
        [found] = node_rules(networks).families
        return found.closed, found.within

    assert family("open") == ((), ())
    assert family("open", "same-bridge") == (("br0",), ("br0",))
    assert family("same-bridge", "isolated", "open") == (("br0",), ())


def test_a_bridge_is_closed_in_the_families_of_its_pods() -> None:
    networks = [
        NetworkRules(nets("10.0.0.0/24"), bridge="br0", ingress_policy="isolated"),
        NetworkRules(nets("fd00::/64"), bridge="br1", ingress_policy="same-bridge"),
    ]
    assert [family.closed for family in node_rules(networks).families] == [("br0",), ("br1",)]


def test_accepted_subnets_are_as_few_as_can_be() -> None:
    networks = [
        NetworkRules(nets("10.0.1.0/24", "fd00:1::/64")),
        NetworkRules(nets("10.0.0.0/24", "10.0.1.128/25")),
        NetworkRules(nets("10.9.0.0/24"), accept_forwarding=False),
    ]
    assert node_rules(networks).accept == nets("10.0.0.0/23", "fd00:1::/64")


NODES = tuple(map(ip_address, ("192.168.1.3", "192.168.1.2", "fd00:1::2")))


def overlaid(*subnets: str, **keys) -> NetworkRules:
    plain = {"host_ports": False, "overlay_port": 8472, "nodes": NODES}
    return NetworkRules(nets(*subnets), **{**plain, **keys})


def test_the_overlay_is_guarded_in_the_families_of_the_nodes() -> None:
    """Whatever the pods have: a family without pods may carry the overlay."""
    v4, v6 = node_rules([overlaid("10.1.0.0/24", bridge="br0")]).families
    assert (v4.version, v6.version) == (4, 6)
    assert v4.nodes == (int(NODES[1]), int(NODES[0]))
    assert v6.nodes == (int(NODES[2]),)
    assert v4.overlay_ports == v6.overlay_ports == (8472,)
    assert v4.pod_links == v6.pod_links == ("br0",)
    assert not v4.pod_veths
    [only] = node_rules([overlaid("fd00:9::/64", nodes=NODES[:2])]).families
    assert only.version == 4


def test_no_overlay_no_guard() -> None:
    assert node_rules([overlaid("10.1.0.0/24", overlay_port=0)]).families == ()
    assert node_rules([overlaid("10.1.0.0/24", nodes=())]).families == ()
    closed = overlaid("10.1.0.0/24", overlay_port=0, bridge="br0", ingress_policy="isolated")
    [family] = node_rules([closed]).families
    assert family.nodes == family.overlay_ports == family.pod_links == ()
    assert not family.pod_veths


def test_pods_of_all_networks_are_kept_out_of_all_overlays() -> None:
    further = ip_address("192.168.1.9")
    networks = [
        overlaid("10.1.0.0/24", bridge="br1"),
        overlaid("10.2.0.0/24", bridge="br0", overlay_port=4789, nodes=(further, NODES[0])),
        NetworkRules(nets("10.3.0.0/24"), host_ports=False, bridge="br2"),
        NetworkRules(nets("fd00:3::/64"), host_ports=False),
    ]
    v4, v6 = node_rules(networks).families
    assert v4.nodes == tuple(sorted({int(a) for a in (*NODES[:2], further)}))
    for family in (v4, v6):
        assert family.overlay_ports == (4789, 8472)
        assert family.pod_links == ("br0", "br1", "br2")
        assert family.pod_veths


def test_the_order_of_networks_and_nodes_makes_no_difference() -> None:
    networks = [overlaid("10.1.0.0/24", bridge="b"), overlaid("10.2.0.0/24", overlay_port=1)]
    turned = [network._replace(nodes=NODES[::-1]) for network in networks[::-1]]
    assert node_rules(networks).families == node_rules(turned).families


def test_the_mark_is_passed_on() -> None:
    assert node_rules([], mark=0x10).mark == 0x10


V4_NETWORKS = st.builds(
    lambda base, bits: IPv4Network((base, bits), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


@given(networks=st.lists(V4_NETWORKS, max_size=12), probe=st.integers(0, 2**32 - 1))
def test_ranges_hold_the_same_addresses_and_nothing_twice(
    networks: list[IPv4Network], probe: int
) -> None:
    found = ranges(4, networks)
    assert all(first <= last for first, last in found)
    assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(found))
    places = {probe, *(int(n.network_address) for n in networks)}
    places |= {
        int(n.broadcast_address) + 1 for n in networks if int(n.broadcast_address) < 2**32 - 1
    }
    for place in places:
        inside = any(first <= place <= last for first, last in found)
        assert inside == any(ip_address(place) in network for network in networks)
    assert found == ranges(4, [*networks, *reversed(networks), ip_network("fd00::/8")])
