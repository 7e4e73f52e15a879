"""The upkeep's decisions: when it looks, what it hears, what it need not look at again."""

from __future__ import annotations

import struct
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import cluster as clusters
from cni_plugin import fabric as fabrics
from cni_plugin import noderules, upkeep
from cni_plugin.agent.schedule import LONGEST_S, PERIOD_S, QUIET_S, Schedule
from cni_plugin.fabric import Fabric, Memory
from cni_plugin.kernel import nodelock, statefolder
from cni_plugin.kernel.watch import RouteWatch, RulesetWatch
from cni_plugin.paths import Changes
from cni_plugin.records import NetworkRecord, Records
from cni_plugin.ruleset import NodeRules
from ipam import routes
from ipam.inventory import Inventory, Node
from ipam.routes import NodeRoute

# --- when ---------------------------------------------------------------------------------------


def _started() -> Schedule:
    schedule = Schedule(0.0)
    assert schedule.take(0.0) == ("start",)
    schedule.looked(0.0, repaired=False, failed=False)
    return schedule


def test_it_looks_now_and_then() -> None:
    schedule = _started()
    assert schedule.due() == PERIOD_S
    assert schedule.take(PERIOD_S - 0.1) == ()
    assert schedule.take(PERIOD_S) == ("every half minute",)


def test_a_change_is_looked_at_when_it_is_quiet_again() -> None:
    schedule = _started()
    schedule.note("a", 1.0)
    schedule.note("b", 1.02)
    assert schedule.due() == pytest.approx(1.02 + QUIET_S)
    assert schedule.take(1.0 + QUIET_S) == ()
    assert schedule.take(1.02 + QUIET_S) == ("a", "b")
    assert schedule.due() == PERIOD_S


def test_what_is_never_quiet_is_looked_at_all_the_same() -> None:
    schedule = _started()
    now = 1.0
    while not schedule.take(now):
        schedule.note("again and again", now)
        now += QUIET_S / 2
    assert now <= 1.0 + LONGEST_S + QUIET_S


def test_a_failure_is_tried_again_after_a_time_that_doubles() -> None:
    schedule, now, waited = _started(), 0.0, []
    for _ in range(8):
        schedule.looked(now, repaired=False, failed=True)
        waited.append(schedule.due() - now)
        now = schedule.due()
        assert schedule.take(now) == ("again",)
    assert waited == [1, 2, 4, 8, 16, 30, 30, 30]
    schedule.looked(now, repaired=False, failed=False)
    assert schedule.due() == now + PERIOD_S


def test_looks_that_repair_each_time_are_held_apart() -> None:
    """Somebody else wants it otherwise: neither wins, and neither takes the CPU for it."""
    schedule, now, gaps = _started(), 1.0, []
    for _ in range(16):
        schedule.note("routes changed", now)
        gaps.append(schedule.due() - now)
        now = schedule.due()
        assert schedule.take(now)
        schedule.looked(now, repaired=True, failed=False)
    assert gaps[:4] == pytest.approx([QUIET_S] * 4)
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(PERIOD_S)
    schedule.note("routes changed", now)
    now = schedule.due()
    assert schedule.take(now)
    schedule.looked(now, repaired=False, failed=False)
    schedule.note("routes changed", now)
    assert schedule.due() == pytest.approx(now + QUIET_S)


# --- what it hears ------------------------------------------------------------------------------

_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH = 16, 17, 20, 24, 25, 28
_RUNNING = 0x41


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _link(index: int, name: str, flags: int = _RUNNING, mtu: int = 1500, family: int = 0) -> bytes:
    head = struct.pack("=BxHiII", family, 1, index, flags, 0)
    return head + _attribute(3, name.encode() + b"\0") + _attribute(4, struct.pack("=I", mtu))


def _route(
    protocol: int, *attributes: bytes, table: int = 254, length: int = 24, kind: int = 1
) -> bytes:
    head = struct.pack("=8BI", 2, length, 0, 0, table, protocol, 0, kind, 0)
    return head + b"".join(attributes)


_GATEWAY = _attribute(5, bytes((192, 168, 1, 3)))


@pytest.fixture
def watch() -> RouteWatch:
    """One that knows eth0, pwvx1 and a bridge."""
    made = RouteWatch.__new__(RouteWatch)
    made.links = {}
    for index, name in ((2, "eth0"), (3, "pwvx1"), (4, "cni0")):
        assert made.word(_NEWLINK, _link(index, name)) == ""
    return made


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (_link(2, "eth0"), ""),
        (_link(2, "eth0", flags=0x1), "link eth0 changed"),
        (_link(2, "eth0", mtu=1400), "link eth0 changed"),
        (_link(2, "eth0", mtu=1400, family=7), ""),
        (_link(9, "eth9"), ""),
        (_link(9, "vethabcdef01234"), ""),
        (_link(9, "pwi0123456789ab"), ""),
    ],
)
def test_links(watch: RouteWatch, body: bytes, word: str) -> None:
    assert watch.word(_NEWLINK, body) == word
    assert watch.word(_NEWLINK, body) == ""  # the same again is no change


