"""A cluster in memory: what a source tells, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from queue import SimpleQueue

from cni_plugin.sources import Announcement, Change, Member, Readiness, SourceError


def member(name: str, addresses: str, pod_cidrs: str, since: str = "", **fields: object) -> Member:
    """Addresses and subnets separated by blanks."""
    return Member(
        name,
        tuple(map(ip_address, addresses.split())),
        tuple(map(ip_network, pod_cidrs.split())),
        since or name,
        **fields,  # type: ignore[arg-type]
    )


class FakeSource:
    """`tell` is the cluster's side. With `broken`, nothing can be told to the cluster."""

    def __init__(self) -> None:
        self._changes: SimpleQueue[Change | None] = SimpleQueue()
        self.announced: list[Announcement] = []
        self.states: list[Readiness] = []
        self.reports: list[tuple[str, str, str]] = []
        self.broken = ""
        self.following = False

    def tell(self, *changes: Change) -> None:
        for change in changes:
            self._changes.put(change)

    def follow(self, tell: Callable[[Change], None]) -> None:
        self.following = True
        while (change := self._changes.get()) is not None:
            tell(change)
        self.following = False

    def stop(self) -> None:
        self._changes.put(None)

    def announce(self, own: Announcement) -> None:
        self._refuse()
        if self.announced[-1:] != [own]:
            self.announced.append(own)

    def say_ready(self, state: Readiness) -> None:
        self._refuse()
        if self.states[-1:] != [state]:
            self.states.append(state)

    def report(self, name: str, reason: str, message: str) -> None:
        self._refuse()
        self.reports.append((name, reason, message))

    def _refuse(self) -> None:
        if self.broken:
            raise SourceError(self.broken)
