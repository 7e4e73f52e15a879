"""Serving one connection: refuse or decline before anything is begun, else `dispatch.serve`.

A worker is a thread with a netlink socket of its own. Calls about one attachment are served one
after the other, so that a DEL which a runtime sends after it gave up on an ADD finds all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EMFILE, ENFILE
from logging import DEBUG, INFO, WARNING, Logger
from socket import socket
from threading import Lock
from time import perf_counter
from typing import Any

from cni_plugin import dispatch, skel, waiting
from cni_plugin.agent.connection import Call, Connection
from cni_plugin.delegate import NESTED
from cni_plugin.fabric import Memory
from cni_plugin.kernel import netns
from cni_plugin.memo import Memo
from cni_plugin.node import Handles, Resident
from cni_plugin.spec import CniError, Code
from cni_plugin.version import VERSION
from cni_plugin.wire import WireError

_TURN_S = 60.0  # how long a call waits for another about the same attachment
_QUESTIONS = ("STATUS", "VERSION")


class Worker:
    """Serves connections, one at a time. `remove_links` is the reaper's; `busy` holds the
    connections in work, of all workers, and `memory` what they know of the node."""

    def __init__(
        self,
        home: int,
        turns: Turns,
        remove_links: Callable[..., None],
        busy: dict[Connection, float],
        memory: Memory,
        logger: Logger,
    ) -> None:
        self._home = home
        self._turns = turns
        self._remove_links = remove_links
        self._busy = busy
        self._logger = logger
        self._handles = Handles(memory, resident=True)

    def close(self) -> None:
        self._handles.close()

    def serve(self, client: socket, waits: Callable[[], None]) -> bool:
        """Serve one client: whether its call was ours. Never raises for what the client does.

        `waits` is called where the call begins to wait for somebody else, and may be called again.
        """
        begun = perf_counter()
        connection = Connection(client)
        self._busy[connection] = begun
        try:
            pid, uid = connection.peer()
            if uid not in (0, os.geteuid()):
                connection.decline(f"user {uid} is not served")
                self._logger.warning("refused a user", extra={"fields": {"uid": uid, "pid": pid}})
                return False
            call = connection.receive(waits)
            reason = self._unfit(call)
            if reason:
                connection.decline(reason)
                self._note(call, begun, WARNING, outcome="declined", reason=reason)
                return False
            self._served(connection, call, begun, waits)
        except EOFError:
            return False  # somebody looked whether we are there
        except (WireError, OSError) as e:
            fields = {"error": str(e)}
            self._logger.warning("connection failed", extra={"fields": fields})
            return False
        else:
            return True
        finally:
            del self._busy[connection]
            connection.close()

    def _unfit(self, call: Call) -> str:
        """Why this call is not ours; "" when it is."""
        if call.version != VERSION:
            return f"client is podwire {call.version}, agent {VERSION}"
        if call.home != self._home:
            return "client is in another network namespace"
        if call.netns_errno in (EMFILE, ENFILE):
            return "no descriptor was left for the sandbox"
        try:
            self._handles.open_host()
        except OSError as e:
            return f"can't open a netlink socket: {e.strerror}"
        return ""

    def _served(
        self, connection: Connection, call: Call, begun: float, waits: Callable[[], None]
    ) -> None:
        with waiting.heard_by(waits), self._turns.of(_attachment(call)) as first:
            if not first:  # and not in process either: the other call is still at it
                body = skel.encode_error(_in_work(), skel.error_version(call.stdin))
                connection.reply(1, body)
                self._note(call, begun, WARNING, **_failure(body))
                return
            status, body = dispatch.serve(
                call.environ,
                lambda: call.stdin,
                ipam=call.ipam,
                interrupted=connection.gone,
                deliver=connection.deliver,
                resident=self._resident(call),
            )
        if status != 0:
            self.close()  # whatever is still on its way to it is not the next call's
        outcome: dict[str, Any] = {"outcome": "ok"} if status == 0 else _failure(body)
        if connection.answered and status != 0:
            outcome["outcome"] = "undone"  # nobody took the result
        elif not connection.answered:
            try:
                connection.reply(status, body)
            except OSError as e:
                outcome["undelivered"] = str(e)
        self._note(call, begun, _level(call, status), **outcome)

    def _resident(self, call: Call) -> Resident:
        def open_sandbox(path: str) -> int:
            if call.sandbox < 0:
                raise netns.unreachable(path, call.netns_errno)
            return netns.checked(os.dup(call.sandbox), path)

        handles = self._handles
        return Resident(open_sandbox, handles.open_host(), self._remove_links, handles.fabric)

    def _note(self, call: Call, begun: float, level: int, **outcome: Any) -> None:
        if not self._logger.isEnabledFor(level):
            return
        fields = _fields(call)
        fields["duration_ms"] = round((perf_counter() - begun) * 1000, 3)
        self._logger.log(level, "served", extra={"fields": fields | outcome})


def _level(call: Call, status: int) -> int:
    """How much a call matters to a reader of the log, who has changes and failures to see: probes
    and runtimes ask every few seconds whether all is well, and mostly it is."""
    if status != 0:
        return WARNING
    return DEBUG if call.environ.get("CNI_COMMAND") in _QUESTIONS else INFO


class Turns:
    """Who works on which attachment."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._turns: dict[tuple[str, str], tuple[Lock, int]] = {}

    @contextmanager
    def of(self, attachment: tuple[str, str]) -> Iterator[bool]:
        """Hold the attachment's turn; False when it could not be had in time.

        Calls that are about no attachment do not wait.
        """
        if not attachment[0]:
            yield True
            return
        with self._lock:
            turn, callers = self._turns.get(attachment, (Lock(), 0))
            self._turns[attachment] = turn, callers + 1
        held = turn.acquire(blocking=False)
        if not held:
            waiting.begins()
            held = turn.acquire(timeout=_TURN_S)
        try:
            yield held
        finally:
            if held:
                turn.release()
            with self._lock:
                turn, callers = self._turns.pop(attachment)
                if callers > 1:
                    self._turns[attachment] = turn, callers - 1


