"""Pods of nodes that share no link: three nodes, the third behind routers."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from cni_plugin import cluster as clusters
from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel import offload, overlayentries
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.spec import CniError, Code
from ipam.peers import vtep_mac
from tests.support import probe
from tests.support.topology import Split

DUAL = (4, 6)


@pytest.fixture
def split(topology, tmp_path):
    """split((4, 6)) makes the site; the versions are those of the inventory's addresses."""
    return lambda versions=DUAL: Split(topology, tmp_path, versions)


@pytest.fixture
def populated(split, topology, podwire):
    """populated(versions, **options) is the site with one pod on each node, and the pods as
    (sandbox, addresses)."""

    def make(versions=DUAL, **options):
        site = split(versions)
        pods = []
        for number, node in enumerate(site.nodes):
            sandbox = topology.sandbox(f"pod-{number}")
            added = podwire.on(node).add(site.conf(number, **options), sandbox)
            pods.append((sandbox, [text.split("/")[0] for text in added.addresses()]))
        return site, pods

    return make


@contextlib.contextmanager
def joined(site, number, cross=CrossNode()):  # noqa: B008  it is immutable
    """The node's cluster and a socket, with this thread in the node."""
    with site.nodes[number].entered(), RouteSocket() as route_socket:
        yield clusters.join(str(site.path), "", cross, route_socket), route_socket


def sync(site, number, cross=CrossNode()):  # noqa: B008
    with joined(site, number, cross) as (cluster, route_socket):
        return clusters.sync(cluster, route_socket)


def shown(node):
    """What the tools of iproute2 show of the overlay and of our routes."""

    def run(*argv):
        return [line.strip() for line in node.run(*argv, check=False).stdout.splitlines() if line]

    return {
        "links": sorted(name for name in node.links() if name.startswith("pwvx")),
        "fdb": sorted(run("bridge", "fdb", "show", "dev", "pwvx1")),
        "neigh": sorted(
            {
                *run("ip", "-4", "neigh", "show", "dev", "pwvx1"),
                *run("ip", "-6", "neigh", "show", "dev", "pwvx1"),
            }
        ),
        "routes": sorted(
            run("ip", "-4", "route", "show", "proto", "112")
            + run("ip", "-6", "route", "show", "proto", "112")
        ),
    }


# --- reachability -------------------------------------------------------------------------------


@pytest.mark.parametrize("underlay", [DUAL, (4,), (6,)], ids=["dual", "ipv4", "ipv6"])
@pytest.mark.parametrize("backend", ["auto", "vxlan"])
def test_everybody_reaches_everybody_without_nat(populated, backend, underlay):
    """Pods of both families, whatever family carries them; nodes reach pods as well."""
    site, pods = populated(underlay, backend=backend)
    for number, (sandbox, own) in enumerate(pods):
        for other, (peer, theirs) in enumerate(pods):
            if other == number:
                continue
            for mine, address in zip(own, theirs, strict=True):
                assert probe.tcp(sandbox, peer, address).source == mine
                assert probe.udp(sandbox, peer, address).source == mine
                assert probe.reaches(site.nodes[number], peer, address)


def test_the_source_of_a_node_has_its_way_back(populated):
    """Through the overlay a node is its subnet's network address; on the link it is itself."""
    site, pods = populated()
    assert probe.tcp(site.nodes[0], *_of(pods[2], 4)).source == "10.244.0.0"
    assert probe.tcp(site.nodes[0], *_of(pods[2], 6)).source == "fd00:10:244::"
    assert probe.tcp(site.nodes[0], *_of(pods[1], 4)).source == "192.168.1.2"


def _of(pod, version):
    sandbox, addresses = pod
    return sandbox, next(text for text in addresses if (":" in text) == (version == 6))


