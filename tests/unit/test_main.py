"""`serve`: environment and stdin in, exit status and stdout out, whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from cni_plugin import __main__ as main
from cni_plugin import commands
from cni_plugin.spec import SUPPORTED_VERSIONS, CniError, Code, Request
from tests.unit import strategies

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr",
    "CNI_NETNS": "/proc/nowhere/netns",
    "CNI_IFNAME": "eth0",
}
CONF = b'{"cniVersion": "0.4.0", "name": "podnet", "type": "podwire"}'
Run = Callable[[Request, commands.Node], bytes]


def served(environ: dict[str, str], stdin: bytes, ipam: bool = False) -> tuple[int, Any]:
    """Exit status and the one document of stdout, None for silence."""
    status, reply = main.serve(environ, lambda: stdin, ipam)
    return status, json.loads(reply) if reply else None


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Replace what serves a request."""

    def replace(function: Run) -> None:
        monkeypatch.setattr(commands, "run", function)
        monkeypatch.setattr(commands, "run_ipam", function)

    return replace


def raising(error: BaseException) -> Run:
    def function(request: Request, node: commands.Node) -> bytes:
        raise error

    return function


@pytest.mark.parametrize("ipam", [False, True])
def test_success_is_what_the_command_returns(run: Callable[[Run], None], ipam: bool) -> None:
    run(lambda request, node: request.network.encode())
    assert main.serve(ENV, lambda: CONF, ipam) == (0, b"podnet")


def test_the_command_gets_the_request_and_the_environment(run: Callable[[Run], None]) -> None:
    seen: list[tuple[Request, commands.Node]] = []

    def note(request: Request, node: commands.Node) -> bytes:
        seen.append((request, node))
        return b""

    run(note)
    assert main.serve(ENV, lambda: CONF) == (0, b"")
    request, node = seen[0]
    assert request.config == CONF
    assert node.environ == ENV


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (CniError(Code.POOL_EXHAUSTED, "no address", "enlarge it"), 100, "no address"),
        (OSError(28, "No space left on device", "/x"), Code.IO_FAILURE, "/x"),
        (RuntimeError("oops"), Code.INTERNAL, "RuntimeError: oops"),
        (RecursionError("deep"), Code.INTERNAL, "RecursionError"),
        (AssertionError(), Code.INTERNAL, "AssertionError"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), Code.INTERNAL, "Unicode"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_one_error_document(
    run: Callable[[Run], None], error: BaseException, code: int, word: str
) -> None:
    run(raising(error))
    status, document = served(ENV, CONF)
    assert status != 0
    assert set(document) <= {"cniVersion", "code", "msg", "details"}
    assert document["cniVersion"] == "0.4.0"
    assert document["code"] == code
    assert word in document["msg"]


def test_a_bug_leaves_its_traceback_on_stderr(
    run: Callable[[Run], None], capfd: pytest.CaptureFixture[str]
) -> None:
    run(raising(ZeroDivisionError("x")))
    served(ENV, CONF)
    out, err = capfd.readouterr()
    assert out == ""
    assert "ZeroDivisionError: x" in err


def test_the_node_is_closed_after_a_failure(
    run: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(commands.Node, "close", lambda self: closed.append(self))
    run(raising(ValueError()))
    served(ENV, CONF)
    assert len(closed) == 1


def test_stdin_that_cannot_be_read_is_an_io_failure() -> None:
    def read() -> bytes:
        raise CniError(Code.IO_FAILURE, "can't read")

    status, reply = main.serve(ENV, read)
    assert status == 1
    assert json.loads(reply)["code"] == Code.IO_FAILURE
    assert json.loads(reply)["cniVersion"] == "1.1.0"


@pytest.mark.parametrize(
    ("stdin", "version"),
    [(b"", None), (b'{"cniVersion": "0.2.0"}', "0.2.0"), (b'{"cniVersion": "7.0"}', "7.0")],
)
@pytest.mark.parametrize("ipam", [False, True])
def test_version_needs_nothing(stdin: bytes, version: str | None, ipam: bool) -> None:
    status, document = served({"CNI_COMMAND": "VERSION"}, stdin, ipam)
    assert status == 0
    assert document["supportedVersions"] == list(SUPPORTED_VERSIONS)
    assert document["cniVersion"] == version or version is None


@pytest.mark.parametrize("stdin", [b"{", b"[]", b'{"cniVersion": NaN}', b'{"cniVersion": 5}'])
def test_version_of_bad_input(stdin: bytes) -> None:
    status, document = served({"CNI_COMMAND": "VERSION"}, stdin)
    assert status != 0
    assert document["code"] in (6, 7)


@given(environ=strategies.environs, stdin=strategies.stdins)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_call_has_at_most_one_document(environ: dict[str, str], stdin: bytes) -> None:
    """Anything at all, up to the commands themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "run", lambda request, node: b"")
        status, reply = main.serve(environ, lambda: stdin)
    if status:
        document = json.loads(reply)
        assert set(document) <= {"cniVersion", "code", "msg", "details"}
        assert document["code"] != Code.INTERNAL
        assert document["cniVersion"] in SUPPORTED_VERSIONS
    elif reply:
        assert json.loads(reply)["supportedVersions"]


@pytest.mark.parametrize("keys", [{"bridge": "\ud800"}, {"mode": {"a": ["\udfff"]}}])
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_lone_surrogates_are_an_error_of_the_configuration(
    command: str, keys: dict[str, Any]
) -> None:
    """JSON may hold them as escapes; no name of the system can."""
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "podnet", **keys}).encode()
    _, document = served({**ENV, "CNI_COMMAND": command}, stdin)
    assert document["code"] == Code.INVALID_CONFIG
