"""The Kubernetes API as a source: Nodes are the members.

One list, then one watch that goes on where the list ended; when the server ends a watch, as it does
after some minutes, or the connection breaks, the next one goes on where that one ended. Only when
the server no longer knows that point (410 Gone) the list is read again. Nothing is asked
repeatedly. A Node's kubelet writes its heartbeat into it: a change is told only when the member
that the Node makes is another one.

What the API server asks of our ServiceAccount: list and watch of nodes, patch of
nodes/status, create of events in the namespace default.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger, getLogger
from threading import Event as Flag
from threading import Lock
from typing import NamedTuple

from cni_plugin.sources import Announcement, Change, Readiness, SourceError, ownends
from cni_plugin.sources.kubenode import annotations_to_change, condition_to_write
from cni_plugin.sources.kubetypes import SERVICE_ACCOUNT, Access, ApiFailure, NodeApi
from cni_plugin.sources.kubeview import Own, View

_SHORTEST, _LONGEST = 0.5, 30.0  # seconds between two attempts
_LIVED = 5.0  # seconds after which a watch that ended was no failure
_EVENT_SECONDS = 3600.0  # the same words about the same node are told once in that time
_EVENT_NAMESPACE = "default"  # where Events about things without a namespace are
_NAME_ROOM = 220  # characters of a node's name in an Event's, which may have 253


class Options(NamedTuple):
    """`node_name`: this node. `api_server`: its URL, "" for the kubeconfig's or the Service's.
    `kubeconfig`: "" for the ServiceAccount whose token and CA are in the folder `account`."""

    node_name: str
    api_server: str = ""
    kubeconfig: str = ""
    account: str = SERVICE_ACCOUNT


def access(options: Options) -> Access:
    """How to reach the API; without other words, by the Service that every pod is told of."""
    server = options.api_server
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    if not server and not options.kubeconfig and host:
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(server, options.kubeconfig, options.account)


class KubernetesSource:
    """Implements `Source`. `connect` makes a client, `now` is the time of day in seconds."""

    def __init__(
        self,
        options: Options,
        connect: Callable[[], NodeApi] | None = None,
        now: Callable[[], float] = time.time,
        logger: Logger | None = None,
    ) -> None:
        self._log = logger or getLogger(__name__)
        self._node_name = options.node_name
        self._connect = connect or (lambda: _client(access(options)))
        self._now = now
        self._stopped = Flag()
        self._own = Own(options.node_name)
        self._following = _Connection(self._connect, self._stopped)
        self._telling = _Connection(self._connect, self._stopped)
        self._telling_lock = Lock()
        self._reported = _Reported(now)

    # --- following -----------------------------------------------------------------------------

    def follow(self, tell: Callable[[Change], None]) -> None:
        """See `Source`."""
        with ownends.heeded(self._lose, self._log):
            self._follow(View(tell, self._own))
        self._following.drop()

    def _follow(self, view: View) -> None:
        failures, again = 0, False
        while not self._stopped.is_set():
            started = time.monotonic()
            gone = self._hear(view)
            lived = time.monotonic() - started > _LIVED
            if view.take_heard() or lived:
                failures = 0
            if gone and not again:  # it answers, and what came meanwhile is not heard yet
                failures = 1
            else:
                self._stopped.wait(pause(failures))
                failures += 1
            again = gone

    def _hear(self, view: View) -> bool:
        """The list when it is needed, then one watch to its end: whether the list must be read
        again."""
        try:
            api = self._following.api()
            if not view.version:
                view.read_list(api)
            for event in api.watch(view.version, view.opened):
                view.apply(event)
        except ApiFailure as failure:
            if failure.gone:
                view.version = ""
                return True
            if not self._stopped.is_set():
                view.tell_away(str(failure))
            self._following.drop()
        return False

    def _lose(self, address: str) -> None:
        self._following.lose(address)
        self._telling.lose(address)

    def stop(self) -> None:
        """See `Source`."""
        self._stopped.set()
        self._following.interrupt()
        self._telling.interrupt()

    # --- telling -------------------------------------------------------------------------------

    def announce(self, own: Announcement) -> None:
        """See `Source`: patches the annotations of the own Node that differ.

        They are written through its status: who may patch a Node itself may cordon and taint it.
        """
        with self._telling_to() as api:
            changes = annotations_to_change(self._own.known(), own)
            if changes:
                patch = {"metadata": {"annotations": changes}}
                self._own.note(api().patch_status(self._node_name, patch))

    def say_ready(self, state: Readiness) -> None:
        """See `Source`: patches the condition NetworkUnavailable of the own Node if it differs."""
        with self._telling_to() as api:
            condition = condition_to_write(self._own.known(), state, _rfc3339(self._now()))
            if condition:
                patch = {"status": {"conditions": [condition]}}
                self._own.note(api().patch_status(self._node_name, patch))

    def report(self, name: str, reason: str, message: str) -> None:
        """See `Source`: an Event on the Node, at most one an hour of the same words."""
        with self._telling_to() as api:
            said = self._reported.due((name, reason, message))
            if said is not None:
                api().create_event(self._event(name, reason, message, said))
                self._reported.done((name, reason, message))

    @contextmanager
    def _telling_to(self) -> Iterator[Callable[[], NodeApi]]:
        with self._telling_lock:
            try:
                yield self._telling.api
            except ApiFailure as e:
                self._telling.drop()
                raise SourceError(str(e)) from e

    def _event(self, name: str, reason: str, message: str, said: _Said) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{name[:_NAME_ROOM].rstrip('.-')}.{uuid.uuid4().hex[:16]}",
                "namespace": _EVENT_NAMESPACE,
            },
            # A kubelet has the name in `uid` too, and `kubectl describe node` looks for that.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": name, "uid": name},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "count": said.times,
            "firstTimestamp": _rfc3339(said.first),
            "lastTimestamp": _rfc3339(self._now()),
            "source": {"component": "podwire", "host": self._node_name},
        }


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, and no two nodes alike."""
    longest = min(_LONGEST, _SHORTEST * 2 ** min(failures + 1, 16))
    return random.uniform(max(_SHORTEST, longest / 2), longest)  # noqa: S311 - to spread


