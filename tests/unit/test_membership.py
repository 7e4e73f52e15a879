"""Who holds which addresses and pod subnets: what is refused, and that order plays no part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.membership import INVALID, NO_ADDRESS, OVERLAP, VTEP, Membership, Refusal
from cni_plugin.sources import Away, Change, Gone, Listed, Member, Put
from cni_plugin.spec import IPNetwork
from ipam import inventory
from ipam.nodes import Node, is_mac, is_unreachable
from ipam.overlaps import refuse_overlaps
from ipam.peers import vtep_mac


def member(name: str, address: str = "", *cidrs: str, since: str = "1", **more: object) -> Member:
    plain = Member(
        name,
        tuple(map(ip_address, address.split())),
        tuple(map(ip_network, cidrs)),
        since,
    )
    return plain._replace(**more)  # type: ignore[arg-type]


A = member("a", "192.168.1.2", "10.244.1.0/24", since="1")
B = member("b", "192.168.1.3", "10.244.2.0/24", since="2")
C = member("c", "192.168.1.4", "10.244.3.0/24", since="3")


def told(*changes: Change, own: str = "a") -> Membership:
    membership = Membership(own)
    for change in changes:
        membership.apply(change)
    return membership


def of(*members: Member) -> Membership:
    return told(Listed(members))


def subnets(membership: Membership) -> dict[str, list[str]]:
    return {node.name: list(map(str, node.pod_cidrs)) for node in membership.nodes()}


def reasons(membership: Membership) -> list[tuple[str, str, str]]:
    return [(each.name, each.reason, each.holder) for each in membership.refusals()]


def only(membership: Membership) -> Refusal:
    (found,) = membership.refusals()
    return found


# --- what goes in and comes out ---------------------------------------------------------------


def test_nodes_come_by_name_with_all_they_have() -> None:
    announced = B._replace(overlay_address=ip_address("10.0.0.3"), vtep_mac="0a:00:00:00:00:03")
    membership = of(announced, A)
    assert membership.nodes() == (
        Node("a", A.addresses, (), A.pod_cidrs),
        Node("b", B.addresses, (), B.pod_cidrs, ip_address("10.0.0.3"), "0a:00:00:00:00:03"),
    )
    assert membership.own() == A
    assert (membership.first(1), Membership("a").first(1)) == (["a"], [])
    assert membership.refusals() == ()


def test_a_change_is_told_once() -> None:
    membership = Membership("a")
    assert membership.own() is None
    assert membership.apply(Listed((A, B)))
    assert not membership.apply(Listed((B, A)))
    assert not membership.apply(Put(A))
    assert not membership.apply(Put(A._replace(backend="vxlan vni=1 port=8472")))  # no matter here
    assert not membership.apply(Away("no route to host"))
    assert not membership.apply(Gone("z"))
    assert membership.apply(Gone("b"))
    assert not membership.apply(Gone("b"))
    assert membership.apply(Put(C))
    assert membership.apply(Listed((A,)))
    assert subnets(membership) == {"a": ["10.244.1.0/24"]}


def test_the_order_in_which_subnets_are_refused_is_no_change() -> None:
    membership = of(A._replace(pod_cidrs=(ip_network("127.0.0.0/24"), ip_network("ff00::/16"))))
    turned = A._replace(pod_cidrs=(ip_network("ff00::/16"), ip_network("127.0.0.0/24")))
    assert not membership.apply(Put(turned))


def test_what_others_derive_says_whether_something_changed() -> None:
    """`backend` is not part of the inventory, but `own` tells it."""
    membership = of(A, B)
    membership.apply(Put(A._replace(backend="vxlan")))
    own = membership.own()
    assert own is not None
    assert own.backend == "vxlan"


# --- overlaps ---------------------------------------------------------------------------------


def test_who_came_first_keeps_a_subnet() -> None:
    late = member("b", "192.168.1.3", "10.244.1.0/24", "fd00:10:2::/64", since="2")
    for membership in (of(A, late), of(late, A), told(Put(late), Put(A))):
        assert subnets(membership) == {"a": ["10.244.1.0/24"], "b": ["fd00:10:2::/64"]}
        found = only(membership)
        assert found[:2] == ("b", OVERLAP)
        assert found.holder == "a"
        for text in ("10.244.1.0/24 of node b", "10.244.1.0/24 of node a", "came first", "remove"):
            assert text in found.message


def test_of_two_as_old_the_first_by_name_keeps_it() -> None:
    one, two = (member(n, f"192.168.1.{i}", "10.244.0.0/16") for i, n in enumerate("xy", 2))
    assert subnets(of(two, one)) == {"x": ["10.244.0.0/16"], "y": []}


def test_a_wider_subnet_that_came_first_keeps_all_within() -> None:
    wide = member("w", "192.168.9.9", "10.244.0.0/16", since="0")
    membership = of(A, wide, B, C)
    assert subnets(membership) == {"a": [], "b": [], "c": [], "w": ["10.244.0.0/16"]}
    assert reasons(membership) == [(name, OVERLAP, "w") for name in "abc"]
    assert membership.apply(Gone("w"))
    assert subnets(membership) == subnets(of(A, B, C))
    assert membership.refusals() == ()


def test_a_wider_subnet_that_came_last_is_refused_and_comes_in_when_nobody_is_left() -> None:
    wide = member("w", "192.168.9.9", "10.244.0.0/16", since="9")
    membership = of(A, wide, B)
    assert subnets(membership)["w"] == []
    assert reasons(membership) == [("w", OVERLAP, "a")]
    membership.apply(Gone("a"))
    assert reasons(membership) == [("w", OVERLAP, "b")]
    membership.apply(Gone("b"))
    assert subnets(membership) == {"w": ["10.244.0.0/16"]}


def test_a_refused_subnet_refuses_nobody() -> None:
    """b meets a and is refused; c meets b alone, and stands."""
    wide = member("b", "192.168.1.3", "10.244.0.0/22", since="2")
    membership = of(A, wide, C)
    assert subnets(membership) == {"a": ["10.244.1.0/24"], "b": [], "c": ["10.244.3.0/24"]}
    membership.apply(Gone("a"))
    assert subnets(membership) == {"b": ["10.244.0.0/22"], "c": []}


def test_subnets_of_one_node_that_overlap() -> None:
    membership = of(member("a", "192.168.1.2", "10.244.1.0/24", "10.244.0.0/16"))
    assert subnets(membership) == {"a": ["10.244.1.0/24"]}
    assert only(membership)[:2] == ("a", OVERLAP)
    assert "itself" in only(membership).message


def test_a_node_that_was_made_anew_is_younger() -> None:
    """It kept its name, and somebody else has got its subnet meanwhile."""
    other = member("b", "192.168.1.3", "10.244.1.0/24", since="2")
    membership = told(Put(A), Put(other), Put(A._replace(since="3", uid="new")), own="b")
    assert subnets(membership) == {"a": [], "b": ["10.244.1.0/24"]}


# --- subnets that nobody can have -------------------------------------------------------------


def test_a_subnet_that_holds_its_nodes_address() -> None:
    membership = of(member("a", "10.244.1.7", "10.244.1.0/24", "fd00::/64"))
    assert subnets(membership) == {"a": ["fd00::/64"]}
    assert reasons(membership) == [("a", INVALID, "a")]
    assert "10.244.1.7" in only(membership).message


def test_a_subnet_that_holds_the_address_of_an_older_node() -> None:
    membership = of(A, member("b", "192.168.2.3", "192.168.1.0/24", since="2"))
    assert reasons(membership) == [("b", INVALID, "a")]
    assert subnets(membership)["b"] == []


def test_an_address_inside_the_subnet_of_an_older_node() -> None:
    """A newcomer takes nothing from who is there: it is no node then."""
    membership = of(A, member("b", "10.244.1.9", "10.244.2.0/24", since="2"))
    assert subnets(membership) == {"a": ["10.244.1.0/24"]}
    assert reasons(membership) == [("b", NO_ADDRESS, "a")]


def test_special_subnets_and_those_without_room() -> None:
    for text in ("0.0.0.0/0", "127.0.0.0/24", "240.0.0.0/8", "fe80::/64", "::ffff:10.0.0.0/104"):
        assert reasons(of(member("a", "192.168.1.2", text))) == [("a", INVALID, "")], text
    for text in ("10.244.1.0/31", "fd00::1/128"):
        assert "no room" in only(of(member("a", "192.168.1.2", text))).message


def test_what_the_source_could_not_read() -> None:
    membership = of(A._replace(problem="spec.podCIDRs: expected a CIDR, got 10.244.1"))
    assert only(membership)[:2] == ("a", INVALID)
    assert "expected a CIDR" in only(membership).message


def test_own_networks_are_kept_out() -> None:
    membership = of(A, B)
    network = ip_network("10.244.2.0/23")
    assert membership.keep_out([("eth0", network)])
    assert not membership.keep_out([("eth0", network)])
    assert subnets(membership) == {"a": ["10.244.1.0/24"], "b": []}
    assert "overlaps 10.244.2.0/23 of eth0" in only(membership).message
    assert only(membership).holder == "a"  # nobody else may know
    assert not membership.apply(Put(B))
    assert membership.keep_out([])
    assert subnets(membership) == subnets(of(A, B))


# --- addresses --------------------------------------------------------------------------------


def test_who_came_first_keeps_an_address() -> None:
    late = member("b", "192.168.1.2 fd00:1::3", "10.244.2.0/24", since="2")
    membership = of(late, A)
    assert [node.addresses for node in membership.nodes()] == [A.addresses, late.addresses[1:]]
    assert reasons(membership) == [("b", NO_ADDRESS, "a")]
    membership.apply(Gone("a"))
    assert [node.addresses for node in membership.nodes()] == [late.addresses]


def test_a_node_without_an_address_keeps_its_subnet() -> None:
    """A kubelet reports its address after its node has got a podCIDR."""
    late = member("b", "192.168.1.3", "10.244.1.0/24", since="2")
    early = A._replace(addresses=())
    membership = of(early, late)
    assert subnets(membership) == {"b": []}
    assert reasons(membership) == [("a", NO_ADDRESS, ""), ("b", OVERLAP, "a")]
    assert membership.own() == early
    membership.apply(Put(A))
    assert subnets(membership) == {"a": ["10.244.1.0/24"], "b": []}


def test_addresses_that_nobody_can_reach() -> None:
    membership = of(member("a", "127.0.0.1 fe80::1 192.168.1.2"), member("b", "::1"))
    assert [node.name for node in membership.nodes()] == ["a"]
    assert [each.name for each in membership.refusals()] == ["a", "a", "b"]


def test_what_can_not_be_written_into_an_inventory_is_left_out() -> None:
    nowhere = A._replace(overlay_address=ip_address("127.0.0.1"))
    assert of(nowhere).nodes()[0].overlay_address is None
    membership = of(A._replace(name="a b"), B)
    assert [node.name for node in membership.nodes()] == ["b"]
    assert [each.name for each in membership.refusals()] == ["a b"]


# --- what members announce --------------------------------------------------------------------


MAC, MAC_2 = "0a:00:00:00:00:01", "0a:00:00:00:00:02"


def macs(membership: Membership) -> list[str]:
    return [node.vtep_mac for node in membership.nodes()]


def overlays(membership: Membership) -> list[str]:
    return [str(node.overlay_address or "") for node in membership.nodes()]


def saying(each: Member, address: str) -> Member:
    return each._replace(overlay_address=ip_address(address))


def test_who_came_first_keeps_a_link_layer_address() -> None:
    """That of a node of flannel's follows from nothing: without it, it has none."""
    first, late = B._replace(vtep_mac=MAC), C._replace(vtep_mac=MAC)
    for membership in (of(A, first, late), told(Put(late), Put(A), Put(first))):
        assert macs(membership) == ["", MAC, ""]
        assert reasons(membership) == [("c", VTEP, "b")]
        assert "node c announces" in only(membership).message
        assert "node b has, which came first" in only(membership).message
    assert membership.apply(Put(B._replace(vtep_mac=MAC_2)))
    assert macs(membership) == ["", MAC_2, MAC]
    assert membership.refusals() == ()
    membership.apply(Put(first))
    assert macs(membership) == ["", MAC, ""]
    membership.apply(Gone("b"))
    assert macs(membership) == ["", MAC]


