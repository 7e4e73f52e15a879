"""Parts of an agent without a node: one worker on a socket pair, a server in this process.

The commands themselves are replaced by a function of the test's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cni_plugin import wire
from cni_plugin.agent.connection import Connection
from cni_plugin.agent.listener import Listener
from cni_plugin.agent.server import Options, Server
from cni_plugin.agent.worker import Turns, Worker
from cni_plugin.fabric import Memory
from cni_plugin.node import Node
from cni_plugin.spec import Request
from tests.support import agent as wires

HOME = "/proc/self/ns/net"
CONF = b'{"cniVersion": "1.0.0", "name": "podnet", "type": "podwire"}'
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/pod",
}
Run = Callable[[Request, Node], bytes]
Answer = tuple[int, int, bytes] | None


def request(environ: Mapping[str, str] = ENVIRON, stdin: bytes = CONF, **more: Any) -> bytes:
    """A whole request as bytes; keywords as of `tests.support.agent.request`."""
    return wires.request(environ, stdin, **{"home": HOME, **more})


def no_one() -> None:
    """Nobody else is there to take the lead."""


class Log(logging.Handler):
    """A logger whose records are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.logger = logging.Logger("test")
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def fields(self, msg: str) -> list[dict[str, Any]]:
        """The fields of the records with this text."""
        return [getattr(r, "fields", {}) for r in self.records if r.getMessage() == msg]


class Desk:
    """One worker, to which clients come by socket pairs."""

    def __init__(self) -> None:
        self.log = Log()
        self.busy: dict[Connection, float] = {}
        home = os.stat(HOME).st_ino
        self.removed: list[str] = []
        self.worker = Worker(
            home, Turns(), self.removed.append, self.busy, Memory(), self.log.logger
        )

    def serve(
        self, data: bytes, *passed: int, hang_up: bool = False, confirm: bool = False
    ) -> Answer:
        """What the worker answers to this client, and what it raised is raised.

        `hang_up`: it ends without waiting for a reply; `confirm`: it has delivered the reply.
        """
        ours, theirs = socket.socketpair()
        with ThreadPoolExecutor(1) as pool, ours:
            serving = pool.submit(self.worker.serve, theirs, no_one)
            ours.settimeout(10)
            with contextlib.suppress(BrokenPipeError):  # what is no request is not read to its end
                if data:
                    wires.send(ours, data, *passed)
                if hang_up:
                    ours.shutdown(socket.SHUT_WR)
            answer = wires.answer(ours)
            if confirm:
                ours.sendall(wire.CONFIRMATION)
            ours.close()
            serving.result(10)
        assert self.busy == {}
        return answer


class Office:
    """A server at `path`, in threads of this process."""

    def __init__(self, path: str, options: Options) -> None:
        self.log = Log()
        self.withdrawn: list[float] = []
        self.listener = Listener(path)
        self.server = Server(self.listener, self.log.logger, options)
        self.server.start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.server.run(lambda: self.withdrawn.append(time.monotonic()))

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, timeout: float = 20) -> None:
        """Until it has ended."""
        self._thread.join(timeout)
        assert not self.running

    def close(self) -> None:
        self.server.stop()
        self.wait()
        self.listener.withdraw()
        self.listener.close()

    def client(self, data: bytes = b"", *passed: int) -> socket.socket:
        """A client that has said this."""
        connection = wires.connect(self.listener.path)
        if data:
            wires.send(connection, data, *passed)
        return connection

    def call(self, data: bytes, *passed: int) -> Answer:
        with self.client(data, *passed) as connection:
            return wires.answer(connection)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@contextlib.contextmanager
def kinds_of_files(folder: Path) -> Iterator[dict[str, int]]:
    """O_PATH descriptors of everything that a client may pass and that is no sandbox."""
    (folder / "file").touch()
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to("file")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket"))
    paths = {name: str(folder / name) for name in ("file", "fifo", "socket", "link")}
    paths |= {
        "folder": str(folder),
        "device": "/dev/null",
        "terminal": "/dev/ptmx",
        "proc": "/proc/self/status",
        "mount namespace": "/proc/self/ns/mnt",
        "user namespace": "/proc/self/ns/user",
        "own namespace": HOME,
    }
    opened = {
        name: os.open(path, os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if name == "link" else 0))
        for name, path in paths.items()
    }
    readable, writable = os.pipe()
    opened |= {"pipe": readable, "pipe's end": writable}
    opened["file for reading"] = os.open(paths["file"], os.O_RDWR)
    with socket.socket() as connection:
        opened["TCP socket"] = os.dup(connection.fileno())
    try:
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)
