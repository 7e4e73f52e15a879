"""Which answers of an API server are failures, and which are waited for."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from cni_plugin.sources import kubeapi, kubeconnect
from cni_plugin.sources.kubeapi import Api
from cni_plugin.sources.kubenode import NodeFacts
from cni_plugin.sources.kubetypes import Access, ApiFailure, Event
from tests.unit.fake_apiserver import (
    EMPTY,
    EXPIRED,
    FACTS,
    NODE,
    Handler,
    Server,
    api,
    server,
    watch,
    write,
)

__all__ = ["api", "server", "write"]


@pytest.mark.parametrize(
    ("answer", "said", "gone"),
    [
        (lambda h: h.say({**EXPIRED, "code": 403, "message": "no"}, 403), r"no \(403\)", False),
        (lambda h: h.say(EXPIRED, 410), r"old \(410\)", True),
        (
            lambda h: h.say(b"<html>", 502, "text/html"),
            r"Bad Gateway \(502\)|502 Bad Gateway",
            False,
        ),
        (lambda h: h.say(b"<html>"), "not what an API server says", False),
        (lambda h: h.say({"items": [{"metadata": {"name": 7}}]}), "not what an API", False),
        (lambda h: h.say(b"{", 500), r": Internal Server Error \(500\)", False),
        (lambda h: h.say({}, 503), r": Service Unavailable \(503\)", False),
        (lambda h: h.say(b"null", 503), r": Service Unavailable \(503\)", False),
        (lambda h: h.say({"message": "busy"}, 503), r": busy \(503\)", False),
        (lambda h: h.say({"reason": "Gone"}, 410), r": Gone \(410\)", True),
        (lambda h: h.say({}, 302), r": Found \(302\)", False),
        (lambda h: h.say({}, 599), r": an error without a word \(599\)", False),
    ],
    ids=[
        *("refused", "gone", "proxy", "html", "types", "half an error", "no Status", "null"),
        *("other words", "reason", "redirect", "unknown"),
    ],
)
@pytest.mark.parametrize("asked", ["list", "watch"])
def test_an_answer_that_is_none(
    api: Api, server: Server, asked: str, answer: Any, said: str, gone: bool
) -> None:
    server.answer = answer
    with pytest.raises(ApiFailure, match=said) as caught:
        api.nodes(lambda node: None) if asked == "list" else watch(api)
    assert caught.value.gone is gone
    assert server.url in str(caught.value)


def test_a_redirect_is_not_followed(api: Api, server: Server) -> None:
    """The token is for this server alone."""

    def answer(handler: Handler) -> None:
        handler.send_response(307)
        handler.send_header("Location", f"{server.url}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answer = answer
    said = rf"Temporary Redirect, to {server.url}/elsewhere, which is not followed \(307\)"
    with pytest.raises(ApiFailure, match=said):
        api.nodes(lambda node: None)
    assert len(server.seen) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_an_end(
    api: Api, server: Server, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(kubeconnect, "_LARGEST", 3 << 20)

    def answer(handler: Handler) -> None:
        items = [NODE] * (40_000 if "continue" in server.seen[-1][2] else 2)
        metadata = {"resourceVersion": "5", "continue": "next"}
        data = json.dumps({"items": items, "metadata": metadata}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        if packed:
            data = gzip.compress(data, 1)
            handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has enough
            handler.wfile.write(data)

    server.answer = answer
    taken: list[NodeFacts] = []
    with pytest.raises(ApiFailure, match="answer of more than 3 MB; does the server heed limit"):
        api.nodes(taken.append)
    assert taken == [FACTS, FACTS], "the page before is as it was sent"


def test_a_line_of_a_watch_without_an_end(
    api: Api, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeconnect, "_LARGEST", 1 << 20)
    event = {"type": "ADDED", "object": NODE}

    def answer(handler: Handler) -> None:
        with contextlib.suppress(ConnectionError):
            handler.stream(*[event] * 4000, b"x" * (4 << 20))

    server.answer = answer
    heard: list[Event] = []
    with pytest.raises(ApiFailure, match="answer of more than 1 MB"):
        for one in api.watch("5", lambda: None):
            heard.append(one)
    assert len(heard) == 4000, "all of which together are larger"


@pytest.mark.parametrize(
    ("lines", "said", "gone"),
    [
        ([{"type": "ERROR", "object": EXPIRED}], r"old \(410\)", True),
        ([{"type": "ERROR", "object": {}}], "ends with an error without a word$", False),
        ([{"type": "ERROR", "object": {**EXPIRED, "code": 500}}], r"old \(500\)", False),
        ([b'{"type": "ADDED", "obj\n'], "not what an API server says", False),
        ([{"type": "ADDED", "object": {"metadata": []}}], "not what an API server says", False),
    ],
    ids=["expired", "empty", "internal", "half a line", "types"],
)
def test_a_watch_that_says_what_is_no_event(
    api: Api, server: Server, lines: list[Any], said: str, gone: bool
) -> None:
    server.answer = lambda handler: handler.stream({"type": "ADDED", "object": NODE}, *lines)
    heard: list[Event] = []
    with pytest.raises(ApiFailure, match=said) as caught:
        heard.extend(api.watch("5", lambda: None))
    assert caught.value.gone is gone
    server.answer = lambda handler: handler.stream({"type": "DELETED", "object": NODE})
    assert watch(api) == [Event("DELETED", FACTS, "7")], "it is of use after that"


def test_a_watch_that_breaks_off(api: Api, server: Server) -> None:
    server.answer = lambda handler: handler.stream({"type": "ADDED", "object": NODE}, whole=False)
    heard: list[Event] = []
    with pytest.raises(ApiFailure, match="RemoteProtocolError"):
        for event in api.watch("5", lambda: None):
            heard.append(event)
    assert heard == [Event("ADDED", FACTS, "7")]


def test_a_watch_that_is_silent_ends(
    api: Api, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection lives: whether the server does, only its answer to the next one can tell."""
    monkeypatch.setattr(kubeconnect, "_SILENCE_SECONDS", 2.0)

    def speak(handler: Handler) -> None:
        handler.stream(whole=False)
        for _ in range(3):
            time.sleep(0.6)
            line = json.dumps({"type": "ADDED", "object": NODE}).encode() + b"\n"
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        server.released.wait(30)

    server.answer = speak
    began = time.monotonic()
    assert watch(api) == [Event("ADDED", FACTS, "7")] * 3
    assert 3.8 <= time.monotonic() - began < 15
    monkeypatch.setattr(kubeconnect, "_AGREEMENT_SECONDS", 0.3)
    monkeypatch.setattr(kubeconnect, "_SILENCE_SECONDS", 25.0)
    server.answer = lambda handler: bool(server.released.wait(30))
    began = time.monotonic()
    with pytest.raises(ApiFailure, match="ReadTimeout"):
        watch(api)
    assert time.monotonic() - began < 15, "it does not even agree"


