"""Where the agent learns which nodes there are: the Kubernetes API, etcd.

A source follows the cluster and reconnects by itself, and tells what it sees as a sequence of
changes. What these mean for this node is decided elsewhere (`membership`): a source knows nothing
of routes, and refuses nothing.

Rules:
- The first change is `Listed`, and so are the first after `Away` and the first after whatever the
  source may have missed.
- What was told stays true until the source tells otherwise: `Away` says only that nothing new can
  be heard now.
- `follow` runs in a thread of the agent's; `announce`, `say_ready` and `report` are called by
  another one. They raise SourceError when the cluster can't be told, and the caller tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from cni_plugin.spec import IPAddress, IPNetwork

INVENTORY = "/var/lib/podwire/nodes.json"  # where an agent keeps what its source tells
LEASE = "/var/lib/podwire/etcd-lease.json"  # and which subnet of etcd's it has leased


class SourceError(Exception):
    """The cluster can't be asked or told: what failed, in words."""


class Member(NamedTuple):
    """A node as the cluster tells of it.

    `addresses`: where other nodes reach it, the one of each family that counts first. `since` sorts
    by when the node came to be (RFC 3339, or a number of the same width); `uid` is another when a
    node of that name was made anew. `overlay_address` and `vtep_mac` are what the node announced of
    its end of the overlay, None and "" before; `backend` is how it reaches others, in its words.
    `problem` says what of it can't be used, "" when all can.
    """

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    since: str = ""
    uid: str = ""
    overlay_address: IPAddress | None = None
    vtep_mac: str = ""
    backend: str = ""
    problem: str = ""


class Listed(NamedTuple):
    """All members there are."""

    members: tuple[Member, ...]


class Put(NamedTuple):
    """A member that is new or has changed."""

    member: Member


class Gone(NamedTuple):
    """A member that is no more."""

    name: str


class Away(NamedTuple):
    """Nothing can be heard of the cluster now: why, in words. Told once for each time."""

    reason: str


Change = Listed | Put | Gone | Away


class Announcement(NamedTuple):
    """What peers need to know of this node; "" and None for what it does not have."""

    vtep_mac: str = ""
    overlay_address: IPAddress | None = None
    backend: str = ""


class Readiness(NamedTuple):
    """Whether pods of this node have a network; `reason` is one word in CamelCase."""

    ready: bool
    reason: str
    message: str


class Source(Protocol):
    """A cluster, as this node sees it."""

    def follow(self, tell: Callable[[Change], None]) -> None:
        """Tell all changes until `stop` is called; returns then, and raises nothing else than a
        mistake of ours."""

    def stop(self) -> None:
        """Make `follow` return soon; any thread may call it."""

    def announce(self, own: Announcement) -> None:
        """Tell the peers. Raises SourceError."""

    def say_ready(self, state: Readiness) -> None:
        """Tell the cluster whether this node can have pods. Raises SourceError."""

    def report(self, name: str, reason: str, message: str) -> None:
        """Tell people of a problem with the node `name`; `reason` is one word in CamelCase.

        Raises SourceError.
        """
