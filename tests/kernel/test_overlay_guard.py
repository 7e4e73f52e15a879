"""The overlay's port: what nodes send is taken, what pods and strangers make up is not.

The forged frame is what a pod could send: an inner packet for another pod, in VXLAN, to the
derivable address of a node's overlay device. `FORGED` tells that it was delivered.
"""

from __future__ import annotations

import json
import socket
import struct
from ipaddress import ip_address

import pytest

from cni_plugin.crossnode import DEFAULT_PORT
from ipam.peers import vtep_mac
from tests.support import packetfilter, probe
from tests.support.topology import Split

FORGED = b"forged"
DUAL = (4, 6)
SINK = 4711
MODES = ("bridge", "ptp")


class Site:
    """Three nodes with the overlay, of one or both underlay families, and a pod on each; node 0
    has one more, the target of what is forged."""

    def __init__(self, split, topology, podwire, **options) -> None:
        self.split, self.podwire, self.options = split, podwire, {"backend": "vxlan", **options}
        self.pods, self.addresses = [], []
        for name, number in (("attacker", 0), ("pod-1", 1), ("pod-2", 2), ("target", 0)):
            pod = topology.sandbox(name)
            self.pods.append(pod)
            self.addresses.append(self.add(number, pod))

    def add(self, number, pod):
        added = self.podwire.on(self.split.nodes[number]).add(
            self.split.conf(number, **self.options), pod
        )
        return [text.split("/")[0] for text in added.addresses()]

    def host(self, number, version):
        return Split.ADDRESSES[number][version == 6].split("/")[0]

    def frame(self, node=0, port=DEFAULT_PORT):
        """VXLAN with a datagram to the target's IPv4 address, for a node's overlay device."""
        source, target = "10.244.2.9", self.addresses[3][0]
        datagram = struct.pack("!HHHH", 5555, SINK, 8 + len(FORGED), 0) + FORGED
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0,
            ip_address(source).packed, ip_address(target).packed,
        )  # fmt: skip
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        mac = bytes.fromhex(vtep_mac(1, f"node-{node}").replace(":", ""))
        frame = mac + b"\2\0\0\0\0\1" + b"\x08\0" + header + datagram
        return struct.pack("!II", 0x0800_0000, 1 << 8) + frame

    def arrives(self, sender, source, destination, node=0, times=3):
        """Whether the forged datagram gets from the sender's namespace to the target."""
        version = ip_address(destination).version
        with self.pods[3].socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
            sink.bind((self.addresses[3][0], SINK))
            sink.settimeout(0.3)
            for _ in range(times):
                send(sender, source, destination, version, self.frame(node))
            try:
                return sink.recv(100) == FORGED
            except TimeoutError:
                return False


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def send(sender, source, destination, version, payload):
    """A datagram to the overlay's port; with a source, one that the sender need not have."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with sender.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if source:
            if version == 4:
                sock.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT: any source
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
            sock.bind((source, 0))
        sock.sendto(payload, (destination, DEFAULT_PORT))


@pytest.fixture
def make(topology, tmp_path, podwire):
    def made(versions=DUAL, prepare=None, **options):
        split = Split(topology, tmp_path, versions)
        if prepare:
            prepare(split)
        for node in split.nodes:  # a pod's forged source is not the kernel's matter here
            for name in ("all", "default"):
                node.run("sysctl", "-qw", f"net/ipv4/conf/{name}/rp_filter=0")
        return Site(split, topology, podwire, **options)

    return made


def family_listing(node, family):
    """nft's `ip` or `ip6`; nothing when it has no table."""
    return packetfilter.listing(node, f"ruleset {family}")


def unguarded(site, number=0):
    """Take the guard away: what is then delivered was stopped by it alone."""
    node = site.split.nodes[number]
    guarded = 0
    for family in ("ip", "ip6"):
        shown = family_listing(node, family)
        for chain in ("input", "overlay"):
            if f"chain {chain} " in shown:
                node.run("nft", f"flush chain {family} podwire {chain}")
                guarded += 1
    assert guarded


@pytest.mark.parametrize("masquerade", [False, True])
@pytest.mark.parametrize("version", DUAL)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disguise", ["own", "peer", "this node"])
def test_a_pod_gets_nothing_into_its_node_s_overlay(make, version, mode, disguise, masquerade):
    # The device listens in the family of the nodes' addresses alone.
    site = make((version,), mode=mode, ipMasq=masquerade)
    sender, destination = site.pods[0], site.host(0, version)
    source = {"own": "", "peer": site.host(1, version), "this node": site.host(0, version)}[
        disguise
    ]
    assert not site.arrives(sender, source, destination)
    unguarded(site)
    if disguise != "this node":  # the kernel itself refuses that
        assert site.arrives(sender, source, destination)


