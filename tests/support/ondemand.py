"""The agents that calls on a `Machine` have started on demand, looked at from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal

from tests.support import netns
from tests.support.machine import Machine

FOLDER = "/run/podwire"
SOCKET = f"{FOLDER}/agent.sock"
START_S, END_S = 60, 30


class Agents:
    """`folder` is where the socket is, as the machine sees it."""

    def __init__(self, machine: Machine, folder: str = FOLDER) -> None:
        self._machine = machine
        self._root = f"/proc/{machine.pid}/root"
        self._folder = self._root + folder

    # --- which there are -----------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Every agent of the machine that lives, also one that has not got ready."""
        return [pid for pid in self._processes() if b"--lock-fd" in _read(pid, "cmdline")]

    def zombies(self) -> list[int]:
        """Every process of the machine that has ended and whose parent has not noticed."""
        return [pid for pid in self._processes() if status(pid).get("State", "")[:1] == "Z"]

    def _processes(self) -> list[int]:
        found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        mine = _namespace(self._machine.pid)
        return [pid for pid in found if _namespace(pid) == mine]

    def one(self) -> int:
        """The only agent there is, once it serves."""
        netns.wait_until(self._is_ready, START_S, f"an agent in {self._folder}", 0.01)
        (pid,) = self.pids()
        return pid

    def _is_ready(self) -> bool:
        ready = self.text("agent.ready")
        return any(f"{status(pid)['NSpid'].split()[-1]}\n" == ready for pid in self.pids())

    # --- their files -----------------------------------------------------------------------------

    def files(self) -> list[str]:
        """What an agent has made there. The executable's runtimes, and what a node remembers, are
        in the same folder."""
        names = os.listdir(self._folder) if os.path.isdir(self._folder) else []
        return sorted(name for name in names if not name.startswith(("runtime", "node-")))

    def text(self, name: str) -> str:
        try:
            with open(os.path.join(self._folder, name)) as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def log(self, msg: str) -> list[dict[str, str]]:
        """The lines of the log with this message, field by field."""
        lines = self.text("agent.log").splitlines()
        records = [dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line)) for line in lines]
        return [record for record in records if record["msg"] == msg]

    def served(self, *wanted: str, outcome: str = "ok") -> None:
        """Assert which calls ended so; STATUS, which runtimes call when they like, not counted.

        The agent replies before it writes its log: lines come late, and not always in order.
        """

        def seen() -> list[str]:
            ended = [record for record in self.log("served") if record["outcome"] == outcome]
            return [record["command"] for record in ended if record["command"] != "STATUS"]

        with contextlib.suppress(AssertionError):
            netns.wait_until(lambda: len(seen()) >= len(wanted), 15, pause=0.01)
        assert sorted(seen()) == sorted(wanted), self.text("agent.log")

    # --- the end ---------------------------------------------------------------------------------

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send the only agent a signal, and wait until nothing of it is in the process table."""
        pid = self.one()
        os.kill(pid, number)
        self.wait_for_end()

    def wait_for_end(self) -> None:
        netns.wait_until(lambda: not self.pids(), END_S, "the end of the agent", 0.01)
        netns.wait_until(lambda: not self.zombies(), 2, "somebody who notices its end", 0.01)


# --- one process ---------------------------------------------------------------------------------


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, empty for a process that has gone."""
    lines = _read(pid, "status").decode().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def terminal(pid: int) -> int:
    """The number of the controlling terminal, 0 for none: proc(5), field 7 of stat."""
    return int(_read(pid, "stat").rpartition(b")")[2].split()[4])


def environ(pid: int) -> dict[str, str]:
    entries = _read(pid, "environ").decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def cgroups(pid: int) -> str:
    return _read(pid, "cgroup").decode()


def descriptors(pid: int) -> dict[int, str]:
    """What each descriptor is open on, as the kernel shows it."""
    folder = f"/proc/{pid}/fd"
    return {int(name): os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)}


def foreign(pid: int) -> list[str]:
    """What an agent's descriptors are open on that is not its own."""
    opened = list(descriptors(pid).values())
    procfs = "/"  # one of its own, mounted nowhere
    # Both ends of the bells that wake its threads; of a pipe of the caller's it would have one.
    own = {procfs, "/dev/null", *(t for t in opened if t[:5] == "pipe:" and opened.count(t) == 2)}
    return [
        target
        for target in opened
        if target not in own and not target.startswith(("socket:", f"{FOLDER}/"))
    ]


def signals(pid: int, name: str) -> set[int]:
    """The signals of a mask of /proc/PID/status (SigIgn, SigBlk, ...) but those of the C library
    (32 and 33)."""
    mask = int(status(pid)[name], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1} - {32, 33}


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as f:
            return f.read()
    except OSError:
        return b""
