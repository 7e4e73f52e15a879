"""The bridge of a node that follows a cluster, when somebody takes from it what its pods need."""

from __future__ import annotations

import logging
from time import sleep

import pytest

from cni_plugin.agent.upkeep import Upkeep
from cni_plugin.sources import Listed
from tests.support import probe
from tests.support.follower import MEMBERS, Follower

GATEWAYS = ["10.244.0.1/24", "fd00:10:244::1/64"]


@pytest.fixture
def kept(follow, monkeypatch):
    """A node with an upkeep, which hears the kernel; nothing is looked at now and then."""
    monkeypatch.setattr("cni_plugin.agent.coordination._WHOLE_S", 1000)
    monkeypatch.setattr("cni_plugin.agent.coordination._TICK_S", 0.5)
    node = follow(0)
    upkeep = Upkeep(node.memory, logging.getLogger("test.upkeep"), lambda: None)
    with node.node.entered():
        upkeep.start()
    yield node
    upkeep.stop()


@pytest.fixture
def pod(kept, topology, podwire):
    """A pod of that node: its sandbox and its addresses."""
    kept.source.tell(Listed(MEMBERS))
    kept.wait_for_state("PodwireReady")
    conf = {**kept.plugin(), "name": kept.conflist()["name"], "cniVersion": "1.1.0"}
    sandbox, plugin = topology.sandbox("pod"), podwire.on(kept.node)
    reply = plugin.add(conf, sandbox)
    assert carried(kept) == GATEWAYS
    yield sandbox, [text.partition("/")[0] for text in reply.addresses()]
    assert plugin.delete(conf, sandbox).ok


def carried(node: Follower) -> list[str]:
    return sorted(node.node.addresses("cni0"))


def run(node: Follower, *commands: str) -> None:
    for command in commands:
        node.node.run(*command.split())


@pytest.mark.parametrize(
    "commands",
    [
        ("ip link set cni0 down", "ip link set cni0 up"),
        ("ip link set cni0 down",),
        ("ip addr flush dev cni0 scope global",),
    ],
    ids=["bounced", "down", "without addresses"],
)
def test_a_bridge_that_pods_need_is_put_right(kept, pod, commands):
    """Without any pod that comes: those that run have no other gateway."""
    run(kept, *commands)
    kept.wait(lambda: carried(kept) == GATEWAYS, "the gateways")
    probe.all_paths([pod], [(kept.node, "")])


def test_a_bridge_without_pods_is_left_alone(kept, topology, podwire):
    """The next ADD makes it ready."""
    kept.source.tell(Listed(MEMBERS))
    kept.wait_for_state("PodwireReady")
    conf = {**kept.plugin(), "name": kept.conflist()["name"], "cniVersion": "1.1.0"}
    sandbox, plugin = topology.sandbox("pod"), podwire.on(kept.node)
    assert plugin.add(conf, sandbox).ok
    assert plugin.delete(conf, sandbox).ok
    run(kept, "ip link set cni0 down")
    sleep(2)
    assert "UP" not in kept.node.links()["cni0"]["flags"]
    assert plugin.add(conf, sandbox).ok
    assert carried(kept) == GATEWAYS
    plugin.delete(conf, sandbox)


def test_another_address_is_in_the_gateway_s_way(kept, pod):
    """Nothing is taken off the bridge; what is wrong is said."""
    run(kept, "ip addr add 10.99.0.1/24 dev cni0", "ip addr del 10.244.0.1/24 dev cni0")
    run(kept, "ip addr del fd00:10:244::1/64 dev cni0")
    kept.wait_for_state("NetworkNotReady")
    assert "10.99.0.1/24" in kept.source.states[-1].message
    kept.wait(lambda: carried(kept) == ["10.99.0.1/24", GATEWAYS[1]], "the other gateway")
    run(kept, "ip addr del 10.99.0.1/24 dev cni0")
    kept.wait(lambda: carried(kept) == GATEWAYS, "both")
    kept.wait_for_state("PodwireReady")