@pytest.mark.parametrize("destination", ["255.255.255.255", "10.244.0.255", "10.244.0.1"])
def test_no_other_address_of_the_node_leads_there(make, destination):
    site = make((4,), isGateway=True)
    site.pods[0].run("ip", "route", "replace", "255.255.255.255", "dev", "eth0")
    assert not site.arrives(site.pods[0], "", destination)
    unguarded(site)
    assert site.arrives(site.pods[0], "", destination)


def test_isolation_holds(make):
    site = make((4,), ingressPolicy="isolated")
    assert not probe.reaches(site.pods[0], site.pods[3], site.addresses[3][0], 0.4)
    assert not site.arrives(site.pods[0], "", site.host(0, 4))
    assert not site.arrives(site.pods[0], site.host(2, 4), site.host(0, 4))


@pytest.mark.parametrize("disguised", [False, True])
def test_a_pod_gets_nothing_into_a_peer_s_overlay(make, disguised):
    """Neither masqueraded nor with a node's source: the first node stops it, and the second could
    not tell."""
    site = make((4,), ipMasq=True)
    sender, own = site.pods[1], site.split.nodes[1]
    source = site.host(2, 4) if disguised else ""
    assert not site.arrives(sender, source, site.host(0, 4))
    own.run("nft", "flush chain ip podwire overlay")
    assert site.arrives(sender, source, site.host(0, 4)) is disguised  # else it is in `direct`
    unguarded(site)
    assert site.arrives(sender, source, site.host(0, 4))


@pytest.mark.parametrize("disguised", [False, True])
def test_a_peer_can_tell_a_pod_that_shows_its_own_address(make, disguised):
    """Without masquerading the first node looks at nothing that passes through; what a pod gains by
    a node's source is what it can send without the overlay as well."""
    site = make((4,))
    sender, target = site.pods[1], site.pods[3]
    source = site.host(2, 4) if disguised else ""
    assert site.arrives(sender, source, site.host(0, 4)) is disguised
    with target.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((site.addresses[3][0], DEFAULT_PORT))
        sink.settimeout(2)
        send(sender, "10.244.2.9", site.addresses[3][0], 4, FORGED)
        data, (shown, _) = sink.recvfrom(100)
    assert (data, shown) == (FORGED, "10.244.2.9")


def test_an_address_that_no_node_knows_is_no_way_round_by_masquerade(make):
    """A node's further address, a virtual one: pods' packets there carry the first node's."""
    site = make((4,), ipMasq=True)
    site.split.nodes[0].run("ip", "addr", "add", "192.168.1.77/32", "dev", "eth0")
    assert not site.arrives(site.pods[1], "", "192.168.1.77")
    unguarded(site)
    assert site.arrives(site.pods[1], "", "192.168.1.77")


@pytest.mark.parametrize("version", DUAL)
def test_a_stranger_gets_nothing_in(make, version):
    site = make((version,))
    stranger = site.split.routers[0]
    assert not site.arrives(stranger, "", site.host(0, version))
    unguarded(site)
    assert site.arrives(stranger, "", site.host(0, version))


@pytest.mark.parametrize("underlay", [DUAL, (4,), (6,)], ids=["dual", "ipv4", "ipv6"])
@pytest.mark.parametrize("mode", MODES)
def test_what_nodes_send_passes(make, underlay, mode):
    site = make(underlay, mode=mode)
    for one in range(3):
        for other in {0, 1, 2} - {one}:
            for address in site.addresses[other]:
                assert probe.udp(site.pods[one], site.pods[other], address).data
                assert probe.reaches(site.split.nodes[one], site.pods[other], address)


def test_a_node_whose_own_link_is_called_veth(make):
    site = make((4,), mode="ptp")
    node = site.split.nodes[0]
    node.run("ip", "link", "set", "eth0", "down")
    node.run("ip", "link", "set", "eth0", "name", "veth0")
    node.run("ip", "link", "set", "veth0", "up")
    node.run("ip", "route", "replace", "default", "via", "192.168.1.1")
    for peer in (1, 2):
        assert probe.udp(site.pods[peer], site.pods[3], site.addresses[3][0]).data
    assert not site.arrives(site.pods[0], site.host(1, 4), site.host(0, 4))


