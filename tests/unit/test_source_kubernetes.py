"""How the source follows the Kubernetes API, with an API in memory."""

from __future__ import annotations

import pytest

from cni_plugin.sources import Announcement, Away, Gone, Listed, Put, kubernetes
from cni_plugin.sources.kubenode import Condition, NodeFacts, member_of
from cni_plugin.sources.kubernetes import KubernetesSource, Options
from cni_plugin.sources.kubetypes import ApiFailure
from tests.unit.fake_kubernetes import END, GONE, LOST, FakeApi, Follow, follow, node

__all__ = ["follow"]

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


def test_a_version_that_is_gone_after_failures_means_the_list_at_once(follow: Follow) -> None:
    """The server answers again: to wait as long as for one that does not would only be late."""
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    api.open_fails = [ApiFailure(f"refused {i}") for i in range(3)] + [GONE]
    api.said.put(LOST)
    assert followed.next() == Away("connection lost")
    followed.settle()
    assert api.asked == ["list", *["watch 100"] * 5, "list", "watch 100"]
    assert followed.pauses == [0, 1, 2, 3]


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


def test_an_address_that_the_node_loses_concerns_both_connections(follow: Follow) -> None:
    """The one that hears and the one that tells."""
    api = FakeApi(node("n1"))
    followed = follow(api)
    followed.next()
    followed.source.announce(Announcement(backend="host-gw"))
    followed.source._lose("192.168.1.2")
    assert api.lost == ["192.168.1.2"] * 2


def test_stopped_before_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    source = KubernetesSource(Options("n1"), connect=api.connect)
    source.stop()
    source.follow(lambda change: pytest.fail(f"told {change}"))
    assert api.asked == []


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
