"""The Kubernetes API in memory, and a source that follows it in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cni_plugin.sources import Change, Gone, kubernetes
from cni_plugin.sources.kubenode import Condition, NodeFacts
from cni_plugin.sources.kubernetes import KubernetesSource, Options
from cni_plugin.sources.kubetypes import ApiFailure, Event

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
        self.lost: list[str] = []
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

    def patch_status(self, name: str, patch: dict[str, Any]) -> NodeFacts:
        ((part, _),) = patch.items()
        self._patched(f"patch {name}/status {part}", patch)
        if part == "metadata":
            given = dict(self.there[name].annotations) | patch["metadata"]["annotations"]
            return self._now(name, annotations={k: v for k, v in given.items() if v is not None})
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

    def lose(self, address: str) -> None:
        self.lost.append(address)

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


Follow = Callable[..., Followed]


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Followed]]:
    made: list[Followed] = []

    def start(api: FakeApi, name: str = "n1") -> Followed:
        made.append(Followed(api, monkeypatch, name))
        return made[-1]

    yield start
    for one in made:
        one.close()
