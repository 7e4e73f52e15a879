"""Whose a subnet is in etcd: nodes that look alike, that move, and an etcd that is another one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from ipaddress import ip_address
from logging import getLogger
from pathlib import Path
from threading import Event

import pytest

from cni_plugin.sources import Announcement, Away, Listed, SourceError, etcd, etcd_state
from cni_plugin.sources.etcd_lease import SubnetLease
from tests.support.etcd import PATIENCE, Bench, Follower, key_of


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def addresses(bench: Bench, cidr: object) -> list[str]:
    found = json.loads(bench.held(cidr).value)["addresses"]
    assert isinstance(found, list)
    return found


def quiet(bench: Bench, seconds: float = 1.5) -> bool:
    """Whether nothing is written for so long."""
    before = bench.look.range("/podwire/").revision
    time.sleep(seconds)
    return bench.look.range("/podwire/").revision == before


# --- one's own keys -----------------------------------------------------------------------------


def test_a_reservation_of_another_node_is_not_written_to(bench: Bench) -> None:
    """It was made while this node's lease had run out, and before this node heard of it."""
    options = bench.options(1)
    layout = options.layout()
    lease = SubnetLease(
        bench.look, layout, options.own, 60, options.state_file, Event(), getLogger("test")
    )
    lease.settle(etcd.EtcdSource(options).network())
    assert lease.claim is not None
    (cidr,) = lease.claim.cidrs
    lease.announce(Announcement(backend="x"))
    assert json.loads(bench.held(cidr).value)["backend"] == "x"
    bench.put_node("node-3", cidr, "192.168.1.3")
    before = bench.held(cidr)
    with pytest.raises(SourceError, match="was lost"):
        lease.announce(Announcement(backend="y"))
    assert bench.held(cidr) == before


# --- machines that were cloned ------------------------------------------------------------------


def clone(bench: Bench) -> Follower:
    """A second node-1, with the state file of the first."""
    copied = bench.folder / "state-copied.json"
    if not copied.exists():
        shutil.copy(bench.folder / "state-1.json", copied)
    return bench.follow(2, name="node-1", state_file=str(copied))


def test_of_two_clones_the_first_keeps_it_and_they_do_not_fight(bench: Bench) -> None:
    first = bench.follow(1)
    (cidr,) = first.listed().pod_cidrs
    before = bench.look.range("/podwire/").revision
    second = clone(bench)
    second.wait(lambda change: isinstance(change, Listed) and bool(second.known["node-1"].problem))
    assert "of another node, with 192.168.1.1" in second.known["node-1"].problem
    assert second.known["node-1"].pod_cidrs == ()
    assert quiet(bench)
    assert bench.look.range("/podwire/").revision <= before + 2, "each of them has written once"
    assert addresses(bench, cidr) == ["192.168.1.1"]
    first.source.announce(Announcement(backend="x"))
    assert second.pending(1) == [] or second.known["node-1"].pod_cidrs == ()
    second.stop()
    again = clone(bench)  # it knows by its file that the subnet is contested
    again.wait_for(Listed)
    assert "of another node" in again.known["node-1"].problem
    assert quiet(bench)
    first.stop()
    bench.look.revoke(bench.held(cidr).lease)
    assert again.listed().pod_cidrs == (cidr,), "who is left has it"
    assert addresses(bench, cidr) == ["192.168.1.2"]


def test_a_copied_file_says_nothing_on_another_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_state, "machine", lambda: "one")
    first = bench.follow(1)
    first.listed()
    monkeypatch.setattr(etcd_state, "machine", lambda: "another")
    before = bench.look.range("/podwire/").revision
    second = clone(bench)
    second.wait_for(Listed)
    assert "of another node, with 192.168.1.1" in second.known["node-1"].problem
    assert bench.look.range("/podwire/").revision == before
    assert first.pending(0.5) == []


# --- addresses that change ----------------------------------------------------------------------


def test_another_address_of_the_node_reaches_its_keys(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "_GLANCE", 0.1)
    chosen = [ip_address("192.168.1.1")]
    first = Follower(bench.options(1), choose=lambda: chosen)
    try:
        own = first.listed()
        first.source.announce(Announcement(backend="x"))
        second = bench.follow(2)
        assert second.member("node-1").addresses == own.addresses
        chosen = [ip_address("192.168.1.77")]
        moved = second.member("node-1", lambda member: member.addresses != own.addresses)
        assert (moved.addresses, moved.pod_cidrs) == (tuple(chosen), own.pod_cidrs)
        assert moved.backend == "x"
        first.member("node-1", lambda member: member.addresses == tuple(chosen))
        chosen = []  # a link that is down for a moment
        assert first.aways == 0
        assert quiet(bench)
    finally:
        first.stop()


def test_another_address_of_a_node_of_flannels(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is known by its address there."""
    monkeypatch.setattr(etcd, "_GLANCE", 0.1)
    config = {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}
    bench.put("/coreos.com/network/config", json.dumps(config).encode())
    chosen = [ip_address("192.168.1.1")]
    options = bench.options(1, pool="", form="flannel")
    first = Follower(options, choose=lambda: chosen)
    try:
        own = first.listed()
        chosen = [ip_address("192.168.1.77")]
        moved = first.member("node-1", lambda member: member.addresses != own.addresses)
        assert (moved.addresses, moved.pod_cidrs) == (tuple(chosen), own.pod_cidrs)
        (value,) = bench.keys("/coreos.com/network/subnets/").values()
        assert json.loads(value)["PublicIP"] == "192.168.1.77"
    finally:
        first.stop()


# --- another etcd -------------------------------------------------------------------------------


def test_an_empty_etcd_whose_revision_has_passed_ours(bench: Bench) -> None:
    """A watch is resumed there without an error: it has the same name, and a later revision."""
    wire = bench.wire()
    first = bench.follow(1, wire.url)
    own = first.listed()
    time.sleep(1.1)  # a watch that lived so long is resumed without a word
    with first.source._attended.lock:  # it does not go on before the lock is free
        wire.cut()
        bench.etcd.kill()
        shutil.rmtree(bench.folder / "etcd-one")
        bench.etcd.start()
        while bench.look.range("/podwire/").revision < 20:
            bench.put("/other", b"")
        bench.put_node("n", "10.244.8.0/24", "192.168.1.7")
        wire.mend()
    first.wait(lambda change: isinstance(change, Listed) and "n" in first.known)
    deadline = time.monotonic() + PATIENCE
    while not bench.look.get(key_of(own.pod_cidrs[0])):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not [change for change in first.seen if isinstance(change, Away)]
