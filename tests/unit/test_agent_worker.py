"""One worker: what it refuses, what it declines, what it serves, and that nothing stays open."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_plugin import commands, wire
from cni_plugin.agent import worker as module
from cni_plugin.agent.connection import Connection
from cni_plugin.agent.worker import Turns
from cni_plugin.delegate import NESTED
from cni_plugin.node import Node
from cni_plugin.spec import CniError, Code, Request
from tests.support.netns import wait_until
from tests.unit.agent_rig import (
    CONF,
    ENVIRON,
    Desk,
    Run,
    kinds_of_files,
    nothing_left_open,
    request,
)


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    try:
        yield made
    finally:
        made.worker.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], list[Request]]:
    """Replace the commands; what they were asked is in the list."""

    def replace(function: Run) -> list[Request]:
        asked: list[Request] = []

        def noted(asking: Request, node: Node) -> bytes:
            asked.append(asking)
            return function(asking, node)

        monkeypatch.setattr(commands, "run", noted)
        monkeypatch.setattr(commands, "run_ipam", noted)
        return asked

    return replace


def silent(asking: Request, node: Node) -> bytes:
    return b""


def failing(error: BaseException) -> Run:
    def function(asking: Request, node: Node) -> bytes:
        raise error

    return function


def error_of(answer: Any) -> dict[str, Any]:
    """The error document of a call that was served, and failed."""
    verdict, status, body = answer
    assert (verdict, status) == (wire.SERVED, 1)
    return dict(json.loads(body))


# --- refusing and declining ---------------------------------------------------------------------


def test_another_version_is_declined(desk: Desk, run: Callable[[Run], list[Request]]) -> None:
    asked = run(silent)
    verdict, _, reason = desk.serve(request(version="0.0.1")) or (0, 0, b"")
    assert verdict == wire.DECLINED
    assert b"0.0.1" in reason
    assert asked == []
    assert desk.log.fields("served")[0]["outcome"] == "declined"


def test_another_nodes_call_is_declined(desk: Desk, run: Callable[[Run], list[Request]]) -> None:
    asked = run(silent)
    verdict, _, reason = desk.serve(request(home="/proc/self/ns/mnt")) or (0, 0, b"")
    assert verdict == wire.DECLINED
    assert b"namespace" in reason
    assert asked == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_sandbox_for_which_there_was_no_descriptor_is_declined(
    desk: Desk, run: Callable[[Run], list[Request]], number: int
) -> None:
    """A DEL would take it for one that is gone."""
    asked = run(silent)
    verdict, _, _ = desk.serve(request(netns_errno=number)) or (0, 0, b"")
    assert verdict == wire.DECLINED
    assert asked == []


def test_without_a_socket_of_its_own_it_declines(
    desk: Desk, run: Callable[[Run], list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run(silent)

    def full(resident: bool) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("cni_plugin.node.host", full)
        verdict, _, reason = desk.serve(request()) or (0, 0, b"")
    assert verdict == wire.DECLINED
    assert b"Too many open files" in reason
    assert asked == []
    assert desk.serve(request()) == (wire.SERVED, 0, b"")


@pytest.mark.parametrize("uid", [1, 4242, 2**32 - 2])
def test_another_user_is_declined_unheard(
    desk: Desk, run: Callable[[Run], list[Request]], monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    asked = run(silent)
    monkeypatch.setattr(Connection, "peer", lambda self: (77, uid))
    if uid != os.geteuid():
        verdict, _, _ = desk.serve(request()) or (0, 0, b"")
        assert verdict == wire.DECLINED
        assert asked == []
        assert desk.log.fields("refused a user") == [{"uid": uid, "pid": 77}]


def test_somebody_who_only_looks_is_not_worth_a_line(desk: Desk) -> None:
    assert desk.serve(b"", hang_up=True) is None
    assert desk.log.records == []


requests = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda end: request()[:end], st.integers(0, len(request()))),
    st.builds(
        lambda at, value: request()[:at] + bytes([value]) + request()[at + 1 :],
        st.integers(0, len(request()) - 1),
        st.integers(0, 255),
    ),
)


@given(data=requests, passed=st.integers(0, 3))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_is_answered_or_closed(data: bytes, passed: int) -> None:
    desk = Desk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "run", silent)
        with nothing_left_open():
            answer = desk.serve(data, *[0] * passed, hang_up=True)
            desk.worker.close()
    assert answer is None or answer[0] in (wire.SERVED, wire.DECLINED)


# --- serving ------------------------------------------------------------------------------------


def test_success_and_failure(desk: Desk, run: Callable[[Run], list[Request]]) -> None:
    asked = run(silent)
    assert desk.serve(request()) == (wire.SERVED, 0, b"")
    assert asked[0].config == CONF
    run(failing(CniError(Code.POOL_EXHAUSTED, "no address", "enlarge it")))
    error = error_of(desk.serve(request()))
    assert (error["code"], error["msg"]) == (Code.POOL_EXHAUSTED, "no address")
    run(failing(ZeroDivisionError("x")))
    assert error_of(desk.serve(request()))["code"] == Code.INTERNAL


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"[" * 100_000, b'{"a":' * 50_000, b"\xff"])
def test_a_configuration_that_is_none(
    desk: Desk, run: Callable[[Run], list[Request]], stdin: bytes
) -> None:
    asked = run(silent)
    assert error_of(desk.serve(request(stdin=stdin)))["code"] == Code.DECODE_FAILURE
    assert asked == []
    assert desk.log.fields("served")[0]["outcome"] == "error"


def test_a_result_that_nobody_takes_is_undone(
    desk: Desk, run: Callable[[Run], list[Request]]
) -> None:
    undone: list[CniError] = []

    def add(asking: Request, node: Node) -> bytes:
        try:
            return node.hand_over(b"{}")
        except CniError as e:
            undone.append(e)
            raise

    run(add)
    assert desk.serve(request()) == (wire.SERVED, 0, b"{}")
    assert len(undone) == 1
    assert desk.log.fields("served")[0]["outcome"] == "undone"


def test_a_result_that_is_taken(desk: Desk, run: Callable[[Run], list[Request]]) -> None:
    run(lambda asking, node: node.hand_over(b"{}"))
    assert desk.serve(request(), confirm=True) == (wire.SERVED, 0, b"{}")
    assert desk.log.fields("served")[0]["outcome"] == "ok"


def test_a_client_that_has_gone_gets_nothing_done(
    desk: Desk, run: Callable[[Run], list[Request]]
) -> None:
    """It is asked between the steps of an ADD."""

    def wait(asking: Request, node: Node) -> bytes:
        wait_until(node.interrupted)
        return node.hand_over(b"{}")

    run(wait)
    assert error_of(desk.serve(request(), hang_up=True))["code"] == Code.TRY_AGAIN_LATER


def test_the_reaper_removes_links(desk: Desk, run: Callable[[Run], list[Request]]) -> None:
    def delete(asking: Request, node: Node) -> bytes:
        node.remove_links("veth1")
        return b""

    run(delete)
    assert desk.serve(request()) == (wire.SERVED, 0, b"")
    assert desk.removed == ["veth1"]


def test_the_socket_is_kept_until_a_call_fails(
    desk: Desk, run: Callable[[Run], list[Request]]
) -> None:
    seen: list[object] = []

    def note(asking: Request, node: Node) -> bytes:
        seen.append(node.route_socket)
        if len(seen) == 2:
            raise CniError(Code.INTERNAL, "x")
        return b""

    run(note)
    for _ in range(3):
        desk.serve(request())
    assert seen[0] is seen[1]
    assert seen[1] is not seen[2]


# --- sandboxes ----------------------------------------------------------------------------------


def open_it(asking: Request, node: Node) -> bytes:
    os.close(node.open_sandbox(asking.netns))
    return b""


def test_what_is_no_sandbox_is_refused(
    desk: Desk, run: Callable[[Run], list[Request]], tmp_path: Path
) -> None:
    run(open_it)
    with kinds_of_files(tmp_path) as opened:
        for name, fd in opened.items():
            with nothing_left_open():
                error = error_of(desk.serve(request(), fd))
                desk.worker.close()
            assert error["code"] == Code.INVALID_ENVIRONMENT, name
            assert "/run/netns/pod" in error["msg"], name


def test_the_descriptor_counts_and_not_the_path(
    desk: Desk, run: Callable[[Run], list[Request]]
) -> None:
    """In the agent's mount namespace the path may be something else."""
    run(open_it)
    with open("/dev/null") as file:
        data = request({**ENVIRON, "CNI_NETNS": "/proc/1/ns/net"})
        assert "/proc/1/ns/net" in error_of(desk.serve(data, file.fileno()))["msg"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, Code.UNKNOWN_CONTAINER),
        (errno.ENOTDIR, Code.UNKNOWN_CONTAINER),
        (errno.EACCES, Code.INVALID_ENVIRONMENT),
        (errno.ELOOP, Code.INVALID_ENVIRONMENT),
        (0, Code.INVALID_ENVIRONMENT),
        (65535, Code.INVALID_ENVIRONMENT),
    ],
)
def test_a_sandbox_that_the_client_could_not_open(
    desk: Desk, run: Callable[[Run], list[Request]], number: int, code: int
) -> None:
    run(open_it)
    assert error_of(desk.serve(request(netns_errno=number)))["code"] == code


