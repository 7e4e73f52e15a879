"""Sizes: what pods, the overlay and its underlay have, and that large transfers pass in each mode,
also over a leg between routers that is narrower than the nodes' links."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from cni_plugin import cluster as clusters
from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel.netlink import RouteSocket
from tests.support.topology import Split

TWO_MEGABYTES = 2 * 1024 * 1024
OVERHEAD = {4: 50, 6: 70}
PAIRS = ((0, 1), (0, 2), (2, 0), (2, 1))


@pytest.fixture
def populated(topology, tmp_path, podwire):
    """populated(versions, **options) is the site with one pod on each node, and the pods."""

    def make(versions=(4, 6), prepare=lambda _: None, **options):
        site = Split(topology, tmp_path, versions)
        prepare(site)
        pods = []
        for number, node in enumerate(site.nodes):
            sandbox = topology.sandbox(f"pod-{number}")
            assert podwire.on(node).add(site.conf(number, **options), sandbox).ok
            pods.append(sandbox)
        return site, pods

    return make


def mtu(namespace, link="eth0"):
    return namespace.links()[link]["mtu"]


def pod_address(number, version):
    subnet = f":{number}" if number else ""
    return f"10.244.{number}.2" if version == 4 else f"fd00:10:244{subnet}::2"


def send_stream(client, server, address, size=TWO_MEGABYTES, timeout=15):
    """How many bytes of `size` arrive over TCP."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM
    arrived = []

    def receive(listener):
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(timeout)
                while data := accepted.recv(65536):
                    arrived.append(len(data))

    with server.socket(*kind) as listener, client.socket(*kind) as caller:
        listener.bind((address, 0))
        listener.listen(1)
        listener.settimeout(timeout)
        caller.settimeout(timeout)
        thread = threading.Thread(target=receive, args=(listener,))
        thread.start()
        with contextlib.suppress(OSError):
            caller.connect(listener.getsockname()[:2])
            caller.sendall(bytes(size))
        caller.close()
        thread.join()
    return sum(arrived)


