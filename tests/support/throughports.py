"""Traffic to a host port: a client connects to one address and port, a pod listens on another."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from tests.support.netns import Namespace
from tests.support.plugin import Config, Reply
from tests.support.probe import Seen
from tests.support.topology import Topology

Target = tuple[str, int]

NODE = {4: "192.168.1.2", 6: "fd00:1::2"}
OUTSIDE = {4: "192.168.1.100", 6: "fd00:1::100"}
BRIDGE = {4: "10.244.0.1", 6: "fd00:10:244::1"}
PORT, INNER = 8080, 80


def mapping(host: int = PORT, inner: int = INNER, protocol: str = "tcp", ip: str = "") -> Config:
    """An entry of portMappings."""
    return {"hostPort": host, "containerPort": inner, "protocol": protocol, "hostIP": ip}


def with_ports(conf: Config, *mappings: Config) -> Config:
    return {**conf, "runtimeConfig": {"portMappings": list(mappings)}}


def cabled(topology: Topology, node: Namespace, outside: Namespace) -> Namespace:
    """The node with the addresses NODE; on its link another host, which knows nothing of pods."""
    for host in (node, outside):
        host.run("sysctl", "-qw", "net/ipv6/conf/default/accept_dad=0")
    topology.cable(
        {
            host: (f"{addresses[4]}/24", f"{addresses[6]}/64")
            for host, addresses in ((node, NODE), (outside, OUTSIDE))
        }
    )
    return node


def pods_of(added: Reply) -> dict[int, str]:
    """The pod's addresses by version."""
    texts = [text.split("/")[0] for text in added.addresses()]
    return {6 if ":" in text else 4: text for text in texts}


def flows(node: Namespace, kind: str = "udp", **wanted: object) -> list[str]:
    """Lines of the node's connection tracking that hold all of `dport=8080` and the like."""
    lines = node.run("cat", "/proc/net/nf_conntrack").stdout.splitlines()
    parts = [f"{key}={value}" for key, value in wanted.items()]
    return [
        line
        for line in lines
        if f" {kind} " in line and all(part in line.split() for part in parts)
    ]


def family(address: str) -> int:
    return socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6


@contextmanager
def listening(
    where: Namespace, version: int, port: int, kind: str = "tcp"
) -> Iterator[socket.socket]:
    """A socket on all addresses of a namespace."""
    af = socket.AF_INET if version == 4 else socket.AF_INET6
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    with closing(where.socket(af, kinds[kind])) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
        if kind == "tcp":
            sock.listen(8)
        yield sock


def ask(
    client: Namespace, target: Target, server: socket.socket, kind: str = "tcp", timeout: float = 3
) -> Seen:
    """What the listening socket saw of a client that talks to `target`, both ways.

    Raises AssertionError when the server hears nothing, or the client no answer.
    """
    try:
        return (_ask_tcp if kind == "tcp" else _ask_udp)(client, target, server, timeout)
    except OSError as e:
        raise AssertionError(f"{kind}: {client.name} to {target}: {e!r}") from e


def answers(
    client: Namespace,
    target: Target,
    server: socket.socket,
    kind: str = "tcp",
    timeout: float = 0.6,
) -> bool:
    """Whether it works; keep the timeout short where "no" is expected."""
    try:
        ask(client, target, server, kind, timeout)
    except AssertionError:
        return False
    return True


def _ask_tcp(client: Namespace, target: Target, server: socket.socket, timeout: float) -> Seen:
    with closing(client.socket(family(target[0]), socket.SOCK_STREAM)) as caller:
        caller.settimeout(timeout)
        server.settimeout(timeout)
        caller.connect(target)
        accepted, peer = server.accept()
        with accepted:
            accepted.settimeout(timeout)
            caller.sendall(b"ping")
            data = accepted.recv(16)
            accepted.sendall(b"pong")
            assert caller.recv(16) == b"pong"
    return Seen(peer[0], data)


def _ask_udp(client: Namespace, target: Target, server: socket.socket, timeout: float) -> Seen:
    with closing(client.socket(family(target[0]), socket.SOCK_DGRAM)) as caller:
        caller.connect(target)  # so that only the target's answers count
        return send(caller, server, timeout)


def send(caller: socket.socket, server: socket.socket, timeout: float = 3) -> Seen:
    """Datagrams by a connected socket until one has arrived and was answered.

    What earlier callers sent more than once may still wait at the server.
    """
    deadline = time.monotonic() + timeout
    ping = os.urandom(8)
    server.settimeout(0.1)
    caller.settimeout(0.3)
    while time.monotonic() < deadline:
        with suppress(OSError):  # an ICMP error of an earlier datagram
            caller.send(ping)
        with suppress(TimeoutError):
            data, peer = server.recvfrom(16)
            while data != ping:
                data, peer = server.recvfrom(16)
            server.sendto(b"pong", peer)
            if _answer(caller, deadline) == b"pong":
                return Seen(peer[0], data)
    raise AssertionError(f"udp: nothing arrives from {caller.getsockname()}")


def _answer(caller: socket.socket, deadline: float) -> bytes:
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError):
            return caller.recv(16)
    return b""
