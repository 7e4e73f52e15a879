"""Cases that an audit found wrong once, and that no other test would notice."""

from __future__ import annotations

import json

import pytest


def test_check_knows_a_route_with_several_gateways(plugin, topology, make_conf):
    """The kernel keeps two IPv6 routes to one network as one route with two next hops."""
    routes = [{"dst": "::/0", "gw": "fd74::1"}, {"dst": "::/0", "gw": "fd74::5"}]
    conf = make_conf(ipam={"ranges": [[{"subnet": "fd74::/64"}]], "routes": routes})
    pod = topology.sandbox("pod")
    added = plugin.add(conf, pod)
    assert plugin.check({**conf, "prevResult": added.result}, pod).ok


def test_of_two_gateways_to_one_network_the_last_is_used(plugin, topology, make_conf):
    """As with the reference, whose configurations keep their meaning."""
    routes = [{"dst": "10.9.0.0/16", "gw": f"10.74.0.{last}"} for last in (1, 9)]
    conf = make_conf(ipam={"ranges": [[{"subnet": "10.74.0.0/24"}]], "routes": routes})
    pod = topology.sandbox("pod")
    assert plugin.add(conf, pod).ok
    used = json.loads(pod.run("ip", "-j", "route", "get", "10.9.0.1").stdout)
    assert used[0]["gateway"] == "10.74.0.9"


def test_gc_finds_the_link_of_an_add_that_was_killed_before_it_was_marked(
    plugin, node, topology, make_conf
):
    conf = make_conf(cniVersion="1.1.0")
    pod = topology.sandbox("pod")
    added = plugin.add(conf, pod)
    host = added.result["interfaces"][1]["name"]
    node.run("ip", "link", "set", host, "alias", "")
    assert plugin.gc(conf, []).ok
    assert host not in node.links()


@pytest.mark.parametrize("absent", [True, False])
def test_gc_goes_by_one_key_only(plugin, node, topology, make_conf, absent):
    conf = make_conf(cniVersion="1.1.0")
    pod = topology.sandbox("pod")
    added = plugin.add(conf, pod)
    more = {} if absent else {"cni.dev/valid-attachments": None}
    assert plugin.call("GC", {**conf, "cni.dev/attachments": [], **more}).ok
    assert added.result["interfaces"][1]["name"] in node.links()


@pytest.mark.parametrize("backend", ["host-gw", "auto"])
def test_status_tells_that_a_node_is_not_on_a_link(
    plugin, node, topology, make_conf, tmp_path, backend
):
    topology.cable({node: ("192.168.7.2/24",)}, ifname="eth9")
    inventory = tmp_path / "nodes.json"
    peers = [("node-a", "192.168.7.2/24", "10.71.0.0/24"), ("node-b", "172.31.9.9", "10.72.0.0/24")]
    nodes = [{"name": n, "addresses": [a], "podCIDRs": [c]} for n, a, c in peers]
    inventory.write_text(json.dumps({"nodes": nodes}))
    conf = make_conf(cniVersion="1.1.0", nodes=str(inventory), nodeName="node-a", backend=backend)
    conf["ipam"] = {key: value for key, value in conf["ipam"].items() if key != "ranges"}
    status = plugin.status(conf)
    assert status.code == 50
    assert "node-b" in status.error["msg"]
    assert plugin.add(conf, topology.sandbox("pod")).code == 104


def test_status_tells_that_the_mtu_is_too_small(plugin, make_conf):
    conf = make_conf(cniVersion="1.1.0", mtu=1000, ipam={"ranges": [[{"subnet": "fd74::/64"}]]})
    status = plugin.status(conf)
    assert status.code == 7
    assert status.error["msg"].startswith("mtu:")


def test_a_node_without_pod_cidrs_hands_out_nobody_elses(
    plugin, node, topology, make_conf, tmp_path
):
    topology.cable({node: ("192.168.7.2/24",)}, ifname="eth9")
    inventory = tmp_path / "nodes.json"
    nodes = [
        {"name": "node-a", "addresses": ["192.168.7.2/24"]},
        {"name": "node-b", "addresses": ["192.168.7.3"], "podCIDRs": ["10.72.0.0/24"]},
    ]
    inventory.write_text(json.dumps({"nodes": nodes}))
    conf = make_conf(
        cniVersion="1.1.0",
        mode="ptp",
        nodes=str(inventory),
        nodeName="node-a",
        ipam={"ranges": [[{"subnet": "10.72.0.0/24"}]]},
    )
    added = plugin.add(conf, topology.sandbox("pod"))
    assert added.code == 106
    assert "node-b" in added.error["msg"]
    assert plugin.status(conf).code == 50


def test_a_conflist_on_stdin_is_named(plugin, topology, make_conf):
    conf = make_conf()
    conflist = {"cniVersion": "1.0.0", "name": "podnet", "plugins": [conf]}
    added = plugin.add(conflist, topology.sandbox("pod"))
    assert added.code == 7
    assert added.error["msg"].startswith("plugins:")
