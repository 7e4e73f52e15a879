"""The decisions of the etcd source: subnets, claims, members. No etcd is needed."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from logging import getLogger
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.sources import Announcement, Away, Gone, Member, Put, Readiness, etcd
from cni_plugin.sources import etcd_state as state
from cni_plugin.sources.etcd_addresses import kept
from cni_plugin.sources.etcd_claims import Claim, NamesakeError, NoSubnetError, Plan, plan
from cni_plugin.sources.etcd_layout import (
    Layout,
    Network,
    Own,
    PodwireLayout,
    Said,
    dashed,
    status,
    undashed,
)
from cni_plugin.sources.etcd_members import Members
from cni_plugin.sources.etcd_messages import Event, KeyValue
from cni_plugin.sources.etcd_options import EtcdOptions
from cni_plugin.sources.etcd_pools import Pool, whole_pool
from cni_plugin.spec import CniError, Code, IPNetwork

LAYOUT: Layout = PodwireLayout("/podwire")
LOG = getLogger("test")
OWN = Own("node-1", (ip_address("192.168.1.1"),))


def pool(network: str, length: int) -> Pool:
    return whole_pool(ip_network(network), length, "pool", "length")


def subnets(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(text) for text in texts)


# --- pools --------------------------------------------------------------------------------------


def test_every_free_subnet_can_be_chosen_and_no_other() -> None:
    made = pool("10.244.0.0/21", 24)
    taken = subnets("10.244.1.0/24", "10.244.4.0/23", "10.244.4.0/24", "10.9.0.0/16", "fd00::/64")
    chosen = [str(made.pick(taken, lambda free, n=n: n)) for n in range(5)]  # type: ignore[misc]
    assert chosen == [f"10.244.{n}.0/24" for n in (0, 2, 3, 6, 7)]
    seen: list[int] = []
    made.pick(taken, lambda free: seen.append(free) or 0)
    assert seen == [5]


def test_a_subnet_may_be_part_of_one_that_is_taken() -> None:
    made = pool("10.244.0.0/23", 24)
    assert made.pick(subnets("10.0.0.0/8"), lambda free: 0) is None
    assert str(made.pick(subnets("10.244.1.128/25"), lambda free: 0)) == "10.244.0.0/24"


def test_a_great_pool_costs_nothing() -> None:
    made = pool("fd00::/16", 112)
    assert made.last == 2**96 - 1
    found = made.pick(subnets("fd00::/17"), lambda free: free - 1)
    assert str(found) == "fd00:ffff:ffff:ffff:ffff:ffff:ffff:0/112"


@given(st.sets(st.integers(0, 63), max_size=63), st.integers(0, 2**32))
def test_what_is_picked_is_free(taken: set[int], number: int) -> None:
    made = pool("10.244.0.0/18", 24)
    found = made.pick([made.subnet(n) for n in taken], lambda free: number % free)
    assert found is not None
    assert made.offers(found)
    assert made.number(found.network_address) not in taken


def test_what_a_pool_offers() -> None:
    made = pool("10.244.0.0/16", 24)._replace(first=1, last=3)
    offered = [
        text for text in ("10.244.0.0/24", "10.244.1.0/24", "10.244.3.0/24") if offers(made, text)
    ]
    assert offered == ["10.244.1.0/24", "10.244.3.0/24"]
    assert not any(offers(made, text) for text in ("10.244.4.0/24", "10.244.2.0/25", "fd00::/24"))


def offers(made: Pool, text: str) -> bool:
    return made.offers(ip_network(text))


@pytest.mark.parametrize(
    ("network", "length", "words"),
    [
        ("10.244.0.0/16", 15, "length: expected a number from 16"),
        ("10.244.0.0/16", 31, "length: expected a number from 16"),
        ("fd00::/48", 127, "length: expected a number from 48"),
        ("127.0.0.0/16", 24, "pool: expected a network outside of 127.0.0.0/8"),
    ],
)
def test_pools_that_can_not_be(network: str, length: int, words: str) -> None:
    with pytest.raises(CniError) as e:
        pool(network, length)
    assert e.value.code == Code.INVALID_CONFIG
    assert e.value.msg.startswith(words)


# --- keys and values ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["10.244.3.0/24", "fd00:10:244:3::/64", "10.0.0.0/8"])
def test_keys_are_read_as_they_are_written(text: str) -> None:
    cidr = ip_network(text)
    assert undashed(dashed(cidr)) == cidr
    (key,) = LAYOUT.subnet_keys([cidr])
    assert key == f"/podwire/subnets/{text.replace('/', '-')}"
    assert LAYOUT.subnet(key) == cidr


@pytest.mark.parametrize(
    "text", ["", "x", "10.244.3.0", "10.244.3.1-24", "10.244.3.0-33", "10.244.3.0-024", "fd00::-x"]
)
def test_other_keys_are_none_of_a_subnet(text: str) -> None:
    assert LAYOUT.subnet(f"/podwire/subnets/{text}") is None


def network(*pools: Pool) -> Network:
    return Network(pools or (pool("10.244.0.0/16", 24),))


def test_a_value_is_read_as_it_is_written() -> None:
    cidrs = subnets("10.244.3.0/24", "fd00:10:244:3::/64")
    said = Announcement("02:00:00:00:00:01", ip_address("10.244.3.0"), "vxlan vni=1 port=8472")
    value = LAYOUT.value(OWN, cidrs, Said(said, "2026-01-01T00:00:00Z"), network())
    kv = KeyValue("/podwire/subnets/10.244.3.0-24", value, create_revision=77, mod_revision=99)
    assert LAYOUT.member(kv, network()) == Member(
        "node-1",
        OWN.addresses,
        cidrs,
        since="00000000000000000077",
        overlay_address=ip_address("10.244.3.0"),
        vtep_mac="02:00:00:00:00:01",
        backend="vxlan vni=1 port=8472",
    )
    assert LAYOUT.said(kv) == Said(said, "2026-01-01T00:00:00Z")


GOOD = {"name": "n", "addresses": ["192.168.1.9"], "podCIDRs": ["10.244.3.0/24"]}


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        ({"name": "a b"}, "key-10.244.3.0-24", ".name: expected a name"),
        ({"name": 5}, "key-10.244.3.0-24", ".name: expected a string"),
        ({"addresses": []}, "n", ".addresses: expected an address"),
        ({"addresses": ["x"]}, "n", ".addresses[0]: expected an IP address"),
        ({"podCIDRs": ["10.244.3.1/24"]}, "n", ".podCIDRs[0]: expected a network address"),
        ({"podCIDRs": ["10.244.4.0/24"]}, "n", ".podCIDRs: expected the key's own subnet"),
        ({"vtepMAC": "x"}, "n", ".vtepMAC: expected a MAC address"),
        ({"overlayAddress": "x"}, "n", ".overlayAddress: expected an IP address"),
    ],
)
def test_a_value_that_is_wrong_is_a_problem(
    changed: dict[str, object], name: str, words: str
) -> None:
    key = "/podwire/subnets/10.244.3.0-24"
    member = LAYOUT.member(KeyValue(key, json.dumps(GOOD | changed).encode()), network())
    assert (member.name, member.pod_cidrs) == (name, ())
    assert member.problem.startswith(key + words)


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_no_value_raises(value: bytes) -> None:
    kv = KeyValue("/podwire/subnets/10.244.3.0-24", value)
    assert LAYOUT.member(kv, network()).problem
    assert LAYOUT.said(kv) == Said()


def test_a_value_without_end_is_a_problem() -> None:
    kv = KeyValue("/podwire/subnets/10.244.3.0-24", b"[" * 60_000)
    assert "not valid JSON" in LAYOUT.member(kv, network()).problem
    assert "at most" in LAYOUT.member(kv._replace(value=b" " * 70_000), network()).problem


def test_the_configuration_is_read_as_it_is_written() -> None:
    pools = (pool("10.244.0.0/16", 24), pool("fd00:10:244::/48", 64))
    value = LAYOUT.config(pools)
    assert value is not None
    assert json.loads(value) == {
        "network": "10.244.0.0/16",
        "subnetLength": 24,
        "network6": "fd00:10:244::/48",
        "subnetLength6": 64,
    }
    assert LAYOUT.network(value) == Network(pools)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", ": not valid JSON"),
        (b"[]", ": expected an object"),
        (b"{}", ".network: expected a CIDR"),
        (b'{"network": "fd00::/48"}', ".network: expected the other IP version"),
        (b'{"network": "10.0.0.0/16", "subnetLength": 8}', ".subnetLength: expected a number"),
    ],
)
def test_a_configuration_that_is_wrong(value: bytes, words: str) -> None:
    with pytest.raises(CniError) as e:
        LAYOUT.network(value)
    assert e.value.msg.startswith("/podwire/config" + words)


def test_a_status() -> None:
    value = status(Readiness(False, "NoPodCIDR", "none left"), "2026-01-01T00:00:00Z")
    assert json.loads(value) == {
        "ready": False,
        "reason": "NoPodCIDR",
        "message": "none left",
        "at": "2026-01-01T00:00:00Z",
    }


# --- claims -------------------------------------------------------------------------------------


def held(
    cidr: str, name: str = "node-1", address: str = "192.168.1.1", **keywords: int
) -> KeyValue:
    value = {"name": name, "addresses": [address], "podCIDRs": [cidr]}
    (key,) = LAYOUT.subnet_keys(subnets(cidr))
    return KeyValue(key, json.dumps(value).encode(), 5, 6, **keywords)


def planned(*kvs: KeyValue, remembered: tuple[str, ...] = (), pools: tuple[Pool, ...] = ()) -> Plan:
    return plan(LAYOUT, OWN, network(*pools), kvs, subnets(*remembered), lambda free: 0)


def test_what_is_ours_is_kept() -> None:
    found = planned(held("10.244.0.0/24", "other", "192.168.1.2"), held("10.244.9.0/24", lease=7))
    assert found.cidrs == subnets("10.244.9.0/24")
    assert (found.obsolete, found.lease) == ((), 7)


def test_what_was_ours_is_asked_for_again() -> None:
    assert planned(remembered=("10.244.9.0/24",)).cidrs == subnets("10.244.9.0/24")
    taken = held("10.244.9.0/24", "other", "192.168.1.2")
    assert planned(taken, remembered=("10.244.9.0/24",)).cidrs == subnets("10.244.0.0/24")
    assert planned(remembered=("10.9.0.0/24",)).cidrs == subnets("10.244.0.0/24")


def test_what_the_network_does_not_offer_is_given_back() -> None:
    old = held("10.9.0.0/24")
    found = planned(old)
    assert found.cidrs == subnets("10.244.0.0/24")
    assert found.obsolete == (old.key,)


def test_the_second_family_is_added() -> None:
    pools = (pool("10.244.0.0/16", 24), pool("fd00::/48", 64))
    found = planned(held("10.244.9.0/24"), pools=pools)
    assert found.cidrs == subnets("10.244.9.0/24", "fd00::/64")


def test_a_name_of_another_node() -> None:
    other = held("10.244.9.0/24", address="192.168.1.2", lease=7)
    with pytest.raises(NamesakeError, match="that of another node, with 192"):
        planned(other)
    found = planned(other, remembered=("10.244.9.0/24",))
    assert found.cidrs == subnets("10.244.9.0/24")
    assert (found.foreign, found.lease) == (True, 0), "the other one may live by that lease"


def test_what_was_held_by_a_former_address_is_ours() -> None:
    kv = held("10.244.9.0/24", address="192.168.1.2", lease=7)
    former = Own("node-1", (ip_address("192.168.1.2"),))
    claim = Claim(network(), subnets("10.244.9.0/24"), (kv.key,), 7, former)
    found = plan(LAYOUT, OWN, network(), [kv], (), lambda free: 0, claim, may_overwrite=False)
    assert (found.cidrs, found.foreign) == (claim.cidrs, False)
    assert claim.covers(kv, LAYOUT, OWN)
    another = held("10.244.9.0/24", address="192.168.1.3", lease=7)
    assert not claim.covers(another, LAYOUT, OWN)
    assert not claim.covers(kv._replace(lease=8), LAYOUT, OWN)
    with pytest.raises(NamesakeError):
        plan(LAYOUT, OWN, network(), [another], claim.cidrs, lambda free: 0, claim, False)


def test_none_left() -> None:
    others = [held(f"10.244.{n}.0/24", f"n{n}", f"192.168.1.{n + 2}") for n in range(2)]
    with pytest.raises(NoSubnetError, match="other nodes have all of"):
        planned(*others, pools=(pool("10.244.0.0/23", 24),))


def test_keys_that_are_none_take_nothing() -> None:
    assert planned(KeyValue("/podwire/subnets/x", b"{}")).cidrs == subnets("10.244.0.0/24")


# --- what was ours, in a file -------------------------------------------------------------------


def test_the_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "etcd-lease.json")
    assert state.load(path, "/podwire", LOG) == state.Remembered()
    remembered = state.Remembered(
        subnets("10.244.9.0/24"), "2026-01-01T00:00:00Z", {"backend": "vxlan"}
    )
    state.save(path, "/podwire", remembered, LOG)
    assert state.load(path, "/podwire", LOG) == remembered
    assert state.load(path, "/elsewhere", LOG) == state.Remembered()
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["etcd-lease.json"]


def test_a_file_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "etcd-lease.json")
    remembered = state.Remembered(subnets("10.244.9.0/24"), contested=True, machine="one")
    state.save(path, "/podwire", remembered, LOG)
    for here, found in (("one", remembered), ("", remembered), ("other", state.Remembered())):
        monkeypatch.setattr(state, "machine", lambda here=here: here)
        assert state.load(path, "/podwire", LOG) == found


def test_what_a_machine_is_known_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "machine-id", tmp_path / "product_uuid"
    monkeypatch.setattr(state, "_IDENTITIES", (str(first), str(second)))
    assert state.machine() == ""
    second.write_text("uuid\n")
    first.write_text("\n")
    assert state.machine() == "uuid"
    first.write_text("id\n")
    assert state.machine() == "id"


# --- addresses ----------------------------------------------------------------------------------


def test_an_address_is_kept_while_the_machine_has_it() -> None:
    here, gone, gone6 = map(ip_address, ("127.0.0.1", "192.0.2.7", "2001:db8::7"))
    chosen = [ip_address("192.0.2.8")]
    assert kept([here], lambda: chosen) == (here,)
    assert kept([gone6, gone], lambda: chosen) == (gone6, chosen[0])
    assert kept([gone], list) == (gone,)


# --- being away ---------------------------------------------------------------------------------


def test_another_reason_for_being_away_is_told_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "_PAUSES", (0.0,))
    options = EtcdOptions.checked("http://h", "n", ["192.168.1.1"], state_file=str(tmp_path / "s"))
    source = etcd.EtcdSource(options)
    told: list[object] = []
    for news, reason in ((9.0, "a"), (9.0, "b"), (0.0, "b"), (0.0, "b"), (0.0, "a")):
        monkeypatch.setattr(etcd, "_NEWS", news)
        source._failed(reason, told.append)
    assert told == [Away("etcd: a"), Away("etcd: b"), Away("etcd: a")]


def test_a_file_that_is_of_no_use_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "etcd-lease.json"
    path.write_text('{"prefix": "/podwire", "podCIDRs": ["x"]}')
    assert state.load(str(path), "/podwire", LOG) == state.Remembered()
    assert "podCIDRs[0]" in caplog.text
    state.save(str(path / "below-a-file"), "/podwire", state.Remembered(), LOG)
    assert "can't be noted" in caplog.text


# --- members ------------------------------------------------------------------------------------


def read(kv: KeyValue) -> Member:
    """A value is a name and what comes after it."""
    name, _, rest = kv.value.decode().partition(" ")
    return Member(name, backend=rest)


def kv(key: str, value: str, revision: int = 1) -> KeyValue:
    return KeyValue(key, value.encode(), revision, revision)


def put(key: str, value: str, revision: int = 1) -> Event:
    return Event(kv(key, value, revision), deleted=False)


def deleted(key: str) -> Event:
    return Event(KeyValue(key), deleted=True)


def test_new_changed_and_gone() -> None:
    members = Members(read, [kv("k1", "a 1"), kv("k2", "b 1")])
    assert members.all() == (Member("a", backend="1"), Member("b", backend="1"))
    assert members.apply([put("k1", "a 2"), put("k3", "c 1")]) == [
        Put(Member("a", backend="2")),
        Put(Member("c", backend="1")),
    ]
    assert members.apply([deleted("k2"), deleted("never there")]) == [Gone("b")]
    assert members.apply([put("k1", "a 2", 9)]) == []


def test_a_member_of_two_keys_is_told_once() -> None:
    members = Members(read, [])
    both = [put("v4", "a 1"), put("v6", "a 1")]
    assert members.apply(both) == [Put(Member("a", backend="1"))]
    assert members.apply([deleted("v4")]) == []
    assert members.apply([deleted("v6")]) == [Gone("a")]


def test_the_youngest_key_counts() -> None:
    members = Members(read, [kv("old", "a 1", 1), kv("new", "a 2", 2)])
    assert members.all() == (Member("a", backend="2"),)
    assert members.apply([put("old", "a 3", 1)]) == []
    assert members.apply([deleted("new")]) == [Put(Member("a", backend="3"))]


def test_a_key_that_goes_to_another_member() -> None:
    """Who goes is told first: an address may have gone over as well."""
    members = Members(read, [kv("k", "a 1")])
    assert members.apply([put("k", "b 1", 2)]) == [Gone("a"), Put(Member("b", backend="1"))]


def test_what_came_and_went_at_once_is_not_told() -> None:
    members = Members(read, [])
    assert members.apply([put("k", "a 1"), deleted("k")]) == []
