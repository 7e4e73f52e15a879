"""What etcd tells of keys that change: a stream of JSON objects, one in a line."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from threading import Event as Flag
from threading import Lock
from typing import Any

from cni_plugin.sources import etcd_messages as messages
from cni_plugin.sources.etcd_connection import Connection, Open
from cni_plugin.sources.etcd_messages import CompactedError, Event, UnreachableError


class Watch:
    """Events as they come. Only one thread reads; any may break it off."""

    def __init__(
        self,
        made: Connection,
        response: http.client.HTTPResponse,
        opened: Open,
        lives: Callable[[], bool],
    ) -> None:
        """`lives` asks the endpoint that it comes from for something, by another connection:
        whether it answers in time. Any thread may call it."""
        self._socket = made.sock
        self._response = response
        self._opened = opened
        self.lives = lives

    def break_off(self) -> None:
        """The reader gets UnreachableError, now or at its next read."""
        if self._socket is not None:
            self._opened.shut(self._socket)

    def batches(self, revision: int, cluster: int = 0) -> Iterator[tuple[int, tuple[Event, ...]]]:
        """The revision that was seen, and what came with it; what came after `revision` of this
        `cluster`, 0 for any.

        Raises CompactedError, UnreachableError when the connection went, EtcdError.
        """
        while True:
            answer = self._next()
            fields = messages.child(answer, "header")
            header = messages.whole(fields, "revision")
            if answer.get("canceled"):
                raise messages.cancelled(answer)
            if answer.get("created") and header < revision:  # another etcd, or one restored
                raise CompactedError(f"etcd is at revision {header}, which is before {revision}")
            if cluster not in (0, found := messages.whole(fields, "cluster_id")):
                raise CompactedError(f"it is another etcd cluster, {found:x} and not {cluster:x}")
            events = messages.events(answer)
            # The header's is etcd's own, and may be ahead of what this watch has got.
            if events:
                revision = events[-1].kv.mod_revision
            elif not answer.get("created"):
                revision = max(revision, header)
            yield revision, events

    def _next(self) -> dict[str, Any]:
        try:
            line = self._response.readline()
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise UnreachableError(f"the watch broke: {reason(e)}") from e
        if not line:
            raise UnreachableError("etcd ended the watch")
        answer = messages.decoded(line)
        if "error" in answer:
            raise messages.refusal(messages.child(answer, "error"))
        return messages.child(answer, "result")


class Attended:
    """The watch that one thread reads, and that others break off so that it looks at all anew."""

    def __init__(self, ended: Flag) -> None:
        self.lock = Lock()
        self._ended = ended
        self._watch: Watch | None = None
        self._look_again = False

    def begin(self) -> None:
        """Whatever was to be looked at is looked at from here on."""
        with self.lock:
            self._look_again = False

    def take(self, watch: Watch | None) -> bool:
        """Let other threads break this watch off; False when they already would have."""
        with self.lock:
            self._watch = watch
            return not self._look_again and not self._ended.is_set()

    def has_to_look(self) -> bool:
        with self.lock:
            return self._look_again

    def break_off(self) -> None:
        with self.lock:
            self._look_again = True
            if self._watch is not None:
                self._watch.break_off()

    def feel_pulse(self) -> None:
        """Where the watch's member does not answer, another has to be found."""
        with self.lock:
            watch = self._watch
        if watch is not None and not watch.lives():
            watch.break_off()


def reason(e: BaseException) -> str:
    """Why a connection failed, in words."""
    if isinstance(e, socket.gaierror):
        return f"its name can't be resolved: {e.strerror}"
    return (e.strerror if isinstance(e, OSError) and e.strerror else str(e)) or type(e).__name__
