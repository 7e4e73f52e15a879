"""Calls that fail in every way, hundreds of each: descriptors, threads and memory stay."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from cni_plugin import wire
from tests.support import agent as wired
from tests.support import faults, netns
from tests.support.agent import Agent, AgentStage

pytestmark = pytest.mark.unmeasured

ROUNDS = 300
SPARE_FDS = 40  # each thread opens a few that stay, when it serves its first call
RSS_KIB = 3072  # arenas of the allocator; what leaks shows within hundreds of calls

Misuse = Callable[[AgentStage, socket.socket], None]


@pytest.fixture
def there(agent_stages) -> Iterator[AgentStage]:
    """A node in use with an agent that has to survive the test, and end well."""
    (stage,) = agent_stages(1, hooked=False)
    stage.use()
    before = stage.world()
    yield stage
    stage.use()
    assert faults.difference(before, stage.world()) == []
    stage.agent.terminate()


def whole(stage: AgentStage, command: str = "ADD", **more: str) -> bytes:
    environ = stage.plugin.environ(command, stage.env() | more)
    return wired.request(environ, json.dumps(stage.conf).encode(), stage.node.path)


def header(*sizes: int) -> bytes:
    """The header of a request with these sizes of version, environment and stdin."""
    return struct.pack("<4sBBHHIIQ", wire.MAGIC, 0, 0, 0, *sizes, 0)


# --- what clients do wrong ----------------------------------------------------------------------


def garbage(stage: AgentStage, connection: socket.socket) -> None:
    wired.send(connection, os.urandom(500))
    assert wired.answer(connection) is None


def nothing(stage: AgentStage, connection: socket.socket) -> None:
    pass


def half_a_header(stage: AgentStage, connection: socket.socket) -> None:
    wired.send(connection, whole(stage)[:11])


def half_a_request(stage: AgentStage, connection: socket.socket) -> None:
    wired.send(connection, whole(stage)[:-30], *_descriptors(1))


def oversized(stage: AgentStage, connection: socket.socket) -> None:
    wired.send(connection, header(5, wire.LARGEST_ENVIRON + 1, 0xFFFFFFFF) + b"x" * 100)
    assert wired.answer(connection) is None


def promised(stage: AgentStage, connection: socket.socket) -> None:
    """The largest sizes there may be, and then hardly a byte."""
    wired.send(connection, header(0xFFFF, wire.LARGEST_ENVIRON, wire.LARGEST_STDIN) + b"x" * 100)


def no_text(stage: AgentStage, connection: socket.socket) -> None:
    wired.send(connection, header(4, 6, 3) + b"\xff\xfe\x00\x01" + b"\xff=\xfe\0\0=" + b"\0{\xff")
    verdict, _, _ = wired.answer(connection)
    assert verdict == wire.DECLINED


_open: list[int] = []


def _descriptors(count: int) -> list[int]:
    """Descriptors to pass; they are the test's and stay open."""
    while len(_open) < count:
        _open.append(os.open("/dev/null", os.O_RDONLY))
    return _open[:count]


def many_descriptors(stage: AgentStage, connection: socket.socket) -> None:
    """As many as one message may carry, and more with the next ones."""
    data = whole(stage)
    wired.send(connection, data[:10], *_descriptors(250))
    wired.send(connection, data[10:20], *_descriptors(100))
    wired.send(connection, data[20:], *_descriptors(3))
    verdict, status, body = wired.answer(connection)
    assert (verdict, status) == (wire.SERVED, 1)
    assert json.loads(body)["code"] == 4  # /dev/null is no sandbox


def gone_before_the_reply(stage: AgentStage, connection: socket.socket) -> None:
    wired.send(connection, whole(stage, "CHECK"), *_descriptors(1))


def refused(stage: AgentStage, connection: socket.socket) -> None:
    """A whole call whose sandbox cannot be opened."""
    environ = stage.plugin.environ("ADD", stage.env())
    data = wired.request(environ, json.dumps(stage.conf).encode(), stage.node.path, netns_errno=2)
    wired.send(connection, data)
    verdict, status, _ = wired.answer(connection)
    assert (verdict, status) == (wire.SERVED, 1)


def undone(stage: AgentStage, connection: socket.socket) -> None:
    """An ADD whose result is not confirmed."""
    fd = os.open(stage.sandbox.path, os.O_PATH)
    try:
        wired.send(connection, whole(stage), fd)
    finally:
        os.close(fd)
    answer = wired.answer(connection)
    assert answer is not None
    assert answer[:2] == (wire.SERVED, 0), answer


