"""etcd's version 3 API by its JSON gateway: what podwire needs of it, over HTTP.

etcd serves it under /v3 from 3.4 on.

- Every request has a connection of its own: there are few of them, and none is stale.
- It goes to the endpoint that answered last, then to the others in turn. Who answers what no etcd
  says, or only a byte now and then, is passed over as one who does not answer.
- A request whose answer was lost may have been served, and is sent again: `swap` says whether its
  caller's keys are as wanted, whoever's attempt it was.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from cni_plugin.sources import etcd_messages as messages
from cni_plugin.sources.etcd_connection import Connection, Open
from cni_plugin.sources.etcd_messages import (
    CompactedError,
    Endpoint,
    EtcdError,
    KeyValue,
    Snapshot,
    UnreachableError,
    Write,
)
from cni_plugin.sources.etcd_tls import Tls
from cni_plugin.sources.etcd_watch import Watch, reason

REQUEST_SECONDS = 10.0
_WATCH_SECONDS = 900.0  # etcd says every ten minutes that there is nothing new
_PAGE = 1000  # keys of one answer
_MOST_BYTES, _STEP = 1 << 28, 1 << 16  # of an answer: a page of great values; and at a time
_NO_TOKEN = "user name is empty"  # noqa: S105 (etcd's words for it)

_Answer = tuple[Connection, http.client.HTTPResponse]
_T = TypeVar("_T")


class Login(NamedTuple):
    """`password` reads it anew for every login."""

    user: str
    password: Callable[[], str]


class Gateway:
    """An etcd cluster. Its methods raise UnreachableError and EtcdError."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        tls: Tls = lambda: None,
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
                cluster = messages.whole(header, "cluster_id")
                return Snapshot(body["revision"], tuple(kvs), cluster)
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
        made, response = self._first_answer("/v3/watch", body, _to_be_read)
        endpoint = Endpoint(made.host, made.port, made.tls)
        try:
            lives = partial(self._lives, endpoint, prefix)
            yield Watch(made, response, self._opened, lives)
        except EtcdError as e:
            if not isinstance(e, CompactedError):
                self._pass_over(endpoint)
            raise
        finally:
            response.close()
            made.close()

    def _lives(self, endpoint: Endpoint, prefix: str) -> bool:
        """Whether this one says anything; what it has itself will do, whoever leads."""
        body = {**messages.prefixed(prefix), "limit": 1, "serializable": True}
        try:
            self._ask_logged_in(endpoint, "/v3/kv/range", json.dumps(body).encode(), _whole)
        except UnreachableError:
            self._pass_over(endpoint)
            return False
        except EtcdError:
            return True
        return True

    def _pass_over(self, endpoint: Endpoint) -> None:
        """The next request begins with another one, if this one would be asked first."""
        first = self._first
        if endpoint == self._endpoints[first]:
            self._first = (first + 1) % len(self._endpoints)

    # --- how ----------------------------------------------------------------------------------

    def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._first_answer(path, body, _whole)

    def _first_answer(
        self, path: str, body: Mapping[str, Any], take: Callable[[_Answer], _T]
    ) -> _T:
        """What is taken of the first endpoint's answer that is good."""
        data = json.dumps(body).encode()
        count = len(self._endpoints)
        first = self._first  # other threads change it meanwhile
        reasons: dict[int, str] = {}
        for index in [(first + turn) % count for turn in range(count)]:
            try:
                found = self._ask_logged_in(self._endpoints[index], path, data, take)
            except UnreachableError as e:
                if self._opened.closed:
                    raise
                reasons[index] = f"{self._endpoints[index]}: {e}"
            else:
                self._first = index
                return found
        # The next request begins with another one.
        self._first = (first + 1) % count
        raise UnreachableError("; ".join(reasons[index] for index in sorted(reasons)))

    def _ask_logged_in(
        self, endpoint: Endpoint, path: str, body: bytes, take: Callable[[_Answer], _T]
    ) -> _T:
        if self._login is not None and not self._token:
            self._log_in(endpoint, self._login)
        try:
            return self._ask(endpoint, path, body, take)
        except EtcdError as e:
            lapsed = e.code == messages.UNAUTHENTICATED or _NO_TOKEN in str(e)
            if self._login is None or not lapsed:
                raise
        self._log_in(endpoint, self._login)  # tokens end, at the latest when etcd is restarted
        return self._ask(endpoint, path, body, take)

    def _log_in(self, endpoint: Endpoint, login: Login) -> None:
        try:
            body = json.dumps({"name": login.user, "password": login.password()}).encode()
        except (OSError, ValueError) as e:
            raise EtcdError(f"the password of {login.user} can't be read: {reason(e)}") from e
        self._token = ""
        token = self._ask(endpoint, "/v3/auth/authenticate", body, _whole).get("token", "")
        self._token = token if isinstance(token, str) else ""

    def _ask(self, endpoint: Endpoint, path: str, body: bytes, take: Callable[[_Answer], _T]) -> _T:
        """What is taken of an answer of 200. UnreachableError: another endpoint may do."""
        tls = self._tls() if endpoint.tls else None
        made = Connection(endpoint.host, endpoint.port, self._timeout, tls, self._opened)
        headers = {
            "Content-Type": "application/json",
            # A member that has lost the others ends its watches then, as it should.
            "Grpc-Metadata-hasleader": "true",
        }
        if self._token:
            headers["Authorization"] = self._token
        try:
            with made.in_time():
                made.request("POST", path, body, headers)
                response = made.getresponse()
                if response.status == http.HTTPStatus.OK:
                    return take((made, response))
                answer = _read(made, response)
        except (OSError, http.client.HTTPException) as e:
            made.close()
            raise UnreachableError(reason(e)) from e
        except BaseException:
            made.close()
            raise
        made.close()
        raise messages.refused(response.status, answer)


# --- what is taken of an answer -----------------------------------------------------------------


def _to_be_read(answer: _Answer) -> _Answer:
    made, _ = answer
    if made.sock is not None:
        made.sock.settimeout(_WATCH_SECONDS)
    return answer


def _whole(answer: _Answer) -> dict[str, Any]:
    made, response = answer
    data = _read(made, response)
    made.close()
    return messages.answered(data)


def _read(made: Connection, response: http.client.HTTPResponse) -> bytes:
    """All of it. Raises OSError, HTTPException."""
    data = bytearray()
    while more := response.read1(_STEP):
        data += more
        if len(data) > _MOST_BYTES:
            raise ConnectionError(f"the answer has more than {_MOST_BYTES} bytes")
        if made.is_late:  # the socket is not the connection's any more where the answer ends it
            break
    response.close()
    if made.is_late:
        raise TimeoutError
    return bytes(data)
