"""Nodes that meet in etcd, against real servers: their subnets, and what they hear."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from cni_plugin.sources import Announcement, Gone, Listed, Readiness, SourceError
from cni_plugin.sources.etcd_messages import Write
from tests.support.etcd import Bench, Follower, key_of

POOL = "10.244.0.0/16"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


# --- subnets ------------------------------------------------------------------------------------


def test_a_node_gets_a_subnet_of_the_pool(bench: Bench) -> None:
    own = bench.follow(1).listed()
    assert own.name == "node-1"
    assert [str(address) for address in own.addresses] == ["192.168.1.1"]
    (cidr,) = own.pod_cidrs
    assert cidr.prefixlen == 24
    assert cidr.subnet_of(ip_network(POOL))
    (key,) = bench.keys()
    assert key == f"/podwire/subnets/{cidr.network_address}-24"
    stored = json.loads(bench.keys()[key])
    assert stored["podCIDRs"] == [str(cidr)]
    assert json.loads(bench.at("/podwire/config").value) == {
        "network": POOL,
        "subnetLength": 24,
    }


def test_both_families(bench: Bench) -> None:
    given = {"pool": f"{POOL},fd00:10:244::/48", "subnet_length": "24,64"}
    first, second = bench.follow(1, **given).listed(), bench.follow(2, **given).listed()
    assert [cidr.version for cidr in first.pod_cidrs] == [4, 6]
    assert not set(first.pod_cidrs) & set(second.pod_cidrs)
    assert len(bench.keys()) == 4


def test_fifty_at_once_get_fifty_subnets(bench: Bench) -> None:
    """Of 64 there are, so that they meet."""
    followers = [Follower(bench.options(number, pool="10.244.0.0/18")) for number in range(1, 51)]
    try:
        cidrs = [follower.listed().pod_cidrs for follower in followers]
    finally:
        for follower in followers:
            follower.source.stop()
        for follower in followers:
            follower.stop()
    assert len(set(cidrs)) == 50
    assert all(len(each) == 1 for each in cidrs)
    assert len(bench.keys()) == 50
    assert len(bench.keys("/podwire/names/")) == 50


def test_a_network_that_is_full_and_then_not(bench: Bench) -> None:
    holders = [bench.follow(number, pool="10.244.0.0/23") for number in (1, 2)]
    first, _ = (holder.listed() for holder in holders)
    third = bench.follow(3, pool="10.244.0.0/23")
    third.wait_for(Listed)
    own = third.known["node-3"]
    assert own.pod_cidrs == ()
    assert own.problem == "other nodes have all of 10.244.0.0/23 in subnets of /24"
    with pytest.raises(SourceError, match="no subnet yet"):
        third.source.announce(Announcement(backend="x"))
    holders[0].stop()
    bench.look.revoke(bench.held(first.pod_cidrs[0]).lease)
    got = third.listed()
    assert (got.pod_cidrs, got.backend) == (first.pod_cidrs, "x")


def test_a_restart_changes_nothing(bench: Bench) -> None:
    first = bench.follow(1)
    own = first.listed()
    first.source.announce(Announcement("02:00:00:00:00:01", own.pod_cidrs[0].network_address, "x"))
    first.stop()
    before = bench.look.range("/podwire/")
    assert bench.follow(1).listed().vtep_mac == "02:00:00:00:00:01"
    assert bench.look.range("/podwire/") == before
    os.remove(bench.folder / "state-1.json")  # the name alone is enough
    assert bench.follow(1).listed().pod_cidrs == own.pod_cidrs


def test_a_restart_with_another_ttl_and_address(bench: Bench) -> None:
    first = bench.follow(1)
    own = first.listed()
    old = bench.held(own.pod_cidrs[0]).lease
    first.stop()
    second = bench.follow(1, ttl=600)
    assert second.listed().pod_cidrs == own.pod_cidrs
    assert bench.look.keep(bench.held(own.pod_cidrs[0]).lease) == 600
    assert bench.look.keep(old) == 0
    second.stop()
    again = bench.follow(1, address="192.168.9.9").listed()
    assert again.pod_cidrs == own.pod_cidrs  # by the state file
    assert str(again.addresses[0]) == "192.168.9.9"


def test_a_name_that_another_node_has(bench: Bench) -> None:
    first = bench.follow(1)
    first.listed()
    second = bench.follow(2, name="node-1")
    members = second.wait_for(Listed).members
    assert [member.name for member in members] == ["node-1"]
    assert members[0].pod_cidrs == ()
    assert "the name node-1 is that of another node, with 192.168.1.1" in members[0].problem
    assert first.pending(0.5) == []


def test_a_reservation_stays_one(bench: Bench) -> None:
    bench.follow(2).listed()
    bench.put_node("node-1", "10.244.7.0/24", "192.168.1.1")
    first = bench.follow(1)
    assert [str(cidr) for cidr in first.listed().pod_cidrs] == ["10.244.7.0/24"]
    first.source.announce(Announcement(backend="host-gw"))
    kv = bench.held("10.244.7.0/24")
    assert kv.lease == 0
    assert json.loads(kv.value)["backend"] == "host-gw"


# --- peers --------------------------------------------------------------------------------------


def test_nodes_hear_of_each_other(bench: Bench) -> None:
    first = bench.follow(1)
    first.listed()
    second = bench.follow(2)
    own = second.listed()
    assert first.member("node-2").pod_cidrs == own.pod_cidrs
    told = Announcement("02:00:00:00:00:02", own.pod_cidrs[0].network_address, "vxlan vni=1")
    second.source.announce(told)
    peer = first.member("node-2", lambda member: bool(member.vtep_mac))
    assert Announcement(peer.vtep_mac, peer.overlay_address, peer.backend) == told
    second.stop()
    assert first.pending(0.5) == []  # an agent's end is not its node's
    bench.look.revoke(bench.held(own.pod_cidrs[0]).lease)
    first.wait_for(Gone, name="node-2")


def test_a_value_that_is_none(bench: Bench) -> None:
    first = bench.follow(1)
    first.listed()
    bench.put("/podwire/subnets/10.244.9.0-24", b"\xff{")
    assert "not valid JSON" in first.member("key-10.244.9.0-24").problem
    bench.put("/podwire/subnets/nonsense", b"{}")
    assert "name" in first.member("key-nonsense").problem
    bench.put("/podwire/subnets/10.244.9.0-24", None)
    first.wait_for(Gone, name="key-10.244.9.0-24")


def test_readiness_is_at_the_status_key(bench: Bench) -> None:
    first = bench.follow(1)
    first.listed()
    first.source.say_ready(Readiness(True, "PodwireReady", "all is well"))
    kv = bench.at("/podwire/status/node-1")
    stored = json.loads(kv.value)
    assert (stored["ready"], stored["reason"], stored["message"]) == (
        True,
        "PodwireReady",
        "all is well",
    )
    assert bench.look.keep(kv.lease) > 0
    first.source.say_ready(Readiness(False, "NetworkNotReady", "no link"))
    assert json.loads(bench.at("/podwire/status/node-1").value)["ready"] is False


def test_what_was_said_already_costs_nothing(bench: Bench) -> None:
    """An agent says all of it again and again."""
    first = bench.follow(1)
    (cidr,) = first.listed().pod_cidrs
    told = Announcement("02:00:00:00:00:02", None, "vxlan")
    for _ in range(2):
        first.source.announce(told)
        first.source.say_ready(Readiness(True, "PodwireReady", ""))
        first.member("node-1", lambda member: member.backend == "vxlan")
    before = bench.look.range("/podwire/")
    first.source.announce(told)
    first.source.say_ready(Readiness(True, "PodwireReady", ""))
    assert bench.look.range("/podwire/") == before
    changed = bench.held(cidr).value.replace(b'"vxlan"', b'"other"')
    bench.look.swap({}, [Write(key_of(cidr), changed, bench.held(cidr).lease)])
    first.member("node-1", lambda member: member.backend == "other")
    first.source.announce(told)
    first.member("node-1", lambda member: member.backend == "vxlan")
