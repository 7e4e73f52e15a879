"""ADD, CHECK, DEL and GC as a runtime sees them: results of each version, what is kept and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.netns import Namespace
from tests.support.plugin import Config, Plugin
from tests.support.topology import Topology

MakeConf = Callable[..., Config]
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
DUAL = {
    "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:10:244::/64"}]],
    "routes": [{"dst": "10.9.0.0/16"}],
}
DNS = {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]}


def reservations(conf: Config) -> list[str]:
    """The addresses that are reserved in the configuration's directory."""
    folder = os.path.join(conf["ipam"]["dataDir"], conf["name"])
    if not os.path.isdir(folder):
        return []
    names = [name for name in os.listdir(folder) if name[0].isdigit() or ":" in name]
    return sorted(name for name in names if not name.startswith("last_"))


# --- results ------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_of_each_version(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf, version: str
) -> None:
    conf = make_conf(cniVersion=version, ipam=DUAL)
    result = plugin.add(conf, sandbox).result
    assert result["cniVersion"] == version
    if version in ("0.1.0", "0.2.0"):
        assert set(result) == {"cniVersion", "ip4", "ip6", "dns"}
        assert result["ip4"] == {
            "ip": "10.244.0.2/24",
            "gateway": "10.244.0.1",
            "routes": [{"dst": "10.9.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.0.1"}],
        }
        assert result["ip6"]["ip"] == "fd00:10:244::2/64"
        assert result["dns"] == {}
    else:
        assert_modern(result, version, sandbox)
    if VERSIONS.index(version) >= VERSIONS.index("0.4.0"):
        assert plugin.check(conf, sandbox, prev=result).ok
        assert plugin.delete(conf, sandbox, prev=result).ok
    else:
        assert plugin.delete(conf, sandbox).ok
    assert reservations(conf) == []
    assert list(sandbox.links()) == ["lo"]


def assert_modern(result: Config, version: str, sandbox: Namespace) -> None:
    bridge, host, pod = result["interfaces"]
    assert bridge["name"] == "cni0"
    assert "sandbox" not in bridge
    assert "sandbox" not in host
    assert (pod["name"], pod["sandbox"]) == ("eth0", sandbox.path)
    links = sandbox.links()
    assert pod["mac"] == links["eth0"]["address"]
    assert all(("mtu" in link) == (version == "1.1.0") for link in result["interfaces"])
    assert [ip["interface"] for ip in result["ips"]] == [2, 2]
    assert [ip["address"] for ip in result["ips"]] == ["10.244.0.2/24", "fd00:10:244::2/64"]
    assert [ip["gateway"] for ip in result["ips"]] == ["10.244.0.1", "fd00:10:244::1"]
    with_version = version in ("0.3.0", "0.3.1", "0.4.0")
    assert [ip.get("version") for ip in result["ips"]] == (
        ["4", "6"] if with_version else [None, None]
    )
    assert result.get("dns") == ({} if with_version else None)


@pytest.mark.root
def test_the_result_of_mode_ptp(plugin: Plugin, sandbox: Namespace, make_conf: MakeConf) -> None:
    conf = make_conf(mode="ptp", isGateway=None, isDefaultGateway=None)
    result = plugin.add(conf, sandbox).result
    assert len(result["interfaces"]) == 2
    assert result["interfaces"][1]["sandbox"] == sandbox.path
    assert [ip["interface"] for ip in result["ips"]] == [1]
    assert plugin.check(conf, sandbox, prev=result).ok
    assert plugin.delete(conf, sandbox, prev=result).ok


@pytest.mark.root
def test_options_are_in_the_pod_and_in_the_result(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf
) -> None:
    conf = make_conf(
        cniVersion="1.1.0",
        mtu=1400,
        dns={"nameservers": ["10.0.0.1"], "domain": "x"},
        args={"cni": {"mac": "02:00:00:00:00:02"}},
        runtimeConfig={
            "mac": "02:00:00:00:00:03",
            "dns": {"servers": ["10.0.0.2"], "searches": ["s"], "options": ["o"]},
        },
    )
    result = plugin.add(conf, sandbox, args="MAC=02:00:00:00:00:01").result
    assert result["interfaces"][2]["mac"] == "02:00:00:00:00:03"
    assert result["interfaces"][2]["mtu"] == 1400
    assert result["dns"]["nameservers"] == ["10.0.0.2"]
    assert result["dns"]["search"] == ["s"]
    assert result["dns"]["options"] == ["o"]
    link = sandbox.links()["eth0"]
    assert (link["address"], link["mtu"]) == ("02:00:00:00:00:03", 1400)
    assert plugin.delete(conf, sandbox).ok


