"""The strategy: order, what is never handed out, and what it costs; with a store in memory."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cni_plugin.spec import Attachment, CniError, Code, IPAddress
from ipam import ranges
from ipam.allocator import PROBES, allocate, assign, candidates, vacant
from ipam.ranges import Range, RangeSet
from tests.unit.fake_store import MemoryStore


def span(subnet: str, start: str = "", end: str = "", gateway: str = "") -> Range:
    network = ip_network(subnet)
    return Range(
        network,
        ip_address(start) if start else ranges.first(network),
        ip_address(end) if end else ranges.last(network),
        ip_address(gateway) if gateway else ranges.first(network),
    )


def texts(range_set: RangeSet, last: str = "") -> list[str]:
    return [str(a) for a in candidates(range_set, ip_address(last) if last else None)]


def pod(number: int) -> Attachment:
    return Attachment(f"c{number}", "eth0")


# --- order ------------------------------------------------------------------------------------


def test_order_goes_round() -> None:
    one = (span("10.0.0.0/29"),)
    assert texts(one) == [f"10.0.0.{i}" for i in (2, 3, 4, 5, 6)]
    assert texts(one, "10.0.0.4") == [f"10.0.0.{i}" for i in (5, 6, 2, 3, 4)]
    assert texts(one, "10.0.0.6") == [f"10.0.0.{i}" for i in (2, 3, 4, 5, 6)]
    assert texts(one, "10.9.0.4") == texts(one)


def test_order_goes_through_the_ranges_of_a_set() -> None:
    two = (span("10.0.0.0/30"), span("10.0.1.0/29", "10.0.1.4"))
    assert texts(two) == ["10.0.0.2", "10.0.1.4", "10.0.1.5", "10.0.1.6"]
    assert texts(two, "10.0.1.5") == ["10.0.1.6", "10.0.0.2", "10.0.1.4", "10.0.1.5"]
    assert texts(two, "10.0.0.2") == ["10.0.1.4", "10.0.1.5", "10.0.1.6", "10.0.0.2"]


def test_never_a_gateway_network_or_broadcast_address() -> None:
    halves = (
        span("10.0.0.0/29", "10.0.0.0", "10.0.0.3", "10.0.0.5"),
        span("10.0.0.0/29", "10.0.0.4", "10.0.0.7", "10.0.0.2"),
    )
    assert texts(halves) == [f"10.0.0.{i}" for i in (1, 3, 4, 6)]
    assert texts((span("fd00::/126", "fd00::"),)) == ["fd00::2", "fd00::3"]


def test_a_huge_range_costs_what_is_taken_of_it() -> None:
    huge = (span("fd00::/64"),)
    end = ip_address("fd00::ffff:ffff:ffff:ffff")
    order = candidates(huge, end - 1)
    assert [str(a) for a in islice(order, 3)] == [str(end), "fd00::2", "fd00::3"]
    store = MemoryStore()
    wanted: tuple[IPAddress | None, ...] = (None,)
    for number in range(PROBES + 50):
        allocate(store, (huge,), pod(number), wanted)
    assert store.listed == 0
    store.cursors.clear()
    allocate(store, (huge,), pod(-1), wanted)
    assert store.listed == 1


# --- what it costs ----------------------------------------------------------------------------


def test_probes_are_bounded_and_the_names_are_listed_once() -> None:
    one = (span("10.0.0.0/22"),)
    store = MemoryStore()
    for number in range(PROBES * 3):
        store.reserve(IPv4Address("10.0.0.2") + number, pod(number), None)
    free = vacant(one, None, store.taken, store.names)
    assert str(next(free)) == str(IPv4Address("10.0.0.2") + PROBES * 3)
    assert (store.asked, store.listed) == (PROBES, 1)
    assert sum(1 for _ in free) == 1022 - 1 - PROBES * 3 - 1
    assert (store.asked, store.listed) == (PROBES, 1)


# --- requested addresses ----------------------------------------------------------------------

SETS = ((span("10.0.0.0/24"), span("10.0.2.0/24")), (span("fd00::/64"),), (span("10.0.1.0/24"),))


def asked(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ip_address(text) for text in texts)


def test_each_requested_address_finds_its_set() -> None:
    found = assign(SETS, asked("10.0.1.7", "10.0.2.5", "10.0.1.7"))
    assert found == (ip_address("10.0.2.5"), None, ip_address("10.0.1.7"))
    assert assign(SETS, ()) == (None, None, None)


@pytest.mark.parametrize(
    ("addresses", "part"),
    [
        (["10.9.0.1"], "10.9.0.1 is outside"),
        (["10.0.0.1"], "10.0.0.1 is a gateway"),
        (["10.0.0.5", "10.0.2.5"], "10.0.2.5 is the second"),
        (["10.0.0.5", "::1"], "::1 is outside"),
    ],
)
def test_requests_that_no_set_can_serve(addresses: list[str], part: str) -> None:
    with pytest.raises(CniError) as caught:
        assign(SETS, asked(*addresses))
    assert caught.value.code == Code.ADDRESS_UNAVAILABLE
    assert part in caught.value.msg


def test_the_bounds_of_a_subnet_are_refused_on_request() -> None:
    whole = ((span("10.0.0.0/24", "10.0.0.0", "10.0.0.255"),),)
    for text in ("10.0.0.0", "10.0.0.255"):
        with pytest.raises(CniError):
            assign(whole, asked(text))


# --- all or none ------------------------------------------------------------------------------


def outcome(store: MemoryStore, sets: Any, number: int, *texts: str) -> int:
    """0, or the error's code."""
    try:
        allocate(store, sets, pod(number), assign(sets, asked(*texts)))
    except CniError as e:
        return e.code
    return 0


