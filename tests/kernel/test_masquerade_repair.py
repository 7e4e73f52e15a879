"""The ruleset under others' hands: what somebody broke is put back, nothing else is touched, and
many may do it at once."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_address

import pytest

from cni_plugin import ruleset
from cni_plugin.kernel import nftmessages, nftsets
from cni_plugin.spec import CniError
from tests.support import packetfilter

SUBNETS = ("10.244.0.0/24", "fd00:10:244::/64")
RULES = packetfilter.rules(
    *SUBNETS,
    masquerade=True,
    direct=("10.244.0.0/16",),
    bridge="cni0",
    ingress_policy="same-bridge",
)
PORT = "add element ip podwire host_ports { tcp . 8080 : 10.244.0.2 . 80 }"

KEEPING_PORTS = {  # what was done, in nft's language
    "a rule deleted": "flush chain ip podwire postrouting",
    "all rules deleted": "flush table ip podwire",
    "a rule added in front": "insert rule ip podwire postrouting accept",
    "a rule added behind": "add rule ip6 podwire forward counter drop",
    "elements added": "add element ip podwire masqueraded { 192.168.1.0/24 }",
    "elements removed": "delete element ip podwire direct { 224.0.0.0/4 }",
    "a set emptied": "flush set ip6 podwire masqueraded",
    "a bridge forgotten": 'delete element ip podwire closed { "cni0" }',
    "a chain that drops": "add chain ip podwire forward { policy drop; }",
    "a table asleep": "add table ip podwire { flags dormant; }",
    "a chain gone": "flush chain ip podwire forward; delete chain ip podwire forward",
    "a chain elsewhere": (
        "flush chain ip podwire postrouting; delete chain ip podwire postrouting;"
        "add chain ip podwire postrouting { type nat hook postrouting priority 100; }"
    ),
    "a set gone": ("flush chain ip podwire postrouting; delete set ip podwire masqueraded"),
    "rules in another order": (
        "flush chain ip podwire guard;"
        'add rule ip podwire guard iif != "lo" ip daddr 127.0.0.0/8 drop;'
        'add rule ip podwire guard iif != "lo" ip saddr 127.0.0.0/8 drop'
    ),
    "another number in a rule": (
        "flush chain ip podwire guard;"
        'add rule ip podwire guard iif != "lo" ip saddr 127.0.0.0/8 drop;'
        'add rule ip podwire guard iif != "lo" ip daddr 126.0.0.0/8 drop'
    ),
    "another verdict in a rule": (
        "flush chain ip podwire guard;"
        'add rule ip podwire guard iif != "lo" ip saddr 127.0.0.0/8 drop;'
        'add rule ip podwire guard iif != "lo" ip daddr 127.0.0.0/8 accept'
    ),
    "ports that can be guessed": (
        "flush chain ip6 podwire postrouting;"
        "add rule ip6 podwire postrouting mark and 0x2000 == 0x2000 ct status dnat masquerade;"
        "add rule ip6 podwire postrouting ip6 saddr @masqueraded ip6 daddr != @direct masquerade"
    ),
}
LOSING_PORTS = {
    "flushed": "flush ruleset",
    "the table deleted": "delete table ip podwire",
    "a map of another kind": (
        "delete table ip podwire; add table ip podwire;"
        "add map ip podwire host_ports { type inet_service : ipv4_addr; }"
    ),
    "another's table asleep": "delete table ip podwire; add table ip podwire { flags dormant; }",
    "another's table asleep with a chain": (
        "delete table ip podwire; add table ip podwire { flags dormant; };"
        "add chain ip podwire postrouting { type filter hook postrouting priority 0; }"
    ),
}


def lines(listing: str) -> dict[str, list[str]]:
    """Each object's lines by its heading; what was made anew stands behind the others."""
    found: dict[str, list[str]] = {}
    table = heading = ""
    for line in listing.splitlines():
        if line.startswith("table"):
            table = line
        elif line.strip() and line.endswith("{") and not line.startswith("\t\t"):
            heading = table + line
        elif line.strip("\t}"):
            found.setdefault(heading, []).append(line)
    return found


def broken(node, commands: str) -> None:
    node.run("nft", commands)


