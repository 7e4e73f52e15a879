"""A node whose etcd goes away, forgets, or says something else than before; and the end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from cni_plugin.sources import Announcement, Away, Gone, Listed, Put, Readiness, SourceError, etcd
from cni_plugin.sources.etcd import EtcdSource
from cni_plugin.spec import CniError, Code
from tests.support.etcd import PATIENCE, Bench, Etcd, Follower, free_port, running

POOL = "10.244.0.0/16"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


# --- leases and servers -------------------------------------------------------------------------


def test_a_lease_that_ran_out_is_claimed_again(bench: Bench) -> None:
    wire = bench.wire()
    first = bench.follow(1, url=wire.url, ttl=2)
    own = first.listed()
    first.source.announce(Announcement("02:00:00:00:00:01"))
    first.source.say_ready(Readiness(True, "PodwireReady", ""))
    second = bench.follow(2)
    second.listed()
    time.sleep(3)  # it is renewed
    assert len(bench.keys()) == 2
    assert time.time() < first.source.lease_until <= time.time() + 2
    wire.cut()
    first.wait_for(Away)
    second.wait_for(Gone, name="node-1")
    assert first.source.lease_until < time.time()
    wire.mend()
    again = first.listed()
    assert again.pod_cidrs == own.pod_cidrs
    assert again.vtep_mac == "02:00:00:00:00:01"
    assert second.member("node-1").pod_cidrs == own.pod_cidrs
    assert len(bench.keys("/podwire/status/")) == 1
    assert first.aways == 1


def test_a_lease_that_ran_out_while_another_node_took_the_subnet(bench: Bench) -> None:
    wire = bench.wire()
    first = bench.follow(1, url=wire.url, ttl=2)
    (cidr,) = first.listed().pod_cidrs
    second = bench.follow(2)
    second.wait(lambda _: "node-1" in second.known)
    wire.cut()
    second.wait_for(Gone, name="node-1")
    bench.put_node("taker", cidr, "192.168.1.9")
    wire.mend()
    again = first.listed()
    assert again.pod_cidrs not in ((), (cidr,))
    assert first.known["taker"].pod_cidrs == (cidr,)
    assert first.aways == 1


def test_a_revoked_lease_is_replaced_at_once(bench: Bench) -> None:
    first = bench.follow(1)
    own = first.listed()
    bench.look.revoke(bench.held(own.pod_cidrs[0]).lease)
    assert first.listed().pod_cidrs == own.pod_cidrs
    assert not [c for c in first.seen if isinstance(c, Away | Gone)]
    assert bench.look.keep(bench.held(own.pod_cidrs[0]).lease) > 0


def test_a_key_that_another_one_overwrote(bench: Bench) -> None:
    first = bench.follow(1)
    own = first.listed()
    bench.put_node("thief", own.pod_cidrs[0], "192.168.1.66")
    again = first.listed()
    assert again.pod_cidrs not in ((), own.pod_cidrs)
    assert "thief" in first.known


def test_etcd_killed_and_restarted(bench: Bench) -> None:
    first, second = bench.follow(1), bench.follow(2)
    own = first.listed()
    second.listed()
    bench.etcd.kill()
    first.wait_for(Away)
    assert first.pending(2) == []  # told once
    with pytest.raises(SourceError):
        first.source.announce(Announcement(backend="while away"))
    bench.etcd.start()
    again = first.listed()
    assert again.pod_cidrs == own.pod_cidrs
    assert set(first.known) == {"node-1", "node-2"}
    assert again.backend == "while away"
    second.listed()
    first.source.announce(Announcement(backend="back"))
    assert second.member("node-1", lambda member: member.backend == "back")


def test_etcd_that_comes_later(bench: Bench) -> None:
    late = Etcd(bench.folder, "late")
    first = Follower(bench.options(1, late.url))
    try:
        first.wait_for(Away)
        with running(late):
            assert first.listed().pod_cidrs
    finally:
        first.stop()


def test_the_watch_goes_on_after_compaction(bench: Bench) -> None:
    wire = bench.wire()
    first = bench.follow(1, url=wire.url)
    first.listed()
    wire.cut()
    first.wait_for(Away)
    second = bench.follow(2)
    second.listed()
    bench.compact()
    wire.mend()
    assert first.member("node-2").pod_cidrs


def test_a_watch_that_is_behind_what_etcd_keeps(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection breaks for a moment, and what happened in it is kept nowhere."""
    caplog.set_level(logging.INFO)
    wire = bench.wire()
    first = bench.follow(1, wire.url)
    first.listed()
    time.sleep(1.1)  # a watch that lived so long is resumed without a word
    with first.source._attended.lock:  # it does not go on before the lock is free
        wire.cut()
        bench.put("/podwire/subnets/10.244.9.0-24", b"{}")
        bench.put("/podwire/subnets/10.244.9.0-24", None)
        bench.put_node("n", "10.244.8.0/24", "192.168.1.7")
        bench.compact()
        wire.mend()
    assert isinstance(first.next(), Listed)
    assert set(first.known) == {"node-1", "n"}
    assert "listed again: etcd keeps nothing from before" in caplog.text


