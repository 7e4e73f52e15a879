"""What is asked of an API server, and which of its answers are failures."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightkube", reason="lightkube is missing: pip install '.[kubernetes]'")

from cni_plugin.sources import kubeapi, kubeconnect
from cni_plugin.sources.kubeapi import Api
from cni_plugin.sources.kubenode import Condition, NodeFacts
from cni_plugin.sources.kubetypes import Access, ApiFailure, Event
from tests.unit.fake_apiserver import Handler, Server

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "n1",
        "uid": "u1",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "resourceVersion": "7",
        "annotations": {"podwire.io/backend": "host-gw", "another/one": "x"},
    },
    "spec": {"podCIDR": "10.244.0.0/24", "taints": [{"key": "x"}]},
    "status": {
        "addresses": [{"type": "InternalIP", "address": "192.168.1.2"}],
        "conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "NetworkUnavailable", "status": "False", "reason": "R", "message": "m"},
        ],
    },
}
FACTS = NodeFacts(
    name="n1",
    uid="u1",
    created="2024-01-01T00:00:00Z",
    annotations={"podwire.io/backend": "host-gw"},
    addresses=(("InternalIP", "192.168.1.2"),),
    pod_cidrs=("10.244.0.0/24",),
    network=Condition("False", "R", "m"),
)
EXPIRED = {
    "kind": "Status",
    "status": "Failure",
    "code": 410,
    "reason": "Expired",
    "message": "old",
}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.released.set()
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Access]:
    """write(**keys) is access by a kubeconfig; keywords go to its cluster, `user` to its user."""

    def make(user: dict[str, str] | None = None, **cluster: Any) -> Access:
        path = tmp_path / "kubeconfig"
        content = {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user or {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        }
        path.write_text(json.dumps(content))
        return Access(kubeconfig=str(path))

    return make


@pytest.fixture
def api(server: Server, write: Callable[..., Access]) -> Iterator[Api]:
    made = Api(write(server=server.url, **{"insecure-skip-tls-verify": True}))
    yield made
    made.close()


def watch(api: Api, version: str = "5") -> list[Event]:
    return list(api.watch(version, lambda: None))


# --- what is asked ------------------------------------------------------------------------------


def test_a_list_is_read_in_pages(api: Api, server: Server) -> None:
    def answer(handler: Handler) -> None:
        more = "continue" not in server.seen[-1][2]
        metadata = {"resourceVersion": "5", **({"continue": "next"} if more else {})}
        handler.say({"items": [NODE], "metadata": metadata})

    server.answer = answer
    taken: list[NodeFacts] = []
    assert api.nodes(taken.append) == "5"
    assert taken == [FACTS, FACTS]
    assert [one[1:3] for one in server.seen] == [
        ("/api/v1/nodes", {"limit": "250"}),
        ("/api/v1/nodes", {"limit": "250", "continue": "next"}),
    ]


def test_a_watch_asks_for_bookmarks_and_for_its_end(api: Api, server: Server) -> None:
    bookmark = {"kind": "Node", "metadata": {"resourceVersion": "9", "creationTimestamp": None}}
    server.answer = lambda handler: handler.stream(
        {"type": "ADDED", "object": NODE}, {"type": "BOOKMARK", "object": bookmark}
    )
    opened: list[bool] = []
    events = list(api.watch("5", lambda: opened.append(True)))
    assert events == [Event("ADDED", FACTS, "7"), Event("BOOKMARK", NodeFacts(""), "9")]
    assert opened == [True]
    ((_, path, parameters, _),) = server.seen
    assert path == "/api/v1/nodes"
    assert 300 <= int(parameters.pop("timeoutSeconds")) <= 600
    assert parameters == {"watch": "true", "resourceVersion": "5", "allowWatchBookmarks": "true"}


def test_both_families_come_before_the_older_field(api: Api, server: Server) -> None:
    spec = {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:10::/64"]}
    server.answer = lambda handler: handler.say({**NODE, "spec": spec})
    node = api.patch_node("n1", {"metadata": {"annotations": {"a": None}}})
    assert node.pod_cidrs == ("10.244.0.0/24", "fd00:10::/64")


def test_patches_and_events_as_the_api_wants_them(api: Api, server: Server) -> None:
    server.answer = lambda handler: handler.say(NODE)
    assert api.patch_node("n1", {"metadata": {"annotations": {"a": None}}}) == FACTS
    assert api.patch_status("n1", {"status": {"conditions": [{"type": "X"}]}}) == FACTS
    event = {"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"name": "n1"}}
    server.answer = lambda handler: handler.say(event, 201)
    api.create_event({**event, "firstTimestamp": "2024-01-01T00:00:00Z", "count": 2})
    assert [one[:3] for one in server.seen] == [
        ("PATCH", "/api/v1/nodes/n1", {"fieldManager": "podwire"}),
        ("PATCH", "/api/v1/nodes/n1/status", {"fieldManager": "podwire"}),
        ("POST", "/api/v1/namespaces/default/events", {"fieldManager": "podwire"}),
    ]
    assert server.bodies[0] == (
        "application/merge-patch+json",
        {"metadata": {"annotations": {"a": None}}},
    )
    assert server.bodies[1][0] == "application/strategic-merge-patch+json"
    assert server.bodies[2][1]["firstTimestamp"] == "2024-01-01T00:00:00Z"
    assert server.bodies[2][1]["count"] == 2


def test_the_token_is_read_for_each_request(server: Server, tmp_path: Path, write: Any) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    cluster = {"server": server.url, "insecure-skip-tls-verify": True}
    api = Api(write(user={"tokenFile": str(token)}, **cluster))
    api.nodes(lambda node: None)
    token.write_text("two\n")
    api.nodes(lambda node: None)
    token.unlink()
    with pytest.raises(ApiFailure, match=re.escape(str(token))):
        api.nodes(lambda node: None)
    api.close()
    assert [one[3] for one in server.seen] == ["Bearer one", "Bearer two"]


# --- what is a failure --------------------------------------------------------------------------


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
        (lambda h: h.say(b"{", 500), "not what an API server says|Internal Server Error", False),
    ],
    ids=["refused", "gone", "proxy", "html", "types", "half an error"],
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


@pytest.mark.parametrize(
    ("lines", "said", "gone"),
    [
        ([{"type": "ERROR", "object": EXPIRED}], r"old \(410\)", True),
        ([{"type": "ERROR", "object": {**EXPIRED, "code": 500}}], r"old \(500\)", False),
        ([b'{"type": "ADDED", "obj\n'], "not what an API server says", False),
        ([{"type": "ADDED", "object": {"metadata": []}}], "not what an API server says", False),
    ],
    ids=["expired", "internal", "half a line", "types"],
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


def test_a_watch_that_should_have_ended(
    api: Api, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection lives and the server says nothing: the end of it was asked for."""
    monkeypatch.setattr(kubeapi, "_WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(kubeconnect, "_SPARE_SECONDS", 0.2)
    server.answer = lambda handler: handler.hang()
    began = time.monotonic()
    with pytest.raises(ApiFailure, match="ReadTimeout"):
        watch(api)
    assert 1.1 < time.monotonic() - began < 5


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
    assert time.monotonic() - ended[0] < 1
    opened.join()
    with pytest.raises(ApiFailure, match="interrupted"):
        api.nodes(lambda node: None)
    assert len(server.seen) == 1


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
    assert time.monotonic() - began < 2


def test_nobody_there(write: Callable[..., Access]) -> None:
    api = Api(write(server="https://127.0.0.1:1", **{"insecure-skip-tls-verify": True}))
    with pytest.raises(ApiFailure, match=r"https://127\.0\.0\.1:1: ConnectError: .*refused"):
        api.nodes(lambda node: None)
    api.close()


# --- how to get there ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not found"),
        ("{", "not a kubeconfig"),
        ("- a\n- b\n", "not a kubeconfig"),
        ("clusters: []\ncontexts: []\nusers: []\n", "[Nn]o current context"),
        ("current-context: x\nclusters: []\ncontexts: []\nusers: []\n", "'x' not found"),
        ("current-context: x\nclusters: 5\n", "not a kubeconfig"),
    ],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ApiFailure, match=said) as caught:
        Api(Access(kubeconfig=str(path)))
    assert str(path) in str(caught.value) or "context" in str(caught.value).lower()


def test_a_kubeconfig_has_to_name_who_signed(write: Callable[..., Access]) -> None:
    with pytest.raises(ApiFailure, match="names no certificate authority"):
        Api(write(server="https://127.0.0.1:1"))


def test_the_server_given_goes_before_the_kubeconfigs(
    server: Server, write: Callable[..., Access]
) -> None:
    there = write(server="https://127.0.0.1:1", **{"insecure-skip-tls-verify": True})
    api = Api(there._replace(server=server.url))
    assert api.nodes(lambda node: None) == "5"
    api.close()


def test_a_pod_without_its_service_account(tmp_path: Path) -> None:
    with pytest.raises(ApiFailure, match="No such file"):
        Api(Access(server="https://127.0.0.1:1", account=str(tmp_path)))
    with pytest.raises(ApiFailure, match="KUBERNETES_SERVICE_HOST"):
        Api(Access(account=str(tmp_path)))
