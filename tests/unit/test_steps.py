"""What differs between two lists of nodes, and what is kept by it: always what all of it says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.agent.coverage import Coverage, Numbers
from cni_plugin.agent.fitting import Fitting
from cni_plugin.alike import same_ends
from cni_plugin.crossnode import CrossNode
from cni_plugin.ruleset import ranges
from cni_plugin.spec import CniError, IPAddress, IPNetwork
from ipam import peers, steps
from ipam.claims import Claims
from ipam.inventory import Inventory
from ipam.nodes import Node
from ipam.overlaps import refuse_overlaps
from ipam.steps import step

# --- two lists --------------------------------------------------------------------------------


def named(names: Sequence[str], macs: Sequence[str] = ()) -> tuple[Node, ...]:
    said = [*macs, *[""] * len(names)]
    return tuple(Node(name, (), vtep_mac=mac) for name, mac in zip(names, said, strict=False))


_lists = st.lists(st.integers(0, 400), unique=True, max_size=200).flatmap(
    lambda numbers: st.tuples(
        st.just([f"n{number}" for number in numbers]),
        st.lists(st.sampled_from(["", "x"]), max_size=len(numbers)),
        st.booleans(),
    )
)


@given(_lists, _lists)
@settings(deadline=None)
def test_a_step_is_what_a_comparison_of_all_says(
    one: tuple[list[str], list[str], bool], other: tuple[list[str], list[str], bool]
) -> None:
    """Whether the lists are in order or not."""
    former, now = (
        tuple(sorted(named(names, macs))) if in_order else named(names, macs)
        for names, macs, in_order in (one, other)
    )
    found = step(former, now)
    before, after = ({node.name: node for node in nodes} for nodes in (former, now))
    assert sorted(found.gone) == sorted(n for n in former if after.get(n.name) != n)
    assert sorted(found.new) == sorted(n for n in now if before.get(n.name) != n)
    names = {node.name for node in (*found.gone, *found.new)}
    assert all(found.concerns(name) == (name in names) for name in (*before, *after))


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_same_ends(former: list[int], now: list[int]) -> None:
    begin, end = same_ends(tuple(former), tuple(now))
    assert former[:begin] == now[:begin]
    assert former[len(former) - end :] == now[len(now) - end :]
    assert begin + end <= min(len(former), len(now))
    rest, other = former[begin : len(former) - end], now[begin : len(now) - end]
    assert not (rest and other) or (rest[0] != other[0] and rest[-1] != other[-1])


def test_a_step_of_thousands_costs_little() -> None:
    """Less than half of comparing all of them one by one: it is a tenth, or less."""
    many = named([f"node-{number:05}" for number in range(20_000)])
    spent = 0.0
    for place in (1, 7_000, 19_000):
        now = (*many[:place], many[place]._replace(vtep_mac="x"), *many[place + 1 : -1])
        begun = time.process_time()
        found = step(many, now)
        spent += time.process_time() - begun
        assert (found.gone, found.new) == ((many[place], many[-1]), (now[place],))
    begun = time.process_time()
    before = {node.name: node for node in many}
    assert [node for node in many if before.get(node.name) != node] == []
    assert spent / 3 < (time.process_time() - begun) / 2


def test_the_last_step_is_kept() -> None:
    former, now = named(["a", "b"]), named(["a", "c"])
    assert step(former, now) is step(former, now)
    assert step(now, former).new == named(["b"])
    assert steps.step(former, now).new == named(["c"])


# --- overlaps ---------------------------------------------------------------------------------

_SUBNETS = [
    *(IPv4Network(((10 << 24) + i * 64, 26)) for i in range(6)),
    *map(ip_network, ("10.0.0.0/24", "10.0.0.0/22", "fd00::/64", "fd00::/63")),
]
_HOSTS = [ip_address(text) for text in ("10.0.0.1", "10.0.0.65", "10.0.9.1", "fd00::1", "fd99::1")]
_PREFIXES = [ip_network(text) for text in ("10.0.0.0/30", "10.0.9.0/24", "fd00::/120")]
_nodes = st.builds(
    Node,
    st.sampled_from("abcde"),
    st.lists(st.sampled_from(_HOSTS), max_size=2, unique=True).map(tuple),
    st.lists(st.sampled_from(_PREFIXES), max_size=1).map(tuple),
    st.lists(st.sampled_from(_SUBNETS), max_size=2).map(tuple),
)
_changes = st.lists(st.tuples(_nodes, st.booleans()), max_size=14)


def overlap(nodes: Sequence[Node], link: IPNetwork | None = None) -> bool:
    local = [("eth0", link)] if link is not None else []
    try:
        refuse_overlaps(Inventory("nodes.json", tuple(nodes)), Node("a", ()), local)
    except CniError:
        return True
    return False


@given(_changes)
@settings(max_examples=500, deadline=None)
def test_an_overlap_is_found_when_it_comes(changes: list[tuple[Node, bool]]) -> None:
    nodes: tuple[Node, ...] = ()
    claims = Claims(nodes)
    for node, comes in changes:
        others = tuple(each for each in nodes if each.name != node.name)
        now = tuple(sorted((*others, node), key=lambda n: n.name)) if comes else others
        good = claims.take(step(nodes, now))
        assert good == (not overlap(now))
        if not good:  # it is to be made anew then
            claims = Claims(nodes)
            continue
        nodes = now
        for network in (*_SUBNETS, *_PREFIXES):
            assert claims.meets(network) == overlap(nodes, network)


# --- what carries the overlay -----------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.lists(_nodes, max_size=4, unique_by=lambda n: n.name).map(tuple),
            st.sampled_from([CrossNode(), CrossNode(cidr=ip_network("fd00::/16"))]),
        ),
        max_size=8,
    )
)
@settings(max_examples=300, deadline=None)
def test_the_family_of_the_overlay_is_that_of_the_nodes_there_are(
    turns: list[tuple[tuple[Node, ...], CrossNode]],
) -> None:
    for nodes, cross in turns:
        known = Inventory("nodes.json", nodes)
        expected = found = 0
        with suppress(CniError):
            expected = peers._underlay_version(known, cross)
        with suppress(CniError):
            found = peers.underlay_version(known, cross)
        assert found == expected


_families = st.lists(st.sampled_from(_HOSTS), min_size=1, max_size=2, unique=True).map(tuple)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | _families), max_size=20))
@settings(max_examples=500, deadline=None)
def test_whatever_changes_all_that_fit_share_the_family_of_the_overlay(
    changes: list[tuple[str, tuple[IPAddress, ...] | None]],
) -> None:
    """Nodes of one family or both come and go, get addresses and lose them, one after the other."""
    there: dict[str, Node] = {}
    fitting = Fitting()
    cross = CrossNode()
    for name, addresses in changes:
        there.pop(name, None)
        if addresses is not None:
            there[name] = Node(name, addresses)
        nodes = tuple(sorted(there.values(), key=lambda node: node.name))
        fit, refusals = fitting.fit(nodes, "auto")
        assert (fit, refusals) == Fitting().fit(nodes, "auto")
        known = Inventory("nodes.json", fit)
        version = peers.underlay_version(known, cross)
        assert version == peers._underlay_version(known, cross)
        assert all(peers.underlay_address(n, version, cross).version == version for n in fit)


# --- ranges -----------------------------------------------------------------------------------

_networks = st.one_of(
    st.builds(
        lambda number, bits: IPv4Network((((10 << 24) + number) >> bits << bits, 32 - bits)),
        st.integers(0, 255),
        st.integers(0, 8),
    ),
    st.sampled_from(["0.0.0.0/0", "0.0.0.0/32", "255.255.255.255/32", "224.0.0.0/4"]).map(
        IPv4Network
    ),
)


@given(st.lists(st.tuples(_networks, st.integers(0, 30)), max_size=40))
@settings(max_examples=500, deadline=None)
def test_ranges_that_grow_and_shrink(moves: list[tuple[IPv4Network, int]]) -> None:
    held: list[IPv4Network] = []
    coverage, numbers = Coverage(), Numbers()
    for network, at in moves:
        if at < len(held):
            gone = held.pop(at)
            coverage.remove(gone)
            numbers.remove(int(gone.network_address))
        held.append(network)
        coverage.add(network)
        numbers.add(int(network.network_address))
        assert coverage.ranges() == ranges(4, held) == Coverage(held).ranges()
        assert numbers.all() == tuple(sorted({int(n.network_address) for n in held}))
    for network in held:
        coverage.remove(network)
    assert coverage.ranges() == ()
