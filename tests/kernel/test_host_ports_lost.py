"""`kernel.hostports` when somebody removed or damaged what the node remembers of host ports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from cni_plugin import additions
from cni_plugin.agent import ports as upkeep
from cni_plugin.fabric import Fabric
from cni_plugin.kernel import lostports, nfnetlink, portlock
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.node import Node
from cni_plugin.spec import Attachment
from tests.support.portways import BOTH, Ways, held, opened, record
from tests.support.throughports import mapping


@pytest.fixture
def ways(node) -> Iterator[Ways]:
    """The test is in the node's namespace."""
    with opened(node) as made:
        yield made


NOBODY: frozenset[Attachment] = frozenset()
THEIRS = 'add element ip podwire host_ports { tcp . 99 comment "theirs" : 10.9.9.9 . 99 }'


def owners(ways: Ways) -> set[str]:
    return set(held(ways).values())


# --- records that are gone --------------------------------------------------------------------


def test_the_agent_takes_away_what_no_record_tells_of(ways):
    ways.ports.open(record(mapping(), snat=False), ExitStack())
    shutil.rmtree(ways.folder.path)
    with RouteSocket() as route_socket, closing(Fabric(route_socket)) as fabric:
        assert upkeep.keep(fabric) == ["4 elements of host ports were nobody's"]
        assert held(ways) == {}
        assert upkeep.keep(fabric) == []


def test_gc_takes_away_what_no_record_tells_of(ways):
    lost = mapping(), mapping(53, protocol="udp", ip="192.168.1.2")
    for pod, mappings in (("web", lost), ("kept", [mapping(8081)])):
        ways.ports.open(record(*mappings, pod=pod, snat=False), ExitStack())
    ways.ports.open(record(mapping(8082), pod="stranger", network="othernet"), ExitStack())
    shutil.rmtree(ways.folder.path)
    ways.ports.open(record(mapping(8083), pod="remembered"), ExitStack())
    ways.node.run("nft", THEIRS)
    ways.ports.collect("podnet", frozenset({Attachment("kept", "eth0")}))
    assert owners(ways) == {
        "kept eth0 podnet",
        "stranger eth0 othernet",
        "remembered eth0 podnet",
        "theirs",
    }
    ways.ports.collect("podnet", NOBODY)
    assert "kept eth0 podnet" not in owners(ways)


def test_gc_leaves_an_element_of_a_set_that_a_record_needs(ways):
    for pod, address in (("web", "192.168.1.2"), ("other", "192.168.1.3")):
        ways.ports.open(record(mapping(ip=address), pod=pod, snat=False), ExitStack())
    ways.folder.remove(record().name)
    ways.ports.collect("podnet", NOBODY)
    assert ways.ports.check(record(mapping(ip="192.168.1.3"), pod="other", snat=False)) == []
    assert len(held(ways)) == 2


def test_gc_on_a_node_without_host_ports_makes_no_folder(ways):
    ways.ports.collect("podnet", NOBODY)
    assert not os.path.exists(ways.folder.path)


LOST = {
    "the node's folder": lambda folder: shutil.rmtree(os.path.dirname(folder)),
    "the records' folder": shutil.rmtree,
    "the files": lambda folder: [os.unlink(f"{folder}/{n}") for n in os.listdir(folder)],
}


@pytest.mark.parametrize("network", ["podnet", "n" * 150])
@pytest.mark.parametrize("lost", LOST)
def test_a_del_takes_away_its_own_when_all_records_are_lost(ways, lost, network):
    """Elements of a stranger are left alone, and do not make each DEL look."""
    gone, other = (
        record(mapping(port), pod=pod, network=network, snat=False)
        for port, pod in ((8080, "web"), (8081, "other"))
    )
    ways.node.run("nft", THEIRS)
    for each in (gone, other):
        ways.ports.open(each, ExitStack())
    assert ways.folder.names()
    delete(ways, "without", network)
    assert whole(ways)
    LOST[lost](ways.folder.path)
    ways.ports.open(record(mapping(8083), pod="remembered"), ExitStack())
    delete(ways, "web", network)
    assert owners(ways) == {other.comment, "remembered eth0 podnet", "theirs"}
    assert not whole(ways)
    delete(ways, "other", network)
    assert owners(ways) == {"remembered eth0 podnet", "theirs"}
    assert whole(ways)
    delete(ways, "remembered", "podnet")
    assert owners(ways) == {"theirs"}


def delete(ways: Ways, pod: str, network: str) -> None:
    """As a DEL does, on a node that knows no more than these."""
    with closing(Node({})) as other_call:
        additions.close_ports(other_call, network, Attachment(pod, "eth0"))


def whole(ways: Ways) -> bool:
    return os.path.exists(f"{ways.folder.path}/{portlock.WHOLE}")