def test_one_address_of_each_set_with_its_prefix_and_gateway() -> None:
    ips = allocate(MemoryStore(), SETS, pod(1), (None, None, ip_address("10.0.1.9")))
    assert [(str(ip.address), str(ip.gateway)) for ip in ips] == [
        ("10.0.0.2/24", "10.0.0.1"),
        ("fd00::2/64", "fd00::1"),
        ("10.0.1.9/24", "10.0.1.1"),
    ]


def test_nothing_stays_reserved_when_a_later_set_refuses() -> None:
    sets = ((span("10.0.0.0/24"),), (span("fd00::/126"),))
    store = MemoryStore()
    assert [outcome(store, sets, i) for i in range(3)] == [0, 0, Code.POOL_EXHAUSTED]
    assert outcome(store, sets, 4, "fd00::2") == Code.ADDRESS_UNAVAILABLE
    assert len(store.reserved) == 4
    assert set(store.reserved.values()) == {pod(0), pod(1)}


def test_no_attachment_is_served_twice() -> None:
    store = MemoryStore()
    assert outcome(store, SETS, 1) == 0
    assert outcome(store, SETS, 1) == Code.DUPLICATE_ALLOCATION
    assert outcome(store, SETS, 1, "10.0.0.77") == Code.DUPLICATE_ALLOCATION
    store.reserve(ip_address("10.0.0.200"), Attachment("c2", ""), None)
    assert outcome(store, SETS, 2) == Code.DUPLICATE_ALLOCATION
    store.reserve(ip_address("192.168.0.2"), pod(3), None)  # of ranges that are configured no more
    assert outcome(store, SETS, 3) == 0


def test_the_holder_of_a_requested_address_is_named() -> None:
    store = MemoryStore()
    assert outcome(store, SETS, 1, "10.0.0.77") == 0
    with pytest.raises(CniError, match=r"10\.0\.0\.77 is reserved for container c1 eth0"):
        allocate(store, SETS, pod(2), assign(SETS, asked("10.0.0.77")))


def test_a_requested_address_moves_the_cursor() -> None:
    store = MemoryStore()
    assert outcome(store, SETS, 1, "10.0.0.77") == 0
    assert str(allocate(store, SETS, pod(2), (None,) * 3)[0].address.ip) == "10.0.0.78"


def test_what_nobody_holds_is_reclaimed_before_a_set_is_called_exhausted() -> None:
    sets = ((span("10.0.0.0/30"),),)
    store = MemoryStore(asked("10.0.0.2"))
    assert outcome(store, sets, 1) == 0
    assert outcome(store, sets, 2) == Code.POOL_EXHAUSTED


# --- properties -------------------------------------------------------------------------------


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    """Up to three ranges, each in a /28 (or /124) of its own, with any bounds and gateways."""
    base = draw(st.sampled_from([int(ip_address("10.0.0.0")), int(ip_address("fd00::"))]))
    size = 32 if base < 2**32 else 128
    made = []
    for block in range(draw(st.integers(1, 3))):
        bottom = base + 16 * block
        low = draw(st.integers(0, 15))
        high = draw(st.integers(low, 15))
        made.append(
            Range(
                ip_network((bottom, size - 4)),
                ip_address(bottom + low),
                ip_address(bottom + high),
                ip_address(base + draw(st.integers(0, 60))),
            )
        )
    return tuple(made)


@settings(deadline=None)
@given(range_sets(), st.integers(0, 50))
def test_every_address_comes_once_in_order(range_set: RangeSet, offset: int) -> None:
    plain = list(candidates(range_set, None))
    usable = [
        address
        for entry in range_set
        for address in entry.subnet
        if entry.contains(address)
        and address not in {r.gateway for r in range_set}
        and address != entry.subnet.network_address
        and not (address.version == 4 and address == entry.subnet.broadcast_address)
    ]
    assert plain == usable
    last = range_set[0].subnet.network_address + offset
    turned = list(candidates(range_set, last))
    assert sorted(turned, key=int) == plain
    if ranges.find(range_set, last):
        behind = [address for address in plain if int(address) > int(last)]
        assert turned == behind + [a for a in plain if int(a) <= int(last)]
    else:
        assert turned == plain


class Allocation(RuleBasedStateMachine):
    """ADDs and DELs in any order, against what may be said of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sets = (
            (span("10.0.0.0/29"), span("10.0.1.0/29", gateway="10.0.0.4")),
            (span("fd00::/125"),),
        )
        self.store = MemoryStore()
        self.held: dict[int, tuple[IPAddress, ...]] = {}

    @rule(number=st.integers(0, 12))
    def add(self, number: int) -> None:
        before = dict(self.store.reserved)
        try:
            ips = allocate(self.store, self.sets, pod(number), (None, None))
        except CniError as e:
            assert self.store.reserved == before
            assert e.code == Code.DUPLICATE_ALLOCATION if number in self.held else True
            if e.code == Code.POOL_EXHAUSTED:
                assert len(self.held) == 6  # fd00::2 to fd00::7
        else:
            self.held[number] = tuple(ip.address.ip for ip in ips)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        for address in self.held.pop(number):
            assert self.store.release(address, pod(number))

    @invariant()
    def distinct_and_fit(self) -> None:
        handed = [address for held in self.held.values() for address in held]
        assert len(set(handed)) == len(handed)
        assert not {str(a) for a in handed} & {"10.0.0.1", "10.0.0.4", "10.0.0.7", "fd00::1"}
        assert set(self.store.reserved) == set(handed)


TestAllocation = Allocation.TestCase
TestAllocation.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
