"""The client: one call is one round trip, and whatever an agent replies is one document."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cni_plugin import client, skel, wire
from cni_plugin.spec import SUPPORTED_VERSIONS, CniError, Code
from cni_plugin.version import VERSION
from tests.unit import strategies
from tests.unit.fake_agent import FakeAgent, Outcome, called, encoded, replaced, says

RESULT = b'{"cniVersion": "1.0.0", "ips": []}\n'
CONF = b'{"cniVersion": "1.0.0", "name": "podnet", "type": "podwire"}'
SERVED = wire.reply(wire.SERVED, 0, RESULT)
DECLINED = wire.reply(wire.DECLINED, 0, b"not mine")
HEARTBEATS = st.integers(0, 3).map(lambda count: wire.HEARTBEAT * count)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(str(tmp_path / "agent.sock"))
    try:
        yield fake
    finally:
        fake.close()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeAgent]:
    """One agent for all examples of a property."""
    fake = FakeAgent(str(tmp_path_factory.mktemp("agent") / "agent.sock"))
    try:
        yield fake
    finally:
        fake.close()


def environ(path: str, command: str = "ADD", **more: str) -> bytes:
    return encoded({client.SOCKET_VARIABLE: path, "CNI_COMMAND": command, **more})


def asked(agent: FakeAgent, *pieces: bytes, stdin: bytes = CONF) -> Outcome:
    """An ADD whose agent says these pieces."""
    agent.script = says(*pieces)
    return called(environ(agent.path), stdin)


def document(outcome: Outcome) -> dict[str, Any]:
    """The one error document of a call that failed."""
    assert outcome.status == 1
    found = json.loads(outcome.stdout)
    assert set(found) <= {"cniVersion", "code", "msg", "details"}
    assert found["msg"]
    return dict(found)


def hold_to_lost(outcome: Outcome) -> None:
    assert document(outcome)["code"] == Code.TRY_AGAIN_LATER


# --- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beats", [0, 1, 5])
def test_a_reply_is_passed_on_and_confirmed(agent: FakeAgent, beats: int) -> None:
    outcome = asked(agent, *[wire.HEARTBEAT] * beats, SERVED)
    assert outcome == Outcome(0, CONF, RESULT, b"")
    agent.close()
    assert agent.after == [wire.CONFIRMATION]


@pytest.mark.parametrize("status", [1, 2, 255])
def test_an_error_is_passed_on_and_not_confirmed(agent: FakeAgent, status: int) -> None:
    body = b'{"cniVersion": "1.0.0", "code": 7, "msg": "x"}'
    outcome = asked(agent, wire.reply(wire.SERVED, status, body))
    assert outcome == Outcome(status, CONF, body, b"")
    agent.close()
    assert agent.after == [b""]


def test_silence_is_a_success(agent: FakeAgent) -> None:
    assert asked(agent, wire.reply(wire.SERVED, 0, b"")) == Outcome(0, CONF, b"", b"")
    agent.close()
    assert agent.after == [b""]


def test_a_declined_call_is_for_this_process(agent: FakeAgent) -> None:
    assert asked(agent, wire.HEARTBEAT, DECLINED) == Outcome(None, CONF, b"", b"")


def test_split_into_single_bytes(agent: FakeAgent) -> None:
    def script(connection: socket.socket) -> None:
        for value in wire.HEARTBEAT + SERVED:
            connection.sendall(bytes([value]))
            time.sleep(0.0005)

    agent.script = script
    assert called(environ(agent.path), CONF).stdout == RESULT


def test_a_large_body(agent: FakeAgent) -> None:
    body = b'{"a": "' + b"x" * 3_000_000 + b'"}'
    assert asked(agent, wire.reply(wire.SERVED, 0, body)).stdout == body


@pytest.mark.parametrize("end", range(len(SERVED)))
def test_cut_short_anywhere(agent: FakeAgent, end: int) -> None:
    hold_to_lost(asked(agent, SERVED[:end]))


@pytest.mark.parametrize("end", range(len(DECLINED)))
def test_a_declining_cut_short_declines_nothing(agent: FakeAgent, end: int) -> None:
    hold_to_lost(asked(agent, wire.HEARTBEAT + DECLINED[:end]))


@pytest.mark.parametrize("at", range(1, len(SERVED)))
def test_a_heartbeat_within_a_reply(agent: FakeAgent, at: int) -> None:
    """It makes the reply another one, never two documents."""
    outcome = asked(agent, SERVED[:at] + wire.HEARTBEAT + SERVED[at:])
    if at < len(wire.MAGIC):
        hold_to_lost(outcome)
    assert outcome.status is not None
    assert outcome.stdout.count(b"\n") == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"pdw2" + SERVED[4:],
        wire.reply(2, 0, RESULT),
        SERVED[:8] + b"\xff\xff\xff\xff" + RESULT,
        wire.reply(wire.SERVED, 0, RESULT + b"x"),
        SERVED + b"x",
        DECLINED + b"x",
        wire.reply(wire.SERVED, 1, b""),
        wire.reply(wire.SERVED, 0, b"[]"),
        wire.reply(wire.SERVED, 0, b"null"),
        wire.reply(wire.SERVED, 0, b" \n"),
        wire.reply(wire.SERVED, 1, b"Traceback (most recent call last):\n"),
        b"\0" * 100_000,
        pytest.param(os.urandom(100_000), id="random"),
    ],
    ids=lambda reply: repr(reply[:24]),
)
def test_no_valid_reply_is_one_error(agent: FakeAgent, reply: bytes) -> None:
    outcome = asked(agent, reply)
    hold_to_lost(outcome)
    assert document(outcome)["cniVersion"] == "1.0.0"
    assert agent.path in document(outcome)["msg"]


replies = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda at, value: SERVED[:at] + bytes([value]) + SERVED[at + 1 :],
        st.integers(0, len(SERVED) - 1),
        st.integers(0, 255),
    ),
    st.builds(
        wire.reply,
        st.integers(0, 255),
        st.integers(0, 255),
        st.binary(max_size=20) | st.sampled_from([b"", RESULT]),
    ),
    st.builds(lambda size, rest: SERVED[:8] + size + rest, st.binary(min_size=4), st.binary()),
)


@given(beats=HEARTBEATS, reply=replies, tail=st.binary(max_size=3), at=st.integers(0, 90))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(beats=b"", reply=SERVED, tail=b"", at=5)
@example(beats=b"", reply=DECLINED, tail=b"", at=5)
def test_whatever_is_replied_is_one_document_or_declined(
    fuzzed: FakeAgent, beats: bytes, reply: bytes, tail: bytes, at: int
) -> None:
    said = beats + reply + tail
    outcome = asked(fuzzed, said[:at], said[at:])
    plain = said.lstrip(wire.HEARTBEAT)
    declined = plain[:5] == wire.MAGIC + bytes([wire.DECLINED])
    if outcome.status is None:  # then it was declined, and nothing was written
        assert declined
        assert outcome.stdout == b""
    else:
        served = plain[:5] == wire.MAGIC + bytes([wire.SERVED])
        passed_on = outcome.stdout == plain[wire.REPLY_BYTES :][: len(outcome.stdout)]
        if not (served and passed_on):
            hold_to_lost(outcome)


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(), (wire.HEARTBEAT,), (SERVED[:7],), (SERVED[:-1],)])
def test_an_agent_that_falls_silent(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(client, "SILENCE_MS", 200)

    def script(connection: socket.socket) -> None:
        says(*pieces)(connection)
        connection.recv(1)  # until the client has gone

    agent.script = script
    begun = time.monotonic()
    outcome = called(environ(agent.path), CONF)
    hold_to_lost(outcome)
    assert "no sign of life" in document(outcome)["msg"]
    assert time.monotonic() - begun < 5


def test_an_agent_that_accepts_and_never_reads(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request fits into the socket's buffer."""
    monkeypatch.setattr(client, "SILENCE_MS", 200)
    agent.script = None
    hold_to_lost(called(environ(agent.path), CONF))


