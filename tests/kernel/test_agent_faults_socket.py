"""What a client may find where the agent's socket should be.

Nobody there: the call is served in process. Somebody who takes the request and gives no valid
reply: error 11 within a bounded time, and nothing is done in process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cni_plugin import wire
from tests.support import executable, faults, netns
from tests.support.agent import AgentPlugin
from tests.support.faults import Stage
from tests.support.standin import FakeAgent, whole_request

TRY_AGAIN_LATER = 11
SILENCE_S, TOTAL_S = 1.0, 3.0

# The client with short patience, in the place of the console script.
IMPATIENT = (
    "import sys; from cni_plugin import client, __main__; "
    f"client.SILENCE_MS, client.TOTAL_MS = {SILENCE_S * 1000:.0f}, {TOTAL_S * 1000:.0f}; "
    "sys.argv[0] = 'podwire'; sys.exit(__main__.main())"
)


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "agent.sock")


Call = Callable[..., faults.Ended]


@pytest.fixture
def make_impatient() -> Callable[[Stage, str], Call]:
    """make_impatient(stage, path)("ADD") is a call of a client that waits for a second only."""

    def make(stage: Stage, path: str) -> Call:
        def call(command: str, stdin: bytes = b"", timeout: float = 20) -> faults.Ended:
            done = subprocess.run(
                [*stage.node.prefix(), sys.executable, "-c", IMPATIENT],
                input=stdin or json.dumps(stage.conf).encode(),
                capture_output=True,
                check=False,
                env=stage.plugin.environ(command, stage.env() | {"PODWIRE_SOCKET": path}),
                timeout=timeout,
            )
            return faults.Ended(done.returncode, done.stdout, done.stderr)

        return call

    return make


@pytest.fixture
def impatient(stage, path, make_impatient) -> Call:
    """Such a client on the `stage`, of the socket at `path`."""
    return make_impatient(stage, path)


@pytest.fixture
def fake(path) -> Iterator[Callable[..., FakeAgent]]:
    made: list[FakeAgent] = []

    def make(behave: Callable[[socket.socket], None], backlog: int = 16) -> FakeAgent:
        made.append(FakeAgent(path, behave, backlog))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- nobody ---------------------------------------------------------------------------------------


def _refused(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
        dead.listen()


def _datagrams(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)


NOBODY: dict[str, Callable[[str], object]] = {
    "missing": lambda path: None,
    "refused": _refused,
    "file": lambda path: open(path, "w").close(),
    "folder": os.mkdir,
    "fifo": os.mkfifo,
    "loop": lambda path: os.symlink(path, path),
    "dangling": lambda path: os.symlink("/proc/nowhere/at/all", path),
    "datagrams": _datagrams,
}


@pytest.mark.parametrize("name", NOBODY)
def test_nobody_is_there(stage, path, name):
    NOBODY[name](path)
    before = stage.world()
    added = stage.run("ADD", env={"PODWIRE_SOCKET": path})
    assert added.rc == 0, added
    assert added.document()["ips"]
    deleted = stage.run("DEL", env={"PODWIRE_SOCKET": path})
    assert (deleted.rc, deleted.stdout) == (0, b""), deleted
    assert faults.difference(before, stage.world()) == []


@pytest.mark.parametrize(
    "place", ["/proc/self/mem", "relative.sock", "/" + "x" * 107, "/x" * 3000, "/dev/null/agent"]
)
def test_no_path_of_a_socket(stage, place):
    before = stage.world()
    assert stage.run("ADD", env={"PODWIRE_SOCKET": place}).rc == 0
    assert stage.run("DEL", env={"PODWIRE_SOCKET": place}).rc == 0
    assert faults.difference(before, stage.world()) == []


# --- somebody who gives no valid reply ----------------------------------------------------------


def reply(body: bytes = b"{}", size: int | None = None, **more: int) -> bytes:
    head = {"verdict": wire.SERVED, "status": 0} | more
    whole = wire.reply(head["verdict"], head["status"], body)
    if size is None:
        return whole
    return whole[: wire.REPLY_BYTES - 4] + size.to_bytes(4, "little") + body


INVALID = {
    "nothing": b"",
    "half a header": reply()[:5],
    "a header": reply()[: wire.REPLY_BYTES],
    "half a body": reply(b'{"ips": [1, 2, 3]}')[:-9],
    "huge": reply(size=0xFFFFFFFF),
    "sixteen megabytes that do not come": reply(size=wire.LARGEST_REPLY),
    "another magic": b"pdw0" + reply()[4:],
    "another verdict": reply(verdict=7),
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "noise": bytes(range(1, 256)) * 300,
    "more than it says": reply() + b"{}",
    "not a document": reply(b"Segmentation fault"),
    "a failure without a document": reply(b"", status=1),
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("then", ["closes", "stays"])
def test_an_invalid_reply(stage, fake, impatient, name, then):
    def behave(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(INVALID[name])
        if then == "closes":
            connection.close()

    there = fake(behave)
    before = stage.world()
    began = time.monotonic()
    ended = impatient("ADD")
    assert (ended.rc, ended.document()["code"], ended.stderr) == (1, TRY_AGAIN_LATER, b""), ended
    assert time.monotonic() - began < SILENCE_S + 5
    assert faults.difference(before, stage.world()) == []
    assert there.connections == 1


@pytest.mark.parametrize("beat", [wire.HEARTBEAT, b"p"], ids=["heartbeats", "a byte at a time"])
def test_life_without_a_reply_is_bounded(stage, fake, impatient, beat):
    """Signs of life keep the client waiting, and not for ever."""

    def behave(connection: socket.socket) -> None:
        whole_request(connection)
        sent = reply(b"{" + b" " * 1000 + b"}") if beat == b"p" else beat * 1000
        for byte in sent:
            connection.sendall(bytes([byte]))
            time.sleep(SILENCE_S / 4)

    fake(behave)
    before = stage.world()
    began = time.monotonic()
    ended = impatient("ADD")
    assert TOTAL_S - 0.5 < time.monotonic() - began < TOTAL_S + 5
    assert (ended.rc, ended.document()["code"]) == (1, TRY_AGAIN_LATER), ended
    assert faults.difference(before, stage.world()) == []


def test_it_closes_after_half_of_the_request(stage, fake, impatient):
    """More than a socket holds was still to come: nobody can have begun, and the call is served."""
    fake(lambda connection: (connection.recv(1000), connection.close()))
    conf = json.dumps(stage.conf | {"comment": "x" * 4_000_000}).encode()
    before = stage.world()
    added = impatient("ADD", conf)
    assert added.rc == 0, added.stdout[:500]
    assert impatient("DEL", conf).rc == 0
    assert faults.difference(before, stage.world()) == []


def test_it_takes_a_small_request_and_closes(stage, fake, impatient):
    """It may have all of it: error 11, whatever it read."""
    fake(lambda connection: (connection.recv(10), connection.close()))
    before = stage.world()
    for command in ("ADD", "DEL", "CHECK"):
        ended = impatient(command)
        if ended.rc == 0:  # it had closed before the request was sent: served in process
            continue
        assert ended.document()["code"] in (TRY_AGAIN_LATER, 7, 103), ended
    assert stage.run("DEL").rc == 0
    assert faults.difference(before, stage.world()) == []


def test_a_full_backlog(stage, path, impatient):
    """Nobody accepts and there is no room to wait: nothing was sent, the call is served."""
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen(0)
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting[-1].setblocking(False)
                waiting[-1].connect(path)
        except BlockingIOError:
            pass
        before = stage.world()
        began = time.monotonic()
        added = impatient("ADD")
        assert added.rc == 0, added
        assert SILENCE_S - 0.1 < time.monotonic() - began < SILENCE_S + 5
        for one in waiting:
            one.close()
    assert impatient("DEL").rc == 0
    assert faults.difference(before, stage.world()) == []


# --- with the client's own patience ---------------------------------------------------------------


def test_silence_ends_after_ten_seconds(stage, fake, path, podwire_executable):
    """It accepts and never answers: one error 11 after 10 s, from each of several calls."""
    there = fake(whole_request)
    before = stage.world()
    env = stage.env() | {"PODWIRE_SOCKET": path}
    clients = [
        AgentPlugin(one, stage.node) for one in (podwire_executable, executable.executable())
    ]
    began = time.monotonic()  # after the executable has been built
    started = [
        client.start(command, stage.conf, env)
        for client in clients
        for command in ("ADD", "DEL", "CHECK")
    ]
    for process in started:
        out, err = process.communicate(timeout=20)
        ended = faults.Ended(process.returncode, out, err)
        assert (ended.rc, ended.document()["code"], err) == (1, TRY_AGAIN_LATER, b""), ended
    assert 9.5 < time.monotonic() - began < 13
    assert faults.difference(before, stage.world()) == []
    assert there.connections == 6


def test_a_stopped_agent(agent_stages, make_impatient):
    """SIGSTOP: error 11; continued, it takes back what nobody waits for."""
    (stage,) = agent_stages(1, hooked=False)
    impatient = make_impatient(stage, stage.agent.socket)
    stage.use()
    before = stage.world()
    stage.agent.signal(signal.SIGSTOP)
    began = time.monotonic()
    ended = impatient("ADD")
    assert (ended.rc, ended.document()["code"]) == (1, TRY_AGAIN_LATER), ended
    assert SILENCE_S - 0.1 < time.monotonic() - began < SILENCE_S + 5
    assert faults.difference(before, stage.world()) == []
    stage.agent.signal(signal.SIGCONT)
    outcomes = (("ADD", "undone"), ("ADD", "error"))
    netns.wait_until(lambda: stage.agent.served()[-1] in outcomes, what="the ADD taken back")
    assert faults.difference(before, stage.world()) == []
    stage.use()
    stage.agent.terminate()
