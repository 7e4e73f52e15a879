"""The messages of etcd's JSON gateway: what goes into them, and what comes out. Pure.

Source: etcd's rpc.proto and kv.proto, in the JSON form that its gRPC gateway gives them: keys and
values are base64, 64-bit numbers strings, and fields that are zero are left out. Keys are text
here; bytes that are no UTF-8 survive the way there and back.

Nothing but EtcdError is raised, whatever the other side sent: it need not be an etcd.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

NOT_FOUND, UNAUTHENTICATED = 5, 16  # gRPC's codes
_ANOTHER_MAY_DO = (1, 4, 8, 14)  # cancelled, deadline, exhausted, unavailable: of that member
_GATEWAYS = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_SHOWN = 100  # characters of an answer that a message repeats


class EtcdError(Exception):
    """etcd refused a request: its words, and gRPC's code."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class UnreachableError(EtcdError):
    """No endpoint answers, or the connection went."""


class CompactedError(EtcdError):
    """The watch can't go on: what came since is not kept any more."""


class Endpoint(NamedTuple):
    """Where a member of the etcd cluster serves its clients."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


class KeyValue(NamedTuple):
    """A key as it is stored; the revisions are 0 and the value empty for one that was deleted,
    except for `mod_revision`. `lease` is 0 for none."""

    key: str
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class Snapshot(NamedTuple):
    """Keys as they were at `revision`; `cluster` is etcd's number for itself."""

    revision: int
    kvs: tuple[KeyValue, ...]
    cluster: int = 0


class Event(NamedTuple):
    kv: KeyValue
    deleted: bool


class Write(NamedTuple):
    """A key to be written, or to be deleted when `value` is None; `lease` 0 lets it stay."""

    key: str
    value: bytes | None
    lease: int = 0


def encoded(text: str) -> str:
    return b64encode(text.encode("utf-8", "surrogateescape")).decode()


def prefixed(prefix: str) -> dict[str, str]:
    """The range of all keys that begin so: up to the one with the last byte increased."""
    return {"key": encoded(prefix), "range_end": encoded(prefix[:-1] + chr(ord(prefix[-1]) + 1))}


def operation(write: Write) -> dict[str, Any]:
    if write.value is None:
        return {"request_delete_range": {"key": encoded(write.key)}}
    put = {"key": encoded(write.key), "value": b64encode(write.value).decode()}
    return {"request_put": {**put, "lease": str(write.lease)}}


def is_as_wanted(write: Write, there: KeyValue | None) -> bool:
    if there is None or write.value is None:
        return there is None and write.value is None
    return (there.value, there.lease) == (write.value, write.lease)


def key_value(fields: Mapping[str, Any]) -> KeyValue:
    return KeyValue(
        _data(fields, "key").decode("utf-8", "surrogateescape"),
        _data(fields, "value"),
        whole(fields, "create_revision"),
        whole(fields, "mod_revision"),
        whole(fields, "lease"),
    )


def key_values(answer: Mapping[str, Any]) -> list[KeyValue]:
    return [key_value(fields) for fields in _objects(answer, "kvs")]


def events(answer: Mapping[str, Any]) -> tuple[Event, ...]:
    return tuple(
        Event(key_value(child(fields, "kv")), fields.get("type") == "DELETE")
        for fields in _objects(answer, "events")
    )


# --- what any answer may hold -------------------------------------------------------------------


def decoded(data: bytes) -> dict[str, Any]:
    """The object that an answer, or a line of one, is."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise EtcdError(f"the answer is not JSON: {data[:_SHOWN]!r}") from e
    if not isinstance(answer, dict):
        raise EtcdError(f"the answer is not an object: {data[:_SHOWN]!r}")
    return answer


def answered(data: bytes) -> dict[str, Any]:
    """The object that a whole answer of etcd's is: it has a header, one of a stream's inside.

    Raises EtcdError when it is a refusal, and UnreachableError when no etcd says such a thing.
    """
    try:
        answer = decoded(data)
        if "error" in answer:
            raise refusal(child(answer, "error"))
        if child(child(answer, "result") or answer, "header"):
            return answer
    except UnreachableError:
        raise
    except EtcdError as e:
        if e.code:
            raise
        raise UnreachableError(str(e)) from e
    raise UnreachableError(f"the answer is not etcd's: {data[:_SHOWN]!r}")


def child(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object at `key`, an empty one when it is left out."""
    found = fields.get(key, {})
    if not isinstance(found, dict):
        raise _not_etcds(key, found)
    return found


def whole(fields: Mapping[str, Any], key: str) -> int:
    """The number at `key`, 0 when it is left out."""
    found = fields.get(key, 0)
    try:
        if isinstance(found, str | int):
            return int(found)
    except ValueError:
        pass
    raise _not_etcds(key, found)


def _objects(fields: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = fields.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _not_etcds(key, found)
    return found


def _data(fields: Mapping[str, Any], key: str) -> bytes:
    found = fields.get(key, "")
    try:
        if isinstance(found, str):
            return b64decode(found, validate=True)
    except ValueError:
        pass
    raise _not_etcds(key, found)


def _not_etcds(key: str, found: object) -> EtcdError:
    return EtcdError(f"the answer is not etcd's: {key} is {str(found)[:_SHOWN]!r}")


# --- refusals -----------------------------------------------------------------------------------


def refused(status: int, data: bytes) -> EtcdError:
    """What an answer other than 200 means. What etcd says has gRPC's code; without one something
    else has answered, and another endpoint may do."""
    try:
        answer = decoded(data)
    except EtcdError:
        if status == HTTPStatus.NOT_FOUND:
            return UnreachableError(
                "it has no JSON gateway under /v3: etcd 3.4 or later is needed, with"
                " enable-grpc-gateway: true where it has a configuration file"
            )
        words = " ".join(data.decode("utf-8", "replace").split())
        answer = {"message": f"HTTP status {status}: {words[:_SHOWN]}"}
    found = refusal(answer, status)
    return found if found.code else UnreachableError(str(found))


def refusal(answer: Mapping[str, Any], status: int = 0) -> EtcdError:
    """What the object says that etcd answers with instead; in a stream it has no status."""
    found = answer.get("code", answer.get("grpc_code", 0))
    code = found if isinstance(found, int) else 0
    message = str(answer.get("message") or answer.get("error") or f"HTTP status {status}")
    if code in _ANOTHER_MAY_DO or status in _GATEWAYS:
        return UnreachableError(message, code)
    return EtcdError(message, code)


def cancelled(answer: Mapping[str, Any]) -> EtcdError:
    """Why etcd ended a watch."""
    compacted = whole(answer, "compact_revision")
    if compacted:
        return CompactedError(f"etcd keeps nothing from before revision {compacted}")
    return UnreachableError(str(answer.get("cancel_reason") or "etcd ended the watch"))