def test_a_strict_reverse_path_filter_lets_it_through(split, topology, podwire):
    """Between pods, and from a node to another's pods."""
    site = split()
    for node in site.nodes:
        for name in ("all", "default"):
            node.run("sysctl", "-qw", f"net/ipv4/conf/{name}/rp_filter=1")
    pods = []
    for number, node in enumerate(site.nodes):
        sandbox = topology.sandbox(f"pod-{number}")
        added = podwire.on(node).add(site.conf(number, backend="vxlan"), sandbox)
        pods.append((sandbox, added.addresses()[0].split("/")[0]))
    assert site.nodes[0].sysctl("net/ipv4/conf/pwvx1/rp_filter") == "1"
    for number, (sandbox, mine) in enumerate(pods):
        for other, (peer, address) in enumerate(pods):
            if other != number:
                assert probe.tcp(sandbox, peer, address).source == mine
                assert probe.reaches(site.nodes[number], peer, address)


def test_several_subnets_and_one_of_a_single_address(split, topology, podwire):
    site = split((4,))
    site.entries[2]["podCIDRs"] = ["10.244.9.7/32", "10.244.8.0/25", "10.244.7.0/24"]
    site.entries[0]["podCIDRs"] = ["10.244.0.0/24"]
    site.write()
    pods = []
    for number in (0, 2):
        sandbox = topology.sandbox(f"pod-{number}")
        conf = site.conf(number)
        if number == 2:
            conf["ipam"]["ranges"] = [[{"subnet": c}] for c in ("10.244.8.0/25", "10.244.7.0/24")]
        added = podwire.on(site.nodes[number]).add(conf, sandbox)
        pods.append((sandbox, [text.split("/")[0] for text in added.addresses()]))
    assert len(pods[1][1]) == 2
    for address in pods[1][1]:
        assert probe.tcp(pods[0][0], pods[1][0], address).source == "10.244.0.2"
    gateways = {route["dst"]: route["gateway"] for route in site.nodes[0].routes()
                if route.get("dev") == "pwvx1" and "gateway" in route}  # fmt: skip
    assert gateways == dict.fromkeys(("10.244.9.7", "10.244.8.0/25", "10.244.7.0/24"), "10.244.8.0")


# --- what is in the kernel ----------------------------------------------------------------------


def test_what_the_tools_show(split):
    site = split()
    sync(site, 0)
    mac = vtep_mac(1, "node-2")
    assert shown(site.nodes[0]) == {
        "links": ["pwvx1"],
        "fdb": [f"{mac} dst 192.168.2.2 self permanent"],
        "neigh": [f"10.244.2.0 lladdr {mac} PERMANENT", f"fd00:10:244:2:: lladdr {mac} PERMANENT"],
        "routes": sorted(
            [
                "10.244.1.0/24 via 192.168.1.3 dev eth0",
                "10.244.2.0/24 via 10.244.2.0 dev pwvx1 onlink",
                "fd00:10:244:1::/64 via fd00:1::3 dev eth0 metric 1024 pref medium",
                "fd00:10:244:2::/64 via fd00:10:244:2:: dev pwvx1 metric 1024 onlink pref medium",
            ]
        ),
    }
    link = site.nodes[0].links()["pwvx1"]
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["link"]) == (
        1,
        8472,
        "192.168.1.2",
        "eth0",
    )
    assert not data["learning"]
    assert "group" not in data
    assert "group6" not in data
    assert (link["mtu"], link["ifalias"]) == (1450, "podwire overlay")
    assert link["address"] == vtep_mac(1, "node-0")
    assert site.nodes[0].addresses("pwvx1") == ["10.244.0.0/32", "fd00:10:244::/128"]
    for name in ("accept_ra", "autoconf"):
        assert site.nodes[0].sysctl(f"net/ipv6/conf/pwvx1/{name}") == "0"
    assert "fe80::" not in site.nodes[0].run("ip", "addr", "show", "dev", "pwvx1").stdout


@pytest.mark.parametrize("version", [4, 6])
def test_options(split, version):
    site = split((version,))
    cross = CrossNode("vxlan", vni=4097, port=4789, mtu=1300)
    sync(site, 2, cross)
    data = (link := site.nodes[2].links()["pwvx4097"])["linkinfo"]["info_data"]
    assert (data["id"], data["port"], link["mtu"]) == (4097, 4789, 1300)
    assert data["local" if version == 4 else "local6"] == site.ADDRESSES[2][version == 6][:-3]


