"""What stands in for an agent and does what it likes with its clients."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from cni_plugin import wire


class FakeAgent:
    """Listens at `path`; `behave` gets each connection, in a thread."""

    def __init__(self, path: str, behave: Callable[[socket.socket], None], backlog: int) -> None:
        self._behave = behave
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(path)
        self._listening.listen(backlog)
        self.connections = 0
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            with suppress(OSError):
                self._behave(connection)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for one in (*self._open, self._listening):
            one.close()


def whole_request(connection: socket.socket) -> None:
    data = b""
    while len(data) < wire.REQUEST_BYTES:
        data += connection.recv(65536)
    _, _, _, *sizes = wire.request_header(data[: wire.REQUEST_BYTES])
    missing = sum(sizes) + wire.REQUEST_BYTES - len(data)
    while missing > 0:
        missing -= len(connection.recv(65536))
