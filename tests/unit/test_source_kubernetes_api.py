"""What is asked of an API server, and how it is reached."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.sources import kubeconnect
from cni_plugin.sources.kubeapi import Api
from cni_plugin.sources.kubenode import NodeFacts
from cni_plugin.sources.kubetypes import Access, ApiFailure, Event
from cni_plugin.spec import CniError, Code
from tests.unit.fake_apiserver import (
    FACTS,
    NODE,
    Handler,
    Server,
    api,
    server,
    write,
)

__all__ = ["api", "server", "write"]

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
    node = api.patch_status("n1", {"metadata": {"annotations": {"a": None}}})
    assert node.pod_cidrs == ("10.244.0.0/24", "fd00:10::/64")


def test_patches_and_events_as_the_api_wants_them(api: Api, server: Server) -> None:
    server.answer = lambda handler: handler.say(NODE)
    assert api.patch_status("n1", {"metadata": {"annotations": {"a": None}}}) == FACTS
    assert api.patch_status("n1", {"status": {"conditions": [{"type": "X"}]}}) == FACTS
    event = {"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"name": "n1"}}
    server.answer = lambda handler: handler.say(event, 201)
    api.create_event({**event, "firstTimestamp": "2024-01-01T00:00:00Z", "count": 2})
    assert [one[:3] for one in server.seen] == [
        ("PATCH", "/api/v1/nodes/n1/status", {"fieldManager": "podwire"}),
        ("PATCH", "/api/v1/nodes/n1/status", {"fieldManager": "podwire"}),
        ("POST", "/api/v1/namespaces/default/events", {"fieldManager": "podwire"}),
    ]
    assert server.bodies[0] == (
        "application/strategic-merge-patch+json",
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


def test_a_kubeconfig_that_is_named_has_to_be_of_use(
    tmp_path: Path, write: Callable[..., Access]
) -> None:
    """The option is named, and nobody is asked."""
    cluster = {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": True}
    kubeconnect.refuse_wrong(write(**cluster).kubeconfig, "--kubeconfig")
    unsigned = write(server="https://127.0.0.1:1", **{"certificate-authority": "none.crt"})
    for path in (str(tmp_path / "none"), str(tmp_path), unsigned.kubeconfig):
        with pytest.raises(CniError) as caught:
            kubeconnect.refuse_wrong(path, "--kubeconfig")
        assert caught.value.code == Code.INVALID_CONFIG
        assert caught.value.msg.startswith("--kubeconfig: expected a kubeconfig that can be used (")
        assert caught.value.msg.endswith(f'got "{path}"')


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
