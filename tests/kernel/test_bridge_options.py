"""Mode bridge: its options, each seen in the kernel or in what arrives."""

from __future__ import annotations

import select
import socket
import time

import pytest

from tests.support import probe

_ETH_P_EXPERIMENT = 0x88B5  # IEEE 802 local experimental ethertype 1


def port_of(node, sandbox):
    """The node's end of a pod's eth0."""
    index = sandbox.links()["eth0"]["link_index"]
    return next(link for link in node.links().values() if link["ifindex"] == index)


# --- hairpin, promisc, isolation ------------------------------------------------------------------


def comes_back(sandbox):
    """Whether a frame that a pod sends to its own MAC address is returned to it by the bridge."""
    mac = bytes.fromhex(sandbox.links()["eth0"]["address"].replace(":", ""))
    with sandbox.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        packets.bind(("eth0", _ETH_P_EXPERIMENT))
        for _ in range(3):
            packets.send(mac + mac + _ETH_P_EXPERIMENT.to_bytes(2, "big") + b"podwire" * 8)
            while select.select([packets], [], [], 0.1)[0]:
                if packets.recvfrom(2048)[1][2] != socket.PACKET_OUTGOING:
                    return True
    return False


@pytest.mark.parametrize("hairpin", [True, False])
def test_hairpin(plugin, node, sandbox, make_conf, hairpin):
    """A Service whose only endpoint is the pod itself needs it."""
    plugin.add(make_conf(hairpinMode=hairpin), sandbox)
    assert port_of(node, sandbox)["linkinfo"]["info_slave_data"]["hairpin"] is hairpin
    assert comes_back(sandbox) is hairpin


def test_a_promiscuous_bridge(plugin, node, sandbox, make_conf):
    plugin.add(make_conf(promiscMode=True), sandbox)
    assert "PROMISC" in node.links()["cni0"]["flags"]


def test_promisc_is_switched_on_for_a_bridge_in_use(plugin, node, topology, make_conf):
    plugin.add(make_conf(), topology.sandbox("a"))
    assert "PROMISC" not in node.links()["cni0"]["flags"]
    plugin.add(make_conf(promiscMode=True), topology.sandbox("b"))
    assert "PROMISC" in node.links()["cni0"]["flags"]


def test_hairpin_and_promisc_exclude_each_other(plugin, node, sandbox, make_conf, untouched):
    with untouched(node, sandbox):
        refused = plugin.add(make_conf(hairpinMode=True, promiscMode=True), sandbox)
    assert refused.code == 7
    assert "hairpinMode" in refused.error["msg"]
    assert "promiscMode" in refused.error["msg"]


def test_isolated_pods_reach_the_gateway_and_not_each_other(
    plugin, node, topology, make_conf, family
):
    conf = make_conf(portIsolation=True, ipam={"ranges": family.ranges})
    a, b, open_pod = (topology.sandbox(name) for name in ("a", "b", "open"))
    plugin.add(conf, a), plugin.add(conf, b)
    plugin.add({**conf, "portIsolation": False}, open_pod)
    for of_a, of_b, of_open, gateway in zip(
        family.hosts(2), family.hosts(3), family.hosts(4), family.hosts(1), strict=True
    ):
        assert probe.tcp(a, node, gateway).source == of_a
        assert probe.tcp(b, node, gateway).source == of_b
        assert probe.tcp(node, a, of_a).source == gateway
        assert probe.tcp(a, open_pod, of_open).source == of_a
        assert not probe.reaches(a, b, of_b, timeout=0.2)
        assert not probe.reaches(b, a, of_a, timeout=0.2)


# --- the gateway and its bridge ---------------------------------------------------------------


def test_a_gateway_without_a_default_route(plugin, node, sandbox, make_conf, dual):
    conf = make_conf(isGateway=True, isDefaultGateway=False, ipam={"ranges": dual.ranges})
    added = plugin.add(conf, sandbox)
    assert not added.result.get("routes")
    assert sorted(node.addresses("cni0")) == sorted(dual.interfaces(1))
    for version in (4, 6):
        assert "default" not in [route["dst"] for route in sandbox.routes(version)]
    assert probe.tcp(node, sandbox, dual.hosts(2)[0]).source == dual.hosts(1)[0]


def test_no_gateway(plugin, node, topology, make_conf, dual):
    """As in the reference: pods of one bridge reach each other, and the node is not among them."""
    conf = make_conf(isGateway=None, isDefaultGateway=None, ipam={"ranges": dual.ranges})
    node.run("sysctl", "-qw", "net/ipv4/ip_forward=0")
    a, b = topology.sandbox("a"), topology.sandbox("b")
    plugin.add(conf, a), plugin.add(conf, b)
    assert node.addresses("cni0") == []
    assert node.sysctl("net/ipv4/ip_forward") == "0"
    for of_a, of_b in zip(dual.hosts(2), dual.hosts(3), strict=True):
        assert probe.tcp(a, b, of_b).source == of_a