def test_an_agent_that_does_not_take_the_request_has_begun_nothing(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SILENCE_MS", 200)
    agent.script = None
    stdin = CONF + b" " * 4_000_000
    assert called(environ(agent.path), stdin) == Outcome(None, stdin, b"", b"")


def test_an_agent_that_works_for_ever(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TOTAL_MS", 300)

    def script(connection: socket.socket) -> None:
        while True:
            connection.sendall(wire.HEARTBEAT)
            time.sleep(0.02)

    agent.script = script
    outcome = called(environ(agent.path), CONF)
    hold_to_lost(outcome)
    assert "no reply within" in document(outcome)["msg"]


def test_the_times_are_smaller_than_a_runtimes() -> None:
    """A kubelet gives a pod's sandbox two minutes at least."""
    assert client.SILENCE_MS < client.STDIN_MS < client.TOTAL_MS < 120_000


def test_stdin_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STDIN_MS", 300)
    readable, writable = os.pipe()
    os.write(writable, CONF)
    command = f"import sys; from cni_plugin import client; client.STDIN_MS = {client.STDIN_MS}\n"
    command += "sys.exit(client.call(False)[0])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", command],
            stdin=readable,
            capture_output=True,
            env={"CNI_COMMAND": "ADD", client.SOCKET_VARIABLE: "/proc/nowhere/agent.sock"},
            timeout=20,
            check=False,
        )
    finally:
        os.close(readable)
        os.close(writable)
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == Code.IO_FAILURE
    assert "stdin" in json.loads(done.stdout)["msg"]