def _attachment(call: Call) -> tuple[str, str]:
    """Whose turn the call needs. One that a delegate of ours makes, podwire under another name,
    is within the turn of the call that executed it."""
    if call.environ.get(NESTED):
        return "", ""
    return call.environ.get("CNI_CONTAINERID", ""), call.environ.get("CNI_IFNAME", "")


def _in_work() -> CniError:
    return CniError(
        Code.TRY_AGAIN_LATER,
        f"another call about this attachment has been at work for {_TURN_S:g} s",
        "see the agent's log: an IPAM plugin that podwire executed may hang",
    )


def _fields(call: Call) -> dict[str, Any]:
    environ = call.environ
    fields: dict[str, Any] = {
        "command": environ.get("CNI_COMMAND", ""),
        "container": environ.get("CNI_CONTAINERID", ""),
        "ifname": environ.get("CNI_IFNAME", ""),
        "netns": environ.get("CNI_NETNS", ""),
    }
    for pair in environ.get("CNI_ARGS", "").split(";"):
        name, _, value = pair.partition("=")
        if name in ("K8S_POD_NAMESPACE", "K8S_POD_NAME"):
            fields["namespace" if name.endswith("SPACE") else "pod"] = value
    with suppress(ValueError, AttributeError, RecursionError):
        fields["network"] = _NETWORKS.of(lambda: _network(call.stdin), call.stdin)
    return {name: value for name, value in fields.items() if value}


_NETWORKS = Memo()


def _network(stdin: bytes) -> str:
    """The network's name in a configuration, for the log."""
    return str(_decoded(stdin).get("name", ""))


def _failure(body: bytes) -> dict[str, Any]:
    document = _decoded(body)
    fields = {"outcome": "error", "code": document["code"], "error": document["msg"]}
    if document.get("details"):
        fields["remedy"] = document["details"]
    return fields


def _decoded(data: bytes) -> Any:
    from json import loads

    return loads(data)