CHEAP: dict[str, Misuse] = {
    f.__name__: f
    for f in (
        *(garbage, nothing, half_a_header, half_a_request, oversized, promised, no_text),
        *(many_descriptors, gone_before_the_reply, refused),
    )
}


@pytest.fixture
def closed() -> Iterator[None]:
    yield
    while _open:
        os.close(_open.pop())


def at_rest(agent: Agent) -> dict[str, int]:
    """Its resources when nothing is in work: it has closed what its clients have closed."""
    fds = -1
    while fds != (fds := agent.resources()["fds"]):
        time.sleep(0.05)
    return agent.resources()


def repeat(stage: AgentStage, misuse: Misuse, rounds: int) -> None:
    for _ in range(rounds):
        with wired.connect(stage.agent.socket) as connection:
            misuse(stage, connection)


@pytest.mark.parametrize("name", CHEAP)
def test_resources_stay(there, closed, name):
    repeat(there, CHEAP[name], 60)
    there.use()
    before = at_rest(there.agent)
    repeat(there, CHEAP[name], ROUNDS)
    there.use()
    after = at_rest(there.agent)
    assert after["fds"] <= before["fds"] + SPARE_FDS, (before, after)
    assert after["threads"] == before["threads"]
    assert after["rss"] - before["rss"] < RSS_KIB, (before, after)


def test_resources_stay_over_undone_adds(there, closed):
    """The longest way there is and back, a hundred times."""
    repeat(there, undone, 20)
    there.use()
    before = at_rest(there.agent)
    repeat(there, undone, 100)
    there.use()
    after = at_rest(there.agent)
    assert after["fds"] <= before["fds"] + SPARE_FDS, (before, after)
    assert after["threads"] == before["threads"]
    assert after["rss"] - before["rss"] < RSS_KIB, (before, after)
    there.assert_pool_is_whole()


def test_silent_connections_do_not_block_others(there):
    """Forty clients that say nothing: others are served meanwhile, and all of it goes away."""
    before = at_rest(there.agent)
    silent = [wired.connect(there.agent.socket) for _ in range(40)]
    try:
        began = time.monotonic()
        assert there.run("ADD").rc == 0
        assert there.run("DEL").rc == 0
        assert time.monotonic() - began < 12
    finally:
        for one in silent:
            one.close()
    netns.wait_until(
        lambda: there.agent.resources()["fds"] <= before["fds"] + SPARE_FDS,
        what="descriptors closed",
    )
    assert there.agent.resources()["threads"] <= 70


def test_more_clients_than_descriptors(there, closed):
    """An agent at its limit of open files refuses nobody for good, and serves again."""
    limits = f"--pid={there.agent.pid}"
    netns.run(["prlimit", limits, f"--nofile={at_rest(there.agent)['fds'] + 20}:4096"])
    silent = [wired.connect(there.agent.socket) for _ in range(60)]
    netns.wait_until(lambda: there.agent.log("can't accept a client"), what="no descriptor is left")
    for one in silent:
        one.close()
    netns.run(["prlimit", limits, "--nofile=4096:4096"])
    ended = there.run("STATUS", conf=there.conf | {"cniVersion": "1.1.0"})
    assert ended.rc == 0, ended
    assert there.run("ADD").rc == 0
    assert there.run("DEL").rc == 0


def test_an_agent_that_runs_out_of_descriptors(there):
    """It can accept, and then open a few files or none: each call is done, or fails with one
    error that says so, and nothing is left that DEL does not find later."""
    codes = set()
    for spare in (1, 2, 3, 4, 5, 6):
        before = there.world()
        limit = at_rest(there.agent)["fds"] + spare
        limits = f"--pid={there.agent.pid}"
        netns.run(["prlimit", limits, f"--nofile={limit}:4096"])
        ended = [there.run(command) for command in ("ADD", "DEL")]
        netns.run(["prlimit", limits, "--nofile=4096:4096"])
        for one in ended:
            assert (
                one.rc == 0 or b"oo many open files" in one.stdout or (one.document()["code"] == 11)
            ), one
            codes.add(0 if one.rc == 0 else one.document()["code"])
        assert there.run("DEL").rc == 0
        assert faults.difference(before, there.world()) == []
    assert codes - {0}, "the agent had descriptors enough"
    assert {"served"} <= {record["msg"] for record in there.agent.log()}