def test_a_second_sync_finds_nothing_to_do_and_takes_no_lock(split, monkeypatch):
    site = split()
    assert sync(site, 0)
    before = shown(site.nodes[0])
    monkeypatch.setattr(clusters, "node_lock", None)
    assert not sync(site, 0)
    assert shown(site.nodes[0]) == before


def test_no_peer_behind_a_router_no_overlay(split):
    site = split()
    del site.entries[2]
    site.write()
    sync(site, 0)
    assert shown(site.nodes[0])["links"] == []


# --- changes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent follows by itself
def test_auto_follows_the_topology(populated):
    site, pods = populated()
    apart = [shown(node) for node in site.nodes]
    site.move_in()
    assert probe.reaches(pods[0][0], *_of(pods[2], 4))  # by the overlay as before
    for number in range(3):
        assert sync(site, number)
    assert [shown(node)["links"] for node in site.nodes] == [[], [], []]
    assert not any("pwvx" in line for node in site.nodes for line in shown(node)["routes"])
    for version in DUAL:
        assert probe.tcp(pods[0][0], *_of(pods[2], version)).source == _of(pods[0], version)[1]
    site.move_out()
    for number in range(3):
        assert sync(site, number)
    assert [shown(node) for node in site.nodes] == apart
    for version in DUAL:
        assert probe.tcp(pods[0][0], *_of(pods[2], version)).source == _of(pods[0], version)[1]


def test_peers_that_go_or_change_leave_nothing_stale(split):
    site = split()
    cross = CrossNode("vxlan")
    extra = {"name": "more", "addresses": ["192.168.2.9", "fd00:2::9"],
             "podCIDRs": ["10.244.9.0/24", "fd00:10:244:9::/64"]}  # fmt: skip
    sync(site, 0, cross)
    before = shown(site.nodes[0])
    site.entries.append(extra)
    site.write()
    sync(site, 0, cross)
    mac = vtep_mac(1, "more")
    assert f"{mac} dst 192.168.2.9 self permanent" in shown(site.nodes[0])["fdb"]
    extra.update(addresses=["192.168.2.10", "fd00:2::a"], podCIDRs=["10.244.10.0/24"])
    site.write()
    sync(site, 0, cross)
    changed = shown(site.nodes[0])
    assert [line for line in changed["fdb"] if mac in line] == [
        f"{mac} dst 192.168.2.10 self permanent"
    ]
    assert [line for line in changed["neigh"] if mac in line] == [
        f"10.244.10.0 lladdr {mac} PERMANENT"
    ]
    site.entries.remove(extra)
    site.write()
    sync(site, 0, cross)
    assert shown(site.nodes[0]) == before


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent puts it back
def test_a_device_that_went_comes_back_as_it_was(populated):
    """With the address that the peers know: they need no change."""
    site, pods = populated()
    before, address = shown(site.nodes[2]), site.nodes[2].links()["pwvx1"]["address"]
    site.nodes[2].run("ip", "link", "del", "pwvx1")
    assert not probe.reaches(pods[0][0], *_of(pods[2], 4), timeout=0.5)
    assert sync(site, 2)
    assert shown(site.nodes[2]) == before
    assert site.nodes[2].links()["pwvx1"]["address"] == address
    assert probe.reaches(pods[0][0], *_of(pods[2], 4))


@pytest.mark.parametrize(
    "spoil",
    [
        "ip link set pwvx1 down",
        "ip link set pwvx1 mtu 1000",
        "ip link set pwvx1 address 02:00:00:00:00:01",
        "ip link set pwvx1 type vxlan learning",
        "ip link set pwvx1 type vxlan ttl 1",
        "ip addr flush dev pwvx1",
        "ip addr add 10.99.0.1/24 dev pwvx1",
        "ip neigh flush dev pwvx1 nud permanent",
        "ip neigh add 10.99.0.9 lladdr 02:00:00:00:00:09 dev pwvx1 nud permanent",
        "bridge fdb add 02:00:00:00:00:09 dev pwvx1 dst 192.168.2.9 self permanent",
        "bridge fdb del {mac} dev pwvx1 dst 192.168.2.2 self",
        "bridge fdb replace {mac} dev pwvx1 dst 192.168.2.9 self permanent",
        "ip route del 10.244.2.0/24",
    ],
)
def test_whatever_somebody_did_is_seen_and_put_right(split, spoil):
    site = split()
    node = site.nodes[0]
    sync(site, 0)
    before = shown(node), node.links()["pwvx1"], node.addresses("pwvx1")
    node.run(*spoil.format(mac=vtep_mac(1, "node-2")).split())
    assert sync(site, 0)
    after = shown(node), node.links()["pwvx1"], node.addresses("pwvx1")
    for link in (before[1], after[1]):
        link.pop("ifindex")  # a device that learned is made anew
    assert after == before
    assert not sync(site, 0)


