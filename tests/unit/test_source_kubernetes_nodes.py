"""What a Node object means: the member it makes, and what we write into it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from cni_plugin.sources import Announcement, Readiness
from cni_plugin.sources.kubenode import (
    BACKEND,
    OVERLAY_ADDRESS,
    VTEP_MAC,
    Condition,
    NodeFacts,
    annotations_to_change,
    condition_to_write,
    member_of,
)

NODE = NodeFacts(
    name="n1",
    uid="u1",
    created="2024-01-01T00:00:00Z",
    addresses=(("Hostname", "n1"), ("InternalIP", "192.168.1.2")),
    pod_cidrs=("10.244.0.0/24",),
)
NOW = "2024-06-01T12:00:00Z"


def test_a_node_is_a_member() -> None:
    member = member_of(NODE)
    assert member.name == "n1"
    assert member.uid == "u1"
    assert member.since == "2024-01-01T00:00:00Z"
    assert member.addresses == (ip_address("192.168.1.2"),)
    assert member.pod_cidrs == (ip_network("10.244.0.0/24"),)
    assert (member.vtep_mac, member.overlay_address, member.backend) == ("", None, "")
    assert member.problem == ""


def test_the_first_internal_address_of_each_family_counts_in_the_nodes_order() -> None:
    addresses = ("fd00::2", "192.168.1.2", "192.168.1.3", "fd00::3")
    node = NODE._replace(addresses=tuple(("InternalIP", one) for one in addresses))
    assert member_of(node).addresses == (ip_address("fd00::2"), ip_address("192.168.1.2"))


def test_both_families_of_pod_cidrs() -> None:
    member = member_of(NODE._replace(pod_cidrs=("10.244.1.0/24", "fd00:10:1::/64")))
    assert member.pod_cidrs == (ip_network("10.244.1.0/24"), ip_network("fd00:10:1::/64"))


def test_an_external_address_is_no_substitute() -> None:
    member = member_of(NODE._replace(addresses=(("ExternalIP", "203.0.113.9"),)))
    assert member.addresses == ()
    assert member.problem == "", "that it has no address is said of it already"


@pytest.mark.parametrize("address", ["here", "0.0.0.0", "127.0.0.1", "224.0.0.1", "::1", ""])
def test_an_address_that_is_none_is_a_problem_and_the_next_one_counts(address: str) -> None:
    node = NODE._replace(addresses=(("InternalIP", address), ("InternalIP", "192.168.1.9")))
    member = member_of(node)
    assert member.addresses == (ip_address("192.168.1.9"),)
    assert member.problem.startswith("status.addresses: InternalIP: expected ")
    assert f'"{address}"' in member.problem


@pytest.mark.parametrize("cidr", ["10.244.0.1/24", "10.244.0.0", "ten", "10.244.0.0/33"])
def test_a_bad_pod_cidr_is_a_problem_and_the_others_count(cidr: str) -> None:
    member = member_of(NODE._replace(pod_cidrs=(cidr, "fd00:10:1::/64")))
    assert member.pod_cidrs == (ip_network("fd00:10:1::/64"),)
    assert "spec.podCIDRs" in member.problem
    assert cidr in member.problem


def test_what_a_node_announces_is_read() -> None:
    annotations = {
        VTEP_MAC: "0E:00:0a:f4:00:05",
        OVERLAY_ADDRESS: "10.244.0.0",
        BACKEND: "vxlan vni=1 port=8472",
    }
    member = member_of(NODE._replace(annotations=annotations))
    assert member.vtep_mac == "0e:00:0a:f4:00:05"
    assert member.overlay_address == ip_address("10.244.0.0")
    assert member.backend == "vxlan vni=1 port=8472"
    assert member.problem == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (VTEP_MAC, "0e:00:0a:f4:00"),
        (VTEP_MAC, "01:00:0a:f4:00:05"),
        (VTEP_MAC, "00:00:00:00:00:00"),
        (VTEP_MAC, "\u0660e:00:0a:f4:00:05"),
        (OVERLAY_ADDRESS, "10.244.0.0/32"),
        (OVERLAY_ADDRESS, "fe80::1%eth0"),
    ],
)
def test_a_bad_annotation_is_a_problem_and_not_used(key: str, value: str) -> None:
    member = member_of(NODE._replace(annotations={key: value}))
    assert (member.vtep_mac, member.overlay_address) == ("", None)
    assert key in member.problem
    assert member.addresses
    assert member.pod_cidrs


def test_all_problems_are_named() -> None:
    member = member_of(NodeFacts("n1", pod_cidrs=("x", "y"), annotations={VTEP_MAC: "z"}))
    assert member.problem.count("; ") == 2


# --- what we write ----------------------------------------------------------------------------

OWN = Announcement("0e:00:0a:f4:00:05", ip_address("10.244.0.0"), "vxlan vni=1 port=8472")


def test_all_annotations_are_written_where_there_are_none() -> None:
    assert annotations_to_change(NODE, OWN) == {
        VTEP_MAC: "0e:00:0a:f4:00:05",
        OVERLAY_ADDRESS: "10.244.0.0",
        BACKEND: "vxlan vni=1 port=8472",
    }


def test_only_what_differs_is_written_and_what_is_no_more_is_taken_away() -> None:
    node = NODE._replace(annotations=annotations_to_change(NODE, OWN))
    assert annotations_to_change(node, OWN) == {}
    changed = annotations_to_change(node, Announcement(backend="host-gw"))
    assert changed == {VTEP_MAC: None, OVERLAY_ADDRESS: None, BACKEND: "host-gw"}


READY = Readiness(True, "PodwireReady", "pods have a network")
NOT_READY = Readiness(False, "NoPodCIDR", "no podCIDR yet")


def test_the_condition_says_the_opposite_of_ready() -> None:
    assert condition_to_write(NODE, READY, NOW) == {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "PodwireReady",
        "message": "pods have a network",
        "lastHeartbeatTime": NOW,
        "lastTransitionTime": NOW,
    }
    written = condition_to_write(NODE, NOT_READY, NOW)
    assert written is not None
    assert (written["status"], written["reason"]) == ("True", "NoPodCIDR")


def test_the_same_condition_is_not_written_again() -> None:
    node = NODE._replace(network=Condition("False", *READY[1:], since="2024-01-01T00:00:00Z"))
    assert condition_to_write(node, READY, NOW) is None


def test_the_transition_moves_with_the_status_only() -> None:
    was = "2024-01-01T00:00:00Z"
    node = NODE._replace(network=Condition("False", "RouteCreated", "by another", since=was))
    same = condition_to_write(node, READY, NOW)
    other = condition_to_write(node, NOT_READY, NOW)
    assert same is not None
    assert other is not None
    assert (same["lastTransitionTime"], same["lastHeartbeatTime"]) == (was, NOW)
    assert other["lastTransitionTime"] == NOW