def test_layer_2_only(plugin, node, topology, make_conf):
    conf = make_conf(cniVersion="1.1.0", isGateway=None, isDefaultGateway=None)
    del conf["ipam"]
    a, b = topology.sandbox("a"), topology.sandbox("b")
    added = plugin.add(conf, a)
    plugin.add(conf, b)
    assert not added.result.get("ips")
    assert [link["name"] for link in added.result["interfaces"]][::2] == ["cni0", "eth0"]
    assert a.addresses("eth0") == []
    for pod, address in ((a, "172.20.0.1/24"), (b, "172.20.0.2/24")):
        assert "UP" in pod.links()["eth0"]["flags"]
        pod.run("ip", "addr", "add", address, "dev", "eth0")
    assert probe.tcp(a, b, "172.20.0.2").source == "172.20.0.1"
    assert plugin.check(conf, a, prev=added.result).ok
    assert plugin.delete(conf, a).ok
    assert set(a.links()) == {"lo"}


@pytest.mark.parametrize(
    ("subnet", "wanted", "present"),
    [
        ("10.244.0.0/24", "10.244.0.1/24", "10.99.0.1/24"),
        ("10.244.0.0/24", "10.244.0.1/24", "10.244.0.1/16"),
        ("fd00:10:244::/64", "fd00:10:244::1/64", "fd00:10:244::99/48"),
    ],
)
def test_another_address_on_the_bridge(
    plugin, node, sandbox, make_conf, untouched, subnet, wanted, present
):
    """Refused, both addresses named; replaced with forceAddress."""
    node.run("ip", "link", "add", "cni0", "up", "type", "bridge")
    node.run("ip", "addr", "add", present, "dev", "cni0", "nodad")
    conf = make_conf(ipam={"ranges": [[{"subnet": subnet}]]})
    with untouched(node, sandbox):
        refused = plugin.add(conf, sandbox)
        assert refused.code == 103
    for text in ("cni0", wanted, present):
        assert text in refused.error["msg"]
    assert plugin.add({**conf, "forceAddress": True}, sandbox).ok
    assert node.addresses("cni0") == [wanted]


@pytest.mark.parametrize("alias", ["", "my own bridge"])
def test_a_bridge_of_the_users_is_adopted(plugin, node, topology, make_conf, dual, alias):
    """With its MAC address, its alias and its addresses; it is there when all pods are gone."""
    node.run("ip", "link", "add", "cni0", "address", "02:aa:00:00:00:01", "type", "bridge")
    if alias:
        node.run("ip", "link", "set", "cni0", "alias", alias)
    own = ["10.244.0.1/24", "fd00:77::1/64"]
    for address in own:
        node.run("ip", "addr", "add", address, "dev", "cni0")
    a, b = topology.sandbox("a"), topology.sandbox("b")
    conf = make_conf(ipam={"ranges": dual.ranges})
    added = plugin.add(conf, a)
    assert added.result["interfaces"][0]["mac"] == "02:aa:00:00:00:01"
    plugin.add(conf, b)
    assert probe.tcp(a, b, dual.hosts(3)[1]).source == dual.hosts(2)[1]
    for pod in (a, b):
        assert plugin.delete(conf, pod).ok
    bridge = node.links()["cni0"]
    assert bridge["address"] == "02:aa:00:00:00:01"
    assert not alias or bridge["ifalias"] == alias
    assert set(own) <= set(node.addresses("cni0"))


def test_a_bridges_name_that_another_link_has(plugin, node, sandbox, make_conf, untouched):
    node.run("ip", "link", "add", "cni0", "type", "veth", "peer", "name", "cni0-peer")
    with untouched(node, sandbox):
        refused = plugin.add(make_conf(), sandbox)
    assert refused.code == 103
    assert "cni0" in refused.error["msg"]
    assert "veth" in refused.error["msg"]


def test_the_bridges_name_may_be_chosen(plugin, node, sandbox, make_conf):
    added = plugin.add(make_conf(bridge="mynet0"), sandbox)
    assert added.result["interfaces"][0]["name"] == "mynet0"
    assert node.addresses("mynet0") == ["10.244.0.1/24"]
    assert "cni0" not in node.links()


# --- mtu and mac ------------------------------------------------------------------------------


def test_mtu(plugin, node, topology, make_conf, dual):
    """On both ends and the bridge; a pod with a smaller one does not undo what others have."""
    conf = make_conf(cniVersion="1.1.0", mtu=1400, ipam={"ranges": dual.ranges})
    pod = topology.sandbox("pod")
    added = plugin.add(conf, pod)
    assert [link["mtu"] for link in added.result["interfaces"]] == [1400, 1400, 1400]
    assert pod.links()["eth0"]["mtu"] == port_of(node, pod)["mtu"] == 1400
    assert node.links()["cni0"]["mtu"] == 1400