def test_a_device_that_a_killed_call_left_half_made(split):
    """Known as ours by its derived address; a second call makes the rest."""
    site = split()
    node, mac = site.nodes[0], vtep_mac(1, "node-0")
    sync(site, 0)
    before = shown(node), node.addresses("pwvx1")
    node.run("ip", "link", "del", "pwvx1")
    words = ("pwvx1", "address", mac, "type", "vxlan", "id", "1", "dstport", "8472")
    node.run("ip", "link", "add", *words, "local", "192.168.1.2", "dev", "eth0", "nolearning")
    assert sync(site, 0)
    assert (shown(node), node.addresses("pwvx1")) == before
    assert node.links()["pwvx1"]["ifalias"] == "podwire overlay"


@pytest.mark.parametrize(
    "cross",
    [CrossNode("vxlan", vni=2), CrossNode("vxlan", port=4789), CrossNode("vxlan", mtu=1400)],
    ids=["vni", "port", "mtu"],
)
def test_another_configuration_makes_the_overlay_anew(split, cross):
    site = split()
    first = CrossNode("vxlan")
    sync(site, 0, first)
    before = shown(site.nodes[0])
    assert sync(site, 0, cross)
    assert shown(site.nodes[0])["links"] == [f"pwvx{cross.vni}"]
    assert not sync(site, 0, cross)
    assert sync(site, 0, first)
    assert shown(site.nodes[0]) == before


def test_uninstall_leaves_nothing(split):
    site = split()
    node = site.nodes[0]
    before = node.state()
    sync(site, 0)
    with node.entered(), RouteSocket() as route_socket:
        removed = clusters.remove_overlay(route_socket)
        assert "link pwvx1" in removed
        assert any("10.244.1.0/24" in words for words in removed)
        assert clusters.remove_overlay(route_socket) == []
    assert node.state() == before


# --- a link is down -----------------------------------------------------------------------------


def _keeping_addresses(site, number):
    """The node's eth0 keeps its IPv6 addresses while it is down, as IPv4's do."""
    site.nodes[number].run("sysctl", "-qw", "net/ipv6/conf/eth0/keep_addr_on_down=1")
    return site.nodes[number]


@pytest.mark.parametrize("keeps", [True, False])
def test_no_way_at_all_is_no_router(split, keeps):
    """Peers on the link wait for it, the one in the overlay stays there; nothing is built."""
    site = split()
    node = _keeping_addresses(site, 0) if keeps else site.nodes[0]
    sync(site, 0)
    before = shown(node)
    node.run("ip", "link", "set", "eth0", "down")
    with pytest.raises(CniError, match=r"no way to 192\.168\.1\.3 of node node-1 now") as caught:
        sync(site, 0)
    assert caught.value.code == Code.KERNEL_REFUSED
    down = shown(node)
    assert {key: down[key] for key in ("links", "fdb", "neigh")} == {
        key: before[key] for key in ("links", "fdb", "neigh")
    }
    assert down["routes"] == [line for line in before["routes"] if "pwvx1" in line]
    node.run("ip", "link", "set", "eth0", "up")
    if not keeps:
        node.run("ip", "addr", "add", "fd00:1::2/64", "dev", "eth0", "nodad")
        node.run("ip", "-6", "route", "add", "default", "via", "fd00:1::1")
    node.run("ip", "route", "add", "default", "via", "192.168.1.1")
    sync(site, 0)
    assert shown(node) == before