@pytest.fixture
def kept(node):
    """The firewall of one that has just made the ruleset, with a host port and a neighbour's
    table in it, and what nft showed then."""
    packetfilter.nft(
        node, "add table inet other", "add set inet other s { type ipv4_addr; }",
        "add element inet other s { 1.2.3.4 }",
    )  # fmt: skip
    own = packetfilter.firewall(node)
    own.ensure(RULES)
    node.run("nft", PORT)
    own.ensure(RULES)
    return own, packetfilter.listing(node)


@pytest.mark.parametrize("harm", KEEPING_PORTS)
def test_what_somebody_broke_is_put_back(node, kept, harm):
    own, before = kept
    broken(node, KEEPING_PORTS[harm])
    found = own.differences(RULES)
    assert found
    assert all("podwire" in sentence for sentence in found)
    assert own.ensure(RULES) is True
    assert lines(packetfilter.listing(node)) == lines(before)  # host ports among it
    assert own.ensure(RULES) is False
    assert packetfilter.firewall(node).differences(RULES) == []


@pytest.mark.parametrize("harm", LOSING_PORTS)
def test_maps_that_had_to_be_made_anew_are_told(node, kept, harm):
    own, before = kept
    broken(node, LOSING_PORTS[harm])
    assert own.differences(RULES)
    assert own.ensure(RULES) is True
    node.run("nft", PORT)
    if harm == "flushed":
        before = before[before.index("table ip podwire") :]
    assert lines(packetfilter.listing(node)) == lines(before)


def test_what_holds_on_to_a_part_that_has_to_go_goes_with_it(node, kept):
    """A chain of somebody's in podwire's table that jumps to one that nobody wants any more."""
    own, _ = kept
    node.run("nft", "add chain ip podwire mine; add rule ip podwire mine jump host_ports")
    assert own.ensure(RULES) is False
    fewer = packetfilter.rules(*SUBNETS, masquerade=True, host_ports=False)
    assert own.ensure(fewer) is True
    shown = packetfilter.listing(node)
    assert "chain host_ports" not in shown
    assert "chain mine" not in shown
    assert packetfilter.firewall(node).differences(fewer) == []


def test_maps_are_refilled_in_the_same_transaction(node, kept):
    own, before = kept
    node.run("nft", "delete table ip podwire")
    generation = generation_of(node)

    def refill(version):
        assert version == 4
        key = bytes((6, 0, 0, 0)) + (8080).to_bytes(2, "big") + bytes(2)
        data = ip_address("10.244.0.2").packed + (80).to_bytes(2, "big") + bytes(2)
        element = nftsets.Element(key, data)
        return nftsets.add_elements(4, ruleset.TABLE, ruleset.HOST_PORTS, [element])

    assert own.ensure(RULES, refill=refill) is True
    assert lines(packetfilter.listing(node)) == lines(before)
    assert generation_of(node) == generation + 1


def generation_of(node) -> int:
    return packetfilter.firewall(node)._socket.generation()


def test_nothing_to_do_is_one_question(node, kept, monkeypatch):
    own, _ = kept
    sent = []
    send = own._socket._send
    monkeypatch.setattr(own._socket, "_send", lambda m, *a, **k: sent.append(m) or send(m, *a, **k))
    for _ in range(3):
        assert own.ensure(RULES) is False
    assert [[message.what for message in batch] for batch in sent] == [
        ["read the ruleset's generation"]
    ] * 3


def test_changes_by_others_elsewhere_change_nothing_here(node, kept):
    own, _ = kept
    node.run("nft", "add element inet other s { 1.2.3.5 }")
    before, generation = packetfilter.listing(node), generation_of(node)
    assert own.ensure(RULES) is False
    assert packetfilter.listing(node) == before
    assert generation_of(node) == generation


def test_own_host_ports_need_no_second_look(node, kept, monkeypatch):
    own, _ = kept
    key = bytes((17, 0, 0, 0)) + (53).to_bytes(2, "big") + bytes(2)
    data = ip_address("10.244.0.2").packed + (53).to_bytes(2, "big") + bytes(2)
    element = nftsets.Element(key, data, "podnet pod eth0")
    own.transaction(nftsets.add_elements(4, "podwire", "host_ports", [element], exclusive=True))
    monkeypatch.setattr(own, "_repairs", lambda rules: pytest.fail("looked"))
    assert own.ensure(RULES) is False
    monkeypatch.undo()
    node.run("nft", "add table ip mine")  # and when somebody else was there between, there is one
    own.transaction(nftsets.delete_elements(4, "podwire", "host_ports", [element]))
    node.run("nft", "flush chain ip podwire postrouting")
    assert own.ensure(RULES) is True


