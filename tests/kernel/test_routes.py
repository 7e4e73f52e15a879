"""Several nodes: the routes that an inventory asks for, and the subnets that it must not hold."""

from __future__ import annotations

import json

import pytest

from tests.support import probe

VERSIONS = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}


@pytest.fixture
def populated(make_cluster, topology, podwire):
    """populated(count, versions, mode) is a cluster with one pod on each node, and the pods as
    (sandbox, result)."""

    def make(count, versions, mode="bridge"):
        cluster = make_cluster(count, versions)
        pods = []
        for number, node in enumerate(cluster.nodes):
            sandbox = topology.sandbox(f"pod-{number}")
            result = podwire.on(node).add(cluster.conf(number, mode=mode), sandbox).result
            pods.append((sandbox, result))
        return cluster, pods

    return make


def hosts(result):
    return [ip["address"].split("/")[0] for ip in result["ips"]]


def routes_of(node):
    """The node's routes as text, without those that the kernel makes for each new link."""
    shown = [
        node.run("ip", family, "route", "show", "table", table, check=False).stdout
        for family, table in (("-4", "main"), ("-6", "main"), ("-4", "100"))
    ]
    return [line.strip() for text in shown for line in text.splitlines() if "fe80::" not in line]


# --- reachability -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
@pytest.mark.parametrize(
    ("count", "family"), [(2, "ipv4"), (2, "ipv6"), (3, "dual")], ids=lambda value: str(value)
)
def test_everybody_reaches_everybody_without_nat(populated, count, family, mode):
    cluster, pods = populated(count, VERSIONS[family], mode)
    for number, (sandbox, result) in enumerate(pods):
        for other, (peer, peers) in enumerate(pods):
            if other == number:
                continue
            there = cluster.nodes[other]
            for mine, theirs, node_address, peer_address in zip(
                hosts(result), hosts(peers), cluster.hosts(number), cluster.hosts(other),
                strict=True,
            ):  # fmt: skip
                assert probe.tcp(sandbox, peer, theirs).source == mine
                assert probe.tcp(sandbox, there, peer_address).source == mine
                assert probe.tcp(cluster.nodes[number], peer, theirs).source == node_address


def test_addresses_come_from_the_nodes_pod_cidrs(populated):
    _, pods = populated(2, (4, 6))
    assert [hosts(result) for _, result in pods] == [
        ["10.244.0.2", "fd00:10:244::2"],
        ["10.244.1.2", "fd00:10:244:1::2"],
    ]


def test_a_pod_has_a_way_out_without_asking_for_one(populated):
    """With an inventory, isGateway and isDefaultGateway are on unless they are set to false."""
    cluster, pods = populated(1, (4, 6))
    for version, gateway in ((4, "10.244.0.1"), (6, "fd00:10:244::1")):
        default = [route for route in pods[0][0].routes(version) if route["dst"] == "default"]
        assert [route["gateway"] for route in default] == [gateway]
    assert sorted(cluster.nodes[0].addresses("cni0")) == ["10.244.0.1/24", "fd00:10:244::1/64"]


# --- the routes -------------------------------------------------------------------------------


