"""The path to each peer: plain or through the overlay, and what the overlay needs for it."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.crossnode import CrossNode
from cni_plugin.spec import CniError, Code, IPAddress
from ipam import routes
from ipam.inventory import Inventory, Node
from ipam.peers import (
    DIRECT,
    ROUTED,
    UNREACHABLE,
    Peers,
    candidates,
    carried,
    desired,
    kept,
    underlay_address,
    underlay_version,
    vtep_mac,
)

SOURCE = "/etc/podwire/nodes.json"
AUTO, VXLAN, HOST_GW = (CrossNode(backend=b) for b in ("auto", "vxlan", "host-gw"))


def node(name: str, addresses: str, pod_cidrs: str = "") -> Node:
    return Node(
        name,
        tuple(ip_address(text) for text in addresses.split()),
        pod_cidrs=tuple(ip_network(text) for text in pod_cidrs.split()),
    )


ONE = node("node-1", "192.168.1.2 fd00:1::2", "10.244.1.0/24 fd00:10:1::/64")
TWO = node("node-2", "192.168.1.3 fd00:1::3", "10.244.2.0/24 fd00:10:2::/64")
FAR = node("node-3", "192.168.2.2 fd00:2::2", "10.244.3.0/24 fd00:10:3::/64")


def on_link(address: IPAddress) -> str:
    near = ("192.168.1.0/24", "fd00:1::/64")
    return DIRECT if any(address in ip_network(text) for text in near) else ROUTED


def found(*nodes: Node, cross: CrossNode = AUTO, reach=on_link) -> Peers:  # type: ignore[no-untyped-def]
    return desired(Inventory(SOURCE, nodes), nodes[0], cross, reach)


def plain(peers: Peers) -> list[tuple[str, str, str, bool]]:
    return [(str(r.dst), str(r.via), r.node, r.overlay) for r in peers.routes]


# --- which path -------------------------------------------------------------------------------


def test_auto_is_plain_on_the_link_and_the_overlay_behind_a_router() -> None:
    peers = found(ONE, TWO, FAR)
    assert plain(peers) == [
        ("10.244.2.0/24", "192.168.1.3", "node-2", False),
        ("fd00:10:2::/64", "fd00:1::3", "node-2", False),
        ("10.244.3.0/24", "10.244.3.0", "node-3", True),
        ("fd00:10:3::/64", "fd00:10:3::", "node-3", True),
    ]
    mac = vtep_mac(1, "node-3")
    assert peers.neighbours == {ip_address("10.244.3.0"): mac, ip_address("fd00:10:3::"): mac}
    assert peers.tunnels == {mac: ip_address("192.168.2.2")}
    assert peers.plain == {ip_address("192.168.1.3"), ip_address("fd00:1::3")}


def test_vxlan_asks_nobody_and_is_the_overlay_for_all() -> None:
    peers = found(ONE, TWO, FAR, cross=VXLAN, reach=None)
    assert all(route.overlay for route in peers.routes)
    assert len(peers.tunnels) == 2
    assert len(peers.neighbours) == 4
    assert candidates(Inventory(SOURCE, (ONE, TWO)), ONE, VXLAN) == []


def test_host_gw_is_plain_routes_and_asks_nobody() -> None:
    peers = found(ONE, TWO, FAR, cross=HOST_GW, reach=None)
    assert peers == Peers(routes.desired(Inventory(SOURCE, (ONE, TWO, FAR)), ONE))


def test_a_peer_that_is_not_reachable_now_is_not_given_up() -> None:
    """The overlay's entries lead there as soon as anything does."""
    assert found(ONE, TWO, reach=lambda _: UNREACHABLE).tunnels == {
        vtep_mac(1, "node-2"): ip_address("192.168.1.3")
    }


def test_each_family_has_its_own_path() -> None:
    def by_ipv6(address: IPAddress) -> str:
        return DIRECT if address.version == 6 else ROUTED

    assert [route.overlay for route in found(ONE, TWO, reach=by_ipv6).routes] == [True, False]


@pytest.mark.parametrize("lacking", ["own", "peer"])
def test_pods_of_a_family_that_the_nodes_lack_go_through_the_overlay(lacking: str) -> None:
    own = ONE if lacking == "peer" else ONE._replace(addresses=ONE.addresses[:1])
    peer = TWO if lacking == "own" else TWO._replace(addresses=TWO.addresses[:1])
    assert [route.overlay for route in found(own, peer).routes] == [False, True]


def test_a_family_that_this_node_has_nothing_of_is_left_out() -> None:
    own = node("node-1", "192.168.1.2", "10.244.1.0/24")
    assert plain(found(own, TWO, cross=VXLAN)) == [("10.244.2.0/24", "10.244.2.0", "node-2", True)]


def test_a_peer_without_a_way_keeps_its_path() -> None:
    """The overlay where a route of ours leads through it, else a plain route that waits."""
    inventory = Inventory(SOURCE, (ONE, TWO, FAR))
    lost = frozenset((*TWO.addresses, *FAR.addresses))
    assert kept(inventory, ONE, lost, ()) == dict.fromkeys(lost, DIRECT)
    before = found(ONE, TWO, FAR).routes
    words = kept(inventory, ONE, lost, before)
    assert words == {address: on_link(address) for address in lost}
    assert kept(inventory, ONE, frozenset(FAR.addresses[:1]), before) == {FAR.addresses[0]: ROUTED}
    assert kept(inventory, ONE, frozenset(), before) == {}


