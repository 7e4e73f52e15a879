"""An agent that says whatever a test wants, and a client's process that is none."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from cni_plugin import client, sysio, wire

Script = Callable[[socket.socket], None]


class Request(NamedTuple):
    """What an agent received: one request, and the descriptors that came with it."""

    ipam: bool
    errno: int
    home: int
    version: bytes
    environ: bytes
    stdin: bytes
    inodes: list[int]


def receive(connection: socket.socket) -> Request:
    """A whole request; the descriptors are closed again."""
    data, fds, _, _ = socket.recv_fds(connection, wire.REQUEST_BYTES, 4)
    inodes = [os.fstat(fd).st_ino for fd in fds]
    for fd in fds:
        os.close(fd)
    data += _exactly(connection, wire.REQUEST_BYTES - len(data))
    ipam, errno, home, *sizes = wire.request_header(data)
    version, environ, stdin = (_exactly(connection, size) for size in sizes)
    return Request(ipam, errno, home, version, environ, stdin, inodes)


def _answered(connection: socket.socket, script: Script) -> bytes:
    """What the client sends after its request; nothing where it closes before it has heard all."""
    try:
        script(connection)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(5)
        return connection.recv(16)
    except OSError:
        return b""


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class FakeAgent:
    """Listens at `path`. Each client's request is received, then `script` gets the connection.

    `script` None accepts, reads nothing and never answers. `requests` has what came, `after` what
    the clients sent after their requests.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.script: Script | None = says()
        self.requests: list[Request] = []
        self.after: list[bytes] = []
        self.accepted = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen(64)
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            if self.script is None:
                self._kept.append(connection)
                continue
            with connection, contextlib.suppress(OSError, EOFError):
                self.requests.append(receive(connection))
                self.after.append(_answered(connection, self.script))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for connection in (*self._kept, self._socket):
            connection.close()
        assert not self._thread.is_alive()


def says(*pieces: bytes) -> Script:
    """Sends these, each by itself."""

    def script(connection: socket.socket) -> None:
        for piece in pieces:
            if piece:
                connection.sendall(piece)

    return script


class Outcome(NamedTuple):
    """What a client's process did: `status` None asks for the work to be done in process."""

    status: int | None
    stdin: bytes
    stdout: bytes
    stderr: bytes


class Process:
    """Stands for `sysio` of a process with this environment and stdin; the rest is the real one.

    Descriptors 0, 1 and 2 are bytes here. `broken` makes writes to stdout fail.
    """

    def __init__(self, environ: bytes, stdin: bytes = b"", broken: bool = False) -> None:
        self._environ = environ
        self._stdin = memoryview(stdin)
        self._broken = broken
        self.said = {1: b"", 2: b""}

    def __getattr__(self, name: str) -> Any:
        return getattr(sysio, name)

    def environ(self) -> bytes:
        return self._environ

    def wait(self, fd: int, timeout_ms: int) -> bool:
        return fd == 0 or sysio.wait(fd, timeout_ms)

    def read(self, fd: int, size: int) -> bytes:
        if fd != 0:
            return sysio.read(fd, size)
        part, self._stdin = bytes(self._stdin[:size]), self._stdin[size:]
        return part

    def write(self, fd: int, data: bytes) -> None:
        if fd == 1 and self._broken:
            raise BrokenPipeError(32, "Broken pipe")
        self.said[fd] += data


def encoded(environ: dict[str, str] | Sequence[bytes]) -> bytes:
    """An environment as `sysio.environ` returns it."""
    if isinstance(environ, dict):
        environ = [os.fsencode(f"{name}={value}") for name, value in environ.items()]
    return b"".join(entry + b"\0" for entry in environ)


def called(environ: bytes, stdin: bytes = b"", ipam: bool = False, broken: bool = False) -> Outcome:
    """`client.call` in a process like that."""
    process = Process(environ, stdin, broken)
    with replaced(client, "sysio", process):
        status, given = client.call(ipam)
    return Outcome(status, given, process.said[1], process.said[2])


@contextlib.contextmanager
def replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """For the length of the block; unlike `monkeypatch` it may be used within a property."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
