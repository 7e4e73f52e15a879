"""How the source follows the Kubernetes API and tells it, with an API in memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cni_plugin.sources import (
    Announcement,
    Away,
    Change,
    Gone,
    Listed,
    Put,
    Readiness,
    SourceError,
    kubernetes,
)
from cni_plugin.sources.kubenode import Condition, NodeFacts, member_of
from cni_plugin.sources.kubernetes import KubernetesSource, Options
from cni_plugin.sources.kubetypes import ApiFailure, Event
from cni_plugin.spec import CniError, Code

GONE = ApiFailure("too old", gone=True)
LOST = ApiFailure("connection lost")
END = None


def node(name: str, cidr: str = "10.244.0.0/24", **keys: Any) -> NodeFacts:
    addresses = (("InternalIP", "192.168.1.2"),)
    return NodeFacts(name, f"uid-{name}", "2024", {}, addresses, (cidr,))._replace(**keys)


class FakeApi:
    """The API server as all clients of a source see it. `said` holds what watches say: events, an
    ApiFailure, or END. `asked` has the requests."""

    def __init__(self, *nodes: NodeFacts) -> None:
        self.there = {one.name: one for one in nodes}
        self.version = 100
        self.said: queue.Queue[Event | ApiFailure | None] = queue.Queue()
        self.asked: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.list_fails: list[ApiFailure] = []
        self.open_fails: list[ApiFailure] = []
        self.refuses: ApiFailure | None = None
        self.connections = 0
        self._interrupted = False

    def connect(self) -> FakeApi:
        self.connections += 1
        return self

    def nodes(self, take: Callable[[NodeFacts], None]) -> str:
        self.asked.append("list")
        for one in self.there.values():
            take(one)
        if self.list_fails:
            raise self.list_fails.pop(0)
        return str(self.version)

    def watch(self, version: str, opened: Callable[[], None]) -> Iterator[Event]:
        self.asked.append(f"watch {version}")
        if self.open_fails:
            raise self.open_fails.pop(0)
        opened()
        while not self._interrupted:
            said = self.said.get()
            if said is END:
                return
            if isinstance(said, ApiFailure):
                raise said
            yield said

    def say(self, kind: str, facts: NodeFacts) -> None:
        self.version += 1
        self.said.put(Event(kind, facts, str(self.version)))

    def patch_node(self, name: str, patch: dict[str, Any]) -> NodeFacts:
        self._patched(f"patch {name}", patch)
        given = dict(self.there[name].annotations) | patch["metadata"]["annotations"]
        return self._now(name, annotations={k: v for k, v in given.items() if v is not None})

    def patch_status(self, name: str, patch: dict[str, Any]) -> NodeFacts:
        self._patched(f"patch {name}/status", patch)
        (one,) = patch["status"]["conditions"]
        condition = Condition(
            one["status"], one["reason"], one["message"], one["lastTransitionTime"]
        )
        return self._now(name, network=condition)

    def _patched(self, request: str, patch: dict[str, Any]) -> None:
        self.asked.append(request)
        if self.refuses:
            raise self.refuses

    def _now(self, name: str, **keys: Any) -> NodeFacts:
        self.there[name] = self.there[name]._replace(**keys)
        return self.there[name]

    def create_event(self, event: dict[str, Any]) -> None:
        self._patched("event", event)
        self.events.append(event)

    def interrupt(self) -> None:
        self._interrupted = True
        self.said.put(ApiFailure("interrupted"))

    def close(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


class Followed:
    """A source that follows in a thread; `told` has its changes, `pauses` the failures in a row
    before each wait."""

    def __init__(self, api: FakeApi, monkeypatch: pytest.MonkeyPatch, name: str = "n1") -> None:
        self.api, self.clock = api, Clock()
        self.told: queue.Queue[Change] = queue.Queue()
        self.pauses: list[int] = []
        monkeypatch.setattr(kubernetes, "pause", self._pause)
        self.source = KubernetesSource(Options(name), connect=api.connect, now=self.clock)
        self._thread = threading.Thread(target=self.source.follow, args=(self.told.put,))
        self._thread.start()

    def _pause(self, failures: int) -> float:
        self.pauses.append(failures)
        return 0.0

    def next(self) -> Change:
        return self.told.get(timeout=5)

    def settle(self) -> None:
        """Wait until all that was said is heard: a node that comes is told after it."""
        self.api.say("ADDED", node("settled", "10.244.99.0/24"))
        self.api.say("DELETED", node("settled"))
        while self.next() != Gone("settled"):
            pass

    def close(self) -> None:
        self.source.stop()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Followed]]:
    made: list[Followed] = []

    def start(api: FakeApi, name: str = "n1") -> Followed:
        made.append(Followed(api, monkeypatch, name))
        return made[-1]

    yield start
    for one in made:
        one.close()


Follow = Callable[..., Followed]


# --- following --------------------------------------------------------------------------------


def test_the_list_comes_first_and_the_watch_goes_on_from_there(follow: Follow) -> None:
    api = FakeApi(node("n1"), node("n2", "10.244.1.0/24"))
    followed = follow(api)
    assert followed.next() == Listed(tuple(member_of(one) for one in api.there.values()))
    followed.settle()
    assert api.asked == ["list", "watch 100"]


def test_nodes_that_come_change_and_go_are_told(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    n2 = node("n2", "10.244.1.0/24")
    moved = n2._replace(addresses=(("InternalIP", "192.168.1.77"),))
    api.say("ADDED", n2)
    api.say("MODIFIED", moved)
    api.say("DELETED", moved)
    assert [followed.next() for _ in range(3)] == [
        Put(member_of(n2)),
        Put(member_of(moved)),
        Gone("n2"),
    ]


def test_a_heartbeat_tells_nothing(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    api.say("MODIFIED", node("n1", network=Condition("True", "x", "y")))
    api.say("MODIFIED", node("n1"))
    api.say("BOOKMARK", NodeFacts(""))
    api.say("ADDED", node("n2", "10.244.1.0/24"))
    assert followed.next() == Put(member_of(node("n2", "10.244.1.0/24")))


def test_a_node_made_anew_is_told(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    api.say("MODIFIED", node("n1", uid="another"))
    assert followed.next() == Put(member_of(node("n1", uid="another")))


def test_a_node_nobody_was_told_of_is_not_told_gone(follow: Follow) -> None:
    api = FakeApi()
    followed = follow(api)
    followed.next()
    api.say("DELETED", node("n9"))
    api.say("ADDED", node("n1"))
    assert followed.next() == Put(member_of(node("n1")))


def test_the_next_watch_goes_on_after_the_last_event_or_bookmark(follow: Follow) -> None:
    api = FakeApi()
    followed = follow(api)
    followed.next()
    api.say("ADDED", node("n1"))
    api.said.put(END)
    api.say("BOOKMARK", NodeFacts(""))
    api.said.put(END)
    api.say("ADDED", node("n2"))
    assert [followed.next(), followed.next()] == [
        Put(member_of(node("n1"))),
        Put(member_of(node("n2"))),
    ]
    assert api.asked == ["list", "watch 100", "watch 101", "watch 102"]


def test_a_version_that_is_gone_means_the_list_again_at_once(follow: Follow) -> None:
    api = FakeApi(node("n1"), node("n2"))
    followed = follow(api)
    followed.next()
    del api.there["n2"]
    api.version = 500
    api.said.put(GONE)
    assert followed.next() == Listed((member_of(node("n1")),))
    followed.settle()
    assert api.asked == ["list", "watch 100", "list", "watch 500"]
    assert followed.pauses == []


def test_a_version_that_is_gone_again_and_again_is_not_asked_for_without_a_pause(
    follow: Follow,
) -> None:
    api = FakeApi()
    followed = follow(api)
    for _ in range(4):
        api.said.put(GONE)
    for _ in range(5):
        assert followed.next() == Listed(())
    assert followed.pauses == [1, 2, 3]


def test_away_is_told_once_and_back_by_the_list_that_is_known(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    listed = followed.next()
    api.open_fails = [ApiFailure(f"refused {i}") for i in range(3)]
    api.said.put(LOST)
    assert followed.next() == Away("connection lost")
    assert followed.next() == listed
    followed.settle()
    assert api.asked == ["list", *["watch 100"] * 5]
    assert followed.pauses == [0, 1, 2, 3]
    assert api.connections == 5, "a CA or kubeconfig that changed would never be read"


def test_what_happened_meanwhile_is_told_after_the_return(follow: Follow) -> None:
    api = FakeApi(node("n1"))
    followed = follow(api)
    listed = followed.next()
    api.said.put(LOST)
    api.say("DELETED", node("n1"))
    assert [followed.next() for _ in range(3)] == [Away("connection lost"), listed, Gone("n1")]


def test_a_list_that_breaks_changes_nothing(follow: Follow) -> None:
    api = FakeApi(node("n1"), node("n2"))
    api.list_fails = [LOST, GONE]
    followed = follow(api)
    assert followed.next() == Away("connection lost")
    assert followed.next() == Listed((member_of(node("n1")), member_of(node("n2"))))
    assert api.asked[:3] == ["list"] * 3


def test_a_watch_that_ends_as_soon_as_it_is_open_is_not_asked_for_without_a_pause(
    follow: Follow,
) -> None:
    api = FakeApi()
    followed = follow(api)
    for _ in range(4):
        api.said.put(END)
    followed.settle()
    assert followed.pauses == [0, 1, 2, 3]
    assert followed.told.empty()


def test_pauses_grow_to_half_a_minute_and_differ() -> None:
    for failures, longest in ((0, 1.0), (1, 2.0), (3, 8.0), (5, 30.0), (10_000, 30.0)):
        drawn = {kubernetes.pause(failures) for _ in range(50)}
        assert len(drawn) > 1
        assert all(max(0.5, longest / 2) <= one <= longest for one in drawn)


def test_stopped_before_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    source = KubernetesSource(Options("n1"), connect=api.connect)
    source.stop()
    source.follow(lambda change: pytest.fail(f"told {change}"))
    assert api.asked == []


def test_a_library_that_is_missing_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "find_spec", lambda name: None)
    with pytest.raises(CniError, match="lightkube is not installed") as caught:
        KubernetesSource(Options("n1"))
    assert caught.value.code == Code.INVALID_CONFIG
    assert "podwire[kubernetes]" in caught.value.details


def test_a_pod_finds_the_api_by_the_service_when_nobody_says_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert kubernetes.access(Options("n1")).server == "https://[fd00::1]:6443"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert kubernetes.access(Options("n1")).server == "https://10.96.0.1:6443"
    given = Options("n1", api_server="https://192.168.1.2:6443")
    assert kubernetes.access(given).server == "https://192.168.1.2:6443"
    assert kubernetes.access(Options("n1", kubeconfig="/k")).server == ""


# --- telling ----------------------------------------------------------------------------------

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
        "patch n1",
        "patch n1/status",
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
    assert api.asked.count("patch n1/status") == 2


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
