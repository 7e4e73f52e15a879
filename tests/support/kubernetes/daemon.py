"""A daemon on a `Machine`, with its own process known: it is ended and started again by tests."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping

from tests.support import netns
from tests.support.machine import Machine


class Daemon:
    """`name`.log of the machine's folder has what it prints, over all its starts."""

    def __init__(
        self, machine: Machine, name: str, *argv: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._machine, self._argv = machine, argv
        self._env = None if env is None else dict(env)
        self._entry: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start it and do not wait."""
        self._entry = self._machine.start(*self._argv, log=f"{self.name}.log", env=self._env)
        self.starts += 1

    @property
    def pid(self) -> int:
        """Its process, as the test run sees it; not nsenter's, which waits for it."""
        entry = self._entry
        assert entry is not None, f"{self.name} was not started"

        def inner() -> int:
            if entry.poll() is not None:
                raise AssertionError(f"{self.name} ended:\n{self.log()}")
            with open(f"/proc/{entry.pid}/task/{entry.pid}/children") as file:
                children = file.read().split()
            return int(children[0]) if children else 0

        found = netns.wait_until(inner, 30, f"the process of {self.name}")
        assert isinstance(found, int)
        return found

    def lives(self) -> bool:
        return self._entry is not None and self._entry.poll() is None

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> None:
        """End it with a signal, and wait for that; nothing when it does not run."""
        if not self.lives():
            return
        assert self._entry is not None
        os.kill(self.pid, number)
        self._entry.wait(seconds)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def log(self, characters: int = 4000) -> str:
        """The end of its log."""
        return self._machine.read(f"{self.name}.log")[-characters:]
