"""Waiting for a lock that other processes hold for milliseconds.

A blocked flock(2) can't be given up, so whoever wants one asks for it again and again.
"""

from __future__ import annotations

from time import monotonic, sleep

from cni_plugin import waiting
from cni_plugin.spec import CniError, Code

_FIRST_PAUSE_S = 0.0002


class LockWait:
    """The wait of one caller for the lock file at `path`, `patience` seconds at most.

    From one try to the next pauses grow, up to `longest_pause` seconds.
    """

    def __init__(self, path: str, patience: float, longest_pause: float = 0.01) -> None:
        self._path = path
        self._deadline = monotonic() + patience
        self._pause = _FIRST_PAUSE_S
        self._longest_pause = longest_pause

    def pause(self) -> None:
        """Between two tries. Raises CniError 11 when there has been time enough."""
        waiting.begins()
        if monotonic() >= self._deadline:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"{self._path}: another process holds this lock",
                "it is held for milliseconds only: see who has it (fuser), and why it hangs",
            )
        sleep(self._pause)
        self._pause = min(self._pause * 1.5, self._longest_pause)
