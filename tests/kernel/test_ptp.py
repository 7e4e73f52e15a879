"""Mode ptp: routed pods, a /32 or /128 each, without a bridge."""

from __future__ import annotations

import pytest

from tests.support import probe


def full(address):
    return f"{address}/{128 if ':' in address else 32}"


def test_what_add_makes(plugin, node, sandbox, make_conf, family, reservations):
    before = set(node.links())
    added = plugin.add(make_conf(mode="ptp", ipam={"ranges": family.ranges}), sandbox)
    assert added.addresses() == [full(address) for address in family.hosts(2)]
    assert [ip["gateway"] for ip in added.result["ips"]] == family.hosts(1)
    assert sorted(sandbox.addresses("eth0")) == sorted(full(host) for host in family.hosts(2))
    (made,) = set(node.links()) - before
    host = node.links()[made]
    assert host["linkinfo"]["info_kind"] == "veth"
    assert "master" not in host
    for version, address, gateway in zip(
        family.versions, family.hosts(2), family.hosts(1), strict=True
    ):
        (route,) = [route for route in node.routes(version) if route["dst"] == address]
        assert route["dev"] == made
        assert "gateway" not in route
        default = [route for route in sandbox.routes(version) if route["dst"] == "default"]
        assert [route["gateway"] for route in default] == [gateway]
    assert reservations() == dict.fromkeys(family.hosts(2), "pod\r\neth0")


def test_pods_and_node_reach_each_other_without_nat(plugin, node, topology, make_conf, family):
    conf = make_conf(mode="ptp", ipam={"ranges": family.ranges})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    plugin.add(conf, a), plugin.add(conf, b)
    eth0 = {4: "192.168.1.2", 6: "fd00:1::2"}
    for version, of_a, of_b, gateway in zip(
        family.versions, family.hosts(2), family.hosts(3), family.hosts(1), strict=True
    ):
        assert probe.tcp(a, b, of_b).source == of_a
        assert probe.tcp(b, a, of_a).source == of_b
        assert probe.udp(a, b, of_b).source == of_a
        for target in (gateway, eth0[version]):
            assert probe.tcp(a, node, target).source == of_a
            assert probe.tcp(b, node, target).source == of_b
        # Whichever of the node's own addresses it chose, it is no pod's.
        source = probe.tcp(node, a, of_a).source
        assert source in (gateway, eth0[version])
        assert probe.tcp(node, b, of_b).source == source


def test_del_leaves_nothing(plugin, node, topology, make_conf, dual, untouched):
    conf = make_conf(mode="ptp", ipam={"ranges": dual.ranges})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    with untouched(node, a, b):
        first = plugin.add(conf, a)
        with untouched(node, a, b):
            second = plugin.add(conf, b)
            assert plugin.check(conf, b, prev=second.result).ok
            assert plugin.delete(conf, b, prev=second.result).ok
        assert probe.tcp(node, a, dual.hosts(2)[1]).source
        assert plugin.delete(conf, a, prev=first.result).ok
        assert plugin.delete(conf, a).ok


def test_del_without_the_sandbox(plugin, node, topology, make_conf, dual, untouched):
    conf = make_conf(mode="ptp", ipam={"ranges": dual.ranges})
    sandbox = topology.sandbox("a")
    with untouched(node):
        plugin.add(conf, sandbox)
        sandbox.delete()
        assert plugin.delete(conf, sandbox).ok


def test_several_ranges_and_configured_routes(plugin, node, sandbox, make_conf):
    """The addresses of one family have gateways of their own; routes without one use the first."""
    ranges = [[{"subnet": "10.244.0.0/24"}], [{"subnet": "10.245.0.0/24"}]]
    routes = [{"dst": "10.9.0.0/16"}, {"dst": "10.8.0.0/16", "gw": "10.245.0.1"}]
    conf = make_conf(mode="ptp", ipam={"ranges": ranges, "routes": routes})
    added = plugin.add(conf, sandbox)
    assert added.addresses() == ["10.244.0.2/32", "10.245.0.2/32"]
    found = {route["dst"]: route.get("gateway") for route in sandbox.routes()}
    assert found["10.9.0.0/16"] == found["default"] == "10.244.0.1"
    assert found["10.8.0.0/16"] == "10.245.0.1"
    for address in ("10.244.0.2", "10.245.0.2"):
        assert probe.tcp(node, sandbox, address).data == b"ping"
    assert plugin.check(conf, sandbox, prev=added.result).ok


def test_mtu_and_mac(plugin, node, sandbox, make_conf, dual):
    conf = make_conf(
        cniVersion="1.1.0", mode="ptp", mtu=1400, runtimeConfig={"mac": "02:00:00:00:00:09"},
        ipam={"ranges": dual.ranges},
    )  # fmt: skip
    added = plugin.add(conf, sandbox)
    assert [link["mtu"] for link in added.result["interfaces"]] == [1400, 1400]
    link = sandbox.links()["eth0"]
    assert (link["mtu"], link["address"]) == (1400, "02:00:00:00:00:09")


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("option", ["hairpinMode", "promiscMode", "portIsolation"])
def test_options_of_a_bridge_are_refused(plugin, node, sandbox, make_conf, untouched, option):
    with untouched(node, sandbox):
        refused = plugin.add(make_conf(mode="ptp", **{option: True}), sandbox)
    assert refused.code == 7
    assert option in refused.error["msg"]


def test_bridge_and_ptp_pods_on_one_node(plugin, node, topology, make_conf, dual):
    """Two networks of different modes; the node routes between them."""
    bridged = make_conf(name="bridged", ipam={"ranges": [[{"subnet": "10.99.0.0/24"}]]})
    routed = make_conf(mode="ptp", ipam={"ranges": dual.ranges})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    plugin.add(bridged, a), plugin.add(routed, b)
    assert probe.tcp(a, b, "10.244.0.2").source == "10.99.0.2"
    assert probe.tcp(b, a, "10.99.0.2").source == "10.244.0.2"
