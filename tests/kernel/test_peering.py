"""A process that stays keeps the paths to the peers right, at the price of what changed."""

from __future__ import annotations

import json
import random
from ipaddress import ip_address, ip_network

import pytest

from cni_plugin import cluster as clusters
from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.peering import Peering
from cni_plugin.spec import CniError
from ipam import inventory as inventories
from ipam.inventory import Node
from tests.kernel.test_overlay import shown
from tests.support.topology import Split

PER_PEER = 12  # messages at most: ways, routes, neighbours, forwarding entries; removed and added


class Counting(RouteSocket):
    """A socket that counts what goes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages = self.dumps = 0

    def batch(self, messages, ignore=()):
        self.messages += len(messages)
        return super().batch(messages, ignore)

    def dump(self, message, whole=True):
        self.dumps += 1
        return super().dump(message, whole)

    def counted(self):
        found = self.messages, self.dumps
        self.messages = self.dumps = 0
        return found


class Scene:
    """Node 0 of a site with more peers than it has nodes, and its Peering."""

    def __init__(self, site: Split, socket: Counting) -> None:
        self.site, self.socket = site, socket
        self.node = site.nodes[0]
        self.peering = Peering(socket)

    def cluster(self, cross=CrossNode()):  # noqa: B008  it is immutable
        self.site.write()
        return clusters.join(str(self.site.path), "", cross, self.socket)

    def add(self, number, far=True):
        link = 2 if far else 1
        entry = {
            "name": f"more-{number}",
            "addresses": [f"192.168.{link}.{number}", f"fd00:{link}::{number}"],
            "podCIDRs": [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"],
        }
        self.site.entries.append(entry)
        return entry

    def is_in_line(self):
        """By another comparison: the one that reads everything."""
        cluster = self.cluster()
        return not clusters.missing(cluster, self.socket) and not clusters.sync(
            cluster, self.socket
        )


@pytest.fixture
def scene(topology, tmp_path):
    site = Split(topology, tmp_path)
    with site.nodes[0].entered(), Counting() as socket:
        yield Scene(site, socket)


def test_one_peer_costs_its_own_messages_and_no_dump(scene):
    for number in range(20, 60):
        scene.add(number, far=number % 2 == 0)
    assert len(scene.peering.update(scene.cluster()).routes.add) == 84
    assert scene.is_in_line()
    for far in (True, False):
        entry = scene.add(70 + far, far)
        cluster = scene.cluster()
        scene.socket.counted()
        assert len(scene.peering.update(cluster).routes.add) == 2
        messages, dumps = scene.socket.counted()
        assert dumps == 0
        assert 0 < messages <= PER_PEER
        assert scene.is_in_line()
        entry["addresses"][0] = "192.168.2.99" if far else "192.168.1.99"
        entry["podCIDRs"][0] = "10.244.99.0/24"
        cluster = scene.cluster()
        scene.socket.counted()
        assert scene.peering.update(cluster)
        messages, dumps = scene.socket.counted()
        assert dumps == 0
        assert messages <= 2 * PER_PEER
        assert scene.is_in_line()
        scene.site.entries.remove(entry)
        cluster = scene.cluster()
        scene.socket.counted()
        assert len(scene.peering.update(cluster).routes.remove) == 2
        messages, dumps = scene.socket.counted()
        assert (dumps, messages <= PER_PEER) == (0, True)
        assert scene.is_in_line()
    cluster = scene.cluster()
    scene.socket.counted()
    assert not scene.peering.update(cluster)
    assert scene.socket.counted() == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_ends_where_a_resync_would(scene, seed):
    chance = random.Random(seed)
    entries = {}
    scene.peering.update(scene.cluster())
    for _ in range(12):
        for number in chance.sample(range(20, 34), chance.choice((1, 2))):
            before = entries.pop(number, None)
            if before is not None:
                scene.site.entries.remove(before)
            if chance.random() < 0.7:
                entries[number] = scene.add(number, far=chance.random() < 0.5)
            if before is not None and chance.random() < 0.3:  # not always by the same order
                scene.site.entries.reverse()
        cluster = scene.cluster()
        scene.peering.update(cluster)
        assert scene.is_in_line()
        anew = Peering(scene.socket)
        assert not anew.resync(cluster)
        assert (anew._nodes, anew._peers) == (scene.peering._nodes, scene.peering._peers)
        assert (anew._ways, anew._plain) == (scene.peering._ways, scene.peering._plain)
        assert anew.pod_mtu() == scene.peering.pod_mtu()
        if entries and chance.random() < 0.3:  # one by one, and all of them compared then
            scene.peering.drop(f"more-{chance.choice(list(entries))}")


ONE_FAMILY = {4: "192.168.2.78", 6: "fd00:2::78"}


def only(version):
    subnet = "10.244.78.0/24" if version == 4 else "fd00:10:244:78::/64"
    return {"name": "more-78", "addresses": [ONE_FAMILY[version]], "podCIDRs": [subnet]}


def carrier(scene):
    """The IP version of the overlay's own end."""
    linkinfo = json.loads(scene.node.run("ip", "-j", "-d", "link", "show", "pwvx1").stdout)[0]
    return 6 if "local6" in linkinfo["linkinfo"]["info_data"] else 4


