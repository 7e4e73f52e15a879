"""Mode bridge: what an ADD makes, what a DEL takes away, and who reaches whom."""

from __future__ import annotations

import pytest

from tests.support import probe


def default_gateway(namespace, version):
    """The gateway of the default route, None when there is none."""
    for route in namespace.routes(version):
        if route["dst"] == "default":
            return route["gateway"]
    return None


def host_veth(node, sandbox, ifname="eth0"):
    """The node's end of a pod's link, found by its peer's index."""
    index = sandbox.links()[ifname]["link_index"]
    return next(link for link in node.links().values() if link["ifindex"] == index)


# --- ADD and DEL --------------------------------------------------------------------------------


def test_what_add_makes(plugin, node, sandbox, make_conf, family, reservations):
    added = plugin.add(make_conf(ipam={"ranges": family.ranges}), sandbox)
    assert added.addresses() == family.interfaces(2)
    assert [ip["gateway"] for ip in added.result["ips"]] == family.hosts(1)
    bridge, port, pod = node.links()["cni0"], host_veth(node, sandbox), sandbox.links()["eth0"]
    assert bridge["linkinfo"]["info_kind"] == "bridge"
    assert port["linkinfo"]["info_kind"] == pod["linkinfo"]["info_kind"] == "veth"
    assert port["master"] == "cni0"
    for link in (bridge, port, pod):
        assert {"UP", "LOWER_UP"} <= set(link["flags"])
    assert sorted(sandbox.addresses("eth0")) == sorted(family.interfaces(2))
    assert sorted(node.addresses("cni0")) == sorted(family.interfaces(1))
    for version, gateway in zip(family.versions, family.hosts(1), strict=True):
        assert default_gateway(sandbox, version) == gateway
    # Nobody else's interface is needed to know whose the link is.
    assert port["ifalias"].split()[1:] == ["podnet", "pod", "eth0"]
    assert reservations() == dict.fromkeys(family.hosts(2), "pod\r\neth0")


def test_what_del_leaves(plugin, node, sandbox, make_conf, dual, reservations):
    """The bridge stays for the next pod; everything of this one goes. A second DEL is no error."""
    conf = make_conf(ipam={"ranges": dual.ranges})
    before, empty = node.state(), sandbox.state()
    added = plugin.add(conf, sandbox)
    for prev in (added.result, added.result, None):
        assert plugin.delete(conf, sandbox, prev=prev).ok
        assert sandbox.state() == empty
        assert reservations() == {}
    assert set(node.links()) == {*before["links"], "cni0"}


def test_forwarding_is_switched_on_for_the_families_in_use(plugin, node, topology, make_conf, dual):
    keys = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
    node.run("sysctl", "-qw", f"{keys[4]}=0", f"{keys[6]}=0")
    assert plugin.add(make_conf(), topology.sandbox("v4")).ok
    assert [node.sysctl(keys[version]) for version in (4, 6)] == ["1", "0"]
    conf = make_conf(ipam={"ranges": dual.ranges})
    assert plugin.add(conf, topology.sandbox("both")).ok
    assert [node.sysctl(keys[version]) for version in (4, 6)] == ["1", "1"]


def test_an_interface_of_this_name_is_refused(plugin, node, sandbox, make_conf, untouched):
    sandbox.run("ip", "link", "add", "eth0", "type", "bridge")
    with untouched(node, sandbox):
        refused = plugin.add(make_conf(), sandbox)
    assert refused.code == 102
    assert "eth0" in refused.error["msg"]


def test_adding_twice_is_refused_and_harms_nothing(plugin, node, sandbox, make_conf, untouched):
    conf = make_conf()
    added = plugin.add(conf, sandbox)
    with untouched(node, sandbox):
        assert plugin.add(conf, sandbox).code == 102
    assert plugin.check(conf, sandbox, prev=added.result).ok