@pytest.mark.parametrize("masquerade", [False, True])
def test_a_node_whose_own_link_is_a_port_of_a_pods_bridge(make, topology, masquerade):
    """Peers' packets come in by a bridge with pods, which has the node's address."""

    def join(split):
        split.nodes[0].run("ip", "link", "add", "lan0", "up", "type", "bridge")
        commands = ("addr flush dev eth0", "link set eth0 master lan0")
        more = ("addr add 192.168.1.2/24 dev lan0", "route replace default via 192.168.1.1")
        for command in (*commands, *more):
            split.nodes[0].run("ip", *command.split())

    site = make((4,), prepare=join, ipMasq=masquerade)
    lan = site.split.conf(0, name="lan", bridge="lan0", isGateway=False)
    del lan["nodes"]
    lan["ipam"] = {**lan["ipam"], "subnet": "192.168.1.0/24", "rangeStart": "192.168.1.200"}
    pod = topology.sandbox("lan")
    assert site.podwire.on(site.split.nodes[0]).add(lan, pod).ok
    assert '"lan0"' in packetfilter.listing(site.split.nodes[0], "set ip podwire pod_links")
    for peer in (1, 2):
        assert probe.udp(site.pods[peer], site.pods[3], site.addresses[3][0]).data
        assert probe.udp(site.pods[3], site.pods[peer], site.addresses[peer][0]).data
    for sender in (site.pods[0], pod, site.split.routers[0]):
        assert not site.arrives(sender, "", site.host(0, 4))
    assert not site.arrives(site.pods[0], site.host(1, 4), site.host(0, 4))


def test_a_node_with_several_addresses(make):
    """Each of them is one that nodes know, and no other."""

    def grow(split):
        split.nodes[0].run("ip", "addr", "add", "192.168.1.22/24", "dev", "eth0")
        split.nodes[0].run("ip", "addr", "add", "192.168.1.33/24", "dev", "eth0")
        split.entries[0]["addresses"].append("192.168.1.22")
        split.write()

    site = make((4,), prepare=grow)
    shown = packetfilter.listing(site.split.nodes[0], "table ip podwire")
    assert "udp dport 8472 ip daddr @nodes ip saddr @nodes" in shown
    peer, stranger = site.split.nodes[1], site.split.routers[0]
    for address, known in (("192.168.1.2", True), ("192.168.1.22", True), ("192.168.1.33", False)):
        assert site.arrives(peer, "", address) is known
        assert not site.arrives(stranger, "", address)
        assert not site.arrives(site.pods[0], site.host(1, 4), address)


def test_a_new_node_is_let_in(make, topology):
    site = make((4,))
    stranger = site.split.routers[0]
    assert not site.arrives(stranger, "", site.host(0, 4))
    site.split.entries.append(
        {"name": "late", "addresses": ["192.168.1.1"], "podCIDRs": ["10.244.77.0/24"]}
    )
    site.split.write()
    before = packetfilter.listing(site.split.nodes[0])
    site.add(0, topology.sandbox("next"))
    after = packetfilter.listing(site.split.nodes[0])
    assert "192.168.1.1," in after
    assert "192.168.1.1," not in before
    assert site.arrives(stranger, "", site.host(0, 4))
    # An inventory that can't be read leaves in who was known.
    site.split.path.write_text("{")
    other = site.split.conf(0, name="other", bridge="other0")
    del other["nodes"]
    other["ipam"]["subnet"] = "10.99.0.0/24"
    assert site.podwire.on(site.split.nodes[0]).add(other, topology.sandbox("other")).ok
    assert nodes_of(packetfilter.listing(site.split.nodes[0])) == nodes_of(after)
    assert '"other0"' in packetfilter.listing(site.split.nodes[0], "set ip podwire pod_links")
    assert site.arrives(stranger, "", site.host(0, 4))


