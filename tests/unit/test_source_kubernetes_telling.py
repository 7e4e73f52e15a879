"""What the source tells the Kubernetes API, with an API in memory."""

from __future__ import annotations

import pytest

from cni_plugin.sources import Announcement, Readiness, SourceError
from cni_plugin.sources.kubenode import Condition
from cni_plugin.sources.kubetypes import ApiFailure
from tests.unit.fake_kubernetes import FakeApi, Follow, follow, node

__all__ = ["follow"]

OWN = Announcement("0e:00:0a:f4:00:05", None, "vxlan vni=1 port=8472")
READY = Readiness(True, "PodwireReady", "pods have a network")


def test_what_the_node_says_already_is_not_written(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    for _ in range(3):
        followed.source.announce(OWN)
        followed.source.say_ready(READY)
    assert [one for one in api.asked if one.startswith("patch")] == [
        "patch n1/status metadata",
        "patch n1/status status",
    ]
    assert api.there["n1"].network == Condition("False", *READY[1:], since="2023-11-14T22:13:20Z")


def test_what_others_changed_is_written_again(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    followed.source.say_ready(READY)
    api.say("MODIFIED", node("n1", network=Condition("True", "NoRouteCreated", "by a cloud")))
    followed.settle()
    followed.source.say_ready(READY)
    assert api.asked.count("patch n1/status status") == 2


def test_a_node_made_anew_is_written_again(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    followed.source.announce(OWN)
    api.say("DELETED", api.there["n1"])
    followed.settle()
    with pytest.raises(SourceError, match="has not told of a node n1 yet"):
        followed.source.announce(OWN)
    api.there["n1"] = node("n1", uid="another")
    api.say("ADDED", api.there["n1"])
    followed.settle()
    followed.source.announce(OWN)
    assert api.there["n1"].annotations["podwire.io/backend"] == "vxlan vni=1 port=8472"


def test_a_node_the_cluster_does_not_have_can_not_be_written(follow: Follow) -> None:
    followed = follow(FakeApi(node("n2")), "n1")
    followed.next()
    with pytest.raises(SourceError, match="has not told of a node n1 yet"):
        followed.source.say_ready(READY)


def test_a_refusal_is_a_source_error_and_tried_again(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    api.refuses = ApiFailure("forbidden")
    for tell in (
        lambda: followed.source.announce(OWN),
        lambda: followed.source.say_ready(READY),
        lambda: followed.source.report("n2", "PodCIDROverlap", "x"),
    ):
        with pytest.raises(SourceError, match="forbidden"):
            tell()
    api.refuses = None
    followed.source.announce(OWN)
    followed.source.say_ready(READY)
    followed.source.report("n2", "PodCIDROverlap", "x")
    assert len(api.events) == 1
    assert api.there["n1"].network is not None
    assert api.there["n1"].annotations


def test_an_event_is_on_the_node(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.source.report("n2", "PodCIDROverlap", "10.244.0.0/24 is n1's")
    (event,) = api.events
    name = event.pop("metadata")["name"]
    assert name.startswith("n2.")
    assert event == {
        "apiVersion": "v1",
        "kind": "Event",
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": "n2"},
        "type": "Warning",
        "reason": "PodCIDROverlap",
        "message": "10.244.0.0/24 is n1's",
        "count": 1,
        "firstTimestamp": "2023-11-14T22:13:20Z",
        "lastTimestamp": "2023-11-14T22:13:20Z",
        "source": {"component": "podwire", "host": "n1"},
    }


def test_the_same_words_are_an_event_once_an_hour_and_counted(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    for _ in range(60):
        followed.source.report("n2", "NoAddress", "it has none")
        followed.clock.seconds += 60
    assert [one["count"] for one in api.events] == [1]
    followed.source.report("n2", "NoAddress", "it has none")
    assert [one["count"] for one in api.events] == [1, 60]
    assert api.events[1]["firstTimestamp"] == "2023-11-14T22:14:20Z"
    assert api.events[1]["lastTimestamp"] == "2023-11-14T23:13:20Z"
    followed.source.report("n2", "NoAddress", "other words")
    followed.source.report("n3", "NoAddress", "it has none")
    assert [one["count"] for one in api.events] == [1, 60, 1, 1]


def test_a_long_name_leaves_room_for_an_events_name(follow: Follow) -> None:
    api = FakeApi()
    followed = follow(api)
    followed.source.report("a" * 219 + "." + "b" * 33, "NoAddress", "x")
    name = api.events[0]["metadata"]["name"]
    assert len(name) <= 253
    assert ".." not in name
