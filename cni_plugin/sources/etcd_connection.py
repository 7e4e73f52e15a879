"""HTTP connections that another thread can break off, even while they are being made.

A watch waits for what may never come, and an agent that ends does not wait with it: `Open` knows
the sockets in use, and shuts them. What the thread then gets is an error of its read, as when the
other side goes.

http.client makes connections that nobody else can reach before they are there, which is why
`connect` is done here.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import Any

from cni_plugin.sources import ownends

_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A host that is dead is noticed in half a minute.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),  # seconds
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),  # ms
)


class Open:
    """The sockets in use, of all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def add(self, sock: socket.socket) -> None:
        """Raises ConnectionAbortedError after `close`."""
        with self._lock:
            if self._closed:
                sock.close()
                raise ConnectionAbortedError("no more connections: this source was stopped")
            self._sockets.add(sock)

    def swap(self, old: socket.socket, new: socket.socket) -> None:
        """`old`, whose descriptor `new` has taken over, is no more; neither is shut in between."""
        with self._lock:
            self._sockets.discard(old)
            self._sockets.add(new)
            if self._closed:
                _shut(new)

    def end(self, sock: socket.socket) -> None:
        """Close it; under the lock, so that its descriptor is nobody else's while it is shut."""
        with self._lock:
            self._sockets.discard(sock)
            sock.close()

    def shut(self, sock: socket.socket) -> None:
        """Break off what reads it or writes to it, if it is still in use."""
        with self._lock:
            if sock in self._sockets:
                _shut(sock)

    def lose(self, address: str) -> None:
        """Break off those that come from this address, which the node has no more."""
        with self._lock:
            for sock in ownends.of(address, self._sockets):
                _shut(sock)

    def close(self) -> None:
        """Break off all, now and from now on."""
        with self._lock:
            self._closed = True
            for sock in self._sockets:
                _shut(sock)


def _shut(sock: socket.socket) -> None:
    """Not SSLSocket's own way, which takes the TLS layer away under the thread that reads."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # the other side was faster, or it is not connected yet: its connect fails


class Connection(http.client.HTTPConnection):
    """One connection to one endpoint; `timeout` in seconds is for each step of it, and for all of
    the steps within a block of `in_time`."""

    def __init__(
        self, host: str, port: int, timeout: float, tls: ssl.SSLContext | None, opened: Open
    ) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls = tls
        self._opened = opened
        self.tls = tls is not None
        self.sock: socket.socket | None = None
        self.is_late = False

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Break the connection off when the block takes longer: who sends a byte now and then
        keeps within the time for each step. OSError is TimeoutError then, as far as it comes."""
        timer = Timer(self.timeout or 0.0, self._break_off)
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException) as e:
            if self.is_late:
                raise TimeoutError(f"no whole answer in {self.timeout:g} s") from e
            raise
        finally:
            timer.cancel()
            timer.join()

    def _break_off(self) -> None:
        self.is_late = True
        sock = self.sock
        if sock is not None:
            self._opened.shut(sock)

    def connect(self) -> None:
        """Raises OSError, of the last address of the host's."""
        reason: OSError = ConnectionError(f"{self.host} has no address")
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            self._opened.add(sock)
            self.sock = sock
            try:
                # One that swallows packets leaves the others their part of a block's time.
                self._establish(sock, address, (self.timeout or 0.0) / len(found))
            except OSError as e:
                # Not by `close`, which would end the request that this connects for.
                self._opened.end(self.sock)
                self.sock, reason = None, e
            else:
                return
        raise reason

    def _establish(self, sock: socket.socket, address: tuple[Any, ...], seconds: float) -> None:
        sock.settimeout(seconds)
        for option in _OPTIONS:
            sock.setsockopt(*option)
        sock.connect(address)
        if self._tls is not None:
            wrapped = self._tls.wrap_socket(
                sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self._opened.swap(sock, wrapped)
            self.sock = wrapped
            wrapped.do_handshake()
        if self.sock is not None:  # broken off meanwhile
            self.sock.settimeout(self.timeout)

    def close(self) -> None:
        """As http.client's, and the socket is closed under the lock of `Open`."""
        sock, self.sock = self.sock, None
        super().close()  # the answer's file first: the socket is closed with the last that uses it
        if sock is not None:
            self._opened.end(sock)