@pytest.mark.parametrize("victim", ["a", "c"], ids=["this node's", "another's"])
def test_nobody_announces_what_follows_from_the_name_of_another(victim: str) -> None:
    """However old it is, and whether or not that one has announced it."""
    mac = vtep_mac(1, victim)
    claimant = B._replace(vtep_mac=mac, since="0")
    membership = of(A, claimant, C)
    assert macs(membership) == ["", "", ""]
    assert reasons(membership) == [("b", VTEP, victim)]
    assert f"follows from the name of node {victim}" in only(membership).message
    victims = {"a": A, "c": C}[victim]
    membership.apply(Put(victims._replace(vtep_mac=mac)))
    said = dict(zip("abc", macs(membership), strict=True))
    assert said[victim] == ("" if victim == "a" else mac)
    assert reasons(membership) == [("b", VTEP, victim)]
    membership.apply(Gone(victim))
    assert macs(membership)[0 if victim == "a" else 1] == mac


def test_two_names_that_the_same_link_layer_address_follows_from() -> None:
    """Rare, and easily made by whoever may make Nodes: it costs nobody else anything."""
    names = ("n2078295", "n10410603")
    assert len({vtep_mac(1, name) for name in names}) == 1
    one, other = (
        member(name, f"192.168.1.{number}", f"10.244.{number}.0/24", since="2")
        for number, name in enumerate(names, 3)
    )
    mac = vtep_mac(1, names[0])
    thief = member("thief", "192.168.1.9", "10.244.9.0/24", since="3", vtep_mac=mac)
    membership = of(A, one, other, thief)
    for name in names:
        holder = min({name, names[1]})  # of as old ones the first by name
        assert reasons(membership) == [("thief", VTEP, holder)]
        membership.apply(Gone(name))
    assert membership.refusals() == ()


