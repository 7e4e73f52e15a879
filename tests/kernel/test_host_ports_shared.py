"""Host ports that several attachments of one container want: who has them, and who is next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cni_plugin.hostports import PortRecord
from cni_plugin.kernel.portelements import entries_of
from cni_plugin.kernel.portrecords import PortRecords
from cni_plugin.spec import CniError
from tests.support.portways import BOTH, V4, Ways, held, opened, record
from tests.support.throughports import mapping


@pytest.fixture
def ways(node) -> Iterator[Ways]:
    """The test is in the node's namespace."""
    with opened(node) as made:
        yield made


def second(*mappings: dict[str, Any], **options: Any) -> PortRecord:
    """Of the same container, by another network."""
    options = {"ifname": "eth1", "network": "net2", "number": 6, **options}
    return record(*(mappings or (mapping(),)), **options)


def leads_to(ways: Ways, comment: str) -> bool:
    return set(held(ways).values()) == {comment}


@pytest.mark.parametrize("also", [{"network": "podnet"}, {"ifname": "eth0"}], ids=["if", "net"])
def test_the_first_attachment_of_a_container_has_the_port(ways, also):
    first, other = record(mapping()), second(**also)
    for each in (first, other):
        ways.ports.open(each, ExitStack())
    assert held(ways) == BOTH
    assert ways.ports.check(first) == ways.ports.check(other) == []
    ways.ports.close(other.name)
    assert held(ways) == BOTH
    assert ways.ports.check(first) == []
    ways.ports.close(first.name)
    assert held(ways) == {}
    assert ways.folder.names() == []


def test_the_port_goes_over_to_the_next_attachment(ways):
    third = second(ifname="eth2", network="net3", number=7)
    for each in (record(mapping()), second(), third):
        ways.ports.open(each, ExitStack())
    for closed, next_one in ((record(), second()), (second(), third)):
        ways.ports.close(closed.name)
        assert leads_to(ways, next_one.comment)
        assert len(held(ways)) == 2
        assert ways.ports.check(next_one) == []
        assert ways.node.sysctl("net/ipv4/conf/cni0/route_localnet") == "1"
    ways.ports.close(third.name)
    assert held(ways) == {}
    assert ways.folder.names() == []


def test_an_attachment_that_gave_its_port_up_comes_back_last(ways):
    """As one that is added again, to a container that kept the other."""
    for each in (record(mapping()), second(), record(mapping())):
        ways.ports.open(each, ExitStack())
    assert leads_to(ways, second().comment)
    assert ways.ports.check(record(mapping())) == []
    ways.ports.close(second().name)
    assert held(ways) == BOTH


def test_an_attachment_that_waits_keeps_others_away(ways):
    for each in (record(mapping()), second(mapping(), mapping(8081))):
        ways.ports.open(each, ExitStack())
    for closed in ("", record().name):
        ways.ports.close(closed or "veth00000000000")
        with pytest.raises(CniError, match="8080/tcp is held by container web") as caught:
            ways.ports.open(record(mapping(), pod="other"), ExitStack())
        assert caught.value.code == 103
    assert leads_to(ways, second().comment)


def test_one_address_first_and_then_all(ways):
    """What the first leaves is the second's at once."""
    first, other = record(mapping(ip="192.168.1.2")), second(mapping(ip="0.0.0.0"))
    for each in (first, other):
        ways.ports.open(each, ExitStack())
    keys = ("ip", "host_ports_ip", "192.168.1.2", "tcp", "8080"), V4
    assert held(ways) == {keys[0]: first.comment, keys[1]: other.comment}
    ways.ports.close(first.name)
    assert held(ways) == {keys[1]: other.comment}
    ways.ports.open(first, ExitStack())  # behind the other, which has it all
    assert held(ways) == {keys[1]: other.comment}
    assert ways.ports.check(first) == []
    ways.ports.close(other.name)
    assert held(ways) == {keys[0]: first.comment}


def test_each_port_goes_its_own_way(ways):
    """UDP and TCP, without snat: the element that both need in the set stays with the second."""
    udp = mapping(53, 53, "udp", "0.0.0.0")
    first = record(udp, mapping(ip="0.0.0.0"), snat=False)
    other = second(udp, mapping(8081, ip="0.0.0.0"), snat=False)
    for each in (first, other):
        ways.ports.open(each, ExitStack())
    owners = {key[-2:]: whose for key, whose in held(ways).items() if key[1] == "host_ports"}
    ports = ("udp", "53"), ("tcp", "8080"), ("tcp", "8081")
    whose = first.comment, first.comment, other.comment
    assert owners == dict(zip(ports, whose, strict=True))
    assert len(held(ways)) == 6
    ways.ports.close(first.name)
    assert len(held(ways)) == 4
    assert ways.ports.check(other) == []