# --- the result is delivered, or undone ---------------------------------------------------------


def test_stdout_that_nobody_reads_is_not_confirmed(agent: FakeAgent) -> None:
    agent.script = says(SERVED)
    outcome = called(environ(agent.path), CONF, broken=True)
    assert outcome.status == 1
    assert b"stdout" in outcome.stderr
    agent.close()
    assert agent.after == [b""]


def _late(last: bytes) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RD)
        connection.sendall(SERVED)
        connection.sendall(last)

    return script


def test_a_result_that_was_undone_meanwhile_is_no_success(agent: FakeAgent) -> None:
    agent.script = _late(wire.UNDONE)
    with replaced(client, "_PIECE", len(SERVED)):
        outcome = called(environ(agent.path), CONF)
    assert outcome.status == 1
    assert b"undone" in outcome.stderr


def test_an_agent_that_ended_after_its_reply_undoes_nothing(agent: FakeAgent) -> None:
    agent.script = _late(b"")
    assert called(environ(agent.path), CONF) == Outcome(0, CONF, RESULT, b"")


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ipam", [False, True])
def test_what_the_agent_is_told(agent: FakeAgent, tmp_path: Path, ipam: bool) -> None:
    agent.script = says(SERVED)
    netns = tmp_path / "netns"
    netns.touch()
    given = environ(agent.path, CNI_NETNS=str(netns), CNI_ARGS="A=1=2;B=")
    called(given, CONF, ipam)
    (request,) = agent.requests
    home = os.stat("/proc/self/ns/net").st_ino
    assert request == (ipam, 0, home, VERSION.encode(), given, CONF, [netns.stat().st_ino])