def test_a_sandbox_without_ipv6_gets_it_for_its_interface(plugin, node, topology, make_conf, dual):
    """Docker and others switch IPv6 off in new namespaces."""
    sandbox = topology.sandbox("pod")
    for which in ("all", "default"):
        sandbox.run("sysctl", "-qw", f"net/ipv6/conf/{which}/disable_ipv6=1")
    added = plugin.add(make_conf(ipam={"ranges": dual.ranges}), sandbox)
    assert sorted(sandbox.addresses("eth0")) == sorted(added.addresses())
    assert probe.tcp(node, sandbox, dual.hosts(2)[1]).source == dual.hosts(1)[1]


def test_two_networks_in_one_pod(plugin, node, sandbox, make_conf, reservations):
    first = make_conf()
    second = make_conf(
        name="othernet", bridge="br1", isDefaultGateway=False,
        ipam={"ranges": [[{"subnet": "10.99.0.0/24"}]]},
    )  # fmt: skip
    assert plugin.add(first, sandbox).ok
    assert plugin.add(second, sandbox, ifname="net1").addresses() == ["10.99.0.2/24"]
    assert probe.tcp(node, sandbox, "10.99.0.2").source == "10.99.0.1"
    assert plugin.delete(second, sandbox, ifname="net1").ok
    assert set(sandbox.links()) == {"lo", "eth0"}
    assert reservations("othernet") == {}
    assert probe.tcp(node, sandbox, "10.244.0.2").source == "10.244.0.1"


# --- who reaches whom ---------------------------------------------------------------------------


def test_pods_and_node_reach_each_other_without_nat(plugin, node, topology, make_conf, family):
    conf = make_conf(ipam={"ranges": family.ranges})
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
        assert probe.tcp(node, b, of_b).source == gateway
        assert probe.tcp(a, a, of_a).source == of_a


def test_a_pod_reaches_what_lies_behind_the_node(plugin, node, topology, make_conf, family):
    """A machine that routes the pod subnet to the node sees the pod's own address."""
    outside = topology.node("outside")
    for namespace in (outside, node):  # no wait for the link-local address
        namespace.run("sysctl", "-qw", "net/ipv6/conf/default/accept_dad=0")
    topology.cable({node: ("172.16.0.1/24", "fd00:2::1/64"), outside: ()}, ifname="eth1")
    for address in ("172.16.0.9/24", "fd00:2::9/64"):
        outside.run("ip", "addr", "add", address, "dev", "eth1", "nodad")
    pod = topology.sandbox("pod")
    assert plugin.add(make_conf(ipam={"ranges": family.ranges}), pod).ok
    via = {4: ("172.16.0.1", "172.16.0.9"), 6: ("fd00:2::1", "fd00:2::9")}
    for version, subnet, address in zip(
        family.versions, family.subnets, family.hosts(2), strict=True
    ):
        router, target = via[version]
        outside.run("ip", "route", "add", subnet, "via", router)
        assert probe.tcp(pod, outside, target).source == address
        assert probe.tcp(outside, pod, address).source == target


def test_several_ranges_of_one_family(plugin, node, topology, make_conf):
    """Two IPv4 sets and two IPv6 sets: four addresses, a gateway for each, one default route."""
    subnets = ("10.244.0.0/24", "10.245.0.0/24", "fd00:10:244::/64", "fd00:10:245::/64")
    conf = make_conf(ipam={"ranges": [[{"subnet": subnet}] for subnet in subnets]})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    first, second = plugin.add(conf, a), plugin.add(conf, b)
    assert first.addresses() == [
        *("10.244.0.2/24", "10.245.0.2/24", "fd00:10:244::2/64", "fd00:10:245::2/64")
    ]
    gateways = [ip["gateway"] for ip in first.result["ips"]]
    assert gateways == ["10.244.0.1", "10.245.0.1", "fd00:10:244::1", "fd00:10:245::1"]
    assert sorted(node.addresses("cni0")) == sorted(
        f"{gateway}/{64 if ':' in gateway else 24}" for gateway in gateways
    )
    for version, gateway in ((4, "10.244.0.1"), (6, "fd00:10:244::1")):
        routes = [route for route in a.routes(version) if route["dst"] == "default"]
        assert [route["gateway"] for route in routes] == [gateway]
    for mine, other in zip(first.addresses(), second.addresses(), strict=True):
        target, source = other.split("/")[0], mine.split("/")[0]
        assert probe.tcp(a, b, target).source == source
    assert plugin.check(conf, a, prev=first.result).ok


