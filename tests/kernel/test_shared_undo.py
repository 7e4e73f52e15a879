"""What the pods of a network share, when an ADD fails, and when the last of them has gone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.kernel.nodelock import FOLDER
from cni_plugin.kernel.statefolder import node_key
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
