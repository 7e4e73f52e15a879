"""The server: its threads, heartbeats, growth, idle end and drain; no client ends any of it."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni_plugin import commands, wire
from cni_plugin.agent import server as module
from cni_plugin.agent.server import Options
from cni_plugin.node import Node
from cni_plugin.spec import Request
from tests.support import agent as wires
from tests.support.netns import wait_until
from tests.unit.agent_rig import ENVIRON, HOME, Office, Run, descriptors, kinds_of_files, request

SERVED = (wire.SERVED, 0, b"")


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.05)
    monkeypatch.setattr(module, "_HEARTBEAT_S", 0.1)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def make(workers: int = 4, idle_s: float = 0.0) -> Office:
        options = Options(workers=workers, idle_s=idle_s)
        made.append(Office(str(tmp_path / "agent.sock"), options))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Gate:
    """A command that waits until it is let go."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, asking: Request, node: Node) -> bytes:
        self.begun.release()
        assert self.opened.wait(20)
        return b""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], Run]:
    def replace(function: Run) -> Run:
        monkeypatch.setattr(commands, "run", function)
        return function

    return replace


@pytest.fixture
def gate(run: Callable[[Run], Run]) -> Iterator[Gate]:
    made = Gate()
    run(made)
    yield made
    made.opened.set()


def numbered(number: int) -> bytes:
    """A request about an attachment of its own."""
    return request({**ENVIRON, "CNI_CONTAINERID": f"ctr-{number}"})


def threads_of(office: Office) -> int:
    return sum(thread.is_alive() for thread in office.server._threads)


# --- serving ------------------------------------------------------------------------------------


def test_many_clients_at_once(office: Callable[..., Office], run: Callable[[Run], Run]) -> None:
    run(lambda asking, node: b"")
    made = office()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(made.call, map(numbered, range(200))))
    assert answers == [SERVED] * 200
    wait_until(lambda: len(made.log.fields("served")) == 200)


def test_no_client_ends_a_thread_or_leaves_a_descriptor(
    office: Callable[..., Office], run: Callable[[Run], Run], tmp_path: Path
) -> None:
    """Requests cut, garbled and too long, with descriptors of every kind; then a good one."""

    def opening(asking: Request, node: Node) -> bytes:
        os.close(node.open_sandbox(asking.netns))
        return b""

    run(opening)
    made = office(workers=2)
    chosen = random.Random(7)
    whole = request()
    with kinds_of_files(tmp_path) as kinds:
        before = descriptors()
        for _ in range(400):
            data = bytearray(whole[: chosen.choice([1, 20, 26, 80, len(whole)])])
            if chosen.random() < 0.5:
                data[chosen.randrange(len(data))] = chosen.randrange(256)
            passed = chosen.choices(list(kinds.values()), k=chosen.choice([0, 1, 1, 3, 9]))
            with made.client(bytes(data), *passed) as client:
                if chosen.random() < 0.5:
                    client.shutdown(socket.SHUT_WR)
                    wires.answer(client)
        wait_until(lambda: not made.server._busy)
        made.call(whole)
        # A worker has a netlink socket between calls, but not after one that failed.
        wait_until(lambda: descriptors() <= before + 2)
    assert threads_of(made) == 2
    assert made.log.fields("a worker failed") == []