def test_routes_carry_podwires_protocol_and_are_made_once(populated, topology, podwire):
    cluster, _ = populated(3, (4, 6))
    wanted = {
        *{("10.244.1.0/24", "192.168.1.3"), ("fd00:10:244:1::/64", "fd00:1::3")},
        *{("10.244.2.0/24", "192.168.1.4"), ("fd00:10:244:2::/64", "fd00:1::4")},
    }
    assert cluster.owned(0) == wanted
    before = routes_of(cluster.nodes[0])
    with_node = podwire.on(cluster.nodes[0])
    assert with_node.add(cluster.conf(0), topology.sandbox("another")).ok
    assert routes_of(cluster.nodes[0]) == before


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent needs no ADD for it
def test_a_route_that_somebody_removed_comes_back(populated, topology, podwire):
    cluster, _ = populated(2, (4,))
    node, wanted = cluster.nodes[0], cluster.owned(0)
    node.run("ip", "route", "del", "10.244.1.0/24")
    assert cluster.owned(0) == set()
    assert podwire.on(node).add(cluster.conf(0), topology.sandbox("another")).ok
    assert cluster.owned(0) == wanted


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_routes_follow_the_inventory(populated, topology, podwire, mode):
    """A node goes, another takes over its subnet or gets a new address: the next ADD brings the
    routes in line. Routes to the node's own pods are no business of it."""
    cluster, pods = populated(1, (4, 6), mode)
    node = cluster.nodes[0]
    cluster.entries += [
        {"name": name, "addresses": [f"192.168.1.{last}", f"fd00:1::{last}"], "podCIDRs": cidrs}
        for name, last, cidrs in (
            ("goes", 11, ["10.244.11.0/24", "fd00:10:244:11::/64"]),
            ("moves", 12, ["10.244.12.0/24", "fd00:10:244:12::/64"]),
        )
    ]

    def synced(name):
        cluster.write()
        assert podwire.on(node).add(cluster.conf(0, mode=mode), topology.sandbox(name)).ok
        return cluster.owned(0)

    assert synced("a") == {
        *{("10.244.11.0/24", "192.168.1.11"), ("fd00:10:244:11::/64", "fd00:1::11")},
        *{("10.244.12.0/24", "192.168.1.12"), ("fd00:10:244:12::/64", "fd00:1::12")},
    }
    del cluster.entries[1]
    cluster.entries[1]["addresses"] = ["192.168.1.22", "fd00:1::22"]
    cluster.entries[1]["podCIDRs"].append("10.244.11.0/25")
    assert synced("b") == {
        *{("10.244.12.0/24", "192.168.1.22"), ("fd00:10:244:12::/64", "fd00:1::22")},
        ("10.244.11.0/25", "192.168.1.22"),
    }
    for address in hosts(pods[0][1]):
        assert probe.tcp(node, pods[0][0], address).data == b"ping"


FOREIGN = (
    ("-4", "172.30.0.0/16", "via", "192.168.1.99", "proto", "static"),
    ("-4", "172.31.0.0/16", "via", "192.168.1.99"),
    ("-4", "172.29.0.0/16", "dev", "eth0", "proto", "112"),
    ("-4", "10.244.1.0/24", "via", "192.168.1.99", "table", "100", "proto", "112"),
    ("-6", "fd00:30::/64", "via", "fd00:1::99", "proto", "static"),
)


def test_foreign_routes_stay(populated, topology, podwire):
    """Ours are those of the main table with our protocol and a gateway; none of these is."""
    cluster, _ = populated(2, (4, 6))
    node = cluster.nodes[0]
    for family, *words in FOREIGN:
        node.run("ip", family, "route", "add", *words)
    before, owned = routes_of(node), cluster.owned(0)
    cluster.entries[1]["podCIDRs"] = ["10.244.7.0/24"]
    cluster.write()
    assert podwire.on(node).add(cluster.conf(0), topology.sandbox("another")).ok
    assert cluster.owned(0) == {("10.244.7.0/24", "192.168.1.3")}

    def foreign(lines, of_ours):
        return [
            line for line in lines if not any(f"{dst} via {via} " in line for dst, via in of_ours)
        ]

    assert foreign(routes_of(node), cluster.owned(0)) == foreign(before, owned)
    assert sum("192.168.1.99" in line or "fd00:1::99" in line for line in before) == 4


@pytest.mark.parametrize(
    ("family", "dst", "via"),
    [
        ("-4", "10.244.1.0/24", "192.168.1.99"),
        ("-4", "10.244.1.0/24", "192.168.1.99 metric 50"),  # ours would win
        ("-6", "fd00:10:244:1::/64", "fd00:1::99"),
        ("-6", "fd00:10:244:1::/64", "fd00:1::99 metric 50"),  # ours would lose
    ],
)
def test_a_foreign_route_in_the_way(
    make_cluster, topology, podwire, untouched, family, dst, via
):  # fmt: skip
    cluster, sandbox = make_cluster(2), topology.sandbox("pod")
    node = cluster.nodes[0]
    node.run("ip", family, "route", "add", dst, "via", *via.split(), "proto", "static")
    with untouched(node, sandbox):
        refused = podwire.on(node).add(cluster.conf(0), sandbox)
        assert refused.code == 103
        assert dst in refused.error["msg"]
        assert "node-1" in refused.error["msg"]


