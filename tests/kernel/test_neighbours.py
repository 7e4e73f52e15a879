"""Layer 2 over time: MAC addresses that stay, announcements that arrive, router advertisements
that are not heard."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import time

import pytest

from tests.support import require
from tests.support.netns import wait_until
from tests.support.plugin import Plugin

_ETH_P_ALL = 3


def bridge_mac(node):
    return node.links()["cni0"]["address"]


def port_of(node, sandbox):
    index = sandbox.links()["eth0"]["link_index"]
    return next(link for link in node.links().values() if link["ifindex"] == index)


# --- MAC addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize("maker", ["podwire", "ip link", "ip link, with an alias", "Go bridge"])
def test_the_bridges_mac_stays_while_pods_come_and_go(plugin, node, topology, make_conf, maker):
    """A bridge by default takes the lowest MAC address of its ports: pods would lose the node."""
    conf, pods = make_conf(), [topology.sandbox(name) for name in "abcd"]
    if maker == "Go bridge":
        theirs = {**conf, "type": "bridge", "ipam": {**conf["ipam"], "type": "host-local"}}
        folder = require.go_plugins("bridge", "host-local")
        go = Plugin(os.path.join(folder, "bridge"), node, folder)
        go.add(theirs, pods[0])
    elif maker != "podwire":
        node.run("ip", "link", "add", "cni0", "up", "type", "bridge")
        if "alias" in maker:
            node.run("ip", "link", "set", "cni0", "alias", "uplink of the lab")
    else:
        plugin.add(conf, pods[0])
    mac = bridge_mac(node)
    for number, pod in enumerate(pods[1:]):
        # Lower and higher than any other port's.
        args = f"MAC={'02:00:00:00:00:0' if number % 2 else 'fe:ff:ff:ff:ff:f'}{number}"
        added = plugin.add(conf, pod, args=args)
        assert added.result["interfaces"][0]["mac"] == mac
        assert bridge_mac(node) == mac
    # A port that somebody else adds, with the lowest address there is, does not count either.
    node.run(
        *("ip", "link", "add", "low", "address", "02:00:00:00:00:00", "master", "cni0", "up"),
        *("type", "veth", "peer", "name", "low-peer"),
    )
    assert bridge_mac(node) == mac
    node.run("ip", "link", "del", "low")
    if maker == "Go bridge":
        assert go.delete(theirs, pods[0]).ok
        assert bridge_mac(node) == mac
    for pod in pods:
        assert plugin.delete(conf, pod).ok
        assert bridge_mac(node) == mac


def test_the_host_veth_keeps_its_name_and_mac(plugin, node, topology, make_conf):
    conf, a, b = make_conf(), topology.sandbox("a"), topology.sandbox("b")
    first, other = plugin.add(conf, a).result["interfaces"][1], plugin.add(conf, b)
    assert first["mac"] == port_of(node, a)["address"]
    assert int(first["mac"][:2], 16) & 3 == 2  # locally administered, unicast
    assert other.result["interfaces"][1]["mac"] != first["mac"]
    plugin.delete(conf, b)
    assert port_of(node, a)["address"] == first["mac"]
    plugin.delete(conf, a)
    assert plugin.add(conf, a).result["interfaces"][1] == first


# --- announcements ----------------------------------------------------------------------------


@contextlib.contextmanager
def sniffing(sandbox):
    """A function that returns the frames which the pod has received on eth0 since."""
    with sandbox.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        packets.bind(("eth0", _ETH_P_ALL))

        def received():
            frames = []
            while select.select([packets], [], [], 0.1)[0]:
                frame, address = packets.recvfrom(2048)
                if address[2] != socket.PACKET_OUTGOING:
                    frames.append(frame)
            return frames

        yield received


def announced(frames):
    """(address, MAC) of each gratuitous ARP packet and each unsolicited neighbour advertisement
    that may overwrite what is known."""
    found = set()
    for frame in frames:
        kind = struct.unpack("!H", frame[12:14])[0]
        if kind == 0x0806 and frame[28:32] == frame[38:42]:
            found.add((ipaddress.ip_address(frame[28:32]), frame[22:28].hex(":")))
        elif kind == 0x86DD and frame[20] == 58 and frame[54] == 136:
            overrides, solicited = frame[58] & 0x20, frame[58] & 0x40
            if overrides and not solicited and frame[78:80] == b"\x02\x01":
                found.add((ipaddress.ip_address(frame[62:78]), frame[80:86].hex(":")))
    return {(str(address), mac) for address, mac in found}


def test_add_announces_every_address(plugin, topology, make_conf, dual):
    conf = make_conf(ipam={"ranges": dual.ranges})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    plugin.add(conf, b)
    with sniffing(b) as received:
        mac = plugin.add(conf, a).result["interfaces"][2]["mac"]
        seen = announced(received())
    assert {(address, mac) for address in dual.hosts(3)} <= seen


def test_on_a_fresh_bridge_too(plugin, node, topology, make_conf, dual):
    """The bridge's first pod is announced to who is on the bridge already, and to the node."""
    node.run("ip", "link", "add", "cni0", "up", "type", "bridge")
    other = topology.sandbox("other")
    node.run(
        *("ip", "link", "add", "port", "master", "cni0", "up", "type", "veth"),
        *("peer", "name", "eth0", "netns", other.path),
    )
    other.run("ip", "link", "set", "eth0", "up")
    with sniffing(other) as received:
        plugin.add(make_conf(ipam={"ranges": dual.ranges}), topology.sandbox("a"))
        assert {address for address, _ in announced(received())} >= set(dual.hosts(2))