def test_a_sync_lets_a_new_node_in(make, podwire_executable, tmp_path):
    """`podwire routes sync` makes the paths to it, and its packets pass."""
    site = make((4,))
    stranger = site.split.routers[0]
    assert not site.arrives(stranger, "", site.host(0, 4))
    site.split.entries.append(
        {"name": "late", "addresses": ["192.168.1.1"], "podCIDRs": ["10.244.77.0/24"]}
    )
    site.split.write()
    conf = tmp_path / "net.conf"
    conf.write_text(json.dumps(site.split.conf(0, **site.options)))
    command = [podwire_executable, "routes", "sync", "--config", str(conf)]
    site.split.nodes[0].run(*command)
    assert site.arrives(stranger, "", site.host(0, 4))
    before = packetfilter.listing(site.split.nodes[0])
    assert "nothing to do" in site.split.nodes[0].run(*command).stdout
    assert packetfilter.listing(site.split.nodes[0]) == before


def nodes_of(listing):
    return listing.partition("set nodes {")[2].partition("}\n")[0]


def test_pods_of_a_network_without_peers_are_kept_out_too(make, topology):
    """Masqueraded and disguised; their network knows nothing of nodes."""
    site = make((4,))
    other = site.split.conf(1, name="other", bridge="other0", ipMasq=True, isDefaultGateway=True)
    del other["nodes"]
    other["ipam"]["subnet"] = "10.99.0.0/24"
    pod = topology.sandbox("other")
    assert site.podwire.on(site.split.nodes[1]).add(other, pod).ok
    for source in ("", site.host(2, 4)):
        assert not site.arrives(pod, source, site.host(0, 4))
    unguarded(site, 1)
    for source in ("", site.host(2, 4)):
        assert site.arrives(pod, source, site.host(0, 4))


def test_it_holds_with_br_netfilter(make):
    site = make((4,))
    site.split.nodes[0].run("sysctl", "-qw", "net/bridge/bridge-nf-call-iptables=1")
    for source in ("", site.host(1, 4)):
        assert not site.arrives(site.pods[0], source, site.host(0, 4))
    assert probe.udp(site.pods[2], site.pods[3], site.addresses[3][0]).data
    assert probe.udp(site.pods[3], site.pods[2], site.addresses[2][0]).data


# --- what is in the kernel ----------------------------------------------------------------------


INPUT = {
    4: """\
        type filter hook input priority raw; policy accept;
        udp dport 8472 ip daddr 192.168.1.2 ip saddr @nodes iifname != "cni0" accept
        udp dport 8472 ip daddr 192.168.1.2 ip saddr @nodes fib daddr . iif type local accept
        udp dport 8472 drop
""",
    6: """\
        type filter hook input priority raw; policy accept;
        udp dport 8472 ip6 daddr fd00:1::2 ip6 saddr @nodes iifname != "cni0" accept
        udp dport 8472 ip6 daddr fd00:1::2 ip6 saddr @nodes fib daddr . iif type local accept
        udp dport 8472 drop
""",
}
GUARD = """\
        type filter hook prerouting priority raw; policy accept;
        udp dport 8472 ip daddr != 192.168.1.2 jump overlay
"""
OVERLAY = """\
        iifname != "cni0" ip saddr @nodes accept
        ip saddr @nodes fib saddr . iif oif 0 drop
        ip daddr @nodes ip saddr != @nodes drop
"""


def chain(node, family, name):
    """The lines of a chain, as nft shows them; "" when it is not there."""
    shown = family_listing(node, family)
    return shown.partition(f"chain {name} {{\n")[2].partition("\t}\n")[0].replace("\t", "    ")


@pytest.mark.parametrize("masquerade", [False, True])
@pytest.mark.parametrize("backend", ["auto", "vxlan", "host-gw"])
def test_what_nft_shows(make_cluster, topology, podwire, backend, masquerade):
    """A chain that all packets pass, prerouting's, is there with masquerading alone."""
    cluster = make_cluster(2)
    node = cluster.nodes[0]
    conf = cluster.conf(0, backend=backend, ipMasq=masquerade)
    assert podwire.on(node).add(conf, topology.sandbox("pod")).ok
    guarded = backend != "host-gw"
    for version, family in ((4, "ip"), (6, "ip6")):
        assert chain(node, family, "input") == (INPUT[version] if guarded else "")
        assert ("set nodes {" in family_listing(node, family)) is guarded
        for name in ("overlay", "guard"):
            assert bool(chain(node, family, name)) is (guarded and masquerade)
    if guarded:
        assert "{ 192.168.1.2, 192.168.1.3 " in nodes_of(family_listing(node, "ip"))
    if guarded and masquerade:
        assert chain(node, "ip", "overlay") == OVERLAY
        assert chain(node, "ip", "guard") == GUARD
    assert "set pod_links" not in packetfilter.listing(node)
    assert "set overlay_ports" not in packetfilter.listing(node)


