"""`podwire probe`: what it asks, which reply is good, and that each failure is one clear error."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import cli, client, probing, wire
from cni_plugin.spec import Code
from cni_plugin.version import VERSION
from tests.unit.fake_agent import FakeAgent, says

VERSIONS = wire.reply(wire.SERVED, 0, b'{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}\n')
READY = wire.reply(wire.SERVED, 0, b"")
PLUGIN = {"type": "podwire", "bridge": "cni0", "ipam": {"type": "host-local"}}

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    """The one that PODWIRE_SOCKET names."""
    fake = FakeAgent(str(tmp_path / "agent.sock"))
    monkeypatch.setenv(client.SOCKET_VARIABLE, fake.path)
    try:
        yield fake
    finally:
        fake.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command of the wheel: exit status and stderr; nothing is said on stdout."""

    def call(*words: str | os.PathLike[str]) -> tuple[int, str]:
        status = cli.tool(["probe", *map(os.fspath, words)])
        said = capsys.readouterr()
        assert said.out == ""
        assert (said.err == "") == (status == 0)
        assert len(said.err.splitlines()) <= 4  # an error and its hint, or the usage
        return status, said.err

    return call


@pytest.fixture
def conflist(tmp_path: Path) -> Callable[..., Path]:
    """conflist(plugin...): a file with these plugins."""

    def write(*plugins: Any, **keys: Any) -> Path:
        path = tmp_path / "05-podwire.conflist"
        document = {"cniVersion": "1.0.0", "name": "podnet", "plugins": list(plugins), **keys}
        path.write_text(json.dumps(document))
        return path

    return write


def asked(agent: FakeAgent) -> list[tuple[dict[str, str], Any]]:
    """(environment, configuration) of each request."""
    found = []
    for request in agent.requests:
        entries = (entry.partition("=") for entry in request.environ.decode().split("\0") if entry)
        conf = json.loads(request.stdin) if request.stdin else None
        found.append(({name: value for name, _, value in entries}, conf))
    return found


# --- does it reply --------------------------------------------------------------------------------


def test_an_agent_that_replies(agent: FakeAgent, run: Run) -> None:
    agent.script = says(wire.HEARTBEAT, VERSIONS)
    assert run() == (0, "")
    (request,) = agent.requests
    assert asked(agent) == [({"CNI_COMMAND": "VERSION"}, None)]
    assert (request.version, request.ipam, request.inodes) == (VERSION.encode(), False, [])
    assert request.home == os.stat("/proc/self/ns/net").st_ino


