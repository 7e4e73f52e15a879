"""What the pods of a network share, when an ADD fails, and when the last of them has gone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.kernel.nodelock import FOLDER
from cni_plugin.kernel.statefolder import node_key
from cni_plugin.records import Records
from tests.support import netns
from tests.support.netns import Namespace

pytestmark = pytest.mark.parametrize("way", ["process", "agent"], indirect=True)

OTHERWISE = {
    "ipMasq": False,
    "ingressPolicy": "isolated",
    "nonMasqueradeCIDRs": ["203.0.113.0/24"],
    "capabilities": {"portMappings": True},
}


def with_port(conf: dict[str, Any], port: int) -> dict[str, Any]:
    mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
    return {**conf, "runtimeConfig": {"portMappings": [mapping]}}


def ruleset(node: Namespace) -> str:
    return node.run("nft", "list", "ruleset").stdout


def rules(node: Namespace) -> list[str]:
    """The chains: a set that no rule asks any more may stay until the table goes."""
    return sorted(re.findall(r"chain \w+ {.*?\n\t}", ruleset(node), re.DOTALL))


def records(node: Namespace) -> dict[str, bytes]:
    with node.entered():
        folder = Path(f"{FOLDER}/node-{node_key()}/networks")
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_a_refused_pod_does_not_change_the_rules_of_the_others(
    plugin, node, topology, make_conf
) -> None:
    first = with_port(make_conf(ipMasq=True), 31000)
    assert plugin.add(first, topology.sandbox("first"), cid="first").ok
    before = rules(node), records(node)
    second = with_port(make_conf(**OTHERWISE), 31000)
    refused = plugin.add(second, topology.sandbox("second"), cid="second")
    assert refused.code == 103
    assert (rules(node), records(node)) == before


def test_the_first_pod_of_a_network_that_fails_leaves_nothing(
    plugin, node, topology, make_conf
) -> None:
    there = with_port({**make_conf(), "name": "othernet"}, 31000)
    assert plugin.add(there, topology.sandbox("there"), cid="there").ok
    before = rules(node), records(node)
    conf = with_port(make_conf(ipMasq=True, bridge="br-two"), 31000)
    conf["ipam"] = {**conf["ipam"], "ranges": [[{"subnet": "10.77.0.0/24"}]]}
    assert plugin.add(conf, topology.sandbox("pod"), cid="pod").code == 103
    assert (rules(node), records(node)) == before


def test_with_its_last_pod_a_network_s_rules_go(plugin, node, topology, make_conf) -> None:
    conf = make_conf(cniVersion="1.1.0", ipMasq=True)
    assert plugin.add(conf, topology.sandbox("pod"), cid="pod").ok
    assert "masqueraded" in ruleset(node)
    kept = {"containerID": "pod", "ifname": "eth0"}
    assert plugin.gc(conf, [kept]).ok
    assert "masqueraded" in ruleset(node)
    assert plugin.gc(conf, []).ok
    assert ruleset(node) == ""
    assert records(node) == {}


@pytest.fixture
def renamed(make_conf) -> tuple[dict[str, Any], dict[str, Any]]:
    """A network of before, and the one that takes its place with looser options."""
    old = make_conf(name="oldnet", ipMasq=True, ingressPolicy="isolated")
    addresses = [[{"subnet": "10.244.0.0/24", "rangeStart": "10.244.0.100"}]]
    return old, make_conf(ipam={"ranges": addresses})


def test_a_network_without_pods_counts_for_no_other(plugin, node, topology, renamed) -> None:
    """Nobody tells that a configuration is gone: no GC comes for it."""
    old, new = renamed
    assert plugin.add(old, topology.sandbox("a"), cid="a").ok
    assert plugin.delete(old, "", cid="a").ok
    pod = topology.sandbox("b")
    added = plugin.add(new, pod, cid="b")
    assert added.ok
    assert set(records(node)) == {"podnet"}
    assert rules(node) == []
    assert plugin.check(new, pod, prev=added.result, cid="b").ok


def test_a_network_counts_until_its_last_pod_goes(plugin, node, topology, renamed, way) -> None:
    old, new = renamed
    assert plugin.add(old, topology.sandbox("a"), cid="a").ok
    pod = topology.sandbox("b")
    added = plugin.add(new, pod, cid="b")
    assert added.ok
    assert set(records(node)) == {"oldnet", "podnet"}
    assert "masqueraded" in ruleset(node)
    assert plugin.check(new, pod, prev=added.result, cid="b").ok
    assert plugin.delete(old, "", cid="a").ok
    if way == "agent":
        _touch(node, "podnet")  # its look of every half minute, sooner
    else:
        # The other network's pods come and go, and this pod is what it was.
        assert plugin.check(new, pod, prev=added.result, cid="b").ok
        assert plugin.add(new, topology.sandbox("c"), cid="c").ok
    netns.wait_until(lambda: rules(node) == [], 5, "the rules to go")
    assert set(records(node)) == {"podnet"}
    assert plugin.check(new, pod, prev=added.result, cid="b").ok


def _touch(node: Namespace, network: str) -> None:
    """The network's record is written anew, as it was."""
    with node.entered():
        known = Records(node_key())
        record = known.of(network)
        assert record is not None
        known.restore(record)


@pytest.mark.parametrize("kind", ["folder", "fifo", "garbage", "link"])
def test_an_odd_file_among_the_records_is_in_nobodys_way(
    plugin, node, topology, make_conf, kind
) -> None:
    conf = make_conf(ipMasq=True)
    assert plugin.add(conf, topology.sandbox("first"), cid="first").ok
    with node.entered():
        odd = f"{FOLDER}/node-{node_key()}/networks/zz"
    if kind == "folder":
        os.mkdir(odd)
    elif kind == "fifo":
        os.mkfifo(odd)
    elif kind == "link":
        os.symlink("/dev/zero", odd)
    else:
        Path(odd).write_bytes(b"[" * 200_000)
    node.run("nft", "flush", "ruleset")
    assert plugin.add(conf, topology.sandbox("second"), cid="second").ok
    assert "masqueraded" in ruleset(node)
    assert plugin.delete(conf, "", cid="first").ok
    assert plugin.delete(conf, "", cid="second").ok
