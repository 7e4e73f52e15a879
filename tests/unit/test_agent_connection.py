"""A client's connection, as the agent sees it."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin import wire
from cni_plugin.agent import connection as module
from cni_plugin.agent.connection import Call, Connection
from cni_plugin.version import VERSION
from tests.support import agent as wires
from tests.unit.agent_rig import CONF, ENVIRON, HOME, nothing_left_open, request

REQUEST = request()


class Pair:
    """A client's end, and the agent's."""

    def __init__(self) -> None:
        self.client, theirs = socket.socketpair()
        self.client.settimeout(10)
        self.agent = Connection(theirs)

    def close(self) -> None:
        self.client.close()
        self.agent.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.close()


def received(data: bytes, *passed: int, rest: bytes = b"") -> Call:
    """What becomes of a request, and that nothing stays open."""
    with nothing_left_open():
        pair = Pair()
        try:
            if data:
                wires.send(pair.client, data, *passed)
            if rest:
                pair.client.sendall(rest)
            pair.client.shutdown(socket.SHUT_WR)
            return pair.agent.receive()
        finally:
            pair.close()


# --- requests -----------------------------------------------------------------------------------


@given(
    environ=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0="), min_size=1, max_size=9),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
        max_size=5,
    ),
    stdin=st.binary(max_size=99),
    at=st.integers(1, 200),
)
@settings(deadline=None)
def test_a_request_arrives_as_it_was(environ: dict[str, str], stdin: bytes, at: int) -> None:
    data = request(environ, stdin, netns_errno=2)
    call = received(data[:at], rest=data[at:])
    home = os.stat(HOME).st_ino
    assert call == Call(False, -1, 2, home, VERSION, environ, stdin)


@pytest.mark.parametrize("end", range(1, len(REQUEST)))
def test_a_request_cut_short_is_none(end: int) -> None:
    with pytest.raises(wire.WireError):
        received(REQUEST[:end], 0)


def test_no_request_at_all() -> None:
    with pytest.raises(EOFError):
        received(b"")


@given(data=st.binary(min_size=1, max_size=60))
@settings(deadline=None)
def test_garbage_is_no_request(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        received(data)


@given(data=st.binary(max_size=40), sizes=st.tuples(*[st.integers(0, 2**32 - 1)] * 2))
@settings(deadline=None)
def test_lengths_that_are_wrong(data: bytes, sizes: tuple[int, int]) -> None:
    """More than came is no request; of what is too much nothing is read."""
    header = REQUEST[: wire.REQUEST_BYTES]
    said = header[:-16] + struct.pack("<II", *sizes) + header[-8:]
    try:
        call = received(said, rest=data)
    except wire.WireError:
        return
    assert len(VERSION) + sum(sizes) <= len(data)
    assert len(call.stdin) == sizes[1]


def test_a_large_request_in_pieces(pair: Pair) -> None:
    stdin = os.urandom(wire.LARGEST_STDIN)
    data = request({"A": "x" * 1_000_000}, stdin)
    sender = threading.Thread(target=pair.client.sendall, args=(data,))
    sender.start()
    call = pair.agent.receive()
    sender.join()
    assert call.stdin == stdin
    assert len(call.environ["A"]) == 1_000_000


def test_a_client_that_stops_talking(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", struct.pack("@ll", 0, 100_000))
    pair.client.sendall(REQUEST[:20])
    with pytest.raises(OSError):
        pair.agent.receive()


@pytest.mark.parametrize(
    ("data", "environ"),
    [
        (b"", {}),
        (b"A=1\0A=2\0", {"A": "1"}),
        (b"A=b=c\0", {"A": "b=c"}),
        (b"A=\0", {"A": ""}),
        (b"A\0\0=x\0B=1\0", {"": "x", "B": "1"}),
        (b"\xff=\xfe\0", {"\udcff": "\udcfe"}),
        (b"A=1", {"A": "1"}),
    ],
)
def test_an_environment(data: bytes, environ: dict[str, str]) -> None:
    """As getenv(3) would see it."""
    home = os.stat(HOME).st_ino
    call = received(wire.request(True, 0, home, VERSION, data, b""))
    assert call.environ == environ
    assert call.ipam


# --- descriptors --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4, 5, 50, 253])
@pytest.mark.parametrize("data", [REQUEST, REQUEST[:1], b"x" * 40], ids=["whole", "cut", "garbage"])
def test_of_many_descriptors_one_is_kept_for_a_while(count: int, data: bytes) -> None:
    with nothing_left_open(), open("/proc/self/status") as file:
        pair = Pair()
        try:
            wires.send(pair.client, data, *[file.fileno()] * count)
            pair.client.shutdown(socket.SHUT_WR)
            if data == REQUEST:
                call = pair.agent.receive()
                assert os.path.samestat(os.fstat(call.sandbox), os.fstat(file.fileno()))
                assert not os.get_inheritable(call.sandbox)
            else:
                with pytest.raises(wire.WireError):
                    pair.agent.receive()
        finally:
            pair.close()


@pytest.mark.parametrize("at", [1, wire.REQUEST_BYTES, len(REQUEST) - 1])
def test_a_descriptor_that_comes_late_is_dropped(at: int) -> None:
    with nothing_left_open(), open("/proc/self/status") as file, ThreadPoolExecutor(1) as pool:
        pair = Pair()
        try:
            pair.client.sendall(REQUEST[:at])
            receiving = pool.submit(pair.agent.receive)
            while select.select([pair.agent._socket], [], [], 0)[0]:
                time.sleep(0.001)
            wires.send(pair.client, REQUEST[at:], file.fileno())
            assert receiving.result(10).sandbox == -1
        finally:
            pair.close()


# --- replies ------------------------------------------------------------------------------------


def test_a_result_that_is_confirmed(pair: Pair) -> None:
    pair.client.sendall(REQUEST + wire.CONFIRMATION)  # it need not wait
    pair.agent.receive()
    pair.client.sendall(wire.CONFIRMATION)
    pair.agent.deliver(b"{}")
    assert wires.answer(pair.client) == (wire.SERVED, 0, b"{}")


@pytest.mark.parametrize("said", [b"", b"x", wire.HEARTBEAT, wire.UNDONE])
def test_a_result_that_is_not_confirmed(pair: Pair, said: bytes) -> None:
    if said:
        pair.client.sendall(said)
    pair.client.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError):
        pair.agent.deliver(b"{}")


def test_a_client_that_has_gone(pair: Pair) -> None:
    assert not pair.agent.gone()
    pair.client.close()
    assert pair.agent.gone()
    with pytest.raises(OSError):
        pair.agent.deliver(b"{}")


def test_after_the_time_for_it_nobody_can_confirm(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a client would report success for what is being undone."""
    monkeypatch.setattr(module, "_TIMEOUT", struct.pack("@ll", 0, 100_000))
    pair.client.sendall(REQUEST)
    pair.agent.receive()
    with pytest.raises(OSError):
        pair.agent.deliver(b"{}")
    with pytest.raises(BrokenPipeError):
        pair.client.send(wire.CONFIRMATION)
    assert pair.client.recv(100) == wire.reply(wire.SERVED, 0, b"{}") + wire.UNDONE