def test_a_bug_of_a_workers_ends_no_thread(
    office: Callable[..., Office], run: Callable[[Run], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(lambda asking, node: b"")
    made = office(workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(module.Worker, "_unfit", lambda self, call: 1 // 0)
        assert made.call(request()) is None
    assert made.call(request()) == SERVED
    assert len(made.log.fields("a worker failed")) == 1


def test_a_client_that_says_nothing_holds_up_nobody(
    office: Callable[..., Office], run: Callable[[Run], Run]
) -> None:
    """Each takes a worker; more are started."""
    run(lambda asking, node: b"")
    made = office(workers=2)
    quiet = [made.client() for _ in range(5)]
    assert made.call(request()) == SERVED
    assert 2 < threads_of(made) <= 8
    for client in quiet:
        client.close()


# --- heartbeats, growth -------------------------------------------------------------------------


def test_who_waits_hears_of_it(office: Callable[..., Office], gate: Gate) -> None:
    made = office()
    with made.client(request()) as client:
        heard = b""
        while len(heard) < 5:
            heard += client.recv(10)
        assert heard.strip(wire.HEARTBEAT) == b""
        gate.opened.set()
        assert wires.answer(client) == SERVED


def test_a_client_that_hears_nothing_holds_up_no_heartbeat(
    office: Callable[..., Office], gate: Gate
) -> None:
    """One has gone, one never reads: the third is told all the same."""
    made = office()
    made.client(numbered(0)).close()
    with made.client(numbered(1)) as deaf, made.client(numbered(2)) as client:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        heard = b""
        while len(heard) < 8:
            heard += client.recv(10)


def test_the_heartbeat_is_faster_than_the_clients_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cni_plugin import client

    monkeypatch.undo()
    assert (module._HEARTBEAT_S + module._TICK_S) * 1000 * 3 < client.SILENCE_MS


def test_more_workers_are_started_when_all_are_stuck(
    office: Callable[..., Office], gate: Gate
) -> None:
    made = office(workers=2)
    clients = [made.client(numbered(number)) for number in range(6)]
    for _ in clients:
        assert gate.begun.acquire(timeout=10)
    assert 6 <= threads_of(made) <= 8
    gate.opened.set()
    assert [wires.answer(client) for client in clients] == [SERVED] * 6
    for client in clients:
        client.close()


def test_there_is_a_limit_to_it(
    office: Callable[..., Office], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_WORKERS", 3)
    made = office(workers=1)
    clients = [made.client(numbered(number)) for number in range(8)]
    for _ in range(3):
        assert gate.begun.acquire(timeout=10)
    assert not gate.begun.acquire(timeout=0.5)
    assert threads_of(made) == 3
    gate.opened.set()
    assert [wires.answer(client) for client in clients] == [SERVED] * 8
    for client in clients:
        client.close()


# --- the end ------------------------------------------------------------------------------------


def test_idle_agents_end(office: Callable[..., Office], run: Callable[[Run], Run]) -> None:
    run(lambda asking, node: b"")
    begun = time.monotonic()
    made = office(idle_s=1.5)
    while time.monotonic() - begun < 2.5:
        assert made.call(request()) == SERVED
        assert made.running
    made.wait()
    assert made.log.fields("idle") == [{"seconds": 1.5}]


def test_calls_that_are_declined_keep_no_agent_alive(office: Callable[..., Office]) -> None:
    made = office(idle_s=0.5)
    other = request(home="/proc/self/ns/mnt")
    assert HOME != "/proc/self/ns/mnt"
    deadline = time.monotonic() + 15
    while made.running and time.monotonic() < deadline:
        try:
            made.call(other)
        except OSError:
            break
        time.sleep(0.05)
    made.wait(5)


def test_a_long_call_is_not_idleness(office: Callable[..., Office], gate: Gate) -> None:
    made = office(idle_s=0.2)
    with made.client(request()) as client:
        time.sleep(0.8)
        assert made.running
        assert not made.withdrawn
        gate.opened.set()
        assert wires.answer(client) == SERVED
    made.wait()


def test_the_drain_serves_who_has_come(office: Callable[..., Office], gate: Gate) -> None:
    """Two in work and 100 who wait; heartbeats go on; whoever comes later finds nobody."""
    made = office(workers=2)
    clients = [made.client(numbered(number)) for number in range(2)]
    for _ in clients:
        assert gate.begun.acquire(timeout=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_WORKERS", 2)
        clients += [made.client(numbered(number)) for number in range(2, 102)]
        made.server.stop()
        wait_until(lambda: made.withdrawn)
    wait_until(lambda: not os.path.exists(made.listener.path))
    with pytest.raises(OSError):
        made.client()
    while len(clients[0].recv(100)) != 1:  # what has been sent until now
        pass
    assert clients[0].recv(1) == wire.HEARTBEAT
    assert made.running
    gate.opened.set()
    assert [wires.answer(client) for client in clients] == [SERVED] * 102
    made.wait()
    assert threads_of(made) == 0
    for client in clients:
        client.close()


def test_readiness_is_taken_back_before_the_socket_goes(
    office: Callable[..., Office], run: Callable[[Run], Run]
) -> None:
    made = office()
    seen: list[bool] = []
    real = made.listener.withdraw
    made.listener.withdraw = lambda: (seen.append(bool(made.withdrawn)), real())[1]  # type: ignore[method-assign]
    made.server.stop()
    made.wait()
    assert seen == [True]


def test_to_stop_often_and_after_the_end_is_no_error(
    office: Callable[..., Office], gate: Gate
) -> None:
    """A signal may arrive at any time."""
    made = office()
    with made.client(request()) as client:
        assert gate.begun.acquire(timeout=10)
        for _ in range(100_000):
            made.server.stop()
        gate.opened.set()
        assert wires.answer(client) == SERVED
    made.wait()
    readable, writable = os.pipe()  # with the numbers of pipes that have been closed, maybe
    os.set_blocking(readable, False)
    made.server.stop()
    with pytest.raises(BlockingIOError):
        os.read(readable, 1)
    os.close(readable)
    os.close(writable)


def test_a_server_leaves_nothing_open(tmp_path: Path, run: Callable[[Run], Run]) -> None:
    run(lambda asking, node: node.route_socket and b"")
    before = descriptors(), threading.active_count()
    made = Office(str(tmp_path / "agent.sock"), Options())
    for number in range(8):
        assert made.call(numbered(number)) == SERVED
    made.close()
    assert (descriptors(), threading.active_count()) == before