# --- turns --------------------------------------------------------------------------------------


def test_calls_about_one_attachment_follow_each_other() -> None:
    turns = Turns()
    running: list[int] = []
    most: list[int] = []

    def work(attachment: tuple[str, str]) -> None:
        with turns.of(attachment) as first:
            assert first
            running.append(1)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()

    for attachments, limit in (([("a", "eth0")] * 6, 1), ([("a", str(i)) for i in range(6)], 6)):
        most.clear()
        threads = [threading.Thread(target=work, args=(one,)) for one in attachments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(most) == 6
        assert (max(most) == 1) == (limit == 1)
    assert turns._turns == {}


def test_calls_about_no_attachment_do_not_wait() -> None:
    turns = Turns()
    with turns.of(("", "")) as first, turns.of(("", "")) as second:
        assert first
        assert second


def test_a_turn_that_does_not_come_is_an_error(
    desk: Desk, run: Callable[[Run], list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TURN_S", 0.1)
    asked = run(silent)
    turns = desk.worker._turns
    with turns.of(("ctr", "eth0")):
        error = error_of(desk.serve(request()))
    assert error["code"] == Code.TRY_AGAIN_LATER  # declined, it would go on beside the other one
    assert error["cniVersion"] == "1.0.0"
    assert asked == []
    assert desk.log.fields("served")[0]["outcome"] == "error"
    assert desk.serve(request()) == (wire.SERVED, 0, b"")
    assert turns._turns == {}


def test_a_call_of_our_own_delegate_is_within_our_turn(
    desk: Desk, run: Callable[[Run], list[Request]]
) -> None:
    """Podwire as its own IPAM plugin, under another name, is refused; not awaited."""
    run(silent)
    with desk.worker._turns.of(("ctr", "eth0")):
        assert desk.serve(request({**ENVIRON, NESTED: "1"})) == (wire.SERVED, 0, b"")


def test_a_turn_is_given_back_after_a_failure() -> None:
    turns = Turns()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turns.of(("a", "b")) as first:
            assert first
            raise ZeroDivisionError
    assert turns._turns == {}


# --- the log ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["STATUS", "VERSION"])
def test_a_question_whose_answer_is_good_is_for_who_wants_details(
    desk: Desk, run: Callable[[Run], list[Request]], command: str
) -> None:
    """Probes ask every few seconds."""
    run(silent)
    data = request({"CNI_COMMAND": command}, CONF.replace(b"1.0.0", b"1.1.0"))
    desk.serve(data)
    desk.serve(request())
    if command == "STATUS":
        run(failing(CniError(Code.NOT_AVAILABLE, "no address", "enlarge it")))
        desk.serve(data)
    levels = [record.levelname for record in desk.log.records]
    assert levels == ["DEBUG", "INFO", "WARNING"][: len(levels)]
    assert len(levels) == (3 if command == "STATUS" else 2)


def test_what_is_logged_of_a_call(desk: Desk, run: Callable[[Run], list[Request]]) -> None:
    run(silent)
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;X=1"
    desk.serve(request({**ENVIRON, "CNI_ARGS": args}))
    run(failing(CniError(Code.POOL_EXHAUSTED, "no address", "enlarge it")))
    desk.serve(request())
    first, second = desk.log.fields("served")
    assert first.pop("duration_ms") >= 0
    assert first == {
        "command": "ADD",
        "container": "ctr",
        "ifname": "eth0",
        "netns": "/run/netns/pod",
        "namespace": "shop",
        "pod": "web-0",
        "network": "podnet",
        "outcome": "ok",
    }
    wanted = {"outcome": "error", "code": 100, "error": "no address", "remedy": "enlarge it"}
    assert second.items() >= wanted.items()
