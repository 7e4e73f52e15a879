"""`kernel.hostports` and `kernel.conntrack` by themselves: leftovers, repair, older kernels."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest

from cni_plugin import portrecord
from cni_plugin.kernel import conntrack
from cni_plugin.spec import Attachment, CniError
from tests.support.netns import Namespace, wait_until
from tests.support.portways import BOTH, SUBNETS, Ways, held, opened, record
from tests.support.throughports import flows, mapping


@pytest.fixture
def ways(node) -> Iterator[Ways]:
    """The test is in the node's namespace."""
    with opened(node) as made:
        yield made


# --- leftovers ----------------------------------------------------------------------------------


def test_undoing_leaves_nothing(ways):
    undo = ExitStack()
    ways.ports.open(record(mapping(), mapping(53, protocol="udp", ip="192.168.1.2")), undo)
    assert len(held(ways)) == 3
    undo.close()
    assert held(ways) == {}
    assert ways.folder.names() == []
    assert ways.node.sysctl("net/ipv4/conf/cni0/route_localnet") == "0"


def test_an_add_that_is_tried_again_finds_its_own_leftovers(ways):
    """A record with elements, of other ports than now."""
    ways.ports.open(record(mapping(), mapping(8081, ip="192.168.1.2"), snat=False), ExitStack())
    ways.ports.open(record(mapping()), ExitStack())
    assert held(ways) == BOTH
    assert ways.folder.names() == sorted(["localnet.cni0", "tcp.8080", record().name])


def test_elements_of_its_own_without_a_record_are_replaced(ways):
    made = record(mapping(), snat=False)
    ways.ports.open(made, ExitStack())
    for name in ways.folder.names():
        ways.folder.remove(name)
    ways.ports.open(record(mapping(), number=6), ExitStack())
    assert ways.ports.check(record(mapping(), number=6)) == []


def test_a_record_without_elements_is_closed_like_any_other(ways):
    """Of an ADD that was killed between the two."""
    made = record(mapping())
    ways.folder.write(made.name, portrecord.encode(made))
    ways.ports.close(made.name)
    assert ways.folder.names() == []


def test_a_claim_without_a_record_says_nothing(ways):
    """Of a DEL that was killed, and of a record that has other ports now."""
    ways.ports.open(record(mapping(9090)), ExitStack())
    ways.folder.write("tcp.8080", f"veth00000000000\n{record().name}".encode())
    ways.ports.open(record(mapping(), pod="other"), ExitStack())
    assert ("ip", "host_ports", "tcp", "8080") in held(ways)
    ways.ports.close(record(pod="other").name)
    ways.ports.close(record().name)
    assert held(ways) == {}


@pytest.mark.parametrize("again", ["close", "open"])
def test_a_broken_record_stands_in_nobodys_way(ways, again):
    """Its elements go with it, those of others stay."""
    ways.ports.open(record(mapping(9090)), ExitStack())
    ways.ports.open(record(mapping(), pod="other"), ExitStack())
    others = {key: whose for key, whose in held(ways).items() if whose.startswith("other")}
    ways.folder.write(record().name, b"{")
    assert set(ways.ports.strays("podnet", frozenset())) == {record(pod="other").name}
    if again == "close":
        ways.ports.close(record().name)
        assert held(ways) == others
    else:
        ways.ports.open(record(mapping(9090)), ExitStack())
        assert ways.ports.check(record(mapping(9090))) == []
    assert ways.ports.check(record(mapping(), pod="other")) == []


def test_a_port_of_a_broken_record_is_refused_by_its_element(ways):
    ways.ports.open(record(mapping()), ExitStack())
    ways.folder.write(record().name, b"[]")
    with pytest.raises(CniError, match="web eth0 podnet, of which podwire has no record") as caught:
        ways.ports.open(record(mapping(), pod="other"), ExitStack())
    assert caught.value.code == 103


def test_a_refused_transaction_leaves_no_record(ways):
    ways.node.run("nft", "delete", "table", "ip", "podwire")
    undo = ExitStack()
    with pytest.raises(CniError, match="podwire host_ports"):
        ways.ports.open(record(mapping()), undo)
    undo.close()
    assert ways.folder.names() == []


def test_a_shared_element_stays_as_long_as_one_needs_it(ways):
    """Without snat two pods with one port on two addresses have one element in common."""
    for pod, address in (("web", "192.168.1.2"), ("other", "192.168.1.3")):
        ways.ports.open(record(mapping(ip=address), pod=pod, snat=False), ExitStack())
    shared = ("ip", "unmasked_ports", "tcp", "8080")
    assert shared in held(ways)
    ways.ports.close(record().name)
    assert shared in held(ways)
    ways.ports.close(record(pod="other").name)
    assert held(ways) == {}


# --- repair -------------------------------------------------------------------------------------


def test_restoring_makes_the_maps_what_the_records_say(ways):
    made = record(mapping(), mapping(8081, ip="192.168.1.2"), snat=False)
    ways.ports.open(made, ExitStack())
    before = held(ways)
    for change in (
        "delete element ip podwire host_ports { tcp . 8080 }",
        'add element ip podwire host_ports { tcp . 99 comment "nobody" : 10.9.9.9 . 99 }',
        "flush set ip6 podwire unmasked_ports",
    ):
        ways.node.run("nft", change)
    ways.node.run("sysctl", "-qw", "net/ipv4/conf/cni0/route_localnet=0")
    assert ways.ports.check(made) != []
    ways.ports.restore()
    assert held(ways) == before
    assert ways.ports.check(made) == []