def test_a_confirmation_just_in_time_counts(pair: Pair) -> None:
    """It came between the end of the wait and the closing."""

    class Late:
        """The socket, whose first recv times out although the byte is on its way."""

        def __init__(self, real: socket.socket) -> None:
            self.real = real
            self.late = True

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def recv(self, size: int) -> bytes:
            if self.late:
                self.late = False
                pair.client.sendall(wire.CONFIRMATION)
                raise BlockingIOError
            return self.real.recv(size)

    pair.agent._socket = Late(pair.agent._socket)  # type: ignore[assignment]
    pair.agent.deliver(b"{}")


def test_heartbeats_come_before_a_reply_and_never_after(pair: Pair) -> None:
    pair.agent.heartbeat()
    pair.agent.reply(0, b"{}")
    pair.agent.heartbeat()
    pair.agent.close()
    assert pair.client.recv(100) == wire.HEARTBEAT + wire.reply(wire.SERVED, 0, b"{}")
    assert pair.client.recv(100) == b""


def test_a_heartbeat_waits_for_nobody(pair: Pair) -> None:
    """A client that reads nothing must not hold up the others' heartbeats."""
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            pair.agent.heartbeat()


def test_a_reply_is_whole_whatever_beats_meanwhile(pair: Pair) -> None:
    body = b'{"a": "' + b"x" * 3_000_000 + b'"}'
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            pair.agent.heartbeat()
            time.sleep(0.0005)

    threads = [
        threading.Thread(target=beat),
        threading.Thread(target=pair.agent.reply, args=(0, body)),
    ]
    threads[0].start()
    time.sleep(0.01)
    threads[1].start()
    try:
        assert wires.answer(pair.client) == (wire.SERVED, 0, body)
    finally:
        ended.set()
        for thread in threads:
            thread.join(10)


def test_the_peer_is_who_the_kernel_says(pair: Pair) -> None:
    assert pair.agent.peer() == (os.getpid(), os.geteuid())


def test_declining_says_why(pair: Pair) -> None:
    pair.agent.decline("because \u00e9")
    assert wires.answer(pair.client) == (wire.DECLINED, 0, "because \u00e9".encode())


def test_the_environment_of_an_add() -> None:
    assert received(REQUEST).environ == ENVIRON
    assert received(REQUEST).stdin == CONF
