"""Host ports: who reaches a pod by a port of its node, what the pod sees, and who does not."""

from __future__ import annotations

import socket
import struct
from contextlib import closing

import pytest

from tests.support import packetfilter
from tests.support.throughports import (
    BRIDGE,
    INNER,
    NODE,
    OUTSIDE,
    PORT,
    answers,
    ask,
    cabled,
    listening,
    mapping,
    pods_of,
    with_ports,
)


@pytest.fixture
def outside(topology):
    return topology.sandbox("outside")


@pytest.fixture
def node(topology, outside):
    return cabled(topology, topology.node("node"), outside)


@pytest.fixture
def conf(make_conf, dual):
    """A dual-stack network; of mode ptp with `mode`."""
    return make_conf(ipam={"ranges": dual.ranges})


# --- who reaches a pod --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("way_in", ["bridge", "bridge with netfilter", "ptp"])
def test_everybody_reaches_the_pod(plugin, node, outside, topology, conf, way_in, kind):
    """From outside with the client's own address; from the node, from pods, from the pod itself."""
    conf = {**conf, "mode": way_in.split()[0]}
    pod, neighbour = topology.sandbox("pod"), topology.sandbox("neighbour")
    assert plugin.add(with_ports(conf, mapping(protocol=kind)), pod).ok
    assert plugin.add(conf, neighbour).ok
    if way_in != "ptp":
        packetfilter.bridge_netfilter(node, False)
        packetfilter.bridge_netfilter(node, way_in != "bridge", "cni0")
    for version in (4, 6):
        with listening(pod, version, INNER, kind) as server:
            target = (NODE[version], PORT)
            assert ask(outside, target, server, kind).source == OUTSIDE[version]
            for client in (node, neighbour, pod):
                assert ask(client, target, server, kind)
                assert ask(client, (BRIDGE[version], PORT), server, kind)
            if version == 4:
                assert ask(node, ("127.0.0.1", PORT), server, kind)
                assert ask(node, ("127.3.2.1", PORT), server, kind)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_pod_of_another_node_reaches_the_pod(podwire, make_cluster, topology, kind):
    cluster = make_cluster(2)
    pod, far = topology.sandbox("pod"), topology.sandbox("far")
    plugins = [podwire.on(node) for node in cluster.nodes]
    assert plugins[0].add(with_ports(cluster.conf(0), mapping(protocol=kind)), pod).ok
    client = pods_of(plugins[1].add(cluster.conf(1), far))
    for version, address in zip((4, 6), cluster.hosts(0), strict=True):
        with listening(pod, version, INNER, kind) as server:
            assert ask(far, (address, PORT), server, kind).source == client[version]


def test_ports_and_protocols_are_apart(plugin, node, outside, sandbox, conf):
    """Each port leads where it says, and the same number of another protocol to nobody."""
    mappings = (mapping(8080, 80), mapping(8081, 81), mapping(8080, 82, "udp"))
    assert plugin.add(with_ports(conf, *mappings), sandbox).ok
    for version in (4, 6):
        for port, inner, kind in ((8080, 80, "tcp"), (8081, 81, "tcp"), (8080, 82, "udp")):
            with listening(sandbox, version, inner, kind) as server:
                assert ask(outside, (NODE[version], port), server, kind)
        with listening(sandbox, version, 81, "udp") as server:
            assert not answers(outside, (NODE[version], 8081), server, "udp")


def test_nobody_waits_at_the_loopback_of_ipv6(plugin, node, sandbox, conf):
    """The kernel can't lead from ::1 to a pod: refused at once, a client goes on to 127.0.0.1."""
    assert plugin.add(with_ports(conf, mapping()), sandbox).ok
    with closing(node.socket(socket.AF_INET6, socket.SOCK_STREAM)) as caller:
        caller.settimeout(3)
        with pytest.raises(ConnectionRefusedError):
            caller.connect(("::1", PORT))


# --- SCTP ---------------------------------------------------------------------------------------