@pytest.mark.parametrize(
    ("family", "how", "dst", "via"),
    [
        ("-4", "prepend", "10.244.1.0/24", "192.168.1.99"),
        ("-4", "append", "10.244.1.0/24", "192.168.1.99"),
        ("-6", "append", "fd00:10:244:1::/64", "fd00:1::99"),
    ],
)
def test_a_foreign_route_beside_ours_outlives_a_change_of_ours(
    populated, topology, podwire, family, how, dst, via
):
    """Same destination and metric: replacing ours must not hit the other one."""
    cluster, _ = populated(2, (4, 6))
    node = cluster.nodes[0]
    node.run("ip", family, "route", how, dst, "via", via, "proto", "static")
    cluster.entries[1]["addresses"] = ["192.168.1.33", "fd00:1::33"]
    cluster.write()
    podwire.on(node).add(cluster.conf(0), topology.sandbox("another"))  # refusing it is fine, too
    shown = node.run("ip", family, "route", "show", dst).stdout
    assert f"via {via} " in shown
    assert not ("via fd00:1::3 " in shown and "via fd00:1::33 " in shown)
    assert not ("via 192.168.1.3 " in shown and "via 192.168.1.33 " in shown)


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent routes to the others
@pytest.mark.parametrize("default_route", [False, True])
@pytest.mark.parametrize("version", [4, 6])
def test_a_peer_that_is_not_on_the_link(
    make_cluster, topology, podwire, untouched, reservations, version, default_route
):
    """With host-gw: a default route leads to the address, and still nobody there knows of pods."""
    cluster, sandbox = make_cluster(2), topology.sandbox("pod")
    node = cluster.nodes[0]
    address, gateway = {4: ("172.31.0.9", "192.168.1.99"), 6: ("fd00:31::9", "fd00:1::99")}[version]
    if default_route:
        node.run("ip", f"-{version}", "route", "add", "default", "via", gateway)
    cluster.entries[1]["addresses"] = ["192.168.1.3", "fd00:1::3"]
    cluster.entries[1]["addresses"][version == 6] = address
    cluster.write()
    forwarding = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    for key in forwarding:
        node.run("sysctl", "-qw", f"{key}=0")
    with untouched(node, sandbox):
        refused = podwire.on(node).add(cluster.conf(0, backend="host-gw"), sandbox)
        assert "node-1" in refused.error["msg"]
        assert address in refused.error["msg"]
    assert reservations(folder="networks-0") == {}
    assert [node.sysctl(key) for key in forwarding] == ["0", "0"]


# --- subnets that are not the node's alone ----------------------------------------------------


def _of_another(entries):
    entries[1]["podCIDRs"] = ["10.244.1.0/24", "10.244.0.128/25"]


def _of_another_by_ipv6(entries):
    entries[1]["podCIDRs"] = ["fd00:10::/32"]


def _of_two_peers(entries):
    entries[2]["podCIDRs"] = ["10.244.1.64/26"]


def _of_the_node_network(entries):
    entries[0]["podCIDRs"] = ["192.168.0.0/16"]


def _of_the_node_network_known_by_the_link_alone(entries):
    for entry in entries:
        entry["addresses"] = [address.split("/")[0] for address in entry["addresses"]]
    entries[0]["podCIDRs"] = ["192.168.1.128/25"]


def _of_itself(entries):
    entries[0]["podCIDRs"] = ["10.244.0.0/24", "10.244.0.0/16"]


OVERLAPS = {
    _of_another: ("10.244.0.0/24", "node-0", "10.244.0.128/25", "node-1"),
    _of_another_by_ipv6: ("fd00:10:244::/64", "node-0", "fd00:10::/32", "node-1"),
    _of_two_peers: ("10.244.1.0/24", "node-1", "10.244.1.64/26", "node-2"),
    _of_the_node_network: ("192.168.0.0/16", "node-0", "192.168.1.0/24"),
    _of_the_node_network_known_by_the_link_alone: ("192.168.1.128/25", "node-0", "192.168.1.0/24"),
    _of_itself: ("10.244.0.0/24", "10.244.0.0/16", "node-0"),
}


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("spoil", OVERLAPS, ids=lambda f: f.__name__.strip("_"))
def test_overlaps_are_refused_with_both_owners_named(
    make_cluster, topology, podwire, untouched, tmp_path, spoil
):
    """ADD and STATUS say the same, and say what to do; nothing is made."""
    cluster, sandbox = make_cluster(3), topology.sandbox("pod")
    spoil(cluster.entries)
    cluster.write()
    plugin = podwire.on(cluster.nodes[0])
    with untouched(cluster.nodes[0], sandbox):
        refused, status = plugin.add(cluster.conf(0), sandbox), plugin.status(cluster.conf(0))
    assert refused.code == 106
    for word in OVERLAPS[spoil]:
        assert word in refused.error["msg"]
    assert str(cluster.path) in refused.error["details"]
    assert status.code == 50
    assert status.error["msg"] == refused.error["msg"]
    assert not (tmp_path / "networks-0").exists()