def test_removal_leaves_nothing(node):
    before = packetfilter.listing(node)
    own = packetfilter.firewall(node)
    own.ensure(RULES)
    assert own.remove() is True
    assert packetfilter.listing(node) == before
    assert own.remove() is False


def test_the_tools_of_others_read_it(node, kept):
    shown = json.loads(node.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    chains = {entry["chain"]["name"] for entry in shown if "chain" in entry}
    assert {"guard", "host_ports", "prerouting", "output", "postrouting", "forward"} <= chains
    # What nft shows nft can make, and it is the same.
    text = node.run("nft", "list", "ruleset").stdout
    node.run("nft", "flush ruleset")
    node.run("nft", "-f", "-", stdin=text)
    assert packetfilter.firewall(node).differences(RULES) == []
    for tool in ("iptables-nft", "ip6tables-nft"):
        node.run(tool, "-A", "FORWARD", "-j", "ACCEPT")
        saved = node.run(f"{tool}-save")
        assert "-A FORWARD -j ACCEPT" in saved.stdout
        assert "incompatible" not in saved.stdout + saved.stderr


# --- many at once -------------------------------------------------------------------------------

MEMBER = """
import os, sys
from ipaddress import ip_network
from cni_plugin.kernel.firewall import Firewall
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.ruleset import NetworkRules, node_rules
folder, number = sys.argv[1], int(sys.argv[2])
def read():
    return node_rules(
        NetworkRules((ip_network(f"10.{n}.0.0/24"), ip_network(f"fd00:{n}::/64")), True)
        for n in sorted(map(int, os.listdir(folder)))
    )
firewall = Firewall(NetfilterSocket())
before = read()
sys.stdin.read(1)
open(f"{folder}/{number}", "w").close()
firewall.ensure(before, read)
firewall.ensure(read(), read)
"""


@pytest.mark.parametrize("flushed", [False, True])
def test_many_at_once_lose_nothing_and_double_nothing(node, tmp_path, flushed):
    folder = tmp_path / "wants"
    folder.mkdir()
    numbers = range(20, 44, 2)  # no two subnets touch
    members = [
        node.popen(sys.executable, "-c", MEMBER, str(folder), str(n), stdin=subprocess.PIPE)
        for n in numbers
    ]
    for member in members:
        member.stdin.write("go")
        member.stdin.close()
        member.stdin = None
        if flushed:
            node.run("nft", "flush ruleset")
    assert [member.wait(60) for member in members] == [0] * len(members)
    if flushed:  # the last flush may have come last of all
        packetfilter.firewall(node).ensure(wanted(numbers))
    assert packetfilter.firewall(node).differences(wanted(numbers)) == []
    shown = packetfilter.listing(node)
    for number in numbers:
        assert shown.count(f"10.{number}.0.0/24") == shown.count(f"fd00:{number}::/64") == 3
    assert shown.count("masquerade fully-random") == 4


def wanted(numbers):
    return packetfilter.node_rules(
        packetfilter.network(f"10.{n}.0.0/24", f"fd00:{n}::/64", masquerade=True) for n in numbers
    )


def test_who_is_disturbed_each_time_says_so(node, kept, monkeypatch):
    own, _ = kept
    node.run("nft", "flush chain ip podwire postrouting")
    transaction = own._socket.transaction

    def disturbed(messages, generation=0):
        with node.entered():
            other = packetfilter.NetfilterSocket()
        with other:
            other.transaction([nftmessages.add_table(4, "mine")])
            other.transaction([nftmessages.delete_table(4, "mine")])
        transaction(messages, generation)

    monkeypatch.setattr(own._socket, "transaction", disturbed)
    monkeypatch.setattr("cni_plugin.kernel.firewall._PAUSE_S", 0)
    with pytest.raises(CniError) as caught:
        own.ensure(RULES)
    assert caught.value.code == 11