@pytest.mark.root
def test_a_route_of_a_table_of_its_own_is_found_by_check(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf
) -> None:
    """Results before 1.1.0 don't carry the table; a pod that nobody touched passes all the same."""
    for version in ("1.1.0", "1.0.0"):
        routes = [
            {"dst": "10.9.0.0/16", "gw": "10.244.0.1", "table": 100},
            {"dst": "10.8.0.0/16", "scope": 253},
        ]
        conf = make_conf(cniVersion=version, ipam={"routes": routes})
        result = plugin.add(conf, sandbox).result
        reply = plugin.check(conf, sandbox, prev=result)
        assert plugin.delete(conf, sandbox).ok
        assert reply.ok, (version, reply.stdout)


@pytest.mark.root
@pytest.mark.parametrize("length", [64, 234, 235, 236, 300, 1000])
def test_a_container_id_may_be_long(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf, length: int
) -> None:
    """No rule limits it; the kernel's 255 bytes for an alias must not."""
    conf, cid = make_conf(cniVersion="1.1.0"), "c" * length
    result = plugin.add(conf, sandbox, cid=cid).result
    assert plugin.check(conf, sandbox, cid=cid, prev=result).ok
    assert plugin.gc(conf, [(cid, "eth0")]).ok
    assert plugin.check(conf, sandbox, cid=cid, prev=result).ok
    assert plugin.gc(conf, [(cid + "c", "eth0")]).ok
    assert list(sandbox.links()) == ["lo"]
    assert reservations(conf) == []


@pytest.mark.root
@pytest.mark.parametrize("ifname", ["é" * 7, "net1.100", "...", "-x", "a'$\"b", "cni0"])
def test_interface_names_that_the_kernel_takes(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf, ifname: str
) -> None:
    conf = make_conf(ipam=DUAL)
    result = plugin.add(conf, sandbox, ifname=ifname).result
    assert result["interfaces"][2]["name"] == ifname
    assert plugin.check(conf, sandbox, ifname=ifname, prev=result).ok
    assert plugin.delete(conf, sandbox, ifname=ifname).ok
    assert list(sandbox.links()) == ["lo"]