def test_the_rules_of_pods_with_links_of_their_own(make):
    site = make((4,), mode="ptp", vxlan={"port": 4789})
    node = site.split.nodes[0]
    assert 'udp dport 4789 ip daddr 192.168.1.2 ip saddr @nodes iifname != "veth*" accept' in (
        chain(node, "ip", "input")
    )
    assert "pod_links" not in packetfilter.listing(node)
    # No node has an IPv6 address: nothing listens there.
    assert "udp" not in family_listing(node, "ip6")


def test_further_networks_change_the_form_of_the_rules(make, topology):
    """From one bridge, one port, no masquerading to several, step by step: each in one
    transaction, and what a flush took is put back in the same form."""
    site = make((4,))
    node, host = site.split.nodes[0], site.podwire.on(site.split.nodes[0])

    def add(name, subnet, **keys):
        conf = {**site.split.conf(0, name=name, bridge=name), **keys}
        conf["ipam"] = {**conf["ipam"], "subnet": subnet}
        if "backend" not in keys:
            del conf["nodes"]
        before = generation_of(node)
        assert host.add(conf, topology.sandbox(name)).ok
        assert generation_of(node) == before + 1

    assert chain(node, "ip", "input") == INPUT[4]
    add("plain0", "10.98.0.0/24")
    several = INPUT[4].replace('iifname != "cni0"', "iifname != @pod_links")
    assert chain(node, "ip", "input") == several
    assert '"cni0",' in packetfilter.listing(node, "set ip podwire pod_links")
    add("masked0", "10.97.0.0/24", ipMasq=True)
    assert chain(node, "ip", "input") == several
    assert chain(node, "ip", "guard") == GUARD
    assert chain(node, "ip", "overlay") == OVERLAY.replace('"cni0"', "@pod_links")
    site.split.entries[0]["podCIDRs"].append("10.244.9.0/24")
    site.split.write()
    further = {"backend": "vxlan", "vxlan": {"port": 4789, "vni": 2}}
    add("further0", "10.244.9.0/24", **further)
    at_ports = "udp dport @overlay_ports"
    assert chain(node, "ip", "input") == several.replace("udp dport 8472", at_ports)
    assert chain(node, "ip", "guard") == GUARD.replace("udp dport 8472", at_ports)
    whole = packetfilter.listing(node)
    for name in ("guard", "overlay", "input"):
        node.run("nft", f"flush chain ip podwire {name}")
    site.add(0, topology.sandbox("again"))
    assert sorted(packetfilter.listing(node).split()) == sorted(whole.split())
    for source in ("", site.host(1, 4)):
        assert not site.arrives(site.pods[0], source, site.host(0, 4))
    assert probe.udp(site.pods[2], site.pods[3], site.addresses[3][0]).data


HARM = (
    "flush chain ip podwire overlay",
    "flush chain ip6 podwire guard",
    "flush chain ip podwire input",
    "flush set ip6 podwire nodes",
    "add element ip podwire nodes { 192.168.1.99 }",
    "flush chain ip podwire guard; flush chain ip podwire overlay; delete chain ip podwire overlay",
    "insert rule ip podwire input udp dport 8472 accept",
    "flush ruleset",
)


def test_a_second_pod_changes_nothing_and_a_flush_is_made_good(make, topology):
    site = make(ipMasq=True)
    node = site.split.nodes[0]
    before = packetfilter.listing(node)
    generation = generation_of(node)
    site.add(0, topology.sandbox("next"))
    assert generation_of(node) == generation
    for number, harm in enumerate(HARM):
        node.run("nft", harm)
        assert packetfilter.listing(node) != before
        site.add(0, topology.sandbox(f"after-{number}"))
        assert sorted(packetfilter.listing(node).split()) == sorted(before.split()), harm


def generation_of(node):
    return packetfilter.firewall(node)._socket.generation()


@pytest.mark.parametrize("masquerade", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_saved_ruleset_can_be_loaded_again(make, topology, mode, masquerade):
    site = make(mode=mode, ipMasq=masquerade)
    node = site.split.nodes[0]
    before = node.run("nft", "list", "ruleset").stdout
    node.run("nft", "-f", "-", stdin=f"flush ruleset\n{before}")
    generation = generation_of(node)
    site.add(0, topology.sandbox("next"))
    assert generation_of(node) == generation