@pytest.mark.parametrize("backend", ["auto", "host-gw"])
def test_a_pod_is_refused_while_the_paths_are_down(
    make_cluster, topology, podwire, untouched, backend
):
    """Made now it would have another path's MTU for life; STATUS says the same."""
    cluster, sandbox = make_cluster(3), topology.sandbox("pod")
    node, conf = cluster.nodes[0], cluster.conf(0, backend=backend)
    plugin = podwire.on(node)
    node.run("ip", "link", "set", "eth0", "down")
    with untouched(node, sandbox):
        refused, status = plugin.add(conf, sandbox), plugin.status(conf)
    assert refused.code == 104
    assert "no way to 192.168.1.3 of node node-1 nor to 1 other node now" in refused.error["msg"]
    assert "inventory" not in json.dumps(refused.error)
    assert (status.code, status.error["msg"]) == (50, refused.error["msg"])
    node.run("ip", "link", "set", "eth0", "up")
    node.run("ip", "addr", "add", "fd00:1::2/64", "dev", "eth0", "nodad")
    assert plugin.add(conf, sandbox).ok
    assert sandbox.links()["eth0"]["mtu"] == 1500
    assert "pwvx1" not in node.links()
    assert len(cluster.owned(0)) == 4


def test_a_detour_while_the_link_is_down_is_no_router(make_cluster, topology):
    """Another link has the default route: the peers don't answer there."""
    cluster = make_cluster(2, (4,))
    node = cluster.nodes[0]
    topology.cable({node: ("192.168.9.2/24",)}, ifname="eth9")
    node.run("ip", "route", "add", "default", "via", "192.168.9.1")
    with node.entered(), RouteSocket() as route_socket:
        joined = clusters.join(str(cluster.path), "", CrossNode(), route_socket)
        clusters.sync(joined, route_socket)
        before = cluster.owned(0)
        node.run("ip", "link", "set", "eth0", "down")
        with pytest.raises(CniError, match=r"no way to 192\.168\.1\.3 of node node-1 now"):
            clusters.sync(joined, route_socket)
        assert "pwvx1" not in node.links()
        node.run("ip", "link", "set", "eth0", "up")
        clusters.sync(joined, route_socket)
    assert cluster.owned(0) == before == {("10.244.1.0/24", "192.168.1.3")}


def test_a_peer_without_a_way_holds_up_no_other(split):
    site = split()
    sync(site, 0)
    node = site.nodes[0]
    node.run("ip", "route", "del", "default")
    node.run("ip", "-6", "route", "del", "default")
    site.entries[2]["podCIDRs"] = ["10.244.3.0/24"]
    more = {"name": "more", "addresses": ["192.168.1.9"], "podCIDRs": ["10.244.9.0/24"]}
    site.entries.append(more)
    for entry in site.entries:
        entry["addresses"] = entry["addresses"][:1]
    site.write()
    with pytest.raises(CniError, match=r"no way to 192\.168\.2\.2 of node node-2 now"):
        sync(site, 0, CrossNode("auto"))
    assert "10.244.9.0/24 via 192.168.1.9 dev eth0" in shown(node)["routes"]


def test_an_address_that_is_gone_with_its_link_is_no_mistake_of_the_inventory(split):
    site = split((6,))
    sync(site, 0, CrossNode("vxlan"))
    node = site.nodes[0]
    before = shown(node)
    node.run("ip", "link", "set", "eth0", "down")
    with site.nodes[0].entered(), RouteSocket() as route_socket:
        cluster = clusters.join(str(site.path), "node-0", CrossNode("vxlan"), route_socket)
        with pytest.raises(CniError, match="fd00:1::2 is on no link now") as caught:
            clusters.sync(cluster, route_socket)
        assert caught.value.code == Code.KERNEL_REFUSED
        assert "inventory" not in caught.value.details
        assert shown(node) == before
        node.run("ip", "addr", "del", "192.168.1.2/24", "dev", "eth0")
        with pytest.raises(CniError, match="no link of this machine has an address now") as caught:
            clusters.join(str(site.path), "", CrossNode("vxlan"), route_socket)
        assert caught.value.code == Code.KERNEL_REFUSED