def test_links_that_go(watch: RouteWatch) -> None:
    assert watch.word(_DELLINK, _link(3, "pwvx1")) == "link pwvx1 is gone"
    assert watch.word(_DELLINK, _link(3, "pwvx1")) == ""
    assert watch.word(_DELLINK, _link(9, "vethabcdef01234")) == ""


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (_route(112, _GATEWAY), "podwire's routes changed"),
        (_route(112, _attribute(9, bytes(8))), "podwire's routes changed"),
        (_route(112), ""),  # a pod's
        (_route(112, _GATEWAY, table=100), ""),
        (_route(3, _GATEWAY), "routes changed"),
        (_route(2), "routes changed"),
        (_route(2, _attribute(1, b"\xfe\x80" + bytes(14)), length=64), ""),
        (_route(2, table=255), ""),
        (_route(2, kind=5), ""),
    ],
)
@pytest.mark.parametrize("kind", [_NEWROUTE, _DELROUTE])
def test_routes(watch: RouteWatch, kind: int, body: bytes, word: str) -> None:
    assert watch.word(kind, body) == word


def test_addresses_and_neighbours(watch: RouteWatch) -> None:
    def address(index: int, scope: int = 0) -> bytes:
        return struct.pack("=4Bi", 2, 24, 0, scope, index)

    def neighbour(index: int, family: int = 7) -> bytes:
        return struct.pack("=B3xiHBB", family, index, 0x80, 0, 0)

    assert watch.word(_NEWADDR, address(2)) == "an address of eth0 changed"
    assert watch.word(_NEWADDR, address(2, scope=253)) == ""
    assert watch.word(_NEWADDR, address(99)) == ""  # of a pod's link
    assert watch.word(_NEWNEIGH, neighbour(3)) == "the overlay's entries changed"
    assert watch.word(_NEWNEIGH, neighbour(4)) == ""
    assert watch.word(4711, b"") == ""


def test_the_ruleset() -> None:
    watch = RulesetWatch.__new__(RulesetWatch)
    ours, others = _attribute(1, b"podwire\0"), _attribute(1, b"kube-proxy\0")
    rule, table, elements = 10 << 8 | 6, 10 << 8 | 2, 10 << 8 | 12
    assert watch.word(rule, ours) == watch.word(elements, ours) == "nftables changed"
    assert watch.word(rule, others) == watch.word(elements, others) == ""
    assert watch.word(table, others) == "nftables changed"  # flush ruleset


# --- what need not be looked at again -----------------------------------------------------------