def test_what_follows_from_a_name_depends_on_the_overlay() -> None:
    claimant = B._replace(vtep_mac=vtep_mac(7, "c"))
    membership = of(A, claimant, C)
    assert membership.refusals() == ()
    assert membership.overlay_of(7)
    assert not membership.overlay_of(7)
    assert reasons(membership) == [("b", VTEP, "c")]
    assert membership.overlay_of(1)
    assert macs(membership) == ["", claimant.vtep_mac, ""]


def test_a_link_layer_address_of_no_station() -> None:
    for mac in ("01:00:5e:00:00:01", "00:00:00:00:00:00", "x"):
        membership = of(A, B._replace(vtep_mac=mac))
        assert macs(membership) == ["", ""]
        assert reasons(membership) == [("b", VTEP, "")]
        assert "no single station" in only(membership).message


def test_the_overlay_goes_where_a_member_says() -> None:
    for address in ("192.168.1.3", "203.0.113.3"):
        membership = of(A, saying(B, address))
        assert overlays(membership) == ["", address]
        assert membership.refusals() == ()


@pytest.mark.parametrize(
    ("address", "word", "holder"),
    [
        ("192.168.1.2", "the node that was to send", "a"),
        ("192.168.1.4", "the address of node c", "c"),
        ("10.244.3.9", "inside podCIDR 10.244.3.0/24 of node c", "c"),
        ("10.244.2.9", "inside podCIDR 10.244.2.0/24 of node b", "b"),
        ("192.168.1.255", "no node's address in 192.168.1.0/24 (eth0)", "a"),
        ("192.168.1.0", "no node's address", "a"),
        ("203.0.113.1", "no node's address in 203.0.113.1/32 (the API server)", "a"),
        ("255.255.255.255", "no other node can send to", ""),
        ("127.0.0.1", "no other node can send to", ""),
        ("fd00:1::3", "has no IPv6 address", ""),
    ],
)
def test_where_the_overlay_can_not_go(address: str, word: str, holder: str) -> None:
    """It goes to the node's own address then."""
    membership = of(A, saying(B, address), C)
    local = [("eth0", ip_network("192.168.1.0/24")), ("the API server", ip_network("203.0.113.1"))]
    membership.keep_out(local)
    assert overlays(membership) == ["", "", ""]
    assert reasons(membership) == [("b", VTEP, holder)]
    assert word in only(membership).message
    assert membership.apply(Put(B))
    assert membership.refusals() == ()