def test_a_set_has_nothing_of_an_attachment_that_still_waits(ways):
    """The heir is masqueraded, though the one behind it is not."""
    for number, snat in enumerate((False, True, False)):
        names = {"ifname": f"eth{number}", "network": f"net{number}"}
        ways.ports.open(record(mapping(), snat=snat, **names), ExitStack())
    ways.ports.close(record(ifname="eth0", network="net0").name)
    assert leads_to(ways, "web eth1 net1")
    assert {key[1] for key in held(ways)} == {"host_ports"}
    ways.ports.close(record(ifname="eth1", network="net1").name)
    assert leads_to(ways, "web eth2 net2")
    assert {key[1] for key in held(ways)} == {"host_ports", "unmasked_ports"}


@pytest.mark.parametrize("closed", [False, True])
def test_restoring_comes_to_the_same(ways, closed):
    """Whoever fills the maps anew: `restore`, a firewall that makes them again, the agent."""
    for each in (record(mapping(), snat=False), second(snat=False)):
        ways.ports.open(each, ExitStack())
    if closed:
        ways.ports.close(record().name)
    before = held(ways)
    for family in ("ip", "ip6"):
        for name in ("map {} podwire host_ports", "set {} podwire unmasked_ports"):
            ways.node.run("nft", "flush", *name.format(family).split())
    ways.ports.restore()
    # Elements of the set are anybody's who needs them: their comments name one.
    assert set(held(ways)) == set(before)
    assert all(held(ways)[key] == before[key] for key in BOTH)
    found = PortRecords(ways.folder).everything().values()
    entries = [entry for each in found for entry in entries_of(each)]
    assert {(entry.version, entry.where) for entry in entries} == {
        (4, "host_ports"),
        (6, "host_ports"),
        (4, "unmasked_ports"),
        (6, "unmasked_ports"),
    }
    assert len(entries) == len(before) == 4
    comment = second().comment if closed else record().comment
    assert {entry.element.comment for entry in entries} == {comment}


def test_a_close_that_was_killed_is_gone_through_again(ways):
    """The elements had gone over, the record was still there: and it was restored meanwhile."""
    for each in (record(mapping()), second()):
        ways.ports.open(each, ExitStack())
    files = {name: ways.folder.read(name) for name in ways.folder.names()}
    ways.ports.close(record().name)
    for name, data in files.items():
        ways.folder.write(name, data)
    ways.ports.close(record().name)
    assert leads_to(ways, second().comment)
    for name, data in files.items():
        ways.folder.write(name, data)
    ways.ports.restore()
    assert held(ways) == BOTH
    ways.ports.close(record().name)
    assert leads_to(ways, second().comment)
    assert ways.ports.check(second()) == []


def test_a_broken_record_hands_its_ports_on(ways):
    for each in (record(mapping()), second()):
        ways.ports.open(each, ExitStack())
    ways.folder.write(record().name, b"{")
    assert ways.ports.check(second()) != []
    ways.ports.close(record().name)
    assert leads_to(ways, second().comment)
    assert ways.ports.check(second()) == []


@pytest.mark.parametrize("gone", ["flush ruleset", "delete table ip6 podwire"])
def test_nothing_is_handed_on_where_there_are_no_maps(ways, gone):
    for each in (record(mapping()), second()):
        ways.ports.open(each, ExitStack())
    ways.node.run("nft", *gone.split())
    ways.ports.close(record().name)
    assert set(held(ways)) == ({V4} if "ip6" in gone else set())
    ways.ports.close(second().name)
    assert held(ways) == {}
    assert ways.folder.names() == []


@pytest.mark.parametrize("order", [1, -1])
def test_removing_all_of_a_container_with_two_attachments(ways, order):
    """What the first leaves to the second goes as well, whichever comes first by name."""
    for each in (record(mapping()), second())[::order]:
        ways.ports.open(each, ExitStack())
    ways.ports.remove_all()
    assert held(ways) == {}
    assert ways.folder.names() == []
