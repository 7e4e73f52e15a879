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
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from cni_plugin.sources import etcd_messages as messages
from cni_plugin.sources.etcd_connection import Connection, Open
from cni_plugin.sources.etcd_messages import (
    Endpoint,
    EtcdError,
    KeyValue,
    Snapshot,
    UnreachableError,
    Write,
)
from cni_plugin.sources.etcd_watch import Watch, reason

REQUEST_SECONDS = 10.0
_WATCH_SECONDS = 900.0  # etcd says every ten minutes that there is nothing new
_PAGE = 1000  # keys of one answer
_NO_TOKEN = "user name is empty"  # noqa: S105 (etcd's words for it)

_Answer = tuple[Connection, http.client.HTTPResponse]


class Login(NamedTuple):
    """`password` reads it anew for every login."""

    user: str
    password: Callable[[], str]


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

    def lose(self, address: str) -> None:
        """Break off what comes from this address of the node's; any thread may call it."""
        self._opened.lose(address)

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
            lives = partial(self._lives, Endpoint(made.host, made.port, made.tls), prefix)
            yield Watch(made, response, self._opened, lives)

    def _lives(self, endpoint: Endpoint, prefix: str) -> bool:
        """Whether this one says anything; what it has itself will do, whoever leads."""
        body = {**messages.prefixed(prefix), "limit": 1, "serializable": True}
        path, data = "/v3/kv/range", json.dumps(body).encode()
        try:
            made, response = self._ask_logged_in(endpoint, path, data, self._timeout)
        except UnreachableError:
            if endpoint == self._endpoints[self._first]:
                self._first = (self._first + 1) % len(self._endpoints)
            return False
        except EtcdError:
            return True
        response.close()
        made.close()
        return True

    # --- how ----------------------------------------------------------------------------------

    def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with self._answered(path, body, self._timeout) as (_, response):
            try:
                return messages.decoded(response.read())
            except (OSError, http.client.HTTPException) as e:
                raise UnreachableError(f"the answer was lost: {reason(e)}") from e

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
            raise EtcdError(f"the password of {login.user} can't be read: {reason(e)}") from e
        self._token = ""
        made, response = self._ask(endpoint, "/v3/auth/authenticate", body, self._timeout)
        try:
            token = messages.decoded(response.read()).get("token", "")
        except (OSError, http.client.HTTPException) as e:
            raise UnreachableError(f"the answer was lost: {reason(e)}") from e
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
            raise UnreachableError(reason(e)) from e
        except BaseException:
            made.close()
            raise
        made.close()
        raise messages.refused(response.status, answer)