def test_restoring_where_one_family_has_no_table(ways):
    """And where a bridge is gone that a record names."""
    made = record(mapping(ip="0.0.0.0"))
    ways.ports.open(made, ExitStack())
    ways.node.run("nft", "delete", "table", "ip6", "podwire")
    ways.node.run("nft", "flush", "map", "ip", "podwire", "host_ports")
    ways.node.run("ip", "link", "del", "cni0")
    ways.ports.restore()
    assert list(held(ways)) == [("ip", "host_ports", "tcp", "8080")]
    ways.ports.close(made.name)
    assert held(ways) == {}


def test_removing_all(ways):
    for number, pod in enumerate(("web", "other")):
        ways.ports.open(record(mapping(8080 + number), pod=pod), ExitStack())
    ways.ports.remove_all()
    assert held(ways) == {}
    assert ways.folder.names() == []
    ways.ports.open(record(mapping()), ExitStack())  # the folder's lock was made anew
    assert held(ways) == BOTH


def test_strays_are_those_of_the_network(ways):
    ways.ports.open(record(mapping()), ExitStack())
    ways.ports.open(record(mapping(8081), pod="other"), ExitStack())
    valid = frozenset({Attachment("web", "eth0")})
    other = Attachment("other", "eth0")
    assert ways.ports.strays("podnet", valid) == {record(pod="other").name: other}
    assert ways.ports.strays("othernet", valid) == {}


# --- flows ----------------------------------------------------------------------------------------


def send_datagrams(node: Namespace, version: int) -> None:
    """From the node to its port 53 at two addresses, to that of another host, to another port."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    away = {4: "192.168.1.77", 6: "fd00:1::77"}[version]
    here = {4: "192.168.1.2", 6: "fd00:1::2"}[version]
    pod = str(SUBNETS[0 if version == 4 else 1][5])
    length, *more = (32,) if version == 4 else (128, "nodad")
    node.run("ip", "addr", "add", f"{pod}/{length}", "dev", "lo", *more)
    with ExitStack() as stack:
        sockets = {
            target: stack.enter_context(closing(socket.socket(family, socket.SOCK_DGRAM)))
            for target in ((here, 53), (away, 53), (pod, 53), (here, 54))
        }

        def arrive() -> bool:
            for target, sock in sockets.items():
                sock.sendto(b"x", target)
            return len(flows(node)) == len(sockets)

        wait_until(arrive, what="all are on their way")


@pytest.mark.parametrize("more", [0, 5], ids=["one port", "many ports"])
@pytest.mark.parametrize("kernel", ["6.11", "5.8", "5.7"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("ip", "closed", "left"),
    [
        (False, False, {"away 53", "here 54"}),
        (True, False, {"away 53", "pod 53", "here 54"}),
        (False, True, {"away 53", "here 53", "here 54"}),
    ],
    ids=["opened", "opened for one address", "closed"],
)
def test_each_kernel_forgets_the_same(ways, monkeypatch, kernel, version, ip, closed, left, more):
    """Where it removes the flows itself, where it lists them, and where it lists all there are."""
    node = ways.node
    for family in ("ip", "ip6"):
        chain = "{ type filter hook output priority 0; }"
        node.run("nft", f"add table {family} track; add chain {family} track seen {chain}")
        node.run("nft", f"add rule {family} track seen ct state new counter")
    if kernel != "6.11":
        monkeypatch.setattr(conntrack, "_forgotten", lambda *_: False)
    if kernel == "5.7":
        monkeypatch.setattr(conntrack, "_filter", lambda *_: b"")
    send_datagrams(node, version)
    names = {"192.168.1.2": "here", "fd00:1::2": "here", "10.244.0.5": "pod"}
    names |= {"fd00:10:244::5": "pod", "192.168.1.77": "away", "fd00:1::77": "away"}
    host_ip = {4: "192.168.1.2", 6: "fd00:1::2"}[version] if ip else ("0.0.0.0", "::")[version > 4]
    numbers = [53, *range(60, 60 + more)]
    asked = [mapping(number, number, protocol="udp", ip=host_ip) for number in numbers]
    ports = record(*asked).ports
    (conntrack.forget_closed if closed else conntrack.forget_opened)(ways.route_socket, ports)
    found = set()
    for line in flows(node):
        words = dict(word.split("=") for word in reversed(line.split()) if "=" in word)
        found.add(f"{names[str(ip_address(words['dst']))]} {words['dport']}")
    assert found == left


@pytest.mark.parametrize("forget", [conntrack.forget_opened, conntrack.forget_closed])
def test_the_flows_of_many_ports_are_listed_once_for_each_family(ways, monkeypatch, forget):
    asked = []
    plain = conntrack.ConntrackSocket.dump

    def dump(self, message, whole=True):
        asked.append(message.what)
        return plain(self, message, whole)

    monkeypatch.setattr(conntrack.ConntrackSocket, "dump", dump)
    numbers = range(1000, 2500)
    ports = record(*(mapping(each, each, protocol="udp") for each in numbers)).ports
    forget(ways.route_socket, ports)
    assert asked == ["list UDP flows"] * 2
