"""What an agent that follows a cluster lets its node know of that, for `podwire status`.

A small file of root's among the node's state, written when something of it changes. A clean end
removes it, and so do a restart of the machine and `podwire uninstall`. One that an agent left which
was killed can be told by its lock (`clusterlock`), which nobody holds then: process numbers say
nothing across containers.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from json import dumps, loads
from logging import Logger
from typing import NamedTuple

from cni_plugin.agent import clusterlock
from cni_plugin.fields import Fields, as_object
from cni_plugin.kernel.statefolder import StateFolder, node_key
from cni_plugin.refusals import Refusal
from cni_plugin.sources import Readiness
from cni_plugin.spec import CniError

STARTING, HEARD, AWAY = "starting", "heard", "away"
_KIND, _NAME = "cluster", "state"
_MOST_REFUSED = 100  # more than people read, and no megabytes where all is wrong
_LAST_MOMENT = 253_402_300_799  # the last second of the year 9999


class About(NamedTuple):
    """Which cluster: `kind` is kubernetes or etcd, `servers` are URLs or the file that names them,
    `lease_until` is when this node's lease would end (seconds since 1970), 0 without one."""

    kind: str = ""
    servers: tuple[str, ...] = ()
    lease_until: int = 0


class ClusterState(NamedTuple):
    """`state` has been so `since` then, in seconds since 1970; `reason` says why it is away.

    `said` is what the cluster is to know of this node, None before the node was looked at; `untold`
    is why the cluster could not be told, "" when it could. Of what is refused, `refused` may be no
    more than the beginning.
    """

    about: About
    node: str
    state: str
    since: int
    reason: str = ""
    said: Readiness | None = None
    refused: tuple[Refusal, ...] = ()
    untold: str = ""


class Notice:
    """The file of the network namespace in which it was made; one thread uses it."""

    def __init__(self, logger: Logger) -> None:
        self._folder = StateFolder(node_key(), _KIND)
        self._logger = logger
        self._shown: ClusterState | None = None
        self._failure = ""

    def show(self, state: ClusterState) -> None:
        """Write it if it is new. What can't be written is logged, and tried again next time."""
        state = state._replace(refused=state.refused[:_MOST_REFUSED])
        if state == self._shown:
            return
        try:
            self._folder.write(_NAME, _encoded(state))
        except CniError as e:
            if e.msg != self._failure:
                fields = {"why": e.msg}
                self._logger.warning("can't note the cluster's state", extra={"fields": fields})
            self._failure = e.msg
            return
        self._shown, self._failure = state, ""

    def withdraw(self) -> None:
        """Nobody follows here any more."""
        with suppress(CniError):  # it was not to be written either; its lock is free
            self._folder.remove(_NAME)
        with suppress(OSError):
            os.rmdir(self._folder.path)


def read() -> ClusterState | None:
    """What is noted in the current network namespace; None when nothing is, or nothing that an
    agent of this version writes. Raises CniError 5, and 110 for who may not know."""
    data = StateFolder(node_key(), _KIND).read(_NAME)
    if data is None:
        return None
    try:
        return _decoded(as_object(loads(data), ""))
    except (CniError, ValueError, RecursionError):
        return None


def is_followed() -> bool | None:
    """Whether an agent follows a cluster in the current network namespace: None where none ever
    did. Raises OSError."""
    return _is_held(clusterlock.namespace_lock())


def is_kept(inventory: str) -> bool | None:
    """Whether an agent writes this inventory, in whatever namespace: None where none ever did.
    Raises OSError."""
    return _is_held(clusterlock.inventory_lock(inventory))


def _is_held(path: str) -> bool | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # two who look don't take each other for one
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _encoded(state: ClusterState) -> bytes:
    document = state._asdict()
    document["about"] = state.about._asdict()
    document["said"] = None if state.said is None else state.said._asdict()
    document["refused"] = [refusal._asdict() for refusal in state.refused]
    return dumps(document).encode()


def _decoded(fields: Fields) -> ClusterState:
    """Raises CniError 7."""
    about, said = fields.child("about"), fields.child("said")
    return ClusterState(
        About(about.text("kind"), about.texts("servers"), _moment(about, "lease_until")),
        fields.text("node"),
        fields.text("state"),
        _moment(fields, "since"),
        fields.text("reason"),
        _readiness(said) if fields.has("said") else None,
        tuple(map(_refusal, fields.children("refused"))),
        fields.text("untold"),
    )


def _moment(fields: Fields, key: str) -> int:
    return fields.integer(key, 0, _LAST_MOMENT) or 0


def _readiness(fields: Fields) -> Readiness:
    return Readiness(fields.flag("ready"), fields.text("reason"), fields.text("message"))


def _refusal(fields: Fields) -> Refusal:
    return Refusal(*(fields.text(key) for key in Refusal._fields))