# --- in the way ---------------------------------------------------------------------------------


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("made", "code", "words"),
    [
        ("link add pwvx1 type bridge", 103, ("vxlan.vni", "pwvx1", "bridge")),
        ("link add pwvx1 type vxlan id 77 dstport 99", 103, ("vxlan.vni", "pwvx1")),
        ("link add flannel.1 type vxlan id 1 dstport 8472", 103, ("vxlan.vni", "flannel.1")),
        ("route add 10.244.2.0/24 via 192.168.1.9 proto static", 103, ("10.244.2.0/24", "node-2")),
    ],
)
def test_what_is_somebody_elses(split, topology, podwire, untouched, made, code, words):
    site = split()
    node, sandbox = site.nodes[0], topology.sandbox("pod")
    node.run("ip", *made.split())
    with untouched(node, sandbox):
        refused = podwire.on(node).add(site.conf(0), sandbox)
    assert refused.code == code
    for word in words:
        assert word in refused.error["msg"]
    if "flannel" not in made:
        assert podwire.on(node).status(site.conf(0)).error["msg"] == refused.error["msg"]


def test_a_taken_port_is_named(split):
    site = split()
    with site.nodes[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 8472))
        with pytest.raises(CniError, match=r"vxlan\.port: UDP port 8472"):
            sync(site, 0)
    assert shown(site.nodes[0])["links"] == []


@pytest.mark.parametrize("step", ["add", "work", "remove"])
def test_a_failure_leaves_everything_as_it_was(split, monkeypatch, step):
    """Another peer comes, one changes, one goes and the port is another: whichever step fails."""
    site = split()
    node = site.nodes[0]
    extra = [
        {"name": f"more-{n}", "addresses": [f"192.168.2.{n}"], "podCIDRs": [f"10.244.{n}.0/24"]}
        for n in (11, 12, 13)
    ]
    site.entries = site.entries[:2] + extra[:2]
    for entry in site.entries[:2]:
        entry["addresses"] = entry["addresses"][:1]
    site.write()
    sync(site, 0, CrossNode("vxlan"))
    before = shown(node), node.state()
    site.entries = [*site.entries[:2], {**extra[1], "addresses": ["192.168.2.99"]}, extra[2]]
    site.write()
    owner = KernelRouteTable if step == "work" else overlayentries
    real, failed = getattr(owner, step), []

    def fail(*args, **kwargs):
        done = real(*args, **kwargs)
        if not failed:
            failed.append(step)
            raise CniError(Code.KERNEL_REFUSED, "made up")
        return done

    for cross in (CrossNode("vxlan"), CrossNode("vxlan", port=4789)):
        failed.clear()
        monkeypatch.setattr(owner, step, fail)
        with pytest.raises(CniError, match="made up") as caught:
            sync(site, 0, cross)
        monkeypatch.setattr(owner, step, real)
        assert "undoing" not in caught.value.details
        assert (shown(node), node.state()) == before


def test_a_pod_with_an_impossible_backend_leaves_the_others_their_overlay(
    populated, topology, podwire
):
    """One pod asks for plain routes where a peer is behind a router: running pods notice nothing,
    neither at once nor by what an agent does afterwards."""
    site, pods = populated()
    node = site.nodes[0]
    before = shown(node)
    refused = podwire.on(node).add(site.conf(0, backend="host-gw"), topology.sandbox("late"))
    assert refused.code == 104
    assert "undoing" not in refused.error.get("details", "")
    assert shown(node) == before
    time.sleep(0.5)  # an agent's next look
    assert shown(node) == before
    (sandbox, own), (peer, theirs) = pods[0], pods[2]
    for mine, address in zip(own, theirs, strict=True):
        assert probe.tcp(sandbox, peer, address).source == mine


# --- which link ---------------------------------------------------------------------------------


