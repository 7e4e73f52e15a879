"""What peers announce of themselves reaches the kernel only where it is theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_plugin.sources import Listed, Put
from ipam.peers import vtep_mac
from tests.support.fakesource import member
from tests.support.follower import MEMBERS, Follower, followers
from tests.support.topology import Split, Topology

VNI = 1
CLAIMANT = member("node-9", "192.168.1.99", "10.244.9.0/24", since="a")  # older than all others


@pytest.fixture
def follow(topology: Topology, tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    with followers(Split(topology, tmp_path), tmp_path) as make:
        yield make


def test_nobody_gets_what_is_for_another_by_what_it_announces(
    follow: Callable[..., Follower],
) -> None:
    """Neither by the link-layer address that follows from this node's name, nor by its address:
    who announces that is reached at its own."""
    node = follow(0, backend="vxlan", vxlan={"vni": VNI})
    node.source.tell(Listed((*MEMBERS, CLAIMANT._replace(vtep_mac=vtep_mac(VNI, "node-0")))))
    node.wait_for_state("PodwireReady")
    entries = json.loads(node.inventory.read_text())["nodes"]
    assert not any("vtepMAC" in entry for entry in entries)
    node.wait(lambda: node.source.reports, "a report")
    assert node.source.reports[0][:2] == ("node-9", "VTEPRefused")
    own = MEMBERS[0].addresses[0]
    node.source.tell(Put(CLAIMANT._replace(overlay_address=own)))
    node.wait(lambda: len(node.source.reports) > 1, "the next report")
    assert "which is the address of the node that was to send there" in node.source.reports[1][2]
    shown = node.node.run("bridge", "fdb", "show", "dev", f"pwvx{VNI}").stdout
    tunnels = {line.split()[0]: line.split() for line in shown.splitlines() if " dst " in line}
    assert "192.168.1.99" in tunnels[vtep_mac(VNI, "node-9")]
    assert not any(str(own) in words for words in tunnels.values())