def neighbour_mac(namespace, device, address):
    shown = namespace.ip("neigh", "show", "dev", device, "to", address)
    return shown[0].get("lladdr") if shown else None


def test_neighbours_learn_the_new_mac(plugin, node, topology, make_conf, dual):
    """An address is given out again: pods and node that knew its last owner find the new one."""
    conf, old, new = (
        make_conf(ipam={"ranges": dual.ranges}),
        "02:de:ad:00:00:01",
        "02:00:00:be:ef:02",
    )
    a, b = topology.sandbox("a"), topology.sandbox("b")
    plugin.add(conf, b)
    for address in dual.hosts(3):
        for namespace, device in ((b, "eth0"), (node, "cni0")):
            namespace.run(
                *("ip", "neigh", "replace", address, "lladdr", old, "dev", device, "nud", "stale")
            )
    assert plugin.add(conf, a, args=f"MAC={new}").addresses() == dual.interfaces(3)
    for address in dual.hosts(3):
        wait_until(
            lambda address=address: neighbour_mac(b, "eth0", address) == new,
            timeout=2,
            what=f"the new MAC of {address} in pod b",
        )
        assert neighbour_mac(node, "cni0", address) in (None, new)


# --- router advertisements --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_router_advertisements_are_switched_off(plugin, node, sandbox, make_conf, family, mode):
    plugin.add(make_conf(mode=mode, ipam={"ranges": family.ranges}), sandbox)
    places = [(sandbox, "eth0"), (node, port_of(node, sandbox)["ifname"])]
    if mode == "bridge":
        places.append((node, "cni0"))
    for namespace, link in places:
        for key in ("accept_ra", "autoconf"):
            assert namespace.sysctl(f"net/ipv6/conf/{link}/{key}") == "0", (link, key)


@pytest.mark.parametrize("alias", ["", "uplink of the lab"])
def test_also_on_a_bridge_of_the_users(plugin, node, sandbox, make_conf, alias):
    node.run("ip", "link", "add", "cni0", "up", "type", "bridge")
    node.run("ip", "link", "set", "cni0", "alias", alias)
    plugin.add(make_conf(), sandbox)
    for key in ("accept_ra", "autoconf"):
        assert node.sysctl(f"net/ipv6/conf/cni0/{key}") == "0", key


def router_advertisement(mac, source, prefix):
    """An Ethernet frame: a router for 30 minutes, a /64 prefix for autoconfiguration."""
    target = ipaddress.ip_address("ff02::1").packed
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + prefix.packed
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + option
    pseudo = source.packed + target + struct.pack("!II", len(body) + 4, 58)
    words = struct.unpack(f"!{(len(pseudo) + len(body) + 4) // 2}H", pseudo + b"\x86\0\0\0" + body)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    icmp = struct.pack("!BBH", 134, 0, total) + body
    header = struct.pack("!IHBB", 6 << 28, len(icmp), 58, 255) + source.packed + target
    return bytes.fromhex("333300000001") + mac + b"\x86\xdd" + header + icmp


def test_a_rogue_router_is_not_believed(plugin, node, topology, make_conf):
    """CVE-2020-10749. A third pod that is made to listen proves that the advertisement is valid."""
    conf = make_conf()
    rogue, victim, control = (topology.sandbox(name) for name in ("rogue", "victim", "control"))
    for pod in (rogue, victim, control):
        plugin.add(conf, pod)
    for key, value in (("accept_ra", 2), ("autoconf", 1)):
        control.run("sysctl", "-qw", f"net/ipv6/conf/eth0/{key}={value}")
    link = rogue.links()["eth0"]
    frame = router_advertisement(
        mac=bytes.fromhex(link["address"].replace(":", "")),
        source=ipaddress.ip_address("fe80::bad"),
        prefix=ipaddress.ip_address("2001:db8:bad::"),
    )

    def fooled(namespace, device):
        addresses = namespace.addresses(device)
        routes = namespace.run("ip", "-6", "route", "show").stdout
        return any("2001:db8" in text for text in addresses) or "fe80::bad" in routes

    with rogue.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        packets.bind(("eth0", 0))

        def heard():
            packets.send(frame)
            time.sleep(0.1)
            return fooled(control, "eth0")

        wait_until(heard, timeout=30, what="the control pod believing the advertisement")
    assert not fooled(victim, "eth0")
    assert not fooled(node, "cni0")
