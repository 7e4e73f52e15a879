"""Programs that a test has started and that end with it, also when its run is killed."""

from __future__ import annotations

import os
import subprocess

from tests.support.netns import Namespace


class Programs:
    """Each has a name, which its log has too: NAME.log in the folder, over all its starts.

    They run in `place`, or where the run is.
    """

    def __init__(self, folder: str, place: Namespace | None) -> None:
        self._folder, self._place = folder, place
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def prefix(self) -> list[str]:
        """The words before a command that make it run in the same place."""
        return self._place.prefix() if self._place else []

    def start(self, name: str, program: str, *options: str) -> None:
        """Start it and do not wait."""
        with open(os.path.join(self._folder, f"{name}.log"), "ab") as log:
            self._running[name] = subprocess.Popen(
                # The signal reaches it too when the run is killed.
                ["setpriv", "--pdeathsig=KILL", *self.prefix(), program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )

    def kill(self, name: str) -> None:
        """End it at once."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        """Those that run, the last first."""
        for name in reversed(list(self._running)):
            self.kill(name)

    # --- looking -------------------------------------------------------------------------------

    def check(self, name: str) -> None:
        """Raises AssertionError, with the end of its log, when it has ended."""
        if self._running[name].poll() is not None:
            raise AssertionError(f"{name} ended:\n{self.log(name)[-3000:]}")

    def log(self, name: str) -> str:
        """What it has printed."""
        with open(os.path.join(self._folder, f"{name}.log"), errors="replace") as file:
            return file.read()

    def resident(self, name: str) -> int:
        """Its memory, in KiB."""
        with open(f"/proc/{self._running[name].pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

    def cpu_seconds(self, name: str) -> float:
        """What it has computed since its start."""
        with open(f"/proc/{self._running[name].pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
