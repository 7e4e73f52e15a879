"""CHECK: silent while all is well, and naming every drift."""

from __future__ import annotations

import os

import pytest

from tests.support import require
from tests.support.plugin import Plugin

FAILED = 107


def port_of(node, sandbox):
    """The name of the node's end of a pod's eth0."""
    index = sandbox.links()["eth0"]["link_index"]
    return next(link["ifname"] for link in node.links().values() if link["ifindex"] == index)


@pytest.fixture
def added(plugin, sandbox, make_conf, dual):
    """A dual-stack pod with hairpin and a configured route: (configuration, result)."""
    conf = make_conf(
        cniVersion="1.1.0",
        hairpinMode=True,
        ipam={"ranges": dual.ranges, "routes": [{"dst": "10.9.0.0/16"}, {"dst": "fd00:9::/64"}]},
    )
    return conf, plugin.add(conf, sandbox).result


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_all_is_well(plugin, sandbox, make_conf, family, mode, version):
    conf = make_conf(cniVersion=version, mode=mode, ipam={"ranges": family.ranges})
    result = plugin.add(conf, sandbox).result
    for _ in range(2):
        assert plugin.check(conf, sandbox, prev=result).ok


def test_additions_of_others_are_no_drift(plugin, node, sandbox, added):
    """Addresses, routes, rules and links that a chained plugin or the pod itself made."""
    conf, result = added
    for words in (
        ("ip", "addr", "add", "10.77.0.1/24", "dev", "eth0"),
        ("ip", "addr", "add", "fd00:77::1/64", "dev", "eth0", "nodad"),
        ("ip", "route", "add", "10.78.0.0/16", "via", "10.244.0.9"),
        ("ip", "route", "add", "fd00:78::/64", "via", "fd00:10:244::9"),
        ("ip", "route", "add", "default", "via", "10.244.0.9", "metric", "900"),
        ("ip", "rule", "add", "from", "10.77.0.1", "table", "77"),
        ("ip", "link", "add", "br-inner", "type", "bridge"),
    ):
        sandbox.run(*words)
    node.run("ip", "addr", "add", "fd00:79::1/64", "dev", "cni0")
    assert plugin.check(conf, sandbox, prev=result).ok


# Each drift: where, the command that makes it, and words that the message must hold.
# {port} stands for the node's end of the pod's link.
DRIFTS = {
    "IPv4 address": ("pod", "ip addr del 10.244.0.2/24 dev eth0", ["10.244.0.2/24"]),
    "IPv6 address": ("pod", "ip addr del fd00:10:244::2/64 dev eth0", ["fd00:10:244::2/64"]),
    "IPv4 route": ("pod", "ip route del 10.9.0.0/16", ["10.9.0.0/16"]),
    "IPv6 route": ("pod", "ip -6 route del fd00:9::/64", ["fd00:9::/64"]),
    "IPv4 default route": ("pod", "ip route del default", ["0.0.0.0/0"]),
    "IPv6 default route": ("pod", "ip -6 route del default", ["::/0"]),
    "other gateway": ("pod", "ip route replace default via 10.244.0.77", ["0.0.0.0/0"]),
    "pod link down": ("pod", "ip link set eth0 down", ["eth0", "down"]),
    "pod link renamed": (
        "pod",
        "ip link set eth0 down; ip link set eth0 name eth9; ip link set eth9 up",
        ["eth0"],
    ),
    "pod MAC": ("pod", "ip link set eth0 address 02:00:00:00:00:99", ["02:00:00:00:00:99"]),
    "host veth down": ("node", "ip link set {port} down", ["{port}", "down"]),
    "port detached": ("node", "ip link set {port} nomaster", ["{port}", "cni0"]),
    "port moved": (
        "node",
        "ip link add br9 type bridge; ip link set {port} master br9",
        ["{port}", "cni0"],
    ),
    "hairpin": ("node", "bridge link set dev {port} hairpin off", ["hairpin", "{port}"]),
    "isolation": ("node", "bridge link set dev {port} isolated on", ["isolation", "{port}"]),
    "IPv4 gateway": ("node", "ip addr del 10.244.0.1/24 dev cni0", ["10.244.0.1/24", "cni0"]),
    "IPv6 gateway": ("node", "ip addr del fd00:10:244::1/64 dev cni0", ["fd00:10:244::1/64"]),
    "gateway's prefix": (
        "node",
        "ip addr del 10.244.0.1/24 dev cni0; ip addr add 10.244.0.1/32 dev cni0",
        ["10.244.0.1/24"],
    ),
    "bridge down": ("node", "ip link set cni0 down", ["cni0", "down"]),
    "IPv4 forwarding": ("node", "sysctl -qw net.ipv4.ip_forward=0", ["IPv4", "forwarding"]),
    "IPv6 forwarding": (
        "node",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        ["IPv6", "forwarding"],
    ),
    "all links gone": ("node", "ip link del {port}", ["eth0"]),
}


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("drift", DRIFTS)
def test_drift(plugin, node, sandbox, added, drift):
    conf, result = added
    where, command, words = DRIFTS[drift]
    port = port_of(node, sandbox)
    namespace = node if where == "node" else sandbox
    namespace.run("sh", "-ec", command.format(port=port))
    found = plugin.check(conf, sandbox, prev=result)
    assert found.code == FAILED
    for word in words:
        assert word.format(port=port) in found.error["msg"]


