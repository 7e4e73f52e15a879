"""What etcd tells of keys that change: a stream of JSON objects, one in a line."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
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

    def batches(self, revision: int) -> Iterator[tuple[int, tuple[Event, ...]]]:
        """The revision that was seen, and what came with it; what came after `revision`.

        Raises CompactedError, UnreachableError when the connection went, EtcdError.
        """
        while True:
            answer = self._next()
            header = messages.whole(messages.child(answer, "header"), "revision")
            if answer.get("canceled"):
                raise messages.cancelled(answer)
            if answer.get("created") and header < revision:  # another etcd, or one restored
                raise CompactedError(f"etcd is at revision {header}, which is before {revision}")
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


def reason(e: BaseException) -> str:
    """Why a connection failed, in words."""
    if isinstance(e, socket.gaierror):
        return f"its name can't be resolved: {e.strerror}"
    return (e.strerror if isinstance(e, OSError) and e.strerror else str(e)) or type(e).__name__