@pytest.fixture
def homed(split):
    """The site with a second address of node 0 and 1 on a link of their own, eth7."""

    def make():
        site = split((4,))
        Split._join(site.nodes[0], "eth7", site.nodes[1], "eth7")
        for number in (0, 1):
            address = f"192.168.7.{number + 2}/24"
            Split._give(site.nodes[number], "eth7", address)
            site.entries[number]["addresses"].append(address)
        del site.entries[2]
        site.write()
        return site

    return make


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("keys", "local", "link", "remote"),
    [
        ({}, "192.168.1.2", "eth0", "192.168.1.3"),
        ({"interface": "eth7"}, "192.168.7.2", "eth7", "192.168.7.3"),
        ({"interface": "eth0"}, "192.168.1.2", "eth0", "192.168.1.3"),
        ({"interfaceRegex": "^eth[5-9]$"}, "192.168.7.2", "eth7", "192.168.7.3"),
        ({"cidr": "192.168.7.0/24"}, "192.168.7.2", "eth7", "192.168.7.3"),
    ],
    ids=str,
)
def test_the_link_is_chosen(homed, topology, podwire, keys, local, link, remote):
    site = homed()
    options = {"backend": "vxlan", "underlay": keys}
    pods = []
    for number in (0, 1):
        sandbox = topology.sandbox(f"pod-{number}")
        added = podwire.on(site.nodes[number]).add(site.conf(number, **options), sandbox)
        pods.append((sandbox, added.addresses()[0].split("/")[0]))
    data = site.nodes[0].links()["pwvx1"]["linkinfo"]["info_data"]
    assert (data["local"], data["link"]) == (local, link)
    assert shown(site.nodes[0])["fdb"] == [f"{vtep_mac(1, 'node-1')} dst {remote} self permanent"]
    assert probe.tcp(pods[0][0], *pods[1]).source == pods[0][1]


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"interface": "eth9"}, "underlay.interface"),
        ({"interface": "lo"}, "underlay.interface"),
        ({"interfaceRegex": "^wlan"}, "underlay.interfaceRegex"),
        ({"cidr": "172.30.0.0/16"}, "underlay.cidr"),
    ],
    ids=str,
)
def test_no_link_fits(homed, topology, podwire, untouched, keys, field):
    site, sandbox = homed(), topology.sandbox("pod")
    conf = site.conf(0, backend="vxlan", underlay=keys)
    with untouched(site.nodes[0], sandbox):
        refused = podwire.on(site.nodes[0]).add(conf, sandbox)
    assert refused.code == 7
    assert refused.error["msg"].startswith(f"{field}: ")
    whole = json.dumps(refused.error)
    assert "192.168.7.2" in whole or "node-0" in whole


def test_the_way_to_most_peers_decides(homed):
    """And where they are behind several links the device is bound to none."""
    site = homed()
    for number, network in enumerate(("192.168.7", "192.168.7", "192.168.1")):
        site.entries.append({"name": f"p{number}", "addresses": [f"{network}.{50 + number}"],
                             "podCIDRs": [f"10.244.{50 + number}.0/24"]})  # fmt: skip
    del site.entries[1]
    site.write()
    with joined(site, 0, CrossNode("vxlan")) as (cluster, route_socket):
        found = clusters.survey(cluster, route_socket)
        assert (found.carrier.name, found.carrier.link) == ("eth7", 0)
        clusters.sync(cluster, route_socket)
    assert "link" not in site.nodes[0].links()["pwvx1"]["linkinfo"]["info_data"]


# --- checksums ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "broken", "on"),
    [
        ("auto", (), True),
        ("auto", (offload.Broken("veth", (), "made up"),), False),
        ("auto", (offload.Broken("vmxnet3", (), "made up"),), True),
        ("auto", (offload.Broken("", (999,), "made up"),), False),
        ("off", (), False),
        ("on", (offload.Broken("veth", (), "made up"),), True),
    ],
)
def test_a_broken_checksum_offload_is_switched_off(populated, monkeypatch, mode, broken, on):
    site, pods = populated()
    monkeypatch.setattr(offload, "BROKEN", broken)
    cross = CrossNode(checksum_offload=mode)
    for number in range(3):
        changes = sync(site, number, cross)
        assert bool(changes) is not on
        with joined(site, number, cross) as (cluster, route_socket):
            assert offload.tx_checksum(route_socket, "pwvx1") is on
            assert clusters.survey(cluster, route_socket).offload.on is on
            assert not clusters.sync(cluster, route_socket)
    for version in DUAL:
        assert probe.reaches(pods[0][0], *_of(pods[2], version))
    assert bool(sync(site, 0, CrossNode(checksum_offload="on"))) is not on