def _client(access: Access) -> NodeApi:
    from cni_plugin.sources.kubeapi import Api

    return Api(access)


def _rfc3339(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


class _Connection:
    """A client that is made when it is needed, and anew after a failure: the CA or the kubeconfig
    may be others by then."""

    def __init__(self, connect: Callable[[], NodeApi], stopped: Flag) -> None:
        self._connect, self._stopped = connect, stopped
        self._lock = Lock()
        self._api: NodeApi | None = None

    def api(self) -> NodeApi:
        with self._lock:
            if self._api is None:
                self._api = self._connect()
            if self._stopped.is_set():
                self._api.interrupt()
            return self._api

    def interrupt(self) -> None:
        with self._lock:
            if self._api is not None:
                self._api.interrupt()

    def lose(self, address: str) -> None:
        with self._lock:
            if self._api is not None:
                self._api.lose(address)

    def drop(self) -> None:
        with self._lock:
            if self._api is not None:
                self._api.close()
            self._api = None


class _Said(NamedTuple):
    """Said `times` times since `first`, the last Event `at`; moments in seconds."""

    times: int
    first: float
    at: float


class _Reported:
    """What was reported, so that it is not repeated within the hour but counted."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._said: dict[tuple[str, str, str], _Said] = {}

    def due(self, words: tuple[str, str, str]) -> _Said | None:
        """How often it was said since the last Event, with this time; None when that is recent."""
        now = self._now()
        said = self._said.get(words)
        if said is None or now - said.at >= 2 * _EVENT_SECONDS:
            return _Said(1, now, now)
        counted = said._replace(times=said.times + 1, first=said.first if said.times else now)
        if now - said.at >= _EVENT_SECONDS:
            return counted
        self._said[words] = counted
        return None

    def done(self, words: tuple[str, str, str]) -> None:
        """An Event was made of it; what was said too long ago is forgotten."""
        now = self._now()
        self._said[words] = _Said(0, now, now)
        old = [k for k, said in self._said.items() if now - said.at >= 2 * _EVENT_SECONDS]
        for key in old:
            del self._said[key]