class _Firewall:
    """A ruleset that is right when it holds the rules; `netfilter` numbers its generations."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.number = 7
        self.held: NodeRules | None = None
        self.looks = 0
        self.said: tuple[str, ...] = ()

    def generation(self) -> int:
        return self.number

    def legacy_differences(self, rules: NodeRules) -> list[str]:
        return []

    def differences(self, rules: NodeRules) -> list[str]:
        self.looks += 1
        return [] if rules == self.held else ["rules are missing"]

    def ensure(self, rules: NodeRules, reread: Any, refill: Any) -> bool:
        rules = reread()
        changed = rules != self.held
        self.said = ("rules are missing",) if changed else ()
        if changed:
            self.held = rules
            self.ours()
        return changed

    def ours(self) -> None:
        self.number += 1
        self.memory.moves += 1


class _Node:
    def __init__(self) -> None:
        self.memory = Memory()
        self.memory.watched = True
        self.fabric = Fabric(None, self.memory)  # type: ignore[arg-type]
        self.fabric._key = "1f"
        self.firewall = _Firewall(self.memory)
        self.fabric._firewall = self.firewall  # type: ignore[assignment]
        self.fabric._netfilter = self.firewall  # type: ignore[assignment]

    def keep(self, record: NetworkRecord) -> list[str]:
        return upkeep.keep(self.fabric, record)


_RECORD = NetworkRecord("podnet", (ip_network("10.244.0.0/24"),), masquerade=True)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Node:
    monkeypatch.setattr(statefolder, "FOLDER", str(tmp_path))
    monkeypatch.setattr(nodelock, "FOLDER", str(tmp_path))
    return _Node()


def test_what_was_kept_is_not_looked_at_again(node: _Node) -> None:
    assert node.keep(_RECORD) == ["rules are missing"]
    assert Records("1f").all() == (_RECORD,)
    looks = node.firewall.looks
    assert node.keep(_RECORD) == []
    node.firewall.ours()  # host ports of a pod
    assert node.keep(_RECORD) == []
    assert node.firewall.looks == looks


def test_what_others_change_is_looked_at_once(node: _Node) -> None:
    node.keep(_RECORD)
    looks = node.firewall.looks
    node.firewall.number += 1
    assert node.keep(_RECORD) == []
    assert node.keep(_RECORD) == []
    assert node.firewall.looks == looks + 1
    node.firewall.number += 1
    node.firewall.held = None
    assert node.keep(_RECORD) == ["rules are missing"]
    assert node.firewall.held is not None


def test_a_change_of_others_hides_behind_none_of_ours(node: _Node) -> None:
    node.keep(_RECORD)
    looks = node.firewall.looks
    node.firewall.ours()
    node.firewall.number += 1
    node.keep(_RECORD)
    assert node.firewall.looks == looks + 1


def test_another_network_s_record_changes_the_rules(node: _Node) -> None:
    node.keep(_RECORD)
    other = NetworkRecord("other", (ip_network("10.250.0.0/24"),), masquerade=True)
    Records("1f").remember(other)
    assert node.keep(_RECORD) == ["rules are missing"]
    assert node.firewall.held == noderules.wanted(node.fabric)
    assert "10.250.0.0" in str(
        [ip_network((first, 24)) for first, _ in node.firewall.held.families[0].masquerade]
    )


def test_a_record_that_somebody_removed_is_written_again(node: _Node) -> None:
    node.keep(_RECORD)
    Records("1f").forget("podnet")
    node.keep(_RECORD)
    assert Records("1f").all() == (_RECORD,)


# --- the peers ----------------------------------------------------------------------------------


class _Cluster:
    """Stands for cni_plugin.cluster: counts what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.joins, self.syncs = 0, 0
        self.inventory = Inventory("", ())
        self.own = Node("node-0", ())
        for name in ("join", "sync"):
            monkeypatch.setattr(clusters, name, getattr(self, name))

    def join(self, *_: Any) -> Any:
        self.joins += 1
        return self

    def _replace(self, **_: Any) -> Any:
        return self

    def sync(self, *_: Any, **__: Any) -> Changes:
        self.syncs += 1
        return Changes()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> _Cluster:
    monkeypatch.setattr(fabrics, "_SETTLED_NS", 0)
    return _Cluster(monkeypatch)


def test_peers_are_looked_at_when_something_happened(
    node: _Node, cluster: _Cluster, tmp_path: Path
) -> None:
    inventory = tmp_path / "nodes.json"
    inventory.write_text("{}")
    record = _RECORD._replace(nodes=str(inventory))
    node.keep(record)
    assert (cluster.joins, cluster.syncs) == (1, 1)
    node.keep(record)
    assert (cluster.joins, cluster.syncs) == (1, 1)
    node.memory.happened()
    node.keep(record)
    node.keep(record)
    assert (cluster.joins, cluster.syncs) == (2, 2)
    inventory.write_text("{ }")
    node.keep(record)
    assert (cluster.joins, cluster.syncs) == (3, 3)
    node.memory.watched = False  # nobody tells what happens
    node.keep(record)
    node.keep(record)
    assert cluster.syncs == 5


def test_of_two_inventories_the_newest_record_s_counts(
    node: _Node, cluster: _Cluster, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("one.json", "two.json")]
    for path in paths:
        path.write_text("{}")
    one, two = (
        NetworkRecord(name, nodes=str(path)) for name, path in zip("ab", paths, strict=True)
    )
    node.keep(two)
    node.keep(one)
    assert upkeep.peering(node.fabric) == [one]
    syncs = cluster.syncs
    assert upkeep.keep_peers(node.fabric, two) == []
    assert cluster.syncs == syncs


def test_changes_in_words() -> None:
    route = NodeRoute(ip_network("10.244.1.0/24"), ip_network("10.0.0.1/32")[0], "node-1")
    assert Changes().words() == []
    assert Changes(routes.Changes(add=(route,)), ("made pwvx1",)).words() == [
        "made pwvx1",
        "add route to 10.244.1.0/24 via 10.0.0.1 (node node-1)",
    ]
    many = routes.Changes(remove=(route,) * 9)
    assert Changes(many).words() == ["remove 9 routes, that to 10.244.1.0/24 first"]