def _crc32c(data):
    """The checksum of SCTP (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _sctp_init(port):
    """A packet that begins an association: common header and INIT chunk."""
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 1)
    head = struct.pack(">HHI", 40000, port, 0)
    checksum = struct.pack("<I", _crc32c(head + bytes(4) + chunk))
    return head + checksum + chunk


@pytest.mark.parametrize("version", [4, 6])
def test_sctp(plugin, node, outside, sandbox, conf, version):
    """A raw packet, as few kernels have sockets of SCTP: it arrives at the pod's port, unhurt."""
    assert plugin.add(with_ports(conf, mapping(protocol="SCTP")), sandbox).ok
    af = socket.AF_INET if version == 4 else socket.AF_INET6
    with (
        closing(sandbox.socket(af, socket.SOCK_RAW, socket.IPPROTO_SCTP)) as receiver,
        closing(outside.socket(af, socket.SOCK_RAW, socket.IPPROTO_SCTP)) as sender,
    ):
        receiver.settimeout(3)
        sender.sendto(_sctp_init(PORT), (NODE[version], 0))
        data, peer = receiver.recvfrom(2048)
    packet = data[20:] if version == 4 else data
    source, destination, _, checksum = struct.unpack(">HHI4s", packet[:12])
    assert (peer[0], source, destination) == (OUTSIDE[version], 40000, INNER)
    assert checksum == struct.pack("<I", _crc32c(packet[:8] + bytes(4) + packet[12:]))


# --- addresses of the node ----------------------------------------------------------------------


def test_a_host_ip_is_the_only_way(plugin, node, outside, sandbox, conf):
    others = {4: "192.168.1.3", 6: "fd00:1::3"}
    node.run("ip", "addr", "add", f"{others[4]}/24", "dev", "eth0")
    node.run("ip", "addr", "add", f"{others[6]}/64", "dev", "eth0", "nodad")
    mappings = [mapping(ip=NODE[version]) for version in (4, 6)]
    assert plugin.add(with_ports(conf, *mappings), sandbox).ok
    for version in (4, 6):
        with listening(sandbox, version, INNER) as server:
            assert ask(outside, (NODE[version], PORT), server)
            assert not answers(outside, (others[version], PORT), server)
            assert not answers(node, (others[version], PORT), server)
            if version == 4:
                assert not answers(node, ("127.0.0.1", PORT), server)


def test_each_address_may_lead_to_another_pod(plugin, node, outside, topology, conf):
    second = "192.168.1.3"
    node.run("ip", "addr", "add", f"{second}/24", "dev", "eth0")
    pods = {address: topology.sandbox(f"pod{address[-1]}") for address in (NODE[4], second)}
    for address, pod in pods.items():
        assert plugin.add(with_ports(conf, mapping(ip=address)), pod).ok
    for address, pod in pods.items():
        with listening(pod, 4, INNER) as server:
            assert ask(outside, (address, PORT), server)


@pytest.mark.parametrize(("unspecified", "version"), [("0.0.0.0", 4), ("::", 6)])
def test_an_unspecified_host_ip_means_its_family(
    plugin, node, outside, sandbox, conf, unspecified, version
):
    assert plugin.add(with_ports(conf, mapping(ip=unspecified)), sandbox).ok
    other = 10 - version
    with listening(sandbox, version, INNER) as server:
        assert ask(outside, (NODE[version], PORT), server)
    with listening(sandbox, other, INNER) as server:
        assert not answers(outside, (NODE[other], PORT), server)


def test_a_port_of_127_0_0_1_is_the_nodes_alone(plugin, node, outside, sandbox, conf):
    assert plugin.add(with_ports(conf, mapping(ip="127.0.0.1")), sandbox).ok
    with listening(sandbox, 4, INNER) as server:
        assert ask(node, ("127.0.0.1", PORT), server)
        assert not answers(outside, (NODE[4], PORT), server)


# --- what is no business of host ports ----------------------------------------------------------