def test_every_drift_is_told_at_once(plugin, node, sandbox, added):
    conf, result = added
    sandbox.run("ip", "route", "del", "default")
    node.run("ip", "addr", "del", "10.244.0.1/24", "dev", "cni0")
    message = plugin.check(conf, sandbox, prev=result).error["msg"]
    assert "0.0.0.0/0" in message
    assert "10.244.0.1/24" in message


@pytest.mark.parametrize("mac_too", [False, True])
def test_a_dummy_in_the_links_place(plugin, node, sandbox, added, mac_too):
    """A veth of the same name, addresses and routes, which leads nowhere."""
    conf, result = added
    shown = sandbox.links()["eth0"]["address"]
    sandbox.run("ip", "link", "del", "eth0")
    mac = ("address", shown) if mac_too else ()
    sandbox.run("ip", "link", "add", "eth0", *mac, "type", "veth", "peer", "name", "nowhere")
    for link in ("eth0", "nowhere"):
        sandbox.run("ip", "link", "set", link, "up")
    for address in ("10.244.0.2/24", "fd00:10:244::2/64"):
        sandbox.run("ip", "addr", "add", address, "dev", "eth0", "nodad")
    for dst, gateway in (("default", "10.244.0.1"), ("10.9.0.0/16", "10.244.0.1")):
        sandbox.run("ip", "route", "add", dst, "via", gateway)
    for dst in ("default", "fd00:9::/64"):
        sandbox.run("ip", "-6", "route", "add", dst, "via", "fd00:10:244::1")
    assert plugin.check(conf, sandbox, prev=result).code == FAILED


def test_a_dummy_beside_a_host_veth_that_is_there(plugin, node, sandbox, added, topology):
    """Both ends exist, up and addressed, and they are not each other's."""
    conf, result = added
    port, elsewhere = port_of(node, sandbox), topology.sandbox("elsewhere")
    mac = sandbox.links()["eth0"]["address"]
    sandbox.run("ip", "link", "set", "eth0", "netns", elsewhere.path)
    elsewhere.run("ip", "link", "set", "eth0", "up")
    sandbox.run(
        "ip", "link", "add", "eth0", "address", mac, "type", "veth", "peer", "name", "other"
    )
    for link in ("eth0", "other"):
        sandbox.run("ip", "link", "set", link, "up")
    for address in ("10.244.0.2/24", "fd00:10:244::2/64"):
        sandbox.run("ip", "addr", "add", address, "dev", "eth0", "nodad")
    for dst, gateway in (("default", "10.244.0.1"), ("10.9.0.0/16", "10.244.0.1")):
        sandbox.run("ip", "route", "add", dst, "via", gateway)
    for dst in ("default", "fd00:9::/64"):
        sandbox.run("ip", "-6", "route", "add", dst, "via", "fd00:10:244::1")
    assert "UP" in node.links()[port]["flags"]
    assert plugin.check(conf, sandbox, prev=result).code == FAILED


PTP_DRIFTS = {
    "pod route to the gateway": ("pod", "ip route flush 10.244.0.1", ["10.244.0.1"]),
    "IPv4 route to the pod": ("node", "ip route del 10.244.0.2", ["10.244.0.2"]),
    "IPv6 route to the pod": ("node", "ip -6 route del fd00:10:244::2", ["fd00:10:244::2"]),
    "gateway": ("node", "ip addr del 10.244.0.1/32 dev {port}", ["10.244.0.1"]),
    "host veth down": ("node", "ip link set {port} down", ["{port}"]),
    "forwarding": ("node", "sysctl -qw net.ipv4.ip_forward=0", ["IPv4", "forwarding"]),
}


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("drift", PTP_DRIFTS)
def test_drift_in_mode_ptp(plugin, node, sandbox, make_conf, dual, drift):
    conf = make_conf(mode="ptp", ipam={"ranges": dual.ranges})
    result = plugin.add(conf, sandbox).result
    where, command, words = PTP_DRIFTS[drift]
    port = port_of(node, sandbox)
    (node if where == "node" else sandbox).run("sh", "-ec", command.format(port=port))
    found = plugin.check(conf, sandbox, prev=result)
    assert found.code == FAILED
    for word in words:
        assert word.format(port=port) in found.error["msg"]