def test_who_came_first_has_the_overlay_sent_somewhere() -> None:
    first, late = saying(B, "203.0.113.3"), saying(C, "203.0.113.3")
    for membership in (of(A, first, late), told(Put(late), Put(A), Put(first))):
        assert overlays(membership) == ["", "203.0.113.3", ""]
        assert reasons(membership) == [("c", VTEP, "b")]
    membership.apply(Gone("b"))
    assert overlays(membership) == ["", "203.0.113.3"]


def test_an_announcement_takes_nobodys_address_or_subnet() -> None:
    """However old the node is that announces it."""
    early = saying(B, "192.168.1.9")._replace(since="0")
    membership = of(A, early)
    assert overlays(membership) == ["", "192.168.1.9"]
    membership.apply(Put(C._replace(addresses=(ip_address("192.168.1.9"),))))
    assert overlays(membership) == ["", "", ""]
    assert [node.name for node in membership.nodes()] == ["a", "b", "c"]
    assert reasons(membership) == [("b", VTEP, "c")]
    membership.apply(Put(member("c", "192.168.1.4", "192.168.1.8/29", since="3")))
    assert subnets(membership)["c"] == ["192.168.1.8/29"]
    assert reasons(membership) == [("b", VTEP, "c")]
    membership.apply(Gone("c"))
    assert overlays(membership) == ["", "192.168.1.9"]