def test_traffic_that_only_passes_is_left_alone(plugin, node, outside, topology, conf):
    """To another host's port 8080, in and out (CVE-2025-67499)."""
    pod, neighbour = topology.sandbox("pod"), topology.sandbox("neighbour")
    outside.run("ip", "route", "add", "10.244.0.0/24", "via", NODE[4])
    outside.run("ip", "route", "add", "fd00:10:244::/64", "via", NODE[6])
    assert plugin.add(with_ports(conf, mapping()), pod).ok
    theirs = pods_of(plugin.add(conf, neighbour))
    for version in (4, 6):
        with listening(neighbour, version, PORT) as server:
            assert ask(outside, (theirs[version], PORT), server).source == OUTSIDE[version]
        with listening(outside, version, PORT) as server:
            assert ask(neighbour, (OUTSIDE[version], PORT), server).source == theirs[version]
            assert ask(node, (OUTSIDE[version], PORT), server)


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_goes_first(plugin, node, outside, topology, conf, version):
    """Whoever rewrites at the usual priority has the packet before host ports (CVE-2019-9946)."""
    pod, backend = topology.sandbox("pod"), topology.sandbox("backend")
    assert plugin.add(with_ports(conf, mapping()), pod).ok
    address = pods_of(plugin.add(conf, backend))[version]
    family, shown = ("ip", address) if version == 4 else ("ip6", f"[{address}]")
    for hook in ("prerouting", "output"):
        rule = f"{family} daddr {NODE[version]} tcp dport {PORT} dnat to {shown}:{INNER}"
        chain = f"{{ type nat hook {hook} priority -100; }}"
        node.run("nft", f"add table {family} svc; add chain {family} svc {hook} {chain}")
        node.run("nft", f"add rule {family} svc {hook} {rule}")
    with listening(backend, version, INNER) as server:
        assert ask(outside, (NODE[version], PORT), server)
        assert ask(node, (NODE[version], PORT), server)


def test_a_pod_does_not_get_at_the_nodes_127_0_0_1(plugin, node, sandbox, conf):
    """Though its link may carry such packets, for the sake of the node (CVE-2020-8558)."""
    assert plugin.add(with_ports(conf, mapping()), sandbox).ok
    assert node.sysctl("net/ipv4/conf/cni0/route_localnet") == "1"
    sandbox.run("sysctl", "-qw", "net/ipv4/conf/all/route_localnet=1")
    sandbox.run("ip", "addr", "flush", "dev", "lo")
    sandbox.run("ip", "route", "add", "127.0.0.0/8", "via", BRIDGE[4], "src", "10.244.0.2")
    with closing(node.socket(socket.AF_INET, socket.SOCK_STREAM)) as server:
        server.bind(("127.0.0.1", 9999))
        server.listen(1)
        assert not answers(sandbox, ("127.0.0.1", 9999), server)
        node.run("nft", "flush", "chain", "ip", "podwire", "guard")
        assert ask(sandbox, ("127.0.0.1", 9999), server)  # it was the guard, and nothing else


def test_127_0_0_1_leaves_by_a_link_only_as_long_as_a_port_needs_it(plugin, node, topology, conf):
    def carried():
        return node.sysctl("net/ipv4/conf/cni0/route_localnet")

    pods = [topology.sandbox(f"pod{number}") for number in range(4)]
    confs = [conf, with_ports(conf, mapping(ip="::"))]
    for each, pod in zip(confs, pods[:2], strict=True):
        assert plugin.add(each, pod).ok
        assert carried() == "0"
    confs += [with_ports(conf, mapping(port)) for port in (8081, 8082)]
    for each, pod in zip(confs[2:], pods[2:], strict=True):
        assert plugin.add(each, pod).ok
        assert carried() == "1"
    for each, pod, left in zip(confs[2:], pods[2:], ("1", "0"), strict=True):
        assert plugin.delete(each, pod).ok
        assert carried() == left


# --- snat: false ----------------------------------------------------------------------------------


def test_without_snat_the_pod_sees_its_neighbour(plugin, node, outside, topology, conf):
    """The neighbour's packets arrive with its own address; 127.0.0.1 has no way."""
    pod, neighbour = topology.sandbox("pod"), topology.sandbox("neighbour")
    assert plugin.add({**with_ports(conf, mapping(protocol="udp")), "snat": False}, pod).ok
    theirs = pods_of(plugin.add(conf, neighbour))
    assert node.sysctl("net/ipv4/conf/cni0/route_localnet") == "0"
    for version in (4, 6):
        with listening(pod, version, INNER, "udp") as server:
            assert ask(outside, (NODE[version], PORT), server, "udp")
            af = socket.AF_INET if version == 4 else socket.AF_INET6
            with closing(neighbour.socket(af, socket.SOCK_DGRAM)) as caller:
                caller.sendto(b"ping", (NODE[version], PORT))
                server.settimeout(3)
                assert server.recvfrom(16)[1][0] == theirs[version]
