"""etcd's version 3 API by its JSON gateway: what podwire needs of it, over HTTP.

etcd serves it under /v3 from 3.4 on.

- Every request has a connection of its own: there are few of them, and none is stale.
- It goes to the endpoint that answered last, then to the others in turn.
- A request whose answer was lost may have been served, and is sent again: `swap` says whether its
  caller's keys are as wanted, whoever's attempt it was.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from cni_plugin.sources import etcd_messages as messages
from cni_plugin.sources.etcd_connection import Connection, Open
from cni_plugin.sources.etcd_messages import (
    CompactedError,
    Endpoint,
    EtcdError,
    Event,
    KeyValue,
    Snapshot,
    UnreachableError,
    Write,
)

REQUEST_SECONDS = 10.0
_WATCH_SECONDS = 900.0  # etcd says every ten minutes that there is nothing new
_PAGE = 1000  # keys of one answer
_NO_TOKEN = "user name is empty"  # noqa: S105 (etcd's words for it)

_Answer = tuple[Connection, http.client.HTTPResponse]


class Login(NamedTuple):
    """`password` reads it anew for every login."""

    user: str
    password: Callable[[], str]


class Watch:
    """Events as they come. Only one thread reads; any may break it off."""

    def __init__(self, made: Connection, response: http.client.HTTPResponse, opened: Open) -> None:
        self._socket = made.sock
        self._response = response
        self._opened = opened

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
            raise UnreachableError(f"the watch broke: {_reason(e)}") from e
        if not line:
            raise UnreachableError("etcd ended the watch")
        answer = messages.decoded(line)
        if "error" in answer:
            raise messages.refusal(messages.child(answer, "error"))
        return messages.child(answer, "result")


class Gateway:
    """An etcd cluster. Its methods raise UnreachableError and EtcdError."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        tls: ssl.SSLContext | None = None,
        login: Login | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._tls = tls
        self._login = login
        self._timeout = timeout
        self._first = 0
        self._token = ""
        self._opened = Open()

    def close(self) -> None:
        """Break off everything, of all threads; nothing works afterwards."""
        self._opened.close()

    # --- what it is asked -------------------------------------------------------------------

    def get(self, *keys: str) -> Mapping[str, KeyValue]:
        """Those of the keys that exist."""
        found: dict[str, KeyValue] = {}
        for key in keys:
            answer = self._call("/v3/kv/range", {"key": messages.encoded(key)})
            for kv in messages.key_values(answer):
                found[key] = kv
        return found

    def range(self, prefix: str) -> Snapshot:
        """All keys that begin with `prefix`, as of one revision."""
        kvs: list[KeyValue] = []
        body: dict[str, Any] = {**messages.prefixed(prefix), "limit": _PAGE}
        while True:
            answer = self._call("/v3/kv/range", body)
            page = messages.key_values(answer)
            kvs += page
            header = messages.child(answer, "header")
            body.setdefault("revision", messages.whole(header, "revision"))
            if not (answer.get("more") and page):
                return Snapshot(body["revision"], tuple(kvs))
            body["key"] = messages.encoded(page[-1].key + "\0")

    def swap(self, expected: Mapping[str, int], writes: Sequence[Write]) -> bool:
        """Write all if each of the `expected` keys has that mod revision, 0 for none there; else
        nothing. Whether they are as wanted now."""
        compares = [
            {
                "key": messages.encoded(key),
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": str(revision),
            }
            for key, revision in expected.items()
        ]
        body = {"compare": compares, "success": [messages.operation(write) for write in writes]}
        if self._call("/v3/kv/txn", body).get("succeeded"):
            return True
        there = self.get(*(write.key for write in writes))
        return all(messages.is_as_wanted(write, there.get(write.key)) for write in writes)

    def grant(self, ttl: int) -> tuple[int, int]:
        """A new lease of `ttl` seconds: its number, and the seconds it got."""
        answer = self._call("/v3/lease/grant", {"TTL": str(ttl)})
        return messages.whole(answer, "ID"), messages.whole(answer, "TTL")

    def keep(self, lease: int) -> int:
        """Renew a lease: its seconds, 0 when there is none of that number."""
        answer = self._call("/v3/lease/keepalive", {"ID": str(lease)})
        return messages.whole(messages.child(answer, "result"), "TTL")

    def revoke(self, lease: int) -> None:
        """End a lease, and with it its keys."""
        try:
            self._call("/v3/lease/revoke", {"ID": str(lease)})
        except EtcdError as e:
            if e.code != messages.NOT_FOUND:
                raise

    @contextmanager
    def watch(self, prefix: str, revision: int) -> Iterator[Watch]:
        """What happens to keys that begin with `prefix` after `revision`."""
        create = {
            **messages.prefixed(prefix),
            "start_revision": str(revision + 1),
            "progress_notify": True,
        }
        body = {"create_request": create}
        with self._answered("/v3/watch", body, _WATCH_SECONDS) as (made, response):
            yield Watch(made, response, self._opened)

    # --- how ----------------------------------------------------------------------------------

    def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with self._answered(path, body, self._timeout) as (_, response):
            try:
                return messages.decoded(response.read())
            except (OSError, http.client.HTTPException) as e:
                raise UnreachableError(f"the answer was lost: {_reason(e)}") from e

    @contextmanager
    def _answered(self, path: str, body: Mapping[str, Any], timeout: float) -> Iterator[_Answer]:
        """The first good answer of an endpoint's, still to be read."""
        made, response = self._first_answer(path, json.dumps(body).encode(), timeout)
        try:
            yield made, response
        finally:
            response.close()
            made.close()

    def _first_answer(self, path: str, body: bytes, timeout: float) -> _Answer:
        count = len(self._endpoints)
        first = self._first  # other threads change it meanwhile
        reasons = []
        for index in [(first + turn) % count for turn in range(count)]:
            try:
                found = self._ask_logged_in(self._endpoints[index], path, body, timeout)
            except UnreachableError as e:
                if self._opened.closed:
                    raise
                reasons.append(f"{self._endpoints[index]}: {e}")
            else:
                self._first = index
                return found
        # The next request begins with another one.
        self._first = (first + 1) % count
        raise UnreachableError("; ".join(reasons))

    def _ask_logged_in(self, endpoint: Endpoint, path: str, body: bytes, timeout: float) -> _Answer:
        if self._login is not None and not self._token:
            self._log_in(endpoint, self._login)
        try:
            return self._ask(endpoint, path, body, timeout)
        except EtcdError as e:
            lapsed = e.code == messages.UNAUTHENTICATED or _NO_TOKEN in str(e)
            if self._login is None or not lapsed:
                raise
        self._log_in(endpoint, self._login)  # tokens end, at the latest when etcd is restarted
        return self._ask(endpoint, path, body, timeout)

    def _log_in(self, endpoint: Endpoint, login: Login) -> None:
        try:
            body = json.dumps({"name": login.user, "password": login.password()}).encode()
        except (OSError, ValueError) as e:
            raise EtcdError(f"the password of {login.user} can't be read: {_reason(e)}") from e
        self._token = ""
        made, response = self._ask(endpoint, "/v3/auth/authenticate", body, self._timeout)
        try:
            token = messages.decoded(response.read()).get("token", "")
        except (OSError, http.client.HTTPException) as e:
            raise UnreachableError(f"the answer was lost: {_reason(e)}") from e
        finally:
            made.close()
        self._token = token if isinstance(token, str) else ""

    def _ask(self, endpoint: Endpoint, path: str, body: bytes, timeout: float) -> _Answer:
        """An answer of 200, still to be read. UnreachableError: another endpoint may do."""
        tls = self._tls if endpoint.tls else None
        made = Connection(endpoint.host, endpoint.port, self._timeout, tls, self._opened)
        headers = {
            "Content-Type": "application/json",
            # A member that has lost the others ends its watches then, as it should.
            "Grpc-Metadata-hasleader": "true",
        }
        if self._token:
            headers["Authorization"] = self._token
        try:
            made.request("POST", path, body, headers)
            response = made.getresponse()
            if response.status == http.HTTPStatus.OK:
                if made.sock is not None:
                    made.sock.settimeout(timeout)
                return made, response
            answer = response.read()
        except (OSError, http.client.HTTPException) as e:
            made.close()
            raise UnreachableError(_reason(e)) from e
        except BaseException:
            made.close()
            raise
        made.close()
        raise messages.refused(response.status, answer)


def _reason(e: BaseException) -> str:
    if isinstance(e, socket.gaierror):
        return f"its name can't be resolved: {e.strerror}"
    return (e.strerror if isinstance(e, OSError) and e.strerror else str(e)) or type(e).__name__