def test_an_mtu_too_small_for_ipv6_is_refused(plugin, node, sandbox, make_conf, dual, untouched):
    with untouched(node, sandbox):
        refused = plugin.add(make_conf(mtu=1000, ipam={"ranges": dual.ranges}), sandbox)
    assert refused.code == 7
    assert "mtu" in refused.error["msg"]


ENV, ARGS, RUNTIME = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("env", "args", "runtime", "wanted"),
    [
        (ENV, None, None, ENV),
        (ENV, ARGS, None, ARGS),
        (ENV, ARGS, RUNTIME, RUNTIME),
        (ENV, None, RUNTIME, RUNTIME),
    ],
    ids=["CNI_ARGS", "args.cni", "runtimeConfig", "runtimeConfig before CNI_ARGS"],
)
def test_mac_precedence(plugin, sandbox, make_conf, env, args, runtime, wanted):
    conf = make_conf(
        args={"cni": {"mac": args}} if args else None,
        runtimeConfig={"mac": runtime} if runtime else None,
    )
    cni_args = f"IgnoreUnknown=1;K8S_POD_NAME=x;MAC={env}"
    added = plugin.add(conf, sandbox, args=cni_args)
    assert sandbox.links()["eth0"]["address"] == wanted
    assert added.result["interfaces"][2]["mac"] == wanted
    assert plugin.check(conf, sandbox, args=cni_args, prev=added.result).ok


# --- duplicate address detection ------------------------------------------------------------------


def address_flags(namespace, ifname, address):
    """The flags of an IPv6 address: nodad, tentative, ..."""
    shown = namespace.run("ip", "-6", "-o", "addr", "show", "dev", ifname).stdout
    return next(line for line in shown.splitlines() if f" {address} " in line)


def test_no_wait_for_duplicate_address_detection(plugin, node, sandbox, make_conf, dual):
    """IPAM guarantees uniqueness; usable at once, the link-local address too."""
    plugin.add(make_conf(ipam={"ranges": dual.ranges}), sandbox)
    shown = sandbox.run("ip", "-6", "-o", "addr", "show", "dev", "eth0").stdout
    assert "tentative" not in shown
    assert "nodad" in address_flags(sandbox, "eth0", dual.interfaces(2)[1])
    assert "tentative" not in address_flags(node, "cni0", dual.interfaces(1)[1])


def test_duplicate_address_detection_on_request(plugin, sandbox, make_conf, dual):
    """ADD returns when the address is usable, which takes a second or more."""
    started = time.monotonic()
    plugin.add(make_conf(enabledad=True, ipam={"ranges": dual.ranges}), sandbox)
    assert time.monotonic() - started < 8
    flags = address_flags(sandbox, "eth0", dual.interfaces(2)[1])
    assert "tentative" not in flags
    assert "nodad" not in flags


def test_a_duplicate_on_the_link(
    plugin, node, topology, make_conf, dual, untouched, reservations
):  # fmt: skip
    """Another pod, unknown to this network's IPAM, holds the address already."""
    holder, sandbox = topology.sandbox("holder"), topology.sandbox("pod")
    conf = make_conf(ipam={"ranges": dual.ranges})
    assert plugin.add({**conf, "name": "othernet"}, holder).addresses() == dual.interfaces(2)
    with untouched(node, sandbox):
        refused = plugin.add({**conf, "enabledad": True}, sandbox)
        assert refused.code == 101
        assert dual.hosts(2)[1] in refused.error["msg"]
    assert reservations() == {}
    assert sorted(holder.addresses("eth0")) == sorted(dual.interfaces(2))


# --- dns --------------------------------------------------------------------------------------


def test_dns_in_the_result(plugin, sandbox, make_conf):
    dns = {"nameservers": ["10.96.0.10"], "domain": "cluster.local", "search": ["svc"]}
    assert plugin.add(make_conf(dns=dns), sandbox).result["dns"] == dns


def test_dns_of_resolv_conf(plugin, sandbox, make_conf, tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver 10.96.0.10\nsearch a b\noptions ndots:5\n")
    conf = make_conf(ipam={"resolvConf": str(tmp_path / "resolv.conf")})
    dns = plugin.add(conf, sandbox).result["dns"]
    assert dns["nameservers"] == ["10.96.0.10"]
    assert dns["search"] == ["a", "b"]
    assert dns["options"] == ["ndots:5"]


def test_dns_of_the_runtime_wins(plugin, sandbox, make_conf):
    conf = make_conf(
        dns={"nameservers": ["10.96.0.10"]},
        runtimeConfig={"dns": {"servers": ["10.1.1.1"], "searches": ["x"], "options": ["y"]}},
    )
    dns = plugin.add(conf, sandbox).result["dns"]
    assert (dns["nameservers"], dns["search"], dns["options"]) == (["10.1.1.1"], ["x"], ["y"])