def test_candidates_are_the_first_addresses_of_the_families_in_use() -> None:
    own = node("node-1", "192.168.1.2", "10.244.1.0/24")
    peer = node("node-2", "fd00:1::3 192.168.1.3 192.168.1.4", "10.244.2.0/24 fd00:10:2::/64")
    assert candidates(Inventory(SOURCE, (own, peer)), own, AUTO) == [ip_address("192.168.1.3")]


# --- the ends of the overlay --------------------------------------------------------------------


def test_the_end_s_address_is_the_network_s_of_the_first_subnet() -> None:
    assert carried(ONE) == (ip_interface("10.244.1.0/32"), ip_interface("fd00:10:1::/128"))
    two = node("n", "1.1.1.1", "10.244.9.0/32 10.244.1.0/24 10.244.2.0/24")
    assert carried(two) == (ip_interface("10.244.1.0/32"),)


def test_several_subnets_of_a_peer_share_one_gateway() -> None:
    peer = node("node-2", "192.168.2.3", "10.244.2.0/25 10.244.2.128/25")
    own = node("node-1", "192.168.1.2", "10.244.1.0/24")
    peers = found(own, peer)
    assert [via for _, via, _, _ in plain(peers)] == ["10.244.2.0", "10.244.2.0"]
    assert len(peers.neighbours) == len(peers.tunnels) == 1


@pytest.mark.parametrize("cidr", ["10.244.2.7/32", "10.244.2.6/31"])
def test_a_subnet_whose_first_address_is_a_pod_s(cidr: str) -> None:
    """Its own address is the gateway, and no end carries the pod's."""
    peer = node("node-2", "192.168.2.3", cidr)
    assert carried(peer) == ()
    assert plain(found(ONE, peer)) == [(cidr, "192.168.2.3", "node-2", True)]
    unreachable = node("node-2", "fd00:2::3", cidr)
    with pytest.raises(CniError) as caught:
        found(ONE, unreachable)
    assert caught.value.code == Code.INVALID_CONFIG
    assert "node-2" in caught.value.msg


def test_the_mac_is_of_the_vni_and_the_name_alone() -> None:
    macs = {vtep_mac(vni, name) for vni in (1, 2) for name in ("a", "b")}
    assert len(macs) == 4
    assert vtep_mac(1, "a") == vtep_mac(1, "a")
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)  # of our own giving, and not a group


# --- the underlay -------------------------------------------------------------------------------


def test_ipv4_carries_it_where_all_have_it() -> None:
    assert underlay_version(Inventory(SOURCE, (ONE, TWO, FAR)), AUTO) == 4
    only = node("node-4", "fd00:1::9", "10.244.9.0/24")
    assert underlay_version(Inventory(SOURCE, (ONE, TWO, only)), AUTO) == 6


def test_nodes_without_a_common_family_are_named() -> None:
    four, six = node("node-4", "192.168.1.9"), node("node-6", "fd00:1::9")
    with pytest.raises(CniError) as caught:
        underlay_version(Inventory(SOURCE, (ONE, four, six)), VXLAN)
    assert caught.value.code == Code.INVALID_CONFIG
    assert "node-6 has no IPv4 address and node node-4 no IPv6" in caught.value.msg


def test_plain_routes_need_no_common_family() -> None:
    six = node("node-6", "fd00:1::9", "fd00:10:9::/64")
    four = node("node-4", "192.168.1.9", "10.244.9.0/24")
    assert not any(route.overlay for route in found(ONE, four, six).routes)


def test_a_cidr_chooses_among_the_addresses() -> None:
    cross = VXLAN._replace(cidr=ip_network("192.168.7.0/24"))
    own = node("node-1", "192.168.1.2 192.168.7.2", "10.244.1.0/24")
    peer = node("node-2", "192.168.1.3 192.168.7.3", "10.244.2.0/24")
    assert list(found(own, peer, cross=cross).tunnels.values()) == [ip_address("192.168.7.3")]
    with pytest.raises(CniError) as caught:
        found(own, peer, TWO, cross=cross)
    assert caught.value.msg.startswith("underlay.cidr: ")
    assert "node-2" in caught.value.msg


def test_an_address_near_ours_is_preferred() -> None:
    peer = node("node-2", "192.168.1.3 192.168.7.3")
    near = ip_network("192.168.7.0/24")
    assert underlay_address(peer, 4, AUTO, near) == ip_address("192.168.7.3")
    assert underlay_address(peer, 4, AUTO, ip_network("10.0.0.0/8")) == ip_address("192.168.1.3")


# --- properties ---------------------------------------------------------------------------------


@given(
    st.sets(st.integers(1, 40), min_size=1, max_size=12),
    st.dictionaries(st.integers(1, 40), st.sampled_from((DIRECT, ROUTED, UNREACHABLE))),
)
def test_every_overlay_route_has_what_leads_to_the_node(
    numbers: set[int], reaches: dict[int, str]
) -> None:
    peers = [node(f"p{n}", f"192.168.{n}.2", f"10.244.{n}.0/24") for n in sorted(numbers)]
    own = node("own", "192.168.0.2", "10.244.0.0/24")

    def reach(address: IPAddress) -> str:
        return reaches.get(int(str(address).split(".")[2]), DIRECT)

    peers_found = found(own, *peers, reach=reach)
    assert len(peers_found.routes) == len(peers)
    assert len(peers_found.tunnels) == sum(route.overlay for route in peers_found.routes)
    for route in peers_found.routes:
        number = int(route.node[1:])
        assert route.overlay == (reaches.get(number, DIRECT) != DIRECT)
        if route.overlay:
            mac = peers_found.neighbours[route.via]
            assert peers_found.tunnels[mac] == ip_address(f"192.168.{number}.2")
    alone = [found(own, peer, reach=reach) for peer in peers]
    assert tuple(route for one in alone for route in one.routes) == peers_found.routes
