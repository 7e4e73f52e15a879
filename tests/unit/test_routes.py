"""The routes between nodes: what they should be, and how a table gets there."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.spec import CniError, Code, IPNetwork
from ipam.inventory import Inventory, Node
from ipam.routes import Changes, NodeRoute, RouteTable, desired, difference, sync
from tests.unit.fake_routes import FakeRouteTable

SOURCE = "/etc/podwire/nodes.json"


def node(name: str, addresses: str, pod_cidrs: str = "") -> Node:
    return Node(
        name,
        tuple(ip_address(text) for text in addresses.split()),
        pod_cidrs=tuple(ip_network(text) for text in pod_cidrs.split()),
    )


def route(dst: str, via: str, name: str = "") -> NodeRoute:
    return NodeRoute(ip_network(dst), ip_address(via), name)


def wanted(*nodes: Node) -> tuple[NodeRoute, ...]:
    """What the first node wants; the name of the peer is compared here."""
    return desired(Inventory(SOURCE, nodes), nodes[0])


def plain(routes: tuple[NodeRoute, ...]) -> list[tuple[str, str, str]]:
    return [(str(route.dst), str(route.via), route.node) for route in routes]


ONE = node("node-1", "192.168.1.2", "10.244.0.0/24")
TWO = node("node-2", "192.168.1.3", "10.244.1.0/24")


# --- desired ----------------------------------------------------------------------------------


def test_a_route_to_each_pod_subnet_of_each_peer() -> None:
    three = node("node-3", "192.168.1.4", "10.244.2.0/25 10.244.2.128/25")
    assert plain(wanted(ONE, TWO, three)) == [
        ("10.244.1.0/24", "192.168.1.3", "node-2"),
        ("10.244.2.0/25", "192.168.1.4", "node-3"),
        ("10.244.2.128/25", "192.168.1.4", "node-3"),
    ]


def test_a_node_alone_needs_none() -> None:
    assert wanted(ONE) == ()
    assert wanted(node("node-1", "192.168.1.2", "fd00:10::/64")) == ()


def test_the_first_address_of_the_family() -> None:
    own = node("node-1", "192.168.1.2 fd00::2", "10.244.0.0/24 fd00:10::/64")
    peer = node("node-2", "fd00::3 192.168.1.3 fd00::33 192.168.1.33", "10.244.1.0/24 fd00:11::/64")
    assert plain(wanted(own, peer)) == [
        ("10.244.1.0/24", "192.168.1.3", "node-2"),
        ("fd00:11::/64", "fd00::3", "node-2"),
    ]


def test_a_family_that_this_node_lacks_is_left_out() -> None:
    peer = node("node-2", "192.168.1.3 fd00::3", "10.244.1.0/24 fd00:11::/64")
    assert plain(wanted(ONE, peer)) == [("10.244.1.0/24", "192.168.1.3", "node-2")]
    broken = node("node-2", "192.168.1.3", "10.244.1.0/24 fd00:11::/64")
    assert plain(wanted(ONE, broken)) == [("10.244.1.0/24", "192.168.1.3", "node-2")]


def test_a_node_without_pods_reaches_pods() -> None:
    own = node("node-1", "192.168.1.2 fd00::2")
    peer = node("node-2", "192.168.1.3 fd00::3", "10.244.1.0/24 fd00:11::/64")
    assert len(wanted(own, peer)) == 2


@pytest.mark.parametrize("own", [ONE, node("node-1", "192.168.1.2")])
def test_a_peer_without_an_address_of_the_family(own: Node) -> None:
    with pytest.raises(CniError) as caught:
        wanted(own, node("node-2", "fd00::3", "10.244.1.0/24"))
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith(f"{SOURCE}: node node-2 has pod subnet 10.244.1.0/24")
    assert "add an IPv4 address" in caught.value.details


def test_this_node_without_an_address_of_the_family() -> None:
    with pytest.raises(CniError) as caught:
        wanted(
            node("node-1", "192.168.1.2", "10.244.0.0/24 fd00:10::/64"),
            node("node-2", "192.168.1.3 fd00::3", "fd00:11::/64"),
        )
    assert caught.value.code == Code.INVALID_CONFIG
    assert "node node-1 has pod subnet fd00:10::/64 and no IPv6 address" in caught.value.msg


# --- difference -------------------------------------------------------------------------------


def test_the_node_is_no_part_of_a_route() -> None:
    known, unknown = route("10.0.0.0/8", "1.1.1.1", "node-1"), route("10.0.0.0/8", "1.1.1.1")
    assert known == unknown
    assert not known != unknown  # noqa: SIM202 - `!=` has a method of its own
    assert len({known, unknown}) == 1
    assert known != route("10.0.0.0/8", "1.1.1.2")
    assert known != route("10.0.0.0/9", "1.1.1.1")


def test_add_replace_remove() -> None:
    changes = difference(
        [
            route("10.1.0.0/24", "1.1.1.1"),
            route("10.2.0.0/24", "1.1.1.2"),
            route("10.3.0.0/24", "1.1.1.3"),
        ],
        [
            route("10.2.0.0/24", "1.1.1.9"),
            route("10.3.0.0/24", "1.1.1.3"),
            route("10.4.0.0/24", "1.1.1.4"),
        ],
    )
    assert changes == Changes(
        add=(route("10.1.0.0/24", "1.1.1.1"),),
        replace=(route("10.2.0.0/24", "1.1.1.2"),),
        remove=(route("10.4.0.0/24", "1.1.1.4"),),
    )


def test_the_surplus_of_one_destination_goes() -> None:
    actual = [route("10.1.0.0/24", "1.1.1.8"), route("10.1.0.0/24", "1.1.1.1")]
    kept = difference([route("10.1.0.0/24", "1.1.1.1")], actual)
    assert kept == Changes(remove=(route("10.1.0.0/24", "1.1.1.8"),))
    moved = difference([route("10.1.0.0/24", "1.1.1.5")], actual)
    assert moved == Changes(
        replace=(route("10.1.0.0/24", "1.1.1.5"),), remove=(route("10.1.0.0/24", "1.1.1.1"),)
    )


def test_a_change_is_true_and_none_is_false() -> None:
    assert not Changes()
    assert Changes(remove=(route("10.1.0.0/24", "1.1.1.1"),))


# --- a table ----------------------------------------------------------------------------------

DESTINATIONS = st.sampled_from([ip_network(f"10.{i}.0.0/16") for i in range(6)]) | st.sampled_from(
    [ip_network(f"fd00:{i}::/64") for i in range(3)]
)


def via(dst: IPNetwork) -> st.SearchStrategy[NodeRoute]:
    first = ip_address("192.168.1.2" if dst.version == 4 else "fd00::2")
    return st.builds(lambda n: NodeRoute(dst, first + n, f"node-{n}"), st.integers(0, 3))


ROUTES = DESTINATIONS.flatmap(via)
ACTUAL = st.lists(ROUTES, max_size=10, unique=True)
WANTED = st.lists(ROUTES, max_size=9, unique_by=lambda route: route.dst)


@given(WANTED, ACTUAL)
def test_the_difference_leads_to_what_is_desired(
    wanted: list[NodeRoute], actual: list[NodeRoute]
) -> None:
    table = FakeRouteTable(actual)
    table.apply(difference(wanted, actual))
    assert len(table.routes) == len(wanted)
    assert set(table.routes) == set(wanted)


@given(WANTED, ACTUAL)
def test_no_route_that_is_right_is_touched(
    wanted: list[NodeRoute], actual: list[NodeRoute]
) -> None:
    changes = difference(wanted, actual)
    touched = set(changes.add + changes.replace + changes.remove)
    assert touched.isdisjoint(set(wanted) & set(actual))


@given(WANTED, ACTUAL)
def test_the_second_sync_does_nothing(wanted: list[NodeRoute], actual: list[NodeRoute]) -> None:
    table = FakeRouteTable(actual)
    checked: RouteTable = table
    first = sync(checked, wanted)
    assert bool(first) is (set(actual) != set(wanted))
    assert not sync(checked, wanted)
    assert table.applied == ([first] if first else [])
    assert set(table.owned()) == set(wanted)


def test_a_refused_change_changes_nothing() -> None:
    before = [route("10.9.0.0/24", "1.1.1.1")]
    table = FakeRouteTable(before, refused=[ip_network("10.244.1.0/24")])
    with pytest.raises(CniError):
        sync(table, wanted(ONE, TWO))
    assert table.routes == before


def test_a_peer_that_moves_leaves_and_joins() -> None:
    table = FakeRouteTable()
    assert sync(table, wanted(ONE, TWO)).add
    moved = node("node-2", "192.168.1.30", "10.244.1.0/24")
    assert sync(table, wanted(ONE, moved)).replace == (route("10.244.1.0/24", "192.168.1.30"),)
    assert sync(table, wanted(ONE)).remove == (route("10.244.1.0/24", "192.168.1.30"),)
    assert table.routes == []
