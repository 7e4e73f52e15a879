"""When the upkeep looks: soon after a change, not amid a burst, and now and then anyway.

Pure; times are seconds of one clock.
"""

from __future__ import annotations

QUIET_S = 0.03  # nothing more has happened for so long
LONGEST_S = 0.3  # what never gets quiet is looked at all the same
PERIOD_S = 30.0
PERIOD = "every half minute"
_FIRST_RETRY_S = 1.0
_FREE = 4  # looks in a row that repair or fail before each waits longer than the one before
_FIRST_GAP_S = 0.1


class Schedule:
    """Reasons to look come in by `note`; `take` gives them when it is time."""

    def __init__(self, now: float) -> None:
        self._reasons: dict[str, None] = {"start": None}
        self._first = self._last = now - LONGEST_S
        self._next = now + PERIOD_S
        self._not_before = now
        self._retry_s = 0.0
        self._restless = 0

    def note(self, reason: str, now: float) -> None:
        """Something has happened."""
        if not self._reasons:
            self._first = now
        self._last = now
        self._reasons[reason] = None

    def due(self) -> float:
        """When to look next, if nothing more happens until then."""
        if not self._reasons:
            return self._next
        wanted = min(self._last + QUIET_S, self._first + LONGEST_S)
        return max(min(wanted, self._next), self._not_before)

    def take(self, now: float) -> tuple[str, ...]:
        """Why to look now; () when it is not time. The reasons are forgotten with it."""
        if now < self.due():
            return ()
        if now >= self._next:
            self._reasons.setdefault("again" if self._retry_s else PERIOD)
        found = tuple(self._reasons)
        self._reasons = {}
        return found

    def looked(self, now: float, repaired: bool, failed: bool) -> None:
        """A look has ended.

        One that failed is repeated after a time that doubles. Looks that repair, or fail, time and
        again are held apart: somebody takes away what we put there, or our own attempt is the
        change that we hear of.
        """
        self._retry_s = min(max(2 * self._retry_s, _FIRST_RETRY_S), PERIOD_S) if failed else 0.0
        self._next = now + (self._retry_s or PERIOD_S)
        self._restless = self._restless + 1 if repaired or failed else 0
        gap = _FIRST_GAP_S * 2 ** min(self._restless - _FREE, 10) if self._restless > _FREE else 0
        self._not_before = now + min(gap, PERIOD_S)
