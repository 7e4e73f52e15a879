"""When the API tells what: a watch, and the moments at which its events came."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from threading import Condition, Thread
from time import perf_counter_ns
from typing import Any
from urllib.parse import urlsplit

from bench.measure import CallFailedError

Object = dict[str, Any]
WAIT_S = 120.0


class Stamps:
    """Words that came true, each with the first moment of it, in ns of perf_counter.

    `words` makes them of an event: its type ("ADDED", "MODIFIED", "DELETED") and its object.
    """

    def __init__(self, words: Callable[[str, Object], Iterable[str]]) -> None:
        self._words = words
        self._news = Condition()
        self._at: dict[str, int] = {}
        self._failure = ""
        self.objects: dict[str, Object] = {}  # the last of each name

    def feed(self, lines: Iterable[bytes]) -> None:
        """Take events, a line of JSON each, as long as they come; that they end is a failure."""
        try:
            for line in lines:
                self._take(perf_counter_ns(), json.loads(line))
        except (OSError, HTTPException, ValueError) as e:
            self._fail(f"{type(e).__name__}: {e}")
        else:
            self._fail("the API server ended it")

    def _take(self, at: int, event: Object) -> None:
        if event["type"] == "ERROR":
            raise ValueError(event["object"].get("message", "unknown"))
        with self._news:
            self.objects[event["object"]["metadata"]["name"]] = event["object"]
            for word in self._words(event["type"], event["object"]):
                self._at.setdefault(word, at)
            self._news.notify_all()

    def _fail(self, why: str) -> None:
        with self._news:
            self._failure = why
            self._news.notify_all()

    def wait(self, words: Iterable[str], seconds: float = WAIT_S) -> int:
        """The moment at which the last of these came true.

        Raises CallFailedError when that doesn't happen, or nothing more can be heard of.
        """
        wanted = tuple(words)
        with self._news:
            self._news.wait_for(lambda: self._failure or self._lacking(wanted) == [], seconds)
            if lacking := self._lacking(wanted):
                why = self._failure or f"not within {seconds:g} s"
                raise CallFailedError(f"watch of the API: {', '.join(lacking)}: {why}")
            return max(self._at[word] for word in wanted)

    def _lacking(self, wanted: tuple[str, ...]) -> list[str]:
        return [word for word in wanted if word not in self._at]

    def forget(self) -> None:
        """All words are as if they had never come true."""
        with self._news:
            self._at.clear()


class Watch(Stamps):
    """The events of all objects of `path` from now on, which a thread hears until `close`."""

    def __init__(
        self,
        server: str,
        ca: str,
        token: str,
        path: str,
        words: Callable[[str, Object], Iterable[str]],
        place: AbstractContextManager[None],
    ) -> None:
        """`server` is a URL, `ca` a file; `place` is where it can be reached from."""
        super().__init__(words)
        parts = urlsplit(server)
        context = ssl.create_default_context(cafile=ca)
        self._connection = HTTPSConnection(parts.hostname or "", parts.port, context=context)
        with place:
            self._connection.connect()
        self._headers = {"Authorization": f"Bearer {token}"}
        with self._asked(path) as listed:
            version = json.loads(listed.read())["metadata"]["resourceVersion"]
        self._socket = self._connection.sock
        events = self._asked(f"{path}?watch=1&resourceVersion={version}")
        self._thread = Thread(target=self.feed, args=(events,), daemon=True)
        self._thread.start()

    def _asked(self, path: str) -> HTTPResponse:
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise CallFailedError(f"GET {path}: {answer.status} {answer.read()!r}")
        return answer

    def close(self) -> None:
        # Of the socket itself: ssl's own would take away what the thread is reading with.
        socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()


# --- what is heard of -----------------------------------------------------------------------------


def of_node(kind: str, node: Object) -> list[str]:
    """ "n1 registered", "n1 has a subnet", "n1 Ready"; nothing of one that is gone."""
    name = node["metadata"]["name"]
    if kind == "DELETED":
        return []
    found = [registered(name)]
    if node.get("spec", {}).get("podCIDR"):
        found.append(has_subnet(name))
    return [*found, *([ready(name)] if _is_ready(node) else [])]


def of_pod(kind: str, pod: Object) -> list[str]:
    """ "pod-1 Ready"."""
    return [ready(pod["metadata"]["name"])] if kind != "DELETED" and _is_ready(pod) else []


def registered(name: str) -> str:
    return f"{name} registered"


def has_subnet(name: str) -> str:
    return f"{name} has a subnet"


def ready(name: str) -> str:
    return f"{name} Ready"


def _is_ready(item: Object) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
