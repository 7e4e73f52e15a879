"""Peers that something of this node's stands in the way of: what is said, and to whom."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

import pytest

from cni_plugin.agent.upkeep import Upkeep
from cni_plugin.sources import Gone, Listed, Put
from tests.support.fakesource import member
from tests.support.follower import MEMBERS, Follower

MEMBERS_4 = tuple(
    each._replace(addresses=each.addresses[:1], pod_cidrs=each.pod_cidrs[:1]) for each in MEMBERS
)
SOON_S = 8.0  # much less than the half minute after which all of it is looked at


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at now and then: whatever happens is for what the kernel tells."""
    monkeypatch.setattr("cni_plugin.agent.coordination._WHOLE_S", 1000)
    monkeypatch.setattr("cni_plugin.agent.coordination._LONGEST_RETRY_S", 1000)
    monkeypatch.setattr("cni_plugin.agent.coordination._FIRST_RETRY_S", 1000)
    monkeypatch.setattr("cni_plugin.agent.coordination._TICK_S", 1000)


@contextmanager
def kept(node: Follower) -> Iterator[None]:
    """With an upkeep, which hears the kernel."""
    upkeep = Upkeep(node.memory, logging.getLogger("test.upkeep"), lambda: None)
    with node.node.entered():
        upkeep.start()
    try:
        yield
    finally:
        upkeep.stop()


def obstruct(node: Follower, *subnets: str) -> None:
    for subnet in subnets:
        node.node.run("ip", "route", "add", subnet, "dev", "lo")


def clear(node: Follower, subnet: str) -> None:
    node.node.run("ip", "route", "del", subnet, "dev", "lo")


def test_a_node_that_reaches_no_other_is_not_ready(follow, never):
    """As one that had another network; the peers' routes come as soon as there is room."""
    node = follow(1)
    obstruct(node, "10.244.0.0/24", "10.244.2.0/24")
    with kept(node):
        node.source.tell(Listed(MEMBERS_4))
        node.wait_for_state("NetworkNotReady")
        (state,) = node.source.states
        assert not state.ready
        assert "no other node (2 are left out)" in state.message
        assert "another route to 10.244.0.0/24" in state.message
        assert not node.has_conflist()
        node.wait(lambda: len(node.source.reports) == 2, "reports")
        assert [report[:2] for report in node.source.reports] == [
            ("node-0", "NodeUnfit"),
            ("node-2", "NodeUnfit"),
        ]
        assert "from node node-1" in node.source.reports[0][2]
        begun = monotonic()
        clear(node, "10.244.0.0/24")
        node.wait_for_state("PodwireReady")
        assert node.owned() == {"10.244.0.0/24"}
        assert node.has_conflist()
        said = node.source.states[-1].message
        assert "node node-2 has to do without ways from node node-1" in said
        assert "another route to 10.244.2.0/24" in said
        assert monotonic() - begun < SOON_S
        begun = monotonic()
        clear(node, "10.244.2.0/24")
        node.wait(lambda: node.owned() == {"10.244.0.0/24", "10.244.2.0/24"}, "the other's")
        node.wait(lambda: "node-2" not in node.source.states[-1].message, "the message's end")
        assert monotonic() - begun < SOON_S


def test_one_that_has_served_keeps_its_configuration(follow):
    """It says what is wrong; what the runtime has it keeps, and pods that run do."""
    node = follow(1)
    node.source.tell(Listed(MEMBERS_4[:2]))
    node.wait_for_state("PodwireReady")
    obstruct(node, "10.244.7.0/24")
    moved = member("node-0", "192.168.1.2", "10.244.7.0/24")
    node.source.tell(Put(moved))
    node.wait_for_state("NetworkNotReady")
    assert node.has_conflist()
    node.source.tell(Put(MEMBERS_4[2]))
    node.wait_for_state("PodwireReady")
    assert node.owned() == {"10.244.2.0/24"}


def test_the_only_peer_s_wrong_address(follow):
    """Nothing of this node's: it serves, and says so."""
    node = follow(1)
    node.source.tell(Listed((MEMBERS_4[1], member("node-0", "192.168.1.255", "10.244.0.0/24"))))
    node.wait_for_state("PodwireReady")
    assert "node node-0 has to do without ways" in node.source.states[-1].message
    node.wait(lambda: node.source.reports, "a report")


def test_what_only_this_node_sees_it_reports(follow):
    """Whichever it is by name: its own network, which holds a peer's subnet."""
    node = follow(1)
    wrong = member("node-7", "192.168.1.77", "192.168.1.128/25")
    node.source.tell(Listed((*MEMBERS, wrong)))
    node.wait(lambda: node.source.reports, "a report")
    ((name, reason, message),) = node.source.reports
    assert (name, reason) == ("node-7", "PodCIDRInvalid")
    assert "of node node-1" in message


