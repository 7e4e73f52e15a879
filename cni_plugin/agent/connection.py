"""One client's connection: its request, heartbeats while it waits, the reply, its confirmation.

Framing is `wire`'s. The sandbox comes as a descriptor that was opened for nothing (O_PATH): it
names a file in the client's mount namespace, and what that file is gets checked here.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import EMFILE, EPIPE
from socket import (
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SHUT_RD,
    SO_PEERCRED,
    SO_RCVTIMEO,
    SO_SNDTIMEO,
    SOL_SOCKET,
    socket,
)
from threading import Lock
from time import monotonic
from typing import NamedTuple

from cni_plugin import waiting, wire

_TIMEOUT = struct.pack("@ll", 10, 0)  # seconds; a client has its request ready, and writes stdout
_REQUEST_S = 20
_AT_ONCE_MS = 2  # a client connects when it has everything to send
_CREDENTIALS = struct.Struct("=3i")
_DESCRIPTOR = struct.Struct("=i")
_PIECE = 1 << 18
_ROOM = CMSG_SPACE(4 * _DESCRIPTOR.size)


class Call(NamedTuple):
    """A request as it came. `sandbox` is an O_PATH descriptor, -1 for none: then `netns_errno` is
    why the client could not open CNI_NETNS, 0 when it named none."""

    ipam: bool
    sandbox: int
    netns_errno: int
    home: int
    version: str
    environ: Mapping[str, str]
    stdin: bytes


class Connection:
    """Owns the socket. Every method raises OSError when the client is gone or too slow."""

    def __init__(self, client: socket) -> None:
        self._socket = client
        self._sandbox = -1
        self._lost_sandbox = False  # one was sent, and we had no descriptor left for it
        self._writing = Lock()
        self.answered = False

    def close(self) -> None:
        if self._sandbox >= 0:
            os.close(self._sandbox)
        self._socket.close()

    def peer(self) -> tuple[int, int]:
        """Process ID and user of the client, as the kernel knows them."""
        data = self._socket.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(data)
        return pid, uid

    def receive(self, waits: Callable[[], None] = lambda: None) -> Call:
        """The request. Raises WireError when it is none; EOFError when nothing came.

        `waits` is called before waiting for a client that does not send all of it at once.
        """
        if not self._readable(_AT_ONCE_MS):
            waits()
        self._socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIMEOUT)
        self._socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _TIMEOUT)
        data = self._first()
        while len(data) < wire.REQUEST_BYTES:
            waits()
            data += self._piece()
        header = wire.request_header(data[: wire.REQUEST_BYTES])
        ipam, errno, home, version_bytes, environ_bytes, stdin_bytes = header
        deadline = monotonic() + _REQUEST_S
        parts = [data[wire.REQUEST_BYTES :]]
        missing = version_bytes + environ_bytes + stdin_bytes - len(parts[0])
        while missing > 0:
            if monotonic() > deadline:
                raise wire.WireError(f"the request took more than {_REQUEST_S} s")
            waits()
            parts.append(self._piece())
            missing -= len(parts[-1])
        body = b"".join(parts)
        environ_end = version_bytes + environ_bytes
        return Call(
            ipam=ipam,
            sandbox=self._sandbox,
            netns_errno=EMFILE if self._lost_sandbox else errno,
            home=home,
            version=body[:version_bytes].decode("utf-8", "replace"),
            environ=_environ(body[version_bytes:environ_end]),
            stdin=body[environ_end : environ_end + stdin_bytes],
        )

    def _first(self) -> bytes:
        """The first bytes, and with them the sandbox."""
        data, ancillary, flags, _ = self._socket.recvmsg(_PIECE, _ROOM, MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                whole = len(payload) // _DESCRIPTOR.size * _DESCRIPTOR.size
                for (fd,) in _DESCRIPTOR.iter_unpack(payload[:whole]):
                    if self._sandbox >= 0:
                        os.close(fd)  # nobody asked for more than one
                    else:
                        self._sandbox = fd
        if not data:
            raise EOFError
        self._lost_sandbox = bool(flags & MSG_CTRUNC) and self._sandbox < 0
        return data

    def _piece(self) -> bytes:
        data = self._socket.recv(_PIECE)
        if not data:
            raise wire.WireError("the request ended early")
        return data

    def heartbeat(self) -> None:
        """Tell the client that its call is being worked on; never within a reply."""
        if not self._writing.acquire(blocking=False):
            return  # the reply is on its way, to a client that may be slow to take it
        try:
            if not self.answered:
                self._socket.send(wire.HEARTBEAT, MSG_DONTWAIT | MSG_NOSIGNAL)
        finally:
            self._writing.release()

    def decline(self, reason: str) -> None:
        """Nothing has been begun: the client is to do the work."""
        self._reply(wire.reply(wire.DECLINED, 0, reason.encode()))

    def reply(self, status: int, body: bytes) -> None:
        """Exit status and stdout of the call."""
        self._reply(wire.reply(wire.SERVED, status, body))

    def deliver(self, body: bytes) -> None:
        """A result, and wait until the client has written it to its stdout."""
        self.reply(0, body)
        waiting.begins()  # and not before: the next leader would take Python's lock from us
        try:
            said = self._socket.recv(1)
        except BlockingIOError:  # too late; from here on it can't confirm, unless it just did
            self._socket.shutdown(SHUT_RD)
            said = self._socket.recv(1)
        if said != wire.CONFIRMATION:
            with suppress(OSError):
                self._socket.send(wire.UNDONE, MSG_DONTWAIT | MSG_NOSIGNAL)
            raise OSError(EPIPE, "the client could not pass it on")

    def gone(self) -> bool:
        """Whether the client has ended without waiting for the reply."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _readable(self, timeout_ms: int) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(timeout_ms))

    def _reply(self, data: bytes) -> None:
        with self._writing:
            self.answered = True
            self._socket.sendall(data, MSG_NOSIGNAL)


def _environ(data: bytes) -> Mapping[str, str]:
    """NAME=VALUE entries, each ended by a zero byte; of a name that comes twice the first counts,
    as in getenv(3)."""
    environ: dict[str, str] = {}
    for entry in os.fsdecode(data).split("\0"):
        name, equals, value = entry.partition("=")
        if equals:
            environ.setdefault(name, value)
    return environ
