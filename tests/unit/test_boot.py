"""What the executable does first, under CPython: who serves a call, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from errno import EACCES, EBADF, ENOSPC, EPERM
from typing import Any

import pytest

from cni_plugin import client, probing, sysio
from launcher import boot, unpack

Executed = list[tuple[list[bytes], bytes | None]]


class _Replaced(BaseException):
    """The process has become the runtime."""


class Streams:
    """What was written, by descriptor."""

    def __init__(self) -> None:
        self.written: dict[int, bytes] = {1: b"", 2: b""}
        self.failure: BaseException | None = None

    def write(self, fd: int, data: bytes) -> None:
        if fd == 1 and self.failure:
            raise self.failure
        self.written[fd] += data


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    monkeypatch.setattr(sysio, "write", made.write)
    return made


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def put(entries: bytes) -> None:
        monkeypatch.setattr(sysio, "environ", lambda: entries)

    put(b"CNI_COMMAND=ADD\0")
    return put


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[bool]]:
    """serve(answer): the client gives it, or raises it; what it was called with is returned."""

    def replace(answer: Any) -> list[bool]:
        calls: list[bool] = []

        def call(ipam: bool) -> Any:
            calls.append(ipam)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr(client, "call", call)
        return calls

    return replace


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], Executed]:
    """execute(failure): the runtime fails to start so; what was executed is returned."""

    def replace(failure: BaseException | None = None) -> Executed:
        executed: Executed = []

        def run(argv: list[bytes], stdin: bytes | None) -> None:
            executed.append((argv, stdin))
            raise failure or _Replaced

        monkeypatch.setattr(unpack, "execute", run)
        return executed

    return replace


def document(streams: Streams) -> dict[str, Any]:
    lines = streams.written[1].splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert isinstance(found, dict)
    return found


# --- who serves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.usefixtures("environ")
def test_what_the_client_serves_is_served(serve: Any, execute: Any, status: int) -> None:
    executed = execute()
    calls = serve((status, b"{}"))
    assert boot.run([b"/opt/cni/bin/podwire"]) == status
    assert (calls, executed) == ([False], [])


@pytest.mark.parametrize(
    ("name", "ipam"),
    [
        (b"podwire-ipam", True),
        (b"/opt/cni/bin/podwire-ipam", True),
        (b"/podwire-ipam/podwire", False),
        (b"podwire-ipam2", False),
        (b"", False),
    ],
)
@pytest.mark.usefixtures("environ")
def test_the_name_says_which_plugin(serve: Any, name: bytes, ipam: bool) -> None:
    calls = serve((0, b""))
    assert boot.run([name]) == 0
    assert calls == [ipam]


@pytest.mark.usefixtures("environ")
def test_a_call_without_any_argument(serve: Any) -> None:
    calls = serve((0, b""))
    assert boot.run([]) == 0
    assert calls == [False]


@pytest.mark.usefixtures("environ", "streams")
def test_what_the_client_leaves_goes_to_the_runtime(serve: Any, execute: Any) -> None:
    executed = execute()
    serve((None, b"{conf}"))
    boot.run([b"podwire", b"\xff"])
    assert executed == [([b"podwire", b"\xff"], b"{conf}")]


@pytest.mark.parametrize("entries", [b"", b"CNI_COMMAND=\0", b"XCNI_COMMAND=ADD\0"])
@pytest.mark.usefixtures("streams")
def test_the_tool_goes_to_the_runtime(
    environ: Any, serve: Any, execute: Any, entries: bytes
) -> None:
    environ(entries)
    calls, executed = serve((0, b"")), execute()
    boot.run([b"podwire", b"status"])
    assert (calls, executed) == ([], [([b"podwire", b"status"], None)])


# --- probes ---------------------------------------------------------------------------------------


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """What has been probed."""
    found: list[bytes | None] = []
    monkeypatch.setattr(probing, "probe", found.append)
    return found


@pytest.mark.parametrize(
    ("words", "file"), [([], None), ([b"/a.conflist"], b"/a.conflist"), ([b"\xff"], b"\xff")]
)
def test_a_probe_takes_no_runtime(
    environ: Any, execute: Any, probes: list[bytes | None], words: list[bytes], file: bytes | None
) -> None:
    environ(b"")
    executed = execute()
    assert boot.run([b"/podwire", b"probe", *words]) == 0
    assert (probes, executed) == ([file], [])


@pytest.mark.parametrize("words", [[b"a", b"b"], [b"--help"], [b"-h"], [b"--", b"a"]])
@pytest.mark.usefixtures("streams")
def test_help_and_mistakes_are_the_tools(
    environ: Any, execute: Any, probes: list[bytes | None], words: list[bytes]
) -> None:
    environ(b"")
    executed = execute()
    boot.run([b"podwire", b"probe", *words])
    assert (probes, executed) == ([], [([b"podwire", b"probe", *words], None)])


@pytest.mark.usefixtures("environ")
def test_a_call_of_the_plugin_is_no_probe(serve: Any, probes: list[bytes | None]) -> None:
    calls = serve((0, b""))
    assert boot.run([b"podwire", b"probe"]) == 0
    assert (calls, probes) == ([False], [])


def test_a_probe_that_fails_is_for_people(
    environ: Any, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(conflist: bytes | None) -> None:
        raise client.FailureError(11, "no agent", "start it")

    environ(b"")
    monkeypatch.setattr(probing, "probe", fail)
    assert boot.run([b"podwire", b"probe"]) == 1
    assert streams.written == {1: b"", 2: b"error 11: no agent\nhint: start it\n"}


# --- how it fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (unpack.FailureError(110, "somebody else's", "remove it"), 110),
        (client.FailureError(5, "no stdin", "write it"), 5),
        (PermissionError(EACCES, ""), 110),
        (PermissionError(EPERM, ""), 110),
        (OSError(ENOSPC, ""), 5),
        (ValueError("a bug"), 199),
        (KeyboardInterrupt(), 199),
    ],
)
def test_a_failure_of_the_plugin_is_one_document(
    environ: Any, serve: Any, execute: Any, streams: Streams, failure: BaseException, code: int
) -> None:
    environ(b"CNI_COMMAND=DEL\0")
    execute(failure)
    serve((None, b'{"cniVersion": "0.4.0"}'))
    assert boot.run([b"podwire"]) == 1
    found = document(streams)
    assert (found["code"], found["cniVersion"]) == (code, "0.4.0")


@pytest.mark.usefixtures("environ")
def test_a_bug_is_shown(serve: Any, streams: Streams, capsys: pytest.CaptureFixture[str]) -> None:
    serve(ZeroDivisionError("oh"))
    assert boot.run([b"podwire"]) == 1
    assert document(streams)["msg"] == "internal error: ZeroDivisionError: oh"
    assert "Traceback" in capsys.readouterr().err


def test_a_failure_of_the_tool_is_for_people(environ: Any, execute: Any, streams: Streams) -> None:
    environ(b"")
    execute(unpack.FailureError(5, "no folder", "make one"))
    assert boot.run([b"podwire", b"status"]) == 1
    assert streams.written == {1: b"", 2: b"error 5: no folder\nhint: make one\n"}


@pytest.mark.usefixtures("environ")
def test_a_document_that_nobody_gets(serve: Any, streams: Streams) -> None:
    streams.failure = OSError(EBADF, "")
    serve(client.FailureError(5, "no stdin"))
    assert boot.run([b"podwire"]) == 1
    assert b"can't write the reply to stdout: Bad file descriptor" in streams.written[2]


@pytest.mark.usefixtures("environ")
def test_out_of_memory(serve: Any, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> bytes:
        raise MemoryError

    serve(MemoryError())
    monkeypatch.setattr(client, "error_document", no_memory)
    assert boot.run([b"podwire"]) == 1
    assert document(streams)["code"] == 199


def test_an_environment_that_can_not_be_read_is_taken_for_a_call(
    serve: Any, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory() -> bytes:
        raise MemoryError

    monkeypatch.setattr(sysio, "environ", no_memory)
    assert boot.run([b"podwire"]) == 1
    assert document(streams)["code"] == 199
