"""A resident agent on a node, the plugin that goes through it, and the wire without a client.

`Agent` starts `podwire agent` in a node's namespace, knows its process, and ends it as an
administrator does (`terminate`) or as a fault does (`kill`). `AgentPlugin` is the plugin whose
calls it serves. `send` and `answer` speak the protocol themselves, for what a client never says.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cni_plugin import wire
from cni_plugin.version import VERSION
from tests.support import netns
from tests.support.faults import HOOK, Ended, Stage
from tests.support.netns import Namespace
from tests.support.plugin import Plugin
from tests.support.topology import Topology

_START_S, _END_S = 60, 60
_ATTEMPTS = 8
_LATE_S, _QUIET_S = 0.5, 0.1  # for what an agent does after its reply: the reaper's part
_OPENED, _CLOSED = 0x20, 0x10  # IN_OPEN, IN_CLOSE_NOWRITE of inotify(7)
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count(1)


class AgentPlugin(Plugin):
    """The plugin, with PODWIRE_SOCKET set; "" as socket makes every call one in process."""

    def __init__(
        self,
        executable: str,
        node: Namespace | None = None,
        cni_path: str | None = None,
        socket: str = "",
    ) -> None:
        super().__init__(executable, node, cni_path)
        self.socket = socket

    def on(self, node: Namespace) -> AgentPlugin:
        return AgentPlugin(self.executable, node, self.cni_path, self.socket)

    def environ(self, command: str, values: Mapping[str, str | None]) -> dict[str, str]:
        path = self.socket or "/proc/nowhere/agent.sock"
        return super().environ(command, {"PODWIRE_SOCKET": path} | dict(values))


class Agent:
    """An agent that listens at <folder>/<name>.sock; its log, as JSON, is <name>.log there.

    `command` are the words that start podwire. With `hooked`, `arm` sets faults at its system
    calls while it runs (faulthook/sitecustomize.py; only where a Python on the machine runs it).
    """

    def __init__(
        self,
        node: Namespace,
        command: str | Sequence[str],
        folder: str,
        name: str = "agent",
        options: Sequence[str] = (),
        hooked: bool = False,
    ) -> None:
        self.node = node
        self.command = [command] if isinstance(command, str) else list(command)
        self.options = options
        self._base = os.path.join(folder, name)
        self.socket = self._base + ".sock"
        self.ready_file = self._base + ".ready"
        self._env = {"PYTHONPATH": HOOK, "PODWIRE_FAULT_FILE": self._base + ".fault"}
        if not hooked:
            self._env = {}
        self.process: subprocess.Popen | None = None
        self._watch = -1
        self._passed = 0

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> Agent:
        """Start it, and wait until its readiness file names its process."""
        self.launch()
        netns.wait_until(self._is_ready, _START_S, f"agent ready: {self.ready_file}", 0.01)
        return self

    def launch(self) -> None:
        """Start it and do not wait."""
        argv = [*self.command, "agent", "--socket", self.socket]
        environ = Plugin(self.command[0]).environ("", {"CNI_COMMAND": None, "CNI_PATH": None})
        with open(self._base + ".log", "ab") as log, self.node.entered():
            self.process = subprocess.Popen(
                [*argv, "--log-format=json", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ | self._env,
            )

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended: {self.text()}"
        try:
            with open(self.ready_file) as f:
                return f.read() == f"{self.process.pid}\n"
        except FileNotFoundError:
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = _END_S) -> int:
        """Its exit status, negative for a signal."""
        assert self.process is not None
        return self.process.wait(timeout)

    def terminate(self) -> None:
        """SIGTERM: it finishes what has begun, ends with 0, and leaves nothing but its log."""
        self.signal(signal.SIGTERM)
        status = self.wait()
        assert status == 0, f"exit {status} after SIGTERM\n{self.text()}"
        assert self.files() == []

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def close(self) -> None:
        """End it whatever it does; for clearing up."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._watch_fault("")

    def lives(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    # --- looking -------------------------------------------------------------------------------

    def files(self) -> list[str]:
        """The names of what it has made beside its log: socket, lock, readiness."""
        kept = (self._base + ".log", self._base + ".fault", self._base + ".points")
        return sorted(os.path.basename(p) for p in glob.glob(self._base + ".*") if p not in kept)

    def text(self) -> str:
        """Its log as it is."""
        with open(self._base + ".log") as f:
            return f.read()

    def log(self, msg: str = "") -> list[dict[str, Any]]:
        """The records of its log, with `msg` only those; a line that is no record fails."""
        records = [json.loads(line) for line in self.text().splitlines()]
        return [record for record in records if msg in ("", record["msg"])]

    def served(self) -> list[tuple[str, str]]:
        """(command, outcome) of each call, in the order in which they ended."""
        return [(r.get("command", ""), r["outcome"]) for r in self.log("served")]

    def resources(self) -> dict[str, int]:
        """Its descriptors, threads, and resident memory in KiB."""
        base = f"/proc/{self.pid}"
        with open(f"{base}/status") as f:
            status = dict(line.split(":", 1) for line in f)
        return {
            "fds": len(os.listdir(f"{base}/fd")),
            "threads": int(status["Threads"]),
            "rss": int(status["VmRSS"].split()[0]),
        }

    def plugin(self, executable: str = "", cni_path: str | None = None) -> AgentPlugin:
        """The plugin on the same node, served by this agent."""
        return AgentPlugin(executable or self.command[0], self.node, cni_path, self.socket)

    # --- faults --------------------------------------------------------------------------------

    def arm(self, fault: str) -> None:
        """From now on its points count from 1; `fault` as in PODWIRE_FAULT, "" for none."""
        path = self._env["PODWIRE_FAULT_FILE"]
        with open(path + ".new", "w") as f:
            f.write(f"{fault}:{next(_serial)}" if fault else "")
        self._watch_fault(path + ".new" if fault else "")
        os.rename(path + ".new", path)

    def _watch_fault(self, path: str) -> None:
        if self._watch >= 0:
            os.close(self._watch)
        self._watch, self._passed = -1, 0
        if path:
            self._watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            watched = _libc.inotify_add_watch(self._watch, path.encode(), _OPENED | _CLOSED)
            assert watched >= 0, os.strerror(ctypes.get_errno())

    def reached(self) -> int:
        """How many points have been passed since `arm` set a fault: each opens its file once. The
        events of closing keep the kernel from making one event of two (inotify(7))."""
        events = b""
        while True:
            try:
                events += os.read(self._watch, 65536)
            except BlockingIOError:
                break
        opened = (mask & _OPENED != 0 for _, mask, _, _ in struct.iter_unpack("iIII", events))
        self._passed += sum(opened)
        return self._passed

    def points(self) -> list[str]:
        """What has been passed since `arm("log:0")`, once nothing more comes; disarms."""
        before = -1
        while before != (before := self.reached()):
            time.sleep(_QUIET_S)
        self.arm("")
        path = self._base + ".points"
        with open(path) as f:
            names = f.read().splitlines()
        os.unlink(path)
        return names


class AgentStage(Stage):
    """A stage with an agent, which has not been started: `plugin` goes through it, `alone` never
    does, and serves its calls in process. `client` is the executable of the former."""

    def __init__(
        self,
        topology: Topology,
        executable: str,
        folder: str,
        name: str = "a",
        command: str | Sequence[str] = "",
        hooked: bool = True,
        client: str = "",
        **keys: Any,
    ) -> None:
        super().__init__(topology, executable, folder, name, **keys)
        self.agent = Agent(self.node, command or executable, folder, f"agent-{name}", (), hooked)
        self.alone = AgentPlugin(executable, self.node)
        self.plugin = self.agent.plugin(client or executable)

    def points(self, command: str) -> list[str]:
        """The names of the points that the agent passes for this call, in order."""
        self.agent.arm("log:0")
        done = self.run_out(command)
        names = self.agent.points()
        assert done.rc == 0, done
        return names

    def fewest_points(self, command: str) -> list[str]:
        """The shortest of five such lists: a call may read once more what the one before it has
        left in a netlink socket. Nothing is attached before and after."""
        found = []
        for _ in range(5):
            if command == "DEL":
                assert self.run_out("ADD").rc == 0
            found.append(self.points(command))
            assert self.run_out("DEL").rc == 0
        return min(found, key=len)

    def run_out(self, command: str) -> Ended:
        """One call with all that the agent does about it after its reply: then it writes its log,
        unless it has died."""
        before = self.agent.text().count("\n")
        ended = self.run(command)

        def over() -> bool:
            return not self.agent.lives() or self.agent.text().count("\n") > before

        netns.wait_until(over, 30, f"the end of {command} in the agent", 0.002)
        return ended

    def struck(self, command: str, fault: str, before: Callable[[], object]) -> Ended:
        """`before()`, and then a call that meets the fault. AssertionError: the fault never fired.

        The reaper's last points come after the reply, and are waited for. A call may read from a
        netlink socket once more or less than another one did, so that the last points may be out
        of reach: it is deleted and made again a few times.
        """
        for _ in range(_ATTEMPTS):
            before()
            self.agent.arm(fault)
            ended = self.run_out(command)
            fired = self._fires(fault)
            self.agent.arm("")
            if fired:
                return ended
            self.run_out("DEL")
        raise AssertionError(f"the fault never fired: {fault}: {ended}")

    def _fires(self, fault: str) -> bool:
        """Whether the fault that is set has fired, or does so in a moment."""
        action, _, number = fault.partition(":")

        def fired() -> bool:
            if action.startswith("kill"):
                return not self.agent.lives()
            return self.agent.reached() >= int(number)

        with contextlib.suppress(AssertionError):
            netns.wait_until(fired, _LATE_S, pause=0.002)
            return True
        return False


# --- the wire without a client --------------------------------------------------------------------


def connect(path: str, timeout: float = 30) -> socket.socket:
    """Connected to the agent's socket; the caller closes it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    connection.connect(path)
    return connection


def request(
    environ: Mapping[str, str],
    stdin: bytes,
    home: str,
    netns_errno: int = 0,
    version: str = VERSION,
) -> bytes:
    """A whole request; `home` is the path of the namespace in which the caller is said to be."""
    entries = b"".join(f"{name}={value}".encode() + b"\0" for name, value in environ.items())
    return wire.request(False, netns_errno, os.stat(home).st_ino, version, entries, stdin)


def send(connection: socket.socket, data: bytes, *passed: int) -> None:
    """All of `data`; with its first byte go the descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(passed)}i", *passed))]
    sent = connection.sendmsg([data], rights if passed else [])
    if sent < len(data):
        connection.sendall(data[sent:])


def answer(connection: socket.socket) -> tuple[int, int, bytes] | None:
    """(verdict, exit status, body); None when the agent closed without a reply."""
    data = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return None
        if not part:
            return None
        data = (data + part).lstrip(wire.HEARTBEAT)
        if len(data) >= wire.REPLY_BYTES:
            verdict, status, size = wire.reply_header(data[: wire.REPLY_BYTES])
            if len(data) >= wire.REPLY_BYTES + size:
                return verdict, status, data[wire.REPLY_BYTES : wire.REPLY_BYTES + size]


def ask(
    agent: Agent, environ: Mapping[str, str], conf: Mapping[str, Any]
) -> tuple[int, int, bytes] | None:
    """One whole call without a client's process, its result confirmed."""
    with connect(agent.socket) as connection:
        fds = [os.open(p, os.O_PATH) for p in (environ.get("CNI_NETNS"),) if p]
        try:
            data = request(environ, json.dumps(conf).encode(), agent.node.path)
            send(connection, data, *fds)
        finally:
            for fd in fds:
                os.close(fd)
        got = answer(connection)
        if got is not None and got[1] == 0 and got[2]:
            connection.sendall(wire.CONFIRMATION)
        return got