def test_a_peer_without_ipv4_moves_the_overlay_and_its_end_moves_it_back(scene):
    """At once in both directions, by one change and by an address that is taken away."""
    scene.peering.update(scene.cluster())
    lone = only(6)
    for _ in range(2):
        assert carrier(scene) == 4
        scene.site.entries.append(lone)
        assert scene.peering.update(scene.cluster())
        assert carrier(scene) == 6
        assert scene.is_in_line()
        scene.site.entries.remove(lone)
        assert scene.peering.update(scene.cluster())
        assert carrier(scene) == 4
        assert scene.is_in_line()
    far = scene.site.entries[2]
    both = far["addresses"]
    for addresses, expected in ((both[1:], 6), (both, 4)):
        far["addresses"] = addresses
        assert scene.peering.update(scene.cluster())
        assert carrier(scene) == expected
        assert scene.is_in_line()
    node = Node("more-79", (ip_address("fd00:2::79"),), (), (ip_network("fd00:10:79::/64"),))
    assert scene.peering.put(node)
    assert carrier(scene) == 6
    assert scene.peering.drop(node.name)
    assert carrier(scene) == 4


def test_a_peer_that_leaves_no_family_for_all_is_refused_and_costs_nobody_a_path(scene):
    scene.site.entries.append({"name": "more-77", "addresses": ["fd00:2::77"], "podCIDRs": []})
    scene.peering.update(scene.cluster())
    assert carrier(scene) == 6
    before = shown(scene.node)
    scene.site.entries.append(only(4))
    for _ in range(2):
        with pytest.raises(CniError, match="no family can carry the overlay"):
            scene.peering.update(scene.cluster())
        assert shown(scene.node) == before
    scene.site.entries.pop()
    assert not scene.peering.update(scene.cluster())
    assert shown(scene.node) == before


def test_a_peer_outside_the_underlay_s_network_is_refused(scene):
    cross = CrossNode(cidr=ip_network("192.168.0.0/16"))
    scene.peering.update(scene.cluster(cross))
    before = shown(scene.node)
    scene.site.entries.append(only(6))
    with pytest.raises(CniError, match=r"underlay\.cidr"):
        scene.peering.update(scene.cluster(cross))
    assert shown(scene.node) == before


def test_put_and_drop(scene):
    scene.peering.update(scene.cluster())
    before = shown(scene.node)
    scene.add(20)
    node = inventories.load(scene.cluster().inventory.source).nodes[-1]
    assert scene.peering.put(node).routes.add
    assert not scene.peering.put(node)
    assert scene.is_in_line()
    assert scene.peering.drop(node.name).routes.remove
    assert not scene.peering.drop(node.name)
    assert shown(scene.node) == before


def test_the_first_peer_behind_a_router_makes_the_overlay_and_the_last_takes_it(scene):
    far = scene.site.entries.pop()
    scene.peering.update(scene.cluster())
    assert shown(scene.node)["links"] == []
    scene.site.entries.append(far)
    assert scene.peering.update(scene.cluster())
    assert shown(scene.node)["links"] == ["pwvx1"]
    assert scene.is_in_line()
    scene.site.entries.remove(far)
    scene.peering.update(scene.cluster())
    scene.peering.resync(scene.cluster())
    assert shown(scene.node)["links"] == []
    assert scene.is_in_line()


def test_a_resync_repairs_what_the_memory_does_not_see(scene):
    cluster = scene.cluster()
    scene.peering.update(cluster)
    before = shown(scene.node)
    for words in ("ip link del pwvx1", "ip route del 10.244.1.0/24", "ip neigh flush dev pwvx1"):
        scene.node.run(*words.split(), check=False)
    assert not scene.peering.update(cluster)
    assert scene.peering.resync(cluster)
    assert shown(scene.node) == before
    assert not scene.peering.resync(cluster)


def test_a_refused_peer_leaves_the_others_and_is_tried_again(scene):
    scene.peering.update(scene.cluster())
    before = shown(scene.node)
    foreign = ("10.244.20.0/24", "via", "192.168.1.99", "proto", "static")
    scene.node.run("ip", "route", "add", *foreign)
    entry = scene.add(20)
    for _ in range(2):  # the second time in full
        with pytest.raises(CniError, match=r"10\.244\.20\.0/24 of node more-20"):
            scene.peering.update(scene.cluster())
        assert shown(scene.node) == before
    scene.node.run("ip", "route", "del", "10.244.20.0/24")
    assert scene.peering.update(scene.cluster())
    assert scene.is_in_line()
    scene.site.entries.remove(entry)
    scene.peering.update(scene.cluster())
    assert shown(scene.node) == before


def test_a_device_that_went_meanwhile(scene):
    """One more peer fails on it, leaves nothing half, and the next call makes all."""
    scene.peering.update(scene.cluster())
    scene.node.run("ip", "link", "del", "pwvx1")
    scene.add(20)
    with pytest.raises(CniError):
        scene.peering.update(scene.cluster())
    assert not any("10.244.20." in line for line in shown(scene.node)["routes"])
    assert scene.peering.update(scene.cluster())
    assert scene.is_in_line()


def test_a_narrower_path_to_a_new_peer_narrows_the_overlay(scene):
    scene.peering.update(scene.cluster())
    assert scene.node.links()["pwvx1"]["mtu"] == 1450
    way = ("192.168.2.20/32", "via", "192.168.1.1", "mtu", "1400")
    scene.node.run("ip", "route", "add", *way)
    scene.add(20)
    assert scene.peering.update(scene.cluster())
    assert scene.node.links()["pwvx1"]["mtu"] == 1350
    assert scene.is_in_line()