@pytest.mark.root
def test_a_pod_that_an_earlier_plugin_gave_a_network_too(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf
) -> None:
    """What the earlier plugin reported is passed on, and is not looked for on podwire's link."""
    sandbox.run("ip", "link", "add", "net0", "type", "veth", "peer", "name", "net0-peer")
    for command in ("addr add 10.1.0.2/24 dev net0", "link set net0 up", "link set net0-peer up"):
        sandbox.run("ip", *command.split())
    sandbox.run("ip", "route", "add", "10.1.1.0/24", "via", "10.1.0.1")
    sandbox.run("ip", "route", "add", "10.1.2.0/24", "dev", "net0")
    earlier = {
        "interfaces": [{"name": "net0", "sandbox": sandbox.path}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
        "routes": [{"dst": "10.1.1.0/24", "gw": "10.1.0.1"}, {"dst": "10.1.2.0/24"}],
        "dns": {"domain": "earlier"},
    }
    conf = make_conf()
    result = plugin.add(conf, sandbox, prev=earlier).result
    assert result["interfaces"][0] == earlier["interfaces"][0]
    assert [interface["name"] for interface in result["interfaces"][1::2]] == ["cni0", "eth0"]
    assert result["ips"][0] == earlier["ips"][0]
    assert result["ips"][1]["interface"] == 3
    assert result["routes"][:2] == earlier["routes"]
    assert result["dns"] == earlier["dns"]
    reply = plugin.check(conf, sandbox, prev=result)
    assert plugin.delete(conf, sandbox, prev=result).ok
    assert {"net0", "net0-peer"} <= set(sandbox.links())
    assert reply.ok, reply.stdout


@pytest.mark.root
def test_a_name_that_the_sandbox_has_is_refused(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf
) -> None:
    sandbox.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    before = sandbox.state()
    conf = make_conf()
    reply = plugin.add(conf, sandbox)
    assert reply.code == 102
    assert "eth0" in reply.error["msg"]
    assert sandbox.state() == before
    assert reservations(conf) == []


# --- prevResult ---------------------------------------------------------------------------------

MALFORMED: tuple[Any, ...] = (
    5,
    [],
    {"interfaces": [{"name": 5}]},
    {"ips": [{"address": "10.244.0.2/24", "interface": 3}], "interfaces": [{"name": "eth0"}]},
    {"routes": [{"dst": "x"}]},
)


@pytest.mark.root
def test_a_malformed_prev_result(plugin: Plugin, sandbox: Namespace, make_conf: MakeConf) -> None:
    """CHECK refuses it, as ADD does (test_requests.py); DEL does without."""
    conf = make_conf()
    good = plugin.add(conf, sandbox).result
    for value in MALFORMED:
        bad = {**conf, "prevResult": value}
        reply = plugin.check(bad, sandbox)
        assert reply.code == 7, value
        assert "prevResult" in reply.error["msg"]
    assert plugin.check(conf, sandbox).code == 7, "CHECK needs prevResult"
    assert plugin.check(conf, sandbox, prev=good).ok
    assert len(reservations(conf)) == 1
    for value in MALFORMED:
        assert plugin.delete({**conf, "prevResult": value}, sandbox).ok, value
    assert reservations(conf) == []
    assert list(sandbox.links()) == ["lo"]


@pytest.mark.root
def test_del_with_a_configuration_that_was_broken_since(
    plugin: Plugin, topology: Topology, make_conf: MakeConf
) -> None:
    good = make_conf()
    breakage: tuple[Config, ...] = (
        {"mtu": "x"},
        {"vlan": 5},
        {"mode": "nonsense"},
        {"hairpinMode": True, "promiscMode": True},
        {"bridge": "../x"},
        {"runtimeConfig": 5},
        {"dns": 5},
        {"nodes": "/proc/nowhere"},
        {"ipam": {**good["ipam"], "ranges": 5}},
        {"ipam": {**good["ipam"], "ranges": None, "routes": "x"}},
    )
    for number, keys in enumerate(breakage):
        sandbox = topology.sandbox(f"pod{number}")
        assert plugin.add(good, sandbox).ok
        reply = plugin.delete({**good, **keys}, sandbox)
        assert reply.ok, (keys, reply.stdout)
        assert list(sandbox.links()) == ["lo"], keys
        assert reservations(good) == [], keys


# --- GC -----------------------------------------------------------------------------------------

VALID, ATTACHMENTS = "cni.dev/valid-attachments", "cni.dev/attachments"


@pytest.mark.root
def test_gc_removes_exactly_what_is_not_valid(
    plugin: Plugin, node: Namespace, topology: Topology, make_conf: MakeConf
) -> None:
    conf = make_conf(cniVersion="1.1.0")
    a, b = topology.sandbox("a"), topology.sandbox("b")
    for sandbox in (a, b):
        assert plugin.add(conf, sandbox).ok
    before, held = node.state(), reservations(conf)
    assert len(held) == 2

    # Absent or null: change nothing.
    for keys in ({}, {VALID: None}, {VALID: None, ATTACHMENTS: None}):
        assert plugin.call("GC", {**conf, **keys}).ok
        assert (node.state(), reservations(conf)) == (before, held), keys

    # Malformed: refused, and nothing changed.
    for value in (
        *("x", {}, [5], [None], [{}], [{"containerID": "a"}]),
        [{"containerID": 5, "ifname": "eth0"}],
        [{"containerID": "a", "ifname": "eth0"}, {"containerID": "", "ifname": ""}],
    ):
        reply = plugin.call("GC", {**conf, VALID: value})
        assert reply.code == 7, value
        assert VALID in reply.error["msg"], value
        assert (node.state(), reservations(conf)) == (before, held), value

    both = [("a", "eth0"), ("b", "eth0")]
    assert plugin.gc(conf, [*both, ("never", "eth9")]).ok
    assert (node.state(), reservations(conf)) == (before, held)

    assert plugin.gc(conf, [("b", "eth0"), ("a", "eth1")]).ok
    assert list(a.links()) == ["lo"]
    assert set(b.links()) == {"lo", "eth0"}
    assert len(reservations(conf)) == 1

    assert plugin.call("GC", {**conf, VALID: []}).ok
    assert list(b.links()) == ["lo"]
    assert reservations(conf) == []
    assert plugin.call("GC", {**conf, VALID: []}).ok


@pytest.mark.root
def test_gc_leaves_other_networks_alone(
    plugin: Plugin, topology: Topology, make_conf: MakeConf
) -> None:
    """Also when one network's name begins with the other's."""
    one = make_conf(cniVersion="1.1.0", name="net", bridge="br1")
    other = make_conf(
        cniVersion="1.1.0",
        name="net.2",
        bridge="br2",
        ipam={"ranges": [[{"subnet": "10.245.0.0/24"}]]},
    )
    a, b = topology.sandbox("a"), topology.sandbox("b")
    assert plugin.add(one, a).ok
    assert plugin.add(other, b).ok
    assert plugin.gc(one, []).ok
    assert list(a.links()) == ["lo"]
    assert set(b.links()) == {"lo", "eth0"}
    assert (len(reservations(one)), len(reservations(other))) == (0, 1)
    assert plugin.delete(other, b).ok


@pytest.mark.root
def test_gc_of_attachments_that_cannot_be_names(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf
) -> None:
    """They match nothing; they may be refused, but are no internal error."""
    conf = make_conf(cniVersion="1.1.0")
    assert plugin.add(conf, sandbox).ok
    for container_id, ifname in (
        ("\ud800", "eth0"),
        ("c", "\udfff"),
        ("c" * 1000, "e" * 1000),
        ("../../x", "/"),
        ("a\nb", "\0"),
    ):
        pairs = [
            {"containerID": container_id, "ifname": ifname},
            {"containerID": sandbox.name, "ifname": "eth0"},
        ]
        reply = plugin.call("GC", {**conf, VALID: pairs})
        assert reply.code in (0, 4, 7), (container_id, reply.stdout)
        assert set(sandbox.links()) == {"lo", "eth0"}
        assert len(reservations(conf)) == 1
    assert plugin.delete(conf, sandbox).ok


# --- STATUS -------------------------------------------------------------------------------------


@pytest.mark.root
def test_status_says_whether_an_add_would_be_served(
    plugin: Plugin, node: Namespace, sandbox: Namespace, make_conf: MakeConf
) -> None:
    before = node.state()
    conf = make_conf(cniVersion="1.1.0")
    tiny = make_conf(
        cniVersion="1.1.0", name="tiny", ipam={"ranges": [[{"subnet": "10.0.0.0/30"}]]}
    )
    assert plugin.status(conf).ok
    assert plugin.status(tiny).ok
    assert node.state() == before
    assert not os.path.exists(conf["ipam"]["dataDir"])
    assert plugin.add(tiny, sandbox).ok
    reply = plugin.status(tiny)
    assert reply.code == 50
    assert plugin.add(tiny, sandbox, ifname="eth1").code == 100
    assert plugin.delete(tiny, sandbox).ok
    assert plugin.status(tiny).ok
    missing = make_conf(cniVersion="1.1.0", ipam={"type": "nowhere"})
    assert plugin.status(missing).code == 50


# --- podwire-ipam -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_ipam_plugin_alone(
    podwire_ipam_executable: str, make_conf: MakeConf, version: str
) -> None:
    """It needs neither root nor the sandbox: it only hands out addresses."""
    ipam = Plugin(podwire_ipam_executable)
    conf = make_conf(cniVersion=version, ipam=DUAL)
    gone = "/proc/nowhere/netns"
    result = ipam.add(conf, gone, cid="ctr").result
    assert result["cniVersion"] == version
    assert "interfaces" not in result
    if version in ("0.1.0", "0.2.0"):
        assert result["ip4"]["ip"] == "10.244.0.2/24"
        assert result["ip4"]["routes"] == [{"dst": "10.9.0.0/16"}]
        assert result["ip6"] == {"ip": "fd00:10:244::2/64", "gateway": "fd00:10:244::1"}
    else:
        assert [ip["address"] for ip in result["ips"]] == ["10.244.0.2/24", "fd00:10:244::2/64"]
        assert all("interface" not in ip for ip in result["ips"])
        assert result["routes"] == [{"dst": "10.9.0.0/16"}]
    if VERSIONS.index(version) >= VERSIONS.index("0.4.0"):
        assert ipam.check(conf, gone, cid="ctr", prev=result).ok
    if version == "1.1.0":
        assert ipam.status(conf).ok
        assert ipam.gc(conf, [("ctr", "eth0")]).ok
        assert len(reservations(conf)) == 2
        assert ipam.gc(conf, []).ok
        assert reservations(conf) == []
    for _ in range(2):
        assert ipam.delete(conf, None, cid="ctr").ok
    assert reservations(conf) == []