def test_what_this_node_announced_is_left_out() -> None:
    """It announces what it has: what is there may be from before its address changed."""
    for own in (saying(A, "192.168.1.4")._replace(vtep_mac="x"), saying(A, "203.0.113.9")):
        membership = of(own, C)
        assert (macs(membership), overlays(membership)) == (["", ""], ["", ""])
        assert membership.refusals() == ()


# --- any sequence of changes ------------------------------------------------------------------


_NETWORKS: list[IPNetwork] = [
    *(IPv4Network((10 << 24, size)) for size in (8, 12)),
    *(IPv4Network(((10 << 24) + i * 64, 26)) for i in range(4)),
    *(IPv4Network(((10 << 24) + i * 256, 24)) for i in range(3)),
    *(IPv6Network(((0xFD << 120) + (i << 64), 64)) for i in range(3)),
    *(IPv6Network(((0xFD << 120), size)) for size in (48, 127)),
    *map(ip_network, ("127.0.0.0/24", "ff00::/16", "::ffff:a00:0/120")),
]
_ADDRESSES = [
    *(net.network_address + i for net in _NETWORKS[2:11] for i in (1, 2)),
    *map(ip_address, ("192.168.1.1", "192.168.1.2", "192.168.1.3", "fd00:1::1", "127.0.0.1")),
]
_members = st.builds(
    Member,
    st.sampled_from("abcdef"),
    st.lists(st.sampled_from(_ADDRESSES), max_size=3).map(tuple),
    st.lists(st.sampled_from(_NETWORKS), max_size=3).map(tuple),
    st.sampled_from("123"),
    overlay_address=st.none() | st.sampled_from(_ADDRESSES),
    vtep_mac=st.sampled_from(
        ["", MAC, MAC_2, "01:00:00:00:00:00", "?", *(vtep_mac(v, n) for n in "abc" for v in (1, 2))]
    ),
    problem=st.sampled_from(["", "spec.podCIDR: no CIDR"]),
)
_changes = st.lists(
    st.one_of(
        _members.map(Put),
        _members.map(Put),
        st.sampled_from("abcdef").map(Gone),
        st.lists(_members, max_size=4, unique_by=lambda each: each.name).map(tuple).map(Listed),
        st.just(Away("")),
    ),
    max_size=12,
)


def final(changes: Sequence[Change]) -> dict[str, Member]:
    members: dict[str, Member] = {}
    for change in changes:
        if isinstance(change, Listed):
            members = {each.name: each for each in change.members}
        elif isinstance(change, Put):
            members[change.member.name] = change.member
        elif isinstance(change, Gone):
            members.pop(change.name, None)
    return members


@given(_changes)
@settings(max_examples=400, deadline=None)
def test_any_sequence_gives_a_valid_inventory_that_tells_only_of_the_last_members(
    changes: Sequence[Change],
) -> None:
    membership = Membership("a")
    for change in changes:
        before = membership.nodes(), membership.refusals()
        assert membership.apply(change) == (before != (membership.nodes(), membership.refusals()))
    nodes, members = membership.nodes(), final(changes)
    if nodes:
        data = inventory.encode(nodes)
        known = inventory.parse(data, "nodes.json")
        assert known.nodes == nodes
        for own in nodes:
            refuse_overlaps(known, own)
    anew = of(*members.values())
    assert (nodes, membership.refusals()) == (anew.nodes(), anew.refusals())
    assert membership.own() == anew.own()


_SERVER = ("the API server", ip_network("192.168.1.3"))
_LOCALS = ([], [("eth0", ip_network("10.0.0.0/26"))], [_SERVER, ("eth0", ip_network("fd00::/64"))])