def test_both_nodes_that_claim_a_subnet_say_so(make_cluster, topology, podwire):
    """The second scene of the story: whichever node a pod is made on, it is told who else."""
    cluster = make_cluster(2, (4,))
    cluster.entries[1]["podCIDRs"] = cluster.entries[0]["podCIDRs"]
    cluster.write()
    for number, node in enumerate(cluster.nodes):
        refused = podwire.on(node).add(cluster.conf(number), topology.sandbox("pod"))
        assert refused.code == 106
        assert refused.error["msg"].count("10.244.0.0/24") == 2
        assert "node-0" in refused.error["msg"]
        assert "node-1" in refused.error["msg"]


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("subnet", "code", "words"),
    [
        ("10.245.0.0/24", 7, ("10.245.0.0/24", "node-0", "10.244.0.0/24")),
        ("10.244.0.0/23", 106, ("10.244.0.0/23", "10.244.1.0/24", "node-0", "node-1")),
        ("10.244.1.0/25", 106, ("10.244.1.0/25", "10.244.1.0/24", "node-1")),
    ],
)
def test_a_range_outside_the_nodes_pod_cidr(
    make_cluster, topology, podwire, untouched, tmp_path, subnet, code, words
):
    cluster, sandbox = make_cluster(2, (4,)), topology.sandbox("pod")
    plugin = podwire.on(cluster.nodes[0])
    conf = cluster.conf(0, ipam={"ranges": [[{"subnet": subnet}]]})
    with untouched(cluster.nodes[0], sandbox):
        refused, status = plugin.add(conf, sandbox), plugin.status(conf)
    assert refused.code == code
    for word in words:
        assert word in refused.error["msg"]
    assert status.code == (50 if code >= 100 else code)
    assert status.error["msg"] == refused.error["msg"]
    assert not (tmp_path / "networks-0").exists()


def test_a_range_inside_the_nodes_pod_cidr(make_cluster, topology, podwire):
    cluster = make_cluster(2, (4,))
    conf = cluster.conf(0, ipam={"ranges": [[{"subnet": "10.244.0.128/25"}]]})
    added = podwire.on(cluster.nodes[0]).add(conf, topology.sandbox("pod"))
    assert added.addresses() == ["10.244.0.130/25"]


# --- the inventory file -----------------------------------------------------------------------


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("text", "code"), [(None, 5), ("{", 7), ("[]", 7), ('{"nodes": []}', 7)], ids=str
)
def test_an_inventory_that_cannot_be_used(
    make_cluster, topology, podwire, untouched, text, code
):  # fmt: skip
    cluster, sandbox = make_cluster(1), topology.sandbox("pod")
    cluster.path.unlink() if text is None else cluster.path.write_text(text)
    plugin = podwire.on(cluster.nodes[0])
    with untouched(cluster.nodes[0], sandbox):
        refused = plugin.add(cluster.conf(0), sandbox)
        assert refused.code == code
        assert str(cluster.path) in refused.error["msg"]
        assert not plugin.status(cluster.conf(0)).ok


def test_del_needs_no_inventory(populated, podwire, reservations):
    cluster, [(sandbox, _), _] = populated(2, (4, 6))
    cluster.path.unlink()
    assert podwire.on(cluster.nodes[0]).delete(cluster.conf(0), sandbox).ok
    assert set(sandbox.links()) == {"lo"}
    assert reservations(folder="networks-0") == {}


def test_the_node_is_known_by_its_name(make_cluster, topology, podwire):
    """nodeName decides where addresses do not tell."""
    cluster = make_cluster(2, (4,))
    for entry, last in zip(cluster.entries, (102, 103), strict=True):
        entry["addresses"] = [f"192.168.1.{last}"]
    cluster.write()
    plugin, sandbox = podwire.on(cluster.nodes[0]), topology.sandbox("pod")
    refused = plugin.add(cluster.conf(0), sandbox)
    assert refused.code == 7
    assert "nodeName" in json.dumps(refused.error)
    added = plugin.add(cluster.conf(0, nodeName="node-1"), sandbox)
    assert added.addresses() == ["10.244.1.2/24"]
    assert cluster.owned(0) == {("10.244.0.0/24", "192.168.1.102")}
