"""A node that gets other pod subnets: what was made for the former ones goes with their pods."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.fabric import Fabric
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.resubnet import Outcome, resubnet
from ipam.config import Place
from tests.support import probe
from tests.support.netns import Namespace

FORMER = {
    "ipv4": ("10.244.1.0/24",),
    "ipv6": ("fd00:10:1::/64",),
    "dual": ("10.244.1.0/24", "fd00:10:1::/64"),
}
LATER = {
    "ipv4": ("10.244.7.0/24",),
    "ipv6": ("fd00:10:7::/64",),
    "dual": ("10.244.7.0/24", "fd00:10:7::/64"),
}


def hosts(subnets: tuple[str, ...], number: int) -> list[str]:
    """The addresses with this number, with the subnets' prefix lengths."""
    return [f"{ip_network(cidr)[number]}/{ip_network(cidr).prefixlen}" for cidr in subnets]


def resubnetted(node: Namespace, data_dir: Path, subnets: tuple[str, ...]) -> Outcome:
    wanted = tuple(map(ip_network, subnets))
    with node.entered(), RouteSocket() as route_socket, closing(Fabric(route_socket)) as fabric:
        return resubnet(fabric, Place(str(data_dir), "podnet"), wanted)


class Moved:
    """A node whose subnets move from `former` to `later`."""

    def __init__(self, node: Namespace, make_conf: Callable[..., Any], folder: Path, kind: str):
        self.node, self._make_conf, self._folder = node, make_conf, folder
        self.former, self.later = FORMER[kind], LATER[kind]
        self.more: dict[str, Any] = {"ipMasq": True, "isDefaultGateway": True}

    def conf(self, subnets: tuple[str, ...]) -> dict[str, Any]:
        ranges = [[{"subnet": cidr}] for cidr in subnets]
        return dict(self._make_conf(cniVersion="1.1.0", ipam={"ranges": ranges}, **self.more))

    def resubnet(self, subnets: tuple[str, ...] | None = None) -> Outcome:
        return resubnetted(
            self.node, self._folder / "networks", self.later if subnets is None else subnets
        )

    def recorded(self) -> list[str]:
        with self.node.entered(), RouteSocket() as route_socket:
            record = Fabric(route_socket).records.of("podnet")
        return list(map(str, record.subnets)) if record else []

    def age(self, seconds: float = 3600) -> None:
        """As if all reservations had been made so long ago."""
        then = time.time() - seconds
        for name in os.listdir(self._folder / "networks" / "podnet"):
            if name[0].isdigit() or ":" in name:
                os.utime(self._folder / "networks" / "podnet" / name, (then, then))

    def bridge(self) -> list[str]:
        return sorted(self.node.addresses("cni0"))


@pytest.fixture(params=["ipv4", "ipv6", "dual"])
def moved(request, node, make_conf, tmp_path) -> Moved:
    return Moved(node, make_conf, tmp_path, request.param)


def lose(node: Namespace) -> None:
    """The pods' links go without a DEL, as with a runtime that lost its state."""
    for name, link in node.links().items():
        if link.get("ifalias", "").startswith("podwire podnet "):
            node.run("ip", "link", "del", name)


# --- without pods -----------------------------------------------------------------------------


def test_an_add_without_it_meets_the_former_gateway(moved, plugin, topology):
    """What this is for."""
    assert plugin.add(moved.conf(moved.former), topology.sandbox("old")).ok
    refused = plugin.add(moved.conf(moved.later), topology.sandbox("new"))
    assert refused.code == (0 if moved.former == FORMER["ipv6"] else 103)


def test_no_pod_is_left(moved, plugin, topology, reservations):
    """Address, record, rules and forgotten reservations go, and the next pod has none of it."""
    old, new = topology.sandbox("old"), topology.sandbox("new")
    assert plugin.add(moved.conf(moved.former), old).ok
    lose(moved.node)
    moved.age()
    outcome = moved.resubnet()
    assert outcome.former == ()
    assert "freed" in outcome.done[0]
    assert reservations() == {}
    assert moved.bridge() == sorted(hosts(moved.later, 1))
    assert moved.recorded() == []
    for cidr in moved.former:
        assert cidr not in moved.node.run("nft", "list", "ruleset").stdout
    assert moved.resubnet() == Outcome()

    conf = moved.conf(moved.later)
    assert plugin.status(conf).ok
    added = plugin.add(conf, new)
    assert added.addresses() == hosts(moved.later, 2)
    assert moved.bridge() == sorted(hosts(moved.later, 1))
    assert moved.recorded() == list(moved.later)
    assert plugin.check(conf, new, prev=added.result).ok
    for address in hosts(moved.later, 1):
        assert probe.reaches(new, moved.node, str(ip_interface(address).ip))


def test_a_pod_that_went_by_del_leaves_nothing_to_free(moved, plugin, topology):
    conf = moved.conf(moved.former)
    assert plugin.add(conf, topology.sandbox("old")).ok
    assert plugin.delete(conf, topology.sandbox("old")).ok
    outcome = moved.resubnet()
    assert outcome.former == ()
    assert not any("freed" in line for line in outcome.done)
    assert moved.bridge() == sorted(hosts(moved.later, 1))