def test_a_del_looks_through_the_maps_once(ways, monkeypatch):
    dumped = []
    monkeypatch.setattr(lostports, "find", lambda *_: dumped.append(1) or [])
    for _ in range(3):
        delete(ways, "web", "podnet")
    assert len(dumped) == 1


def test_a_del_on_a_node_without_netfilter(ways, monkeypatch):
    monkeypatch.setattr(nfnetlink, "_NETLINK_NETFILTER", 30)  # no kernel has such sockets
    delete(ways, "web", "podnet")
    assert not whole(ways)


# --- odd files --------------------------------------------------------------------------------


def folder_with_something(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


ODD: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.touch(),
    "garbage": lambda path: path.write_bytes(b"\xff{]"),
    "deep": lambda path: path.write_text("[" * 200_000),
    "port": lambda path: path.write_text('{"ports": [["tcp", "", 70000, "10.244.0.5", 80]]}'),
    "symlink": lambda path: path.symlink_to("/etc/passwd"),
    "dangling": lambda path: path.symlink_to("/proc/nowhere"),
    "directory": folder_with_something,
    "fifo": lambda path: os.mkfifo(path),
}


def spoil(ways: Ways, name: str, kind: str) -> None:
    path = Path(ways.folder.path, name)
    path.unlink(missing_ok=True)
    ODD[kind](path)


@pytest.mark.parametrize("kind", ODD)
def test_a_broken_record_is_in_nobodys_way(ways, kind):
    other = record(mapping(8081), pod="other")
    for each in (record(mapping()), other):
        ways.ports.open(each, ExitStack())
    spoil(ways, record().name, kind)
    third = record(mapping(8082), pod="third")
    ways.ports.open(third, ExitStack())
    assert ways.ports.check(third) == ways.ports.check(other) == []
    assert ways.ports.check(record(mapping())) != []
    assert set(ways.ports.strays("podnet", NOBODY)) == {third.name, other.name}
    for each in (third, other):
        ways.ports.close(each.name)
    assert held(ways) == BOTH
    assert ways.node.sysctl("net/ipv4/conf/cni0/route_localnet") == "0"
    ways.ports.close(record().name)
    assert held(ways) == {}
    assert set(ways.folder.names()) <= {"tcp.8080"}
    ways.ports.open(record(mapping()), ExitStack())
    assert held(ways) == BOTH


@pytest.mark.parametrize("kind", ODD)
def test_gc_discards_a_broken_record(ways, kind):
    other = record(mapping(8081), pod="other")
    for each in (record(mapping()), other):
        ways.ports.open(each, ExitStack())
    spoil(ways, record().name, kind)
    ways.ports.collect("othernet", NOBODY)
    assert owners(ways) == {other.comment}
    assert record().name not in ways.folder.names()
    assert ways.ports.check(other) == []


@pytest.mark.parametrize("flushed", [False, True])
def test_the_last_broken_record_leaves_nothing(ways, flushed):
    ways.ports.open(record(mapping()), ExitStack())
    spoil(ways, record().name, "fifo")
    if flushed:
        ways.node.run("nft", "flush", "ruleset")
    ways.ports.close(record().name)
    assert held(ways) == {}
    assert ways.node.sysctl("net/ipv4/conf/cni0/route_localnet") == "0"


def test_a_broken_record_goes_where_there_are_no_maps(ways):
    """Whoever makes the tables again fills them from the other records."""
    for each in (record(mapping()), record(mapping(8081), pod="other")):
        ways.ports.open(each, ExitStack())
    spoil(ways, record().name, "empty")
    ways.node.run("nft", "flush", "ruleset")
    ways.ports.close(record().name)
    assert record().name not in ways.folder.names()


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("file", ["tcp.8080", "localnet.cni0"])
def test_another_broken_file_is_in_nobodys_way(ways, file, kind):
    ways.ports.open(record(mapping(9090)), ExitStack())
    spoil(ways, file, kind)
    other = record(mapping(), pod="other")
    ways.ports.open(other, ExitStack())
    assert ways.ports.check(other) == []
    for each in (record(), other):
        ways.ports.close(each.name)
    assert held(ways) == {}
    assert ways.folder.names() == []


# --- 127.0.0.1 --------------------------------------------------------------------------------


def carried(ways: Ways) -> str:
    return ways.node.sysctl("net/ipv4/conf/cni0/route_localnet")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("before", ["0", "1"])
def test_a_link_that_carried_127_0_0_1_before_goes_on(ways, before, order):
    both = [record(mapping()), record(mapping(8081), pod="other")]
    for _ in range(2):  # nothing of the first time is left
        ways.node.run("sysctl", "-qw", f"net/ipv4/conf/cni0/route_localnet={before}")
        for each in both:
            ways.ports.open(each, ExitStack())
        ways.ports.open(both[0], ExitStack())  # tried again
        for each in both[::order]:
            assert carried(ways) == "1"
            ways.ports.close(each.name)
        assert carried(ways) == before
        assert ways.folder.names() == []
        before = "0"