@pytest.mark.parametrize(
    ("path", "errno"),
    [
        ("/proc/nowhere", 2),
        ("/dev/null/x", 20),
        ("/" + "x" * 5000, 36),
        ("", 0),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_sandbox_that_cannot_be_opened(agent: FakeAgent, path: str, errno: int) -> None:
    agent.script = says(SERVED)
    called(environ(agent.path, CNI_NETNS=path), CONF)
    assert (agent.requests[0].errno, agent.requests[0].inodes) == (errno, [])


def test_a_sandbox_is_not_opened_but_named(agent: FakeAgent, tmp_path: Path) -> None:
    """To open a FIFO would wait for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    agent.script = says(SERVED)
    called(environ(agent.path, CNI_NETNS=str(fifo)), CONF)
    assert agent.requests[0].inodes == [fifo.stat().st_ino]


def test_names_that_are_no_utf8(agent: FakeAgent, tmp_path: Path) -> None:
    netns = os.path.join(os.fsencode(tmp_path), b"n\xff\xfe")
    os.close(os.open(netns, os.O_CREAT | os.O_WRONLY))
    agent.script = says(SERVED)
    given = environ(agent.path) + encoded([b"CNI_NETNS=" + netns, b"\xff\x01=\xfe", b"E="])
    assert called(given, CONF).status == 0
    assert agent.requests[0].environ == given
    assert agent.requests[0].inodes == [os.stat(netns).st_ino]


def test_the_largest_environment_and_configuration(agent: FakeAgent) -> None:
    agent.script = says(SERVED)
    given = environ(agent.path)
    given += b"X=" + b"\xff" * (wire.LARGEST_ENVIRON - len(given) - 3) + b"\0"
    stdin = b"\xff" * (wire.LARGEST_STDIN + 5)
    assert called(given, stdin).status == 0
    assert agent.requests[0].environ == given
    assert agent.requests[0].stdin == stdin[: wire.LARGEST_STDIN]


@given(
    entries=st.lists(
        st.binary(max_size=8).map(lambda entry: entry.replace(b"\0", b"=")), max_size=8
    ),
    stdin=st.binary(max_size=50).filter(lambda stdin: b'"agent' not in stdin),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_environment_and_stdin_arrive_as_they_are(
    fuzzed: FakeAgent, entries: list[bytes], stdin: bytes
) -> None:
    fuzzed.script = says(SERVED)
    fuzzed.requests.clear()
    given = environ(fuzzed.path) + encoded(entries)
    assert called(given, stdin).status == 0
    assert (fuzzed.requests[0].environ, fuzzed.requests[0].stdin) == (given, stdin)


def test_nothing_is_left_open(agent: FakeAgent, tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    given = environ(agent.path, CNI_NETNS=str(tmp_path))
    before = None
    for script in (says(SERVED), says(DECLINED), says(b"x"), says(SERVED, b"x")) * 2:
        agent.script = script
        called(given, CONF)
        while len(agent.after) < len(agent.requests):
            time.sleep(0.001)
        time.sleep(0.01)
        before = before or descriptors()
        assert descriptors() == before


# --- the environment ----------------------------------------------------------------------------


@given(
    entries=st.lists(
        st.tuples(
            st.sampled_from(["CNI_COMMAND", "CNI_COMMAN", "XCNI_COMMAND", "A", ""]),
            st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))),
        )
    )
)
@example(entries=[("A", "CNI_COMMAND=x"), ("CNI_COMMAND", "a=b"), ("CNI_COMMAND", "c")])
def test_a_variable(entries: list[tuple[str, str]]) -> None:
    """As getenv(3): the first one counts."""
    given = encoded([f"{name}={value}".encode() for name, value in entries])
    wanted = [value for name, value in entries if name == "CNI_COMMAND"]
    assert client.variable(given, "CNI_COMMAND") == (wanted[0] if wanted else "")


def test_a_variable_that_is_no_utf8() -> None:
    assert client.variable(b"A=\xff\0", "A") == "\ufffd"


def test_an_empty_environment_has_no_variables() -> None:
    assert client.variable(b"", "A") == ""


@pytest.mark.parametrize("path", ["/proc/nowhere/agent.sock", "relative", "/" + "x" * 108])
def test_without_an_agent_the_work_is_this_process_s(path: str) -> None:
    assert called(environ(path), CONF) == Outcome(None, CONF, b"", b"")


def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    assert called(environ(path), CONF).status is None


def test_a_strangers_agent_is_not_trusted(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.sysio, "peer_uid", lambda fd: 4242)
    error = document(called(environ(agent.path), CONF))
    assert error["code"] == Code.PERMISSION_DENIED
    assert "4242" in error["msg"]
    assert agent.requests == []


# --- the keys `agent` and `agentSocket` ---------------------------------------------------------


def conf(**keys: object) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": "podnet", **keys}).encode()


def test_the_configured_socket_comes_first(agent: FakeAgent) -> None:
    agent.script = says(SERVED)
    given = environ("/proc/nowhere")
    assert called(given, conf(agentSocket=agent.path)).status == 0
    assert called(given, conf(agentSocket="")).status is None
    assert called(environ(agent.path), conf(agentSocket="/proc/nowhere")).status is None


@pytest.mark.parametrize("value", ["", "auto", None, 5, [], "no"])
def test_an_agent_is_asked(agent: FakeAgent, value: object) -> None:
    """One that is not valid as well: the agent says so."""
    agent.script = says(SERVED)
    assert called(environ(agent.path), conf(agent=value)).status == 0


def test_no_agent_is_asked(agent: FakeAgent) -> None:
    stdin = conf(agent="never")
    assert called(environ(agent.path), stdin) == Outcome(None, stdin, b"", b"")
    assert called(environ(agent.path), conf(agent="never", agentSocket=agent.path)).status is None
    assert agent.accepted == 0


@pytest.mark.parametrize(
    "stdin",
    [
        b'{"agent": "never"',
        b'["agent"]',
        b'{"agent": NaN}',
        b'{"agentSocket": 5}',
        b'{"agent"' + b":[" * 100_000,
        b'{"agent": ' + b"[" * 100_000,
        b'\xff"agent"',
    ],
    ids=lambda stdin: repr(stdin[:16]),
)
def test_a_configuration_that_cannot_be_read_is_the_agents_to_refuse(
    agent: FakeAgent, stdin: bytes
) -> None:
    agent.script = says(SERVED)
    assert called(environ(agent.path), stdin).status == 0
    assert agent.requests[0].stdin == stdin


@pytest.mark.parametrize("text", [r"/\u0000", r"/\ud800", r"/\udcff", "/\u00e9" * 70])
def test_a_path_that_is_none(text: str) -> None:
    stdin = b'{"agentSocket": "' + text.encode() + b'"}'
    assert called(environ("/proc/nowhere"), stdin).status is None


# --- error documents ----------------------------------------------------------------------------


@given(stdin=strategies.stdins)
@example(stdin=b"[" * 100_000)
@example(stdin=b'{"cniVersion":[' * 50_000)
@settings(deadline=None)
def test_an_error_document_carries_the_version_that_skel_finds(stdin: bytes) -> None:
    found = json.loads(client.error_document(client.FailureError(11, "x", "y"), stdin))
    assert found["cniVersion"] in SUPPORTED_VERSIONS
    try:
        stated = json.loads(stdin.decode())["cniVersion"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if stated:  # without one skel says the oldest or the newest, and here it is the newest
        assert found["cniVersion"] == skel.error_version(stdin)


def test_its_parts_are_like_those_of_skel() -> None:
    failure = client.FailureError(11, 'a "b"\n\u00e9\ud800', "c")
    ours = json.loads(client.error_document(failure, CONF))
    theirs = json.loads(
        skel.encode_error(CniError(Code.TRY_AGAIN_LATER, failure.msg, "c"), "1.0.0")
    )
    assert ours == theirs


# --- VERSION ------------------------------------------------------------------------------------


def test_version_asks_no_agent(agent: FakeAgent) -> None:
    assert called(environ(agent.path, "VERSION"), b'{"cniVersion":"1.0.0"}').status == 0
    assert agent.accepted == 0


@pytest.mark.parametrize("command", ["", "version", "VERSION ", "ADD"])
def test_other_commands_are_no_version(agent: FakeAgent, command: str) -> None:
    agent.script = says(SERVED)
    called(environ(agent.path, command), b'{"cniVersion":"1.0.0"}')
    assert len(agent.requests) == 1


# --- the whole process --------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"garbage", SERVED[:9], wire.reply(wire.SERVED, 1, b"x")])
def test_a_process_says_one_document_and_ends(agent: FakeAgent, said: bytes) -> None:
    agent.script = says(said)
    done = subprocess.run(
        [sys.executable, "-m", "cni_plugin"],
        input=CONF,
        capture_output=True,
        env={"CNI_COMMAND": "ADD", client.SOCKET_VARIABLE: agent.path},
        timeout=20,
        check=False,
    )
    hold_to_lost(Outcome(done.returncode, CONF, done.stdout, done.stderr))
    assert done.stderr == b""
    assert len(agent.requests) == 1