@pytest.mark.parametrize("left", [False, True], ids=["no socket", "a dead agent's socket"])
def test_no_agent(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    path = str(tmp_path / "agent.sock")
    if left:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
    monkeypatch.setenv(client.SOCKET_VARIABLE, path)
    status, said = run()
    assert status == 1
    assert said.startswith(f"error {Code.TRY_AGAIN_LATER}: no agent serves at {path}: ")


def test_a_socket_that_is_not_for_this_user(
    agent: FakeAgent, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str, timeout_ms: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(probing.sysio, "connect", refused)
    status, said = run()
    assert status == 1
    assert f"error {Code.PERMISSION_DENIED}: can't reach the agent at {agent.path}" in said


def test_somebody_else_at_the_socket(
    agent: FakeAgent, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.sysio, "peer_uid", lambda fd: 4242)
    agent.script = says(VERSIONS)
    status, said = run()
    assert status == 1
    assert f"error {Code.PERMISSION_DENIED}: the agent at {agent.path} runs as user 4242" in said
    agent.close()
    assert agent.requests == []


@pytest.mark.parametrize("with_file", [False, True])
def test_an_agent_of_another_version(
    agent: FakeAgent, run: Run, conflist: Callable[..., Path], with_file: bool
) -> None:
    reason = f"client is podwire {VERSION}, agent 0.0.1"
    agent.script = says(wire.reply(wire.DECLINED, 0, reason.encode()))
    status, said = run(*[conflist(PLUGIN)] * with_file)
    assert status == 1
    assert f"error {Code.TRY_AGAIN_LATER}: the agent at {agent.path} declines: {reason}" in said


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", VERSIONS[:-1], VERSIONS + b"x"]
)
def test_what_is_no_reply(agent: FakeAgent, run: Run, reply: bytes) -> None:
    agent.script = says(reply)
    status, said = run()
    assert status == 1
    assert f"the agent at {agent.path} gave no valid reply" in said
    assert "call DEL" not in said  # a probe has begun nothing


def test_an_agent_that_hangs(agent: FakeAgent, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE_MS", 200)
    agent.script = None
    status, said = run()
    assert status == 1
    assert "no sign of life" in said


def test_an_agent_that_takes_nothing(
    agent: FakeAgent, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, data: bytes, passed: int = -1) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(probing.sysio, "send", broken)
    status, said = run()
    assert status == 1
    assert f"the agent at {agent.path} takes no request: Broken pipe" in said


# --- could a pod be added -------------------------------------------------------------------------


def test_podwires_part_of_the_list_is_asked_for_status(
    agent: FakeAgent, run: Run, conflist: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CNI_PATH", raising=False)
    agent.script = says(READY)
    assert run(conflist(PLUGIN, {"type": "portmap"})) == (0, "")
    environ = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/opt/cni/bin"}
    assert asked(agent) == [(environ, {**PLUGIN, "name": "podnet", "cniVersion": "1.1.0"})]


def test_each_of_podwires_parts_is_asked(
    agent: FakeAgent, run: Run, conflist: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNI_PATH", "/a:/b")
    agent.script = says(READY)
    assert run(conflist(PLUGIN, {"type": "podwire", "ipMasq": True})) == (0, "")
    assert [(environ["CNI_PATH"], conf["type"]) for environ, conf in asked(agent)] == [
        ("/a:/b", "podwire")
    ] * 2


def test_what_status_says_is_told(
    agent: FakeAgent, run: Run, conflist: Callable[..., Path]
) -> None:
    error = {"cniVersion": "1.1.0", "code": 50, "msg": "no address is left", "details": "free one"}
    agent.script = says(wire.reply(wire.SERVED, 1, json.dumps(error).encode()))
    assert run(conflist(PLUGIN)) == (1, "error 50: no address is left\nhint: free one\n")


@pytest.mark.parametrize("body", [b"{}", b"{nothing}", b'{"code": 5}'])
def test_an_error_that_can_not_be_read(
    agent: FakeAgent, run: Run, conflist: Callable[..., Path], body: bytes
) -> None:
    agent.script = says(wire.reply(wire.SERVED, 1, body))
    status, said = run(conflist(PLUGIN))
    assert status == 1
    assert "gave no error that can be read" in said


def test_the_lists_own_socket_counts(
    agent: FakeAgent, run: Run, conflist: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(client.SOCKET_VARIABLE, "/proc/nowhere/agent.sock")
    agent.script = says(READY)
    assert run(conflist({**PLUGIN, "agentSocket": agent.path}))[0] == 0
    assert len(agent.requests) == 1


def test_a_network_that_no_agent_serves(
    agent: FakeAgent, run: Run, conflist: Callable[..., Path]
) -> None:
    status, said = run(conflist({**PLUGIN, "agent": "never"}))
    assert status == 1
    assert "no agent serves it" in said
    assert agent.requests == []


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", Code.DECODE_FAILURE, "is not JSON"),
        (b"{", Code.DECODE_FAILURE, "is not JSON"),
        (b"\xff", Code.DECODE_FAILURE, "is not JSON"),
        (b"[" * 100_000, Code.DECODE_FAILURE, "is not JSON"),
        (b"[]", Code.INVALID_CONFIG, "has no such list"),
        (b'{"name": "podnet", "type": "podwire"}', Code.INVALID_CONFIG, "has no such list"),
        (b'{"plugins": {}}', Code.INVALID_CONFIG, "has no such list"),
        (b'{"plugins": []}', Code.INVALID_CONFIG, "none of those in"),
        (b'{"plugins": [1, {"type": "bridge"}]}', Code.INVALID_CONFIG, "none of those in"),
        (b" " * 3_000_000, Code.INVALID_CONFIG, "larger than 256 KiB"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_file_that_is_no_list_with_podwire(
    agent: FakeAgent, run: Run, tmp_path: Path, content: bytes, code: Code, words: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    status, said = run(path)
    assert status == 1
    assert said.startswith(f"error {code}: ")
    assert words in said
    assert str(path) in said
    assert agent.requests == []


def test_the_largest_file(agent: FakeAgent, run: Run, tmp_path: Path) -> None:
    text = json.dumps({"name": "podnet", "plugins": [PLUGIN]}).encode()
    (tmp_path / "file").write_bytes(text.ljust(probing.LARGEST_FILE))
    agent.script = says(READY)
    assert run(tmp_path / "file") == (0, "")


def test_paths_that_can_not_be_read(agent: FakeAgent, run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        ("", 'can\'t read "": No such file or directory'),
        ("/dev/zero", "larger than"),
        (tmp_path / "fifo", "is not JSON"),  # it is not waited for
    ):
        status, said = run(path)
        assert status == 1
        assert words in said
    assert agent.requests == []


def test_two_files_are_a_mistake(agent: FakeAgent, run: Run) -> None:
    status, said = run("a", "b")
    assert status == 2
    assert "unexpected extra argument (b)" in said
    assert agent.requests == []


def test_nothing_is_left_open(agent: FakeAgent, run: Run, conflist: Callable[..., Path]) -> None:
    agent.script = says(READY)
    path = conflist(PLUGIN)
    before = None
    for _ in range(4):
        run(path)
        agent.script = says(b"x") if agent.script else None
        while len(agent.after) < len(agent.requests):
            pass
        before = before or len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) <= before