@given(st.lists(st.tuples(_changes, st.sampled_from(_LOCALS), st.sampled_from([1, 2])), max_size=4))
@settings(max_examples=300, deadline=None)
def test_what_this_node_has_is_heeded_whenever_it_is_told(
    parts: list[tuple[list[Change], list[tuple[str, IPNetwork]], int]],
) -> None:
    """Links and the overlay of this node may change at any time."""
    membership = Membership("a")
    for changes, local, vni in parts:
        for change in changes:
            membership.apply(change)
        membership.keep_out(local)
        membership.overlay_of(vni)
    anew = Membership("a")
    anew.keep_out(parts[-1][1] if parts else [])
    anew.overlay_of(parts[-1][2] if parts else 1)
    anew.apply(Listed(tuple(final([c for changes, *_ in parts for c in changes]).values())))
    assert (membership.nodes(), membership.refusals()) == (anew.nodes(), anew.refusals())


@given(_changes)
@settings(max_examples=150, deadline=None)
def test_who_is_refused_what_it_announces_without_an_index(changes: Sequence[Change]) -> None:
    """The rules as they read, all members compared."""
    members = sorted(final(changes).values(), key=lambda m: (m.since, m.name))
    membership = told(*changes)
    nodes = {node.name: node for node in membership.nodes()}
    derived = {vtep_mac(1, each.name): each.name for each in members}
    first: dict[str, str] = {}
    for each in members:
        first.setdefault(each.vtep_mac, each.name)
    told_to: dict[str, str] = {}
    for each in members:
        told_to.setdefault(str(each.overlay_address), each.name)
    own = next((m.addresses for m in members if m.name == "a"), ())
    for each in members:
        if each.name not in nodes or each.name == "a":  # this node itself
            continue
        node, mac, said = nodes[each.name], each.vtep_mac, each.overlay_address
        stands = is_mac(mac) and derived.get(mac, first[mac]) == each.name
        assert node.vtep_mac == (mac if stands else "")
        if said is None:
            assert node.overlay_address is None
            continue
        stood = [standing(members, m.name) for m in members]
        others = [ip_network(a) for m in stood if m.name != each.name for a in m.addresses]
        others += [subnet for m in stood for subnet in m.pod_cidrs]
        free = not any(network.version == said.version and said in network for network in others)
        usable = not is_unreachable(said) and said not in own and free
        usable = usable and any(a.version == said.version for a in node.addresses)
        usable = usable and told_to[str(said)] == each.name
        assert node.overlay_address == (said if usable or said in node.addresses else None)


def standing(members: Sequence[Member], name: str) -> Member:
    """What of a member's stands, also of one that is no node: as its own table says."""
    own = told(Listed(tuple(members)), own=name).own()
    assert own is not None
    return own


@given(_changes)
@settings(max_examples=400, deadline=None)
def test_first_come_first_served_without_an_index(changes: Sequence[Change]) -> None:
    """The rule as it reads, all pairs compared."""
    members = final(changes)
    held: list[IPNetwork] = []
    expected: dict[str, list[str]] = {}
    for each in sorted(members.values(), key=lambda m: (m.since, m.name)):
        addresses = [a for a in dict.fromkeys(each.addresses) if not is_unreachable(a)]
        wanted: list[IPNetwork] = [ip_network(address) for address in addresses]
        good = [n for n in _NETWORKS[:-3] if n.prefixlen < 127]
        wanted += [n for n in dict.fromkeys(each.pod_cidrs) if n in good]
        mine = expected.setdefault(each.name, [])
        for network in wanted:
            if not any(o.version == network.version and o.overlaps(network) for o in held):
                held.append(network)
                mine.append(str(network))
    membership = told(*changes)
    found = {
        node.name: [str(ip_network(a)) for a in node.addresses] + list(map(str, node.pod_cidrs))
        for node in membership.nodes()
    }
    hosts = (32, 128)
    assert found == {
        name: mine
        for name, mine in expected.items()
        if any(ip_network(text).prefixlen in hosts for text in mine)
    }


def test_a_change_among_many_nodes_costs_little() -> None:
    """The bound is ten times what it takes on a slow machine."""
    many = 5000
    membership = Membership("n0")
    address, subnet = ip_address("172.16.0.1"), ip_address("10.0.0.0")
    members = [
        Member(f"n{i}", (address + i,), (IPv4Network((int(subnet) + 256 * i, 24)),), str(i))
        for i in range(many)
    ]
    membership.apply(Listed(tuple(members)))
    assert len(membership.nodes()) == many
    begun = time.process_time()
    for each in members[:200]:
        assert membership.apply(Put(each._replace(pod_cidrs=(ip_network("11.0.0.0/24"),))))
        assert membership.apply(Put(each))
    assert (time.process_time() - begun) / 400 < 0.002
