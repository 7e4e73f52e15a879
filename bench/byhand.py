"""Topologies made with iproute2, as an administrator would make them without any plugin.

They are what podwire's datapath is held against: the same links, addresses and routes, and nothing
else. The MTUs are those that podwire chooses, so that packets are of one size.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack

from bench.measure import CallFailedError
from bench.namespaces import Namespace
from bench.sites import SUBNETS, UNDERLAY, Site, new_namespace

VNI, PORT, OVERHEAD = 1, 8472, 50  # bytes of VXLAN over IPv4
MTU = 1500


def same_node(stack: ExitStack) -> Site:
    """Two pods on a bridge."""
    node = new_namespace(stack, node=True)
    _forward(node)
    _bridge(node, "10.244.0.1/24", MTU)
    client = _pod(stack, node, "pod0", "10.244.0.2/24", "10.244.0.1", MTU)
    server = _pod(stack, node, "pod1", "10.244.0.3/24", "10.244.0.1", MTU)
    return Site(client, server, "10.244.0.3")


def by_route(stack: ExitStack) -> Site:
    """A pod on each of two nodes of one link, by plain routes."""
    nodes = cabled(stack)
    for node, other in ((0, 1), (1, 0)):
        ip(nodes[node], f"route add {SUBNETS[other]} via {UNDERLAY[other]}")
    return _pods(stack, nodes, MTU)


def by_vxlan(stack: ExitStack) -> Site:
    """A pod on each of two nodes, by VXLAN: one FDB entry, one neighbour and one route a peer."""
    nodes = cabled(stack)
    for node in (0, 1):
        ip(
            nodes[node],
            f"link add vx type vxlan id {VNI} local {UNDERLAY[node]} dev eth0 dstport {PORT}"
            " nolearning",
            f"link set vx address {_mac(node)} mtu {MTU - OVERHEAD} up",
            f"address add {_first(node)}/32 dev vx",
        )
    for node, other in ((0, 1), (1, 0)):
        run(nodes[node], f"bridge fdb append {_mac(other)} dev vx dst {UNDERLAY[other]}")
        ip(
            nodes[node],
            f"neighbour add {_first(other)} lladdr {_mac(other)} dev vx nud permanent",
            f"route add {SUBNETS[other]} via {_first(other)} dev vx onlink",
        )
    return _pods(stack, nodes, MTU - OVERHEAD)


def cabled(stack: ExitStack) -> tuple[Namespace, Namespace]:
    """Two nodes with the addresses UNDERLAY on eth0, a cable between them, and forwarding."""
    nodes = new_namespace(stack, node=True), new_namespace(stack, node=True)
    ip(nodes[0], f"link add eth0 type veth peer name eth0 netns {nodes[1].path}")
    for node, address in zip(nodes, UNDERLAY, strict=True):
        ip(node, f"address add {address}/24 dev eth0", "link set eth0 up")
        _forward(node)
    return nodes


def _pods(stack: ExitStack, nodes: tuple[Namespace, Namespace], mtu: int) -> Site:
    pods = []
    for number, node in enumerate(nodes):
        gateway = f"10.244.{number}.1"
        _bridge(node, f"{gateway}/24", mtu)
        pods.append(_pod(stack, node, "pod0", f"10.244.{number}.2/24", gateway, mtu))
    return Site(pods[0], pods[1], "10.244.1.2")


def _first(node: int) -> str:
    """The address of the node's end of the tunnel."""
    return f"10.244.{node}.0"


def _mac(node: int) -> str:
    return f"02:00:00:00:00:{node + 1:02x}"


def _bridge(node: Namespace, gateway: str, mtu: int) -> None:
    ip(node, f"link add cni0 mtu {mtu} type bridge", f"address add {gateway} dev cni0")
    ip(node, "link set cni0 up")


def _pod(
    stack: ExitStack, node: Namespace, link: str, address: str, gateway: str, mtu: int
) -> Namespace:
    pod = new_namespace(stack, node=True)
    ip(
        node,
        f"link add {link} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod.path}",
        f"link set {link} master cni0 up",
    )
    ip(pod, f"address add {address} dev eth0", "link set eth0 up")
    ip(pod, f"route add default via {gateway}")
    return pod


def _forward(node: Namespace) -> None:
    with node.entered(), open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")


def ip(namespace: Namespace, *lines: str) -> None:
    """`ip -batch` of these lines in the namespace. Raises CallFailedError when one fails."""
    command(namespace, ["ip", "-batch", "-"], "\n".join(lines))


def run(namespace: Namespace, words: str) -> str:
    """The stdout of one command in the namespace. Raises CallFailedError when it fails."""
    return command(namespace, words.split())


def command(namespace: Namespace, argv: Sequence[str], feed: str = "") -> str:
    """The stdout of a command in the namespace, which gets `feed` on stdin.

    Raises CallFailedError when it fails, FileNotFoundError when it is not installed.
    """
    with namespace.entered():
        done = subprocess.run(argv, input=feed, text=True, capture_output=True, check=False)
    if done.returncode:
        raise CallFailedError(f"{' '.join(argv)}: {done.stderr.strip()}\n{feed}")
    return done.stdout