def test_a_watch_that_is_resumed_misses_nothing(bench: Bench) -> None:
    wire = bench.wire()
    first = bench.follow(1, wire.url)
    first.listed()
    time.sleep(1.1)
    with first.source._attended.lock:
        wire.cut()
        bench.put_node("n", "10.244.8.0/24", "192.168.1.7")
        wire.mend()
    change = first.next()
    assert isinstance(change, Put)
    assert change.member.name == "n"


def test_another_etcd_with_less_in_it(bench: Bench) -> None:
    """As after a backup was put back: revisions begin again, and no subnet is known."""
    first = bench.follow(1)
    own = first.listed()
    for number in range(20):
        bench.put("/other", str(number).encode())
    bench.etcd.kill()
    first.wait_for(Away)
    for path in sorted(bench.folder.glob("etcd-one/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    bench.etcd.start()
    assert first.listed().pod_cidrs == own.pod_cidrs
    assert len(bench.keys()) == 1


def test_nodes_of_different_pools(bench: Bench) -> None:
    bench.follow(1).listed()
    source = EtcdSource(bench.options(2, pool="10.99.0.0/16"))
    with pytest.raises(CniError, match=r"--etcd-pool: expected 10\.244\.0\.0/16 in") as e:
        source.network()
    assert e.value.code == Code.INVALID_CONFIG
    source.stop()
    second = bench.follow(2, pool="10.99.0.0/16")
    assert "--etcd-pool" in second.wait_for(Away).reason
    assert second.pending(1) == []
    third = bench.follow(3, pool="")
    assert third.listed().pod_cidrs[0].subnet_of(ip_network(POOL))


def test_no_pool_anywhere(bench: Bench) -> None:
    assert "etcd has no /podwire/config" in bench.follow(1, pool="").wait_for(Away).reason


# --- several servers ----------------------------------------------------------------------------


def test_three_members_of_which_two_end(bench: Bench) -> None:
    ports = {name: free_port() for name in ("a", "b", "c")}
    members = {name: Etcd(bench.folder, name, peers=ports) for name in ports}
    urls = ",".join(member.url for member in members.values())
    with running(*members.values()):
        first, second = Follower(bench.options(1, urls)), Follower(bench.options(2, urls))
        try:
            first.listed()
            second.listed()
            time.sleep(1.1)  # a watch that lived so long is resumed without a word
            members["a"].kill()
            announce_until_told(second, Announcement(backend="still"))
            first.member("node-2", lambda member: member.backend == "still")
            assert first.aways + second.aways == 0
            members["b"].kill()
            first.wait_for(Away)  # the one that is left has no leader
            members["a"].start()
            first.listed()
        finally:
            first.stop()
            second.stop()


def test_one_of_three_members_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its connections: nothing but its silence tells."""
    monkeypatch.setattr(etcd, "_PULSE", 0.5)
    ports = {name: free_port() for name in ("a", "b", "c")}
    members = [Etcd(bench.folder, name, peers=ports) for name in ports]
    with running(*members):
        first = Follower(bench.options(1, ",".join(member.url for member in members)))
        second = Follower(bench.options(2, ",".join(member.url for member in members[1:])))
        first.source._gateway._timeout = 1.0  # so long it waits for an answer
        try:
            first.listed()
            second.listed()
            time.sleep(1.1)  # a watch that lived so long is resumed without a word
            members[0].freeze()
            announce_until_told(second, Announcement(backend="heard"))
            first.member("node-2", lambda member: member.backend == "heard")
            assert first.aways == 0
        finally:
            first.stop()
            second.stop()


def test_the_only_member_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "_PULSE", 0.5)
    frozen = Etcd(bench.folder, "frozen")
    with running(frozen):
        first = Follower(bench.options(1, frozen.url))
        first.source._gateway._timeout = 1.0
        try:
            first.listed()
            time.sleep(1.1)
            assert first.pending(2) == [], "one that lives is let be"
            frozen.freeze()
            began = time.monotonic()
            first.wait_for(Away)
            assert time.monotonic() - began < 8
            frozen.thaw()
            assert first.listed().pod_cidrs
        finally:
            first.stop()


# --- the end ------------------------------------------------------------------------------------


def test_stop_returns_at_once_and_leaves_nothing(bench: Bench) -> None:
    for _ in range(3):
        follower = Follower(bench.options())
        follower.listed()
        assert follower.stop() < 8
    before = _threads_and_files()
    for _ in range(10):
        follower = Follower(bench.options())
        follower.listed()
        assert follower.stop() < 8
    assert _threads_and_files() == before


def test_stop_while_etcd_is_frozen(bench: Bench) -> None:
    frozen = Etcd(bench.folder, "frozen")
    with running(frozen):
        first = Follower(bench.options(1, frozen.url))
        first.listed()
        frozen.freeze()
        second = Follower(bench.options(2, frozen.url))
        time.sleep(0.5)  # its request is under way
        assert first.stop() < 8
        assert second.stop() < 8


def test_stop_while_nobody_answers_a_connection(bench: Bench) -> None:
    """TEST-NET-1 (RFC 5737): the connection is never made, whether by silence or by no route."""
    follower = Follower(bench.options(1, "http://192.0.2.1:2379"))
    time.sleep(0.3)
    assert follower.stop() < 8


def announce_until_told(follower: Follower, announcement: Announcement) -> None:
    """As an agent does: while the members choose a leader, etcd serves nobody."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return follower.source.announce(announcement)
        except SourceError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def _threads_and_files() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))