def test_a_list_that_is_long_in_coming_is_waited_for(
    server: Server, write: Callable[..., Access], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many nodes start at once: to begin again would only add to it. Nobody waits for a patch."""
    monkeypatch.setattr(kubeapi, "_TIMEOUT", httpx2.Timeout(0.2, connect=10))
    answered = threading.Event()

    def answer(handler: Handler) -> None:
        answered.wait(0.6)
        handler.say(EMPTY)

    server.answer = answer
    api = Api(write(server=server.url, **{"insecure-skip-tls-verify": True}))
    assert api.nodes(lambda node: None) == "5"
    with pytest.raises(ApiFailure, match="ReadTimeout"):
        api.patch_status("n1", {})
    answered.set()
    monkeypatch.setattr(kubeconnect, "_LIST_SECONDS", 0.2)
    answered.clear()
    with pytest.raises(ApiFailure, match="ReadTimeout"):
        api.nodes(lambda node: None)
    answered.set()
    api.close()


def test_the_end_of_a_watch_is_the_callers_to_answer(api: Api, server: Server) -> None:
    """The library itself would ask again at once, for ever."""
    server.answer = lambda handler: handler.stream()
    assert watch(api) == []
    assert len(server.seen) == 1
    assert watch(api) == []
    assert len(server.seen) == 2


def test_a_watch_is_ended_from_another_thread(api: Api, server: Server) -> None:
    server.answer = lambda handler: handler.hang()
    ended: list[float] = []

    def interrupt() -> None:
        ended.append(time.monotonic())
        api.interrupt()

    opened = threading.Timer(0.2, interrupt)
    with pytest.raises(ApiFailure):
        list(api.watch("5", opened.start))
    assert time.monotonic() - ended[0] < 10
    opened.join()
    with pytest.raises(ApiFailure, match="interrupted"):
        api.nodes(lambda node: None)
    assert len(server.seen) == 1


def test_a_watch_is_broken_off_when_its_own_address_is_lost(api: Api, server: Server) -> None:
    server.answer = lambda handler: handler.hang({"type": "ADDED", "object": NODE})
    heard: list[Event] = []
    began = time.monotonic()
    with pytest.raises(ApiFailure):
        for event in api.watch("5", lambda: None):
            heard.append(event)
            api.lose("192.168.1.2")  # of another connection
            lost = threading.Timer(0.3, api.lose, ["127.0.0.1"])
            lost.start()
    assert 0.3 <= time.monotonic() - began < 5
    lost.join()
    server.answer = lambda handler: handler.stream({"type": "DELETED", "object": NODE})
    assert watch(api) == [Event("DELETED", FACTS, "7")], "it is of use after that"


def test_a_list_that_hangs_is_ended_from_another_thread(api: Api, server: Server) -> None:
    asked = threading.Event()

    def answer(handler: Handler) -> None:
        asked.set()
        server.released.wait(30)

    def interrupt() -> None:
        asked.wait(30)
        api.interrupt()

    server.answer = answer
    other = threading.Thread(target=interrupt)
    other.start()
    began = time.monotonic()
    with pytest.raises(ApiFailure):
        api.nodes(lambda node: None)
    other.join()
    assert time.monotonic() - began < 10


def test_nobody_there(write: Callable[..., Access]) -> None:
    api = Api(write(server="https://127.0.0.1:1", **{"insecure-skip-tls-verify": True}))
    with pytest.raises(ApiFailure, match=r"https://127\.0\.0\.1:1: ConnectError: .*refused"):
        api.nodes(lambda node: None)
    api.close()