def test_nothing_to_do(moved, plugin, topology):
    assert moved.resubnet() == Outcome()  # no pod ever
    assert plugin.add(moved.conf(moved.former), topology.sandbox("old")).ok
    before = moved.node.state()
    assert moved.resubnet(moved.former) == Outcome()
    assert moved.node.state() == before


# --- with a pod that still runs ---------------------------------------------------------------


def test_a_pod_that_still_runs(moved, plugin, topology, reservations):
    """It goes on, beside new ones; its DEL frees what it has, and its gateway goes with it."""
    old, new, last = (topology.sandbox(name) for name in ("old", "new", "last"))
    former, later = moved.conf(moved.former), moved.conf(moved.later)
    was = plugin.add(former, old)
    moved.age()
    outcome = moved.resubnet()
    assert tuple(map(str, outcome.former)) == moved.former
    assert moved.bridge() == sorted(hosts(moved.former, 1) + hosts(moved.later, 1))
    assert moved.recorded() == list(moved.former)
    assert moved.resubnet() == Outcome((), outcome.former)

    assert plugin.status(later).ok
    added = plugin.add(later, new)
    assert added.addresses() == hosts(moved.later, 2)
    assert sorted(moved.recorded()) == sorted(moved.former + moved.later)
    assert plugin.check(later, new, prev=added.result).ok
    assert plugin.check(former, old, prev=was.result).ok
    for sandbox, there in ((old, was), (new, added)):
        for gateway in [ip["gateway"] for ip in there.result["ips"]]:
            assert probe.reaches(sandbox, moved.node, gateway)
    for address in added.addresses():
        assert probe.reaches(old, new, str(ip_interface(address).ip))

    assert plugin.delete(later, old).ok  # the runtime may have the new configuration only
    assert sorted(reservations()) == sorted(a.partition("/")[0] for a in added.addresses())
    assert moved.resubnet().former == ()
    assert moved.bridge() == sorted(hosts(moved.later, 1))
    assert moved.recorded() == list(moved.later)
    assert plugin.add(later, last).ok


def test_an_add_that_has_just_begun_is_not_forgotten(moved, plugin, topology, reservations):
    """Its address is reserved, and its link may be made the next moment."""
    assert plugin.add(moved.conf(moved.former), topology.sandbox("old")).ok
    lose(moved.node)
    held = reservations()
    outcome = moved.resubnet()
    assert tuple(map(str, outcome.former)) == moved.former
    assert reservations() == held
    moved.age()
    assert moved.resubnet().former == ()
    assert reservations() == {}


def test_a_pod_without_a_reservation_keeps_the_former_subnet(moved, plugin, topology, tmp_path):
    assert plugin.add(moved.conf(moved.former), topology.sandbox("old")).ok
    for path in (tmp_path / "networks" / "podnet").iterdir():
        path.unlink()
    assert tuple(map(str, moved.resubnet().former)) == moved.former


def test_a_port_of_another_plugins_keeps_all(moved, plugin, topology, reservations):
    """Its pod's address is reserved for an attachment that podwire has no link of."""
    assert plugin.add(moved.conf(moved.former), topology.sandbox("old")).ok
    lose(moved.node)
    moved.age()
    moved.node.run("ip", "link", "add", "theirs", "type", "veth", "peer", "name", "theirs1")
    moved.node.run("ip", "link", "set", "theirs", "master", "cni0")
    held = reservations()
    assert tuple(map(str, moved.resubnet().former)) == moved.former
    assert reservations() == held
    moved.node.run("ip", "link", "del", "theirs")
    assert moved.resubnet().former == ()


def test_a_former_subnet_that_another_node_has(node, plugin, topology, make_conf, tmp_path):
    """Packets to it go there: this node's own way to it would be in that one's way."""
    moved = Moved(node, make_conf, tmp_path, "ipv4")
    inventory = tmp_path / "nodes.json"

    def write(own: str, *others: str) -> None:
        nodes = [{"name": "a", "addresses": ["192.168.77.1"], "podCIDRs": [own]}]
        for number, cidr in enumerate(others, 2):
            address = f"192.168.77.{number}"
            nodes.append({"name": f"n{number}", "addresses": [address], "podCIDRs": [cidr]})
        inventory.write_text(json.dumps({"nodes": nodes}))

    node.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    node.run("ip", "address", "add", "192.168.77.1/24", "dev", "up0")
    for name in ("up0", "up1"):
        node.run("ip", "link", "set", name, "up")
    moved.more |= {"nodes": str(inventory), "nodeName": "a", "backend": "host-gw"}
    write("10.244.1.0/24")
    assert plugin.add(moved.conf(moved.former), topology.sandbox("old")).ok

    write("10.244.7.0/24", "10.244.1.0/24")
    outcome = moved.resubnet()
    assert outcome.former == ()
    assert "10.244.1.0/24 is another node's" in outcome.done[0]
    assert moved.bridge() == ["10.244.7.1/24"]
    assert plugin.add(moved.conf(moved.later), topology.sandbox("new")).ok
    route = [r for r in node.routes(4) if r["dst"] == "10.244.1.0/24"]
    assert [(r["gateway"], r["dev"]) for r in route] == [("192.168.77.2", "up0")]
    assert plugin.delete(moved.conf(moved.later), topology.sandbox("old")).ok