def test_a_range_that_is_used_up_goes_over_to_the_next_of_its_set(plugin, topology, make_conf):
    """Two subnets in one set: one address for each pod, the gateway that fits its subnet."""
    small, large = {"subnet": "10.244.0.0/30"}, {"subnet": "10.245.0.0/24"}
    conf = make_conf(ipam={"ranges": [[small, large]]})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    assert plugin.add(conf, a).result["ips"][0]["gateway"] == "10.244.0.1"
    second = plugin.add(conf, b)
    assert second.addresses() == ["10.245.0.2/24"]
    assert second.result["ips"][0]["gateway"] == "10.245.0.1"


# --- routes of the ipam section -----------------------------------------------------------------


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("route", "shown"),
    [
        ({"dst": "10.9.0.0/16"}, {"dst": "10.9.0.0/16", "gateway": "10.244.0.1"}),
        (
            {"dst": "10.9.0.0/16", "gw": "10.244.0.9"},
            {"dst": "10.9.0.0/16", "gateway": "10.244.0.9"},
        ),
        ({"dst": "10.9.0.7/32"}, {"dst": "10.9.0.7", "gateway": "10.244.0.1"}),
        ({"dst": "fd00:9::/64"}, {"dst": "fd00:9::/64", "gateway": "fd00:10:244::1"}),
        (
            {"dst": "fd00:9::/64", "gw": "fd00:10:244::9"},
            {"dst": "fd00:9::/64", "gateway": "fd00:10:244::9"},
        ),
        (
            {"dst": "10.9.0.0/16", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 77},
            {"gateway": "10.244.0.1", "metric": 7, "metrics": [{"mtu": 1400, "advmss": 1300}]},
        ),
        (
            {"dst": "fd00:9::/64", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 7777},
            {"gateway": "fd00:10:244::1", "metric": 7, "metrics": [{"mtu": 1400, "advmss": 1300}]},
        ),
        ({"dst": "10.9.0.0/16", "scope": 0}, {"gateway": "10.244.0.1"}),
        # On the link itself: a gateway and scope link exclude each other.
        ({"dst": "10.9.0.0/16", "scope": 253}, {"scope": "link"}),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if "dst" in value else "",
)
def test_configured_routes(plugin, sandbox, make_conf, dual, route, shown):
    conf = make_conf(cniVersion="1.1.0", ipam={"ranges": dual.ranges, "routes": [route]})
    added = plugin.add(conf, sandbox)
    told = next(r for r in added.result["routes"] if r["dst"] == route["dst"])
    assert {**told, **route} == told
    version, table = (6 if ":" in route["dst"] else 4), str(route.get("table", "main"))
    dst = shown.get("dst", route["dst"])
    found = next(r for r in sandbox.routes(version, table) if r["dst"] == dst)
    assert {key: found.get(key) for key in shown} == shown
    assert ("gateway" in found) == ("gateway" in shown)
    assert found["dev"] == "eth0"
    assert plugin.check(conf, sandbox, prev=added.result).ok


def test_a_configured_default_route_is_not_doubled(plugin, sandbox, make_conf, dual):
    routes = [{"dst": "0.0.0.0/0", "gw": "10.244.0.9"}, {"dst": "::/0"}]
    added = plugin.add(make_conf(ipam={"ranges": dual.ranges, "routes": routes}), sandbox)
    assert [r["dst"] for r in added.result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert default_gateway(sandbox, 4) == "10.244.0.9"
    assert default_gateway(sandbox, 6) == "fd00:10:244::1"


def test_a_route_that_the_kernel_refuses_leaves_nothing(
    plugin, node, sandbox, make_conf, dual, untouched
):
    routes = [{"dst": "10.9.0.0/16", "gw": "172.31.0.1"}]
    with untouched(node, sandbox):
        refused = plugin.add(make_conf(ipam={"ranges": dual.ranges, "routes": routes}), sandbox)
        assert "10.9.0.0/16" in refused.error["msg"]
        assert "172.31.0.1" in refused.error["msg"]
