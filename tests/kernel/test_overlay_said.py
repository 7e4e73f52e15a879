"""What the inventory says of a node's end of the overlay: its link-layer address, and where it is
sent to."""

from __future__ import annotations

import pytest

from ipam.peers import vtep_mac
from tests.support import probe

MAC = "0a:58:c0:a8:01:07"


@pytest.fixture
def said(make_cluster, topology, podwire):
    """said(address) is a cluster of two whose second node says `MAC` and, if any, this address;
    its link has that as well. A pod on each, with its first address."""

    def make(address=""):
        cluster = make_cluster(2)
        cluster.entries[1]["vtepMAC"] = MAC
        if address:
            cluster.entries[1]["overlayAddress"] = address
            for name, link in cluster.nodes[1].links().items():
                if "192.168.1.3/24" in cluster.nodes[1].addresses(link["ifname"]):
                    prefix = "64" if ":" in address else "24"
                    cluster.nodes[1].run("ip", "addr", "add", f"{address}/{prefix}", "dev", name)
        cluster.write()
        pods = []
        for number, node in enumerate(cluster.nodes):
            pod = topology.sandbox(f"pod-{number}")
            added = podwire.on(node).add(cluster.conf(number, backend="vxlan"), pod)
            pods.append((pod, [text.partition("/")[0] for text in added.addresses()]))
        return cluster, pods

    return make


def entries(node):
    found = node.run("bridge", "fdb", "show", "dev", "pwvx1").stdout.splitlines()
    return [line.strip() for line in found]


def reach_each_other(pods):
    (one, mine), (other, theirs) = pods
    for address in theirs:
        assert probe.reaches(one, other, address)
    for address in mine:
        assert probe.reaches(other, one, address)


def test_the_link_layer_address_is_the_nodes_own_and_its_peers_entry(said):
    cluster, pods = said()
    assert cluster.nodes[1].links()["pwvx1"]["address"] == MAC
    assert cluster.nodes[0].links()["pwvx1"]["address"] == vtep_mac(1, "node-0")
    assert entries(cluster.nodes[0]) == [f"{MAC} dst 192.168.1.3 self permanent"]
    reach_each_other(pods)


def test_the_overlay_is_sent_where_the_node_says(said):
    cluster, pods = said("192.168.1.77")
    assert entries(cluster.nodes[0]) == [f"{MAC} dst 192.168.1.77 self permanent"]
    reach_each_other(pods)


def test_an_address_of_the_version_that_is_not_used_counts_for_nothing(said):
    cluster, pods = said("fd00:1::77")
    assert entries(cluster.nodes[0]) == [f"{MAC} dst 192.168.1.3 self permanent"]
    reach_each_other(pods)


def test_a_node_that_says_something_else_is_followed(said, podwire, topology):
    cluster, pods = said("192.168.1.77")
    del cluster.entries[1]["overlayAddress"], cluster.entries[1]["vtepMAC"]
    cluster.write()
    for number, node in enumerate(cluster.nodes):
        pod = topology.sandbox(f"later-{number}")
        assert podwire.on(node).add(cluster.conf(number, backend="vxlan"), pod).ok
    mac = vtep_mac(1, "node-1")
    assert cluster.nodes[1].links()["pwvx1"]["address"] == mac
    assert entries(cluster.nodes[0]) == [f"{mac} dst 192.168.1.3 self permanent"]
    reach_each_other(pods)