def send_datagram(client, server, address, size=4096, tries=4):
    """Whether a datagram arrives whole; the first ones may be what finds the path's size out."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
    with server.socket(*kind) as receiver, client.socket(*kind) as sender:
        receiver.bind((address, 0))
        receiver.settimeout(1)
        for _ in range(tries):
            sender.sendto(bytes(size), receiver.getsockname()[:2])
            with contextlib.suppress(TimeoutError):
                return len(receiver.recv(65536)) == size
    return False


# --- large transfers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("underlay", "leg", "versions"),
    [
        (4, 1500, (4, 6)),
        (4, 1300, (4, 6)),
        (6, 1500, (4, 6)),
        (6, 1400, (4, 6)),
        # Less the overlay's bytes that is too narrow for IPv6, which no MTU can help.
        (6, 1300, (4,)),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "vxlan"])
def test_large_transfers_pass(populated, backend, underlay, leg, versions):
    site, pods = populated((4, 6) if underlay == 4 else (6,), backend=backend)
    site.narrow(leg)
    for source, target in PAIRS:
        for version in versions:
            address = pod_address(target, version)
            where = f"{source} to {target} by IPv{version}"
            assert send_stream(pods[source], pods[target], address) == TWO_MEGABYTES, where
            assert send_datagram(pods[source], pods[target], address), where
            assert send_stream(site.nodes[source], pods[target], address) == TWO_MEGABYTES, where


def test_large_transfers_pass_with_plain_routes(populated):
    def without_the_far_one(site):
        site.entries.pop()
        site.write()
        site.nodes.pop()

    _, pods = populated(prepare=without_the_far_one, backend="host-gw")
    for version in (4, 6):
        assert send_stream(*pods, pod_address(1, version)) == TWO_MEGABYTES
        assert send_datagram(*pods, pod_address(1, version))


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("underlay", [4, 6])
def test_pods_and_overlay_leave_room_for_what_is_added(populated, underlay):
    site, pods = populated((underlay,), backend="vxlan")
    for node, pod in zip(site.nodes, pods, strict=True):
        assert mtu(pod) == mtu(node, "pwvx1") == 1500 - OVERHEAD[underlay]
        assert mtu(node, "cni0") == mtu(pod)


def test_a_size_that_is_configured_counts(populated):
    site, pods = populated(backend="vxlan", vxlan={"mtu": 1320})
    assert [mtu(pod) for pod in pods] == [1320] * 3
    assert [mtu(node, "pwvx1") for node in site.nodes] == [1320] * 3


def test_the_mtu_of_the_configuration_is_the_pods_alone(populated):
    site, pods = populated(mtu=1340)
    assert [mtu(pod) for pod in pods] == [1340] * 3
    assert [mtu(node, "pwvx1") for node in site.nodes] == [1450] * 3


def test_the_route_to_the_peers_may_be_narrower_than_the_link(populated):
    def narrow(site):
        for network, gateway in (("192.168.2.0/24", "192.168.1.1"), ("fd00:2::/64", "fd00:1::1")):
            site.nodes[0].run("ip", "route", "add", network, "via", gateway, "mtu", "1400")

    site, pods = populated(prepare=narrow)
    assert (mtu(pods[0]), mtu(site.nodes[0], "pwvx1")) == (1350, 1350)
    assert mtu(pods[1]) == 1450


def test_what_was_learned_of_a_path_is_not_taken_for_the_route_s(populated):
    """It is forgotten after minutes, and the overlay's size would go up and down with it."""
    site, _ = populated((6,), backend="vxlan")
    site.narrow(1400)
    with contextlib.ExitStack() as stack:
        kind = socket.AF_INET6, socket.SOCK_DGRAM
        sender = stack.enter_context(site.nodes[0].socket(*kind))
        for _ in range(3):
            with contextlib.suppress(OSError):
                sender.sendto(bytes(1440), ("fd00:2::2", 9))
    assert "mtu 1400" in site.nodes[0].run("ip", "-6", "route", "get", "fd00:2::2").stdout
    with site.nodes[0].entered(), RouteSocket() as route_socket:
        cluster = clusters.join(str(site.path), "", CrossNode("vxlan"), route_socket)
        assert clusters.pod_mtu(cluster, route_socket) == 1430


def test_a_change_of_the_underlay_is_followed_and_can_be_seen(populated, topology, podwire):
    """The device at the next sync, new pods from the start; old pods keep what they have."""
    site, pods = populated()
    node = site.nodes[0]
    node.run("ip", "link", "set", "eth0", "mtu", "1400")
    with node.entered(), RouteSocket() as route_socket:
        cluster = clusters.join(str(site.path), "", CrossNode(), route_socket)
        assert clusters.mtus(cluster, route_socket) == ("eth0", 1400, 1350, 1450, 1350)
        assert "the overlay's device pwvx1 is not as it should be" in clusters.missing(
            cluster, route_socket
        )
    late = topology.sandbox("late")
    assert podwire.on(node).add(site.conf(0), late).ok
    assert (mtu(late), mtu(node, "pwvx1"), mtu(pods[0])) == (1350, 1350, 1450)
    with node.entered(), RouteSocket() as route_socket:
        assert clusters.mtus(cluster, route_socket) == ("eth0", 1400, 1350, 1350, 1350)
        assert clusters.missing(cluster, route_socket) == []


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ({"vxlan": {"mtu": 1279}}, 104, "1279"),
        ({"vxlan": {"mtu": 1460}}, 7, "vxlan.mtu: expected at most 1450"),
    ],
)
def test_a_size_that_cannot_be(
    topology, tmp_path, podwire, untouched, options, code, word
):  # fmt: skip
    """Too small for the pods' IPv6, and more than the underlay leaves."""
    site = Split(topology, tmp_path)
    sandbox = topology.sandbox("pod")
    with untouched(site.nodes[0], sandbox):
        conf = site.conf(0, backend="vxlan", **options)
        refused = podwire.on(site.nodes[0]).add(conf, sandbox)
        assert podwire.on(site.nodes[0]).status(conf).error["msg"] == refused.error["msg"]
    assert refused.code == code
    assert word in refused.error["msg"]
