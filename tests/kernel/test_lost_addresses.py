"""What is heard of addresses that a node loses: cni_plugin/kernel/lostaddresses.py."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from cni_plugin.kernel.lostaddresses import ANY, LostAddresses
from cni_plugin.sources import ownends
from tests.support.netns import Namespace
from tests.support.topology import Topology


@pytest.fixture
def node(topology: Topology) -> Namespace:
    return topology.node("node", "192.168.1.2/24", "192.168.1.3/24", "fd00:1::2/64")


@pytest.fixture
def lost(node: Namespace) -> Iterator[SimpleQueue[str]]:
    """What a node is told, in this process."""
    found: SimpleQueue[str] = SimpleQueue()
    with node.entered(), ownends.heeded(found.put, logging.getLogger("test")):
        yield found


def test_addresses_that_go_are_heard_of(node: Namespace, lost: SimpleQueue[str]) -> None:
    node.run("ip", "addr", "del", "192.168.1.3/24", "dev", "eth0")
    assert lost.get(timeout=20) == "192.168.1.3"
    node.run("ip", "addr", "add", "192.168.1.3/24", "dev", "eth0")
    node.run("ip", "addr", "add", "192.0.2.1", "peer", "192.0.2.9", "dev", "eth0")
    node.run("ip", "addr", "del", "192.0.2.1", "peer", "192.0.2.9", "dev", "eth0")
    assert lost.get(timeout=20) == "192.0.2.1", "not the other end's, and none that comes"
    node.run("ip", "addr", "del", "fd00:1::2/64", "dev", "eth0")
    assert lost.get(timeout=20) == "fd00:1::2"


def test_those_of_a_link_that_goes_are_heard_of(node: Namespace, lost: SimpleQueue[str]) -> None:
    node.run("ip", "link", "del", "eth0")
    heard = {lost.get(timeout=20) for _ in range(4)}
    assert {"192.168.1.2", "192.168.1.3", "fd00:1::2"} < heard
    with pytest.raises(Empty):
        lost.get(timeout=0.1)


def test_too_many_to_hear_each_may_be_any(node: Namespace, tmp_path: Path) -> None:
    """More than the kernel keeps for a reader that does not read."""
    with node.entered():
        lost = LostAddresses()
    each = (f"addr {verb} 10.9.0.1/32 dev eth0\n" for _ in range(2000) for verb in ("add", "del"))
    (tmp_path / "batch").write_text("".join(each))
    node.run("ip", "-batch", str(tmp_path / "batch"))
    end = threading.Timer(10, lost.stop)
    end.start()
    heard = set()
    for address in lost:
        heard.add(address)
        if address == ANY:
            end.cancel()
            lost.stop()
    end.join()
    lost.close()
    assert ANY in heard


def test_the_end_leaves_nothing(node: Namespace) -> None:
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with node.entered():
        for _ in range(3):
            with ownends.heeded(lambda _: None, logging.getLogger("test")):
                assert threading.active_count() == before[0] + 1
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