def test_promisc_switched_off(plugin, node, sandbox, make_conf):
    conf = make_conf(promiscMode=True)
    result = plugin.add(conf, sandbox).result
    node.run("ip", "link", "set", "cni0", "promisc", "off")
    assert "cni0" in plugin.check(conf, sandbox, prev=result).error["msg"]


# --- reservations -----------------------------------------------------------------------------


def test_a_reservation_that_is_gone(plugin, sandbox, added, tmp_path):
    conf, result = added
    os.unlink(tmp_path / "networks" / "podnet" / "fd00:10:244::2")
    found = plugin.check(conf, sandbox, prev=result)
    assert found.code == FAILED
    assert "fd00:10:244::2" in found.error["msg"]


@pytest.mark.parametrize("content", ["somebody\r\neth0", "pod\r\neth1", ""])
def test_a_reservation_of_somebody_else(plugin, sandbox, added, tmp_path, content):
    conf, result = added
    path = tmp_path / "networks" / "podnet" / "10.244.0.2"
    path.unlink()
    path.write_bytes(content.encode())
    found = plugin.check(conf, sandbox, prev=result)
    assert found.code == FAILED
    assert "10.244.0.2" in found.error["msg"]


def test_a_reservation_of_the_old_kind(plugin, sandbox, added, tmp_path):
    """Older host-local wrote the container ID alone."""
    conf, result = added
    for address in ("10.244.0.2", "fd00:10:244::2"):
        (tmp_path / "networks" / "podnet" / address).write_text("pod")
    assert plugin.check(conf, sandbox, prev=result).ok


# --- several nodes ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent puts it back
@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_a_route_to_another_node_is_missing(make_cluster, podwire, sandbox, mode):
    cluster = make_cluster(2)
    node, plugin, conf = cluster.nodes[0], podwire.on(cluster.nodes[0]), cluster.conf(0, mode=mode)
    result = plugin.add(conf, sandbox).result
    assert plugin.check(conf, sandbox, prev=result).ok
    node.run("ip", "-6", "route", "del", "fd00:10:244:1::/64")
    node.run("ip", "route", "add", "172.30.0.0/16", "via", "192.168.1.99")
    found = plugin.check(conf, sandbox, prev=result)
    assert found.code == FAILED
    for word in ("fd00:10:244:1::/64", "fd00:1::3", "node-1"):
        assert word in found.error["msg"]
    assert "10.244.1.0/24" not in found.error["msg"]


# --- in a chain -------------------------------------------------------------------------------


def test_after_tuning_has_changed_the_link(plugin, node, sandbox, added, tmp_path):
    """The chained plugin's result says the new MAC address; CHECK holds the pod to that."""
    conf, result = added
    conf, result = {**conf, "cniVersion": "1.0.0"}, {**result, "cniVersion": "1.0.0"}
    tuning = Plugin(os.path.join(require.go_plugins("tuning"), "tuning"), node)
    chained = {
        "cniVersion": "1.0.0",
        "name": "podnet",
        "type": "tuning",
        "mac": "02:00:00:00:be:ef",
        "mtu": 1300,
        "dataDir": str(tmp_path),
    }
    after = tuning.add(chained, sandbox, prev=result).result
    link = sandbox.links()["eth0"]
    assert (link["address"], link["mtu"]) == ("02:00:00:00:be:ef", 1300)
    assert plugin.check(conf, sandbox, prev=after).ok
    assert plugin.check(conf, sandbox, prev=result).code == FAILED
    assert plugin.delete(conf, sandbox, prev=after).ok


# --- what CHECK needs -------------------------------------------------------------------------


def test_without_prev_result(plugin, sandbox, added):
    conf, _ = added
    found = plugin.check(conf, sandbox)
    assert found.code == 7
    assert "prevResult" in found.error["msg"]


def test_after_the_sandbox_is_gone(plugin, topology, make_conf):
    conf, sandbox = make_conf(), topology.sandbox("gone")
    result = plugin.add(conf, sandbox).result
    sandbox.delete()
    assert plugin.check(conf, sandbox, prev=result).code == 3


def test_check_changes_nothing(plugin, node, sandbox, added, untouched):
    conf, result = added
    sandbox.run("ip", "route", "del", "default")
    node.run("sysctl", "-qw", "net/ipv4/ip_forward=0")
    with untouched(node, sandbox):
        assert plugin.check(conf, sandbox, prev=result).code == FAILED
    assert node.sysctl("net/ipv4/ip_forward") == "0"