def test_what_all_see_some_report(follow):
    """Not the first alone, which may have no agent; and not all of them."""
    second, last = follow(1), follow(2)
    more = [member(f"node-{n}", f"192.168.1.{n}", f"10.244.{n}.0/24") for n in (10, 11)]
    nameless = member("node-99", "", "10.244.99.0/24")
    for node in (second, last):
        node.source.tell(Listed((*MEMBERS_4, *more, nameless)))
    second.wait(lambda: second.source.reports, "a report")
    assert second.source.reports[0][:2] == ("node-99", "NoAddress")
    last.wait_for_state("PodwireReady")
    sleep(0.5)  # reports are told after the state
    assert last.source.reports == []


def test_many_that_are_obstructed_keep_nobody_from_joining(follow):
    node = follow(1)
    subnets = [f"172.17.{number}.0/24" for number in range(40)]
    obstruct(node, *subnets)
    bad = [
        member(f"bad-{number}", f"192.168.1.{100 + number}", subnet)
        for number, subnet in enumerate(subnets)
    ]
    node.source.tell(Listed((*MEMBERS_4, *bad)))
    node.wait_for_state("PodwireReady")
    assert node.has_conflist()
    assert node.owned() == {"10.244.0.0/24", "10.244.2.0/24"}
    assert "40 nodes are left out here" in node.source.states[0].message
    assert {state.reason for state in node.source.states} == {"PodwireReady"}
    node.wait(lambda: len(node.source.reports) == 40, "an Event of each")


def carrier(node: Follower) -> int:
    """The IP version of the overlay's own end; 0 without one."""
    shown = node.node.run("ip", "-j", "-d", "link", "show", "pwvx1", check=False).stdout
    link = next(iter(json.loads(shown or "[]")), {})  # it is absent while it is replaced
    data = link.get("linkinfo", {}).get("info_data", {})
    return 6 if "local6" in data else 4 if "local" in data else 0


def test_a_node_without_ipv4_moves_the_overlay_at_once_and_back(follow, never):
    """No agent is waited for: the others go by the same rule, and by the same nodes."""
    node = follow(0)
    six = member("node-7", "fd00:2::78", "fd00:10:244:78::/64")
    four = member("node-8", "192.168.2.79", "10.244.79.0/24")
    with kept(node):
        node.source.tell(Listed(MEMBERS))
        node.wait(lambda: carrier(node) == 4, "an overlay of IPv4")
        for _ in range(2):
            begun = monotonic()
            node.source.tell(Put(six))
            node.wait(lambda: carrier(node) == 6, "an overlay of IPv6")
            node.wait(lambda: "fd00:10:244:78::/64" in node.owned("-6"), "the new one's route")
            node.source.tell(Gone("node-7"))
            node.wait(lambda: carrier(node) == 4, "an overlay of IPv4 again")
            assert monotonic() - begun < SOON_S
        node.source.tell(Put(six))
        node.wait(lambda: carrier(node) == 6, "an overlay of IPv6")
        node.source.tell(Put(four))  # as many lack the one as the other
        node.wait(lambda: carrier(node) == 4, "an overlay of IPv4 for most")
        node.wait(lambda: "10.244.79.0/24" in node.owned(), "the last one's route")
        node.wait(lambda: node.source.reports, "a report")
        assert node.source.reports[0][:2] == ("node-7", "NodeUnfit")
        node.source.tell(Gone("node-8"))
        node.wait(lambda: carrier(node) == 6, "an overlay of IPv6")


def test_one_that_is_left_out_here_counts_for_the_family_of_the_overlay(follow, never):
    """The other nodes have it, and send what is for this one over IPv6."""
    node = follow(0)
    obstruct(node, "fd00:10:244:78::/64")
    six = member("node-7", "fd00:2::78", "fd00:10:244:78::/64")
    with kept(node):
        node.source.tell(Listed((*MEMBERS, six)))
        node.wait(lambda: node.source.reports, "a report")
        assert node.source.reports[0][:2] == ("node-7", "NodeUnfit")
        node.wait(lambda: carrier(node) == 6, "an overlay of IPv6")
        assert node.owned("-6") == {"fd00:10:244:1::/64", "fd00:10:244:2::/64"}
        node.source.tell(Gone("node-7"))
        node.wait(lambda: carrier(node) == 4, "an overlay of IPv4")
        node.source.tell(Put(six))
        node.wait(lambda: carrier(node) == 6, "an overlay of IPv6")
        clear(node, "fd00:10:244:78::/64")
        node.wait(lambda: "fd00:10:244:78::/64" in node.owned("-6"), "the left out one's route")
        assert carrier(node) == 6
