"""Does a packet get there, and with which source address does it arrive?

Sockets are made inside the namespaces and used from here: no program is executed in a pod.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

from tests.support.netns import Namespace

PATIENCE = 15.0  # seconds, for what must come: the machine may be busy
_AGAIN = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ECONNREFUSED)


class Seen(NamedTuple):
    """What the receiver saw: the sender's address and the bytes."""

    source: str
    data: bytes


def tcp(client: Namespace, server: Namespace, address: str, timeout: float = 3) -> Seen:
    """Connect from one namespace to an address that the other one has; both directions are used.

    Raises AssertionError when nothing arrives in `timeout` seconds.
    """
    family = _family(address)
    with server.socket(family, socket.SOCK_STREAM) as listener:
        _bind(listener, address, timeout)
        listener.listen(1)
        listener.settimeout(timeout)
        with _connected(client, listener.getsockname()[:2], family, timeout) as caller:
            accepted, peer = listener.accept()
            with accepted:
                accepted.settimeout(timeout)
                caller.sendall(b"ping")
                data = accepted.recv(16)
                accepted.sendall(b"pong")
                assert caller.recv(16) == b"pong"
    return Seen(peer[0], data)


def udp(client: Namespace, server: Namespace, address: str, timeout: float = 3) -> Seen:
    """Send datagrams until one arrives and is answered."""
    family = _family(address)
    with (
        server.socket(family, socket.SOCK_DGRAM) as receiver,
        client.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        _bind(receiver, address, timeout)
        target = receiver.getsockname()[:2]
        deadline = time.monotonic() + timeout
        receiver.settimeout(0.2)
        sender.settimeout(timeout)
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                sender.sendto(b"ping", target)
            with contextlib.suppress(TimeoutError):
                data, peer = receiver.recvfrom(16)
                receiver.sendto(b"pong", peer)
                assert sender.recv(16) == b"pong"
                return Seen(peer[0], data)
    raise AssertionError(f"udp: {client.name} does not reach {server.name} at {address}")


def reaches(client: Namespace, server: Namespace, address: str, timeout: float = 3) -> bool:
    """Whether a TCP connection comes about; keep the timeout short where "no" is expected."""
    try:
        tcp(client, server, address, timeout)
    except AssertionError:
        return False
    return True


def all_paths(
    pods: Sequence[tuple[Namespace, Sequence[str]]], nodes: Sequence[tuple[Namespace, str]]
) -> None:
    """Every pod reaches every other, seen with its own address, and each node reaches every pod.

    `pods`: sandbox and addresses, in the same order of families. `nodes`: with an address that each
    pod reaches, or "".
    """
    for sandbox, own in pods:
        for peer, theirs in pods:
            if peer is not sandbox:
                for mine, address in zip(own, theirs, strict=True):
                    assert tcp(sandbox, peer, address, PATIENCE).source == mine
        for node, address in nodes:
            tcp(node, sandbox, own[0], PATIENCE)
            if address:
                tcp(sandbox, node, address, PATIENCE)


def _connected(
    client: Namespace, target: tuple[str, int], family: int, timeout: float
) -> socket.socket:
    """A connected socket; errors that pass while a link comes up are tried again."""
    deadline = time.monotonic() + timeout
    while True:
        sock = client.socket(family, socket.SOCK_STREAM)
        sock.settimeout(max(0.05, deadline - time.monotonic()))
        try:
            sock.connect(target)
            return sock
        except OSError as e:
            sock.close()
            passes = e.errno in _AGAIN and time.monotonic() < deadline
            if not passes:
                raise AssertionError(f"tcp: {client.name} to {target[0]}: {e}") from e
            time.sleep(0.05)


def _bind(sock: socket.socket, address: str, timeout: float) -> None:
    """Bind to the address itself, so that the reply's source is certain; waits for DAD."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            sock.bind((address, 0))
            return
        except OSError as e:
            if e.errno != errno.EADDRNOTAVAIL or time.monotonic() > deadline:
                raise AssertionError(f"bind to {address}: {e}") from e
            time.sleep(0.05)


def _family(address: str) -> int:
    version = ipaddress.ip_address(address).version
    return socket.AF_INET if version == 4 else socket.AF_INET6