def test_the_overlay_follows(make_cluster, topology, podwire, tmp_path):
    """Peers reach the new pods; the old one reaches those of its own node."""
    cluster = make_cluster(2)
    later = LATER["dual"]

    def add(number, name):
        sandbox = topology.sandbox(name)
        conf = cluster.conf(number, backend="vxlan")
        added = podwire.on(cluster.nodes[number]).add(conf, sandbox)
        return sandbox, [address.partition("/")[0] for address in added.addresses()]

    peer, peers = add(0, "peer")
    old, olds = add(1, "old")
    assert all(probe.reaches(peer, old, address) for address in olds)
    cluster.entries[1]["podCIDRs"] = list(later)
    cluster.write()
    outcome = resubnetted(cluster.nodes[1], tmp_path / "networks-1", later)
    assert sorted(map(str, outcome.former)) == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    new, news = add(1, "new")
    add(0, "another")  # this node hears of it, too
    assert [r for r in cluster.owned(0) if r[0].startswith(("10.244.1.", "fd00:10:244:1:"))] == []
    for address in news:
        assert probe.reaches(peer, new, address)
        assert probe.reaches(old, new, address)
    for address in peers:
        assert probe.reaches(new, peer, address)
    carried = set(cluster.nodes[1].addresses("pwvx1"))
    assert carried == {"10.244.7.0/32", "fd00:10:7::/128"}


# --- other shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("former", "later"),
    [("10.244.1.0/24", "10.244.0.0/16"), ("10.244.0.0/16", "10.244.1.0/24")],
    ids=["wider", "narrower"],
)
def test_a_subnet_inside_the_other(node, plugin, topology, make_conf, tmp_path, former, later):
    moved = Moved(node, make_conf, tmp_path, "ipv4")
    moved.former, moved.later = (former,), (later,)
    old, new = topology.sandbox("old"), topology.sandbox("new")
    assert plugin.add(moved.conf(moved.former), old).ok
    assert plugin.delete(moved.conf(moved.former), old).ok
    assert moved.resubnet().former == ()
    assert moved.bridge() == hosts(moved.later, 1)
    assert plugin.add(moved.conf(moved.later), new).ok
    assert moved.recorded() == [later]
    assert moved.resubnet() == Outcome()


def test_a_bridge_that_was_there_before_keeps_its_addresses(moved, plugin, topology):
    moved.node.run("ip", "link", "add", "cni0", "type", "bridge")
    conf = moved.conf(moved.former)
    assert plugin.add(conf, topology.sandbox("old")).ok
    assert plugin.delete(conf, topology.sandbox("old")).ok
    assert moved.resubnet().former == ()
    assert moved.bridge() == sorted(hosts(moved.former, 1) + hosts(moved.later, 1))
    assert plugin.add(moved.conf(moved.later), topology.sandbox("new")).ok


def test_mode_ptp(moved, plugin, topology, reservations):
    """There is no bridge: reservations and the record move."""
    moved.more = {"mode": "ptp", "ipMasq": True, "bridge": None}
    old, gone, new = (topology.sandbox(name) for name in ("old", "gone", "new"))
    former, later = moved.conf(moved.former), moved.conf(moved.later)
    was = plugin.add(former, old)
    lost = plugin.add(former, gone)
    moved.age()
    gone.run("ip", "link", "del", "eth0")
    outcome = moved.resubnet()
    assert tuple(map(str, outcome.former)) == moved.former
    kept = {address.partition("/")[0] for address in was.addresses()}
    assert kept == set(reservations())
    assert not kept & {address.partition("/")[0] for address in lost.addresses()}
    assert plugin.add(later, new).ok
    assert plugin.delete(later, old).ok
    assert moved.resubnet().former == ()
    assert moved.recorded() == list(moved.later)


def test_mode_ptp_of_another_plugin(node, plugin, topology, make_conf, tmp_path, reservations):
    """A route to the address by a veth is a pod's, whoever made it."""
    moved = Moved(node, make_conf, tmp_path, "ipv4")
    moved.more = {"mode": "ptp", "bridge": None}
    assert plugin.add(moved.conf(moved.former), topology.sandbox("old")).ok
    lose(node)
    moved.age()
    node.run("ip", "link", "add", "theirs", "type", "veth", "peer", "name", "theirs1")
    node.run("ip", "link", "set", "theirs", "up")
    node.run("ip", "route", "add", "10.244.1.2/32", "dev", "theirs")
    assert moved.resubnet().former
    assert list(reservations()) == ["10.244.1.2"]
