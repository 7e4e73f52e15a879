"""What a node that follows a cluster notes of that, and what `podwire status` makes of it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import teardown, tool_cluster
from cni_plugin.agent import clusterlock, clusterstate
from cni_plugin.agent.clusterstate import About, ClusterState, Notice
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.statefolder import StateFolder, node_key
from cni_plugin.sources import Away, Listed, Readiness
from tests.support.fakesource import member
from tests.support.follower import MEMBERS, Follower
from tests.support.netns import Namespace

LOGGER = logging.getLogger("test.clusterstate")


def noted(node: Follower) -> ClusterState | None:
    with node.node.entered():
        return clusterstate.read()


def wait_for(node: Follower, state: str) -> ClusterState:
    def there() -> ClusterState | None:
        found = noted(node)
        return found if found is not None and found.state == state else None

    return node.wait(there, state)


def test_what_an_agent_hears_is_noted(follow):
    node = follow(0)
    begun = wait_for(node, "starting")
    assert (begun.node, begun.said, begun.reason) == ("node-0", None, "")
    node.source.tell(Away("connection refused"))
    assert wait_for(node, "away").reason == "connection refused"
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    heard = node.wait(lambda: (found := noted(node)) and found.said and found, "what is said")
    assert (heard.state, heard.reason, heard.untold, heard.refused) == ("heard", "", "", ())
    assert heard.said == node.source.states[-1]
    assert heard.since >= begun.since > 1_700_000_000
    node.source.tell(Away("no route to host"))
    away = wait_for(node, "away")
    assert (away.reason, away.said) == ("no route to host", heard.said)
    node.source.tell(Listed(MEMBERS))
    assert wait_for(node, "heard").reason == ""


def test_a_clean_end_removes_it(split, tmp_path):
    node = Follower(split.nodes[0], 0, tmp_path)
    node.start()
    wait_for(node, "starting")
    node.stop()
    assert noted(node) is None
    with node.node.entered():
        assert not os.path.exists(StateFolder(node_key(), "cluster").path)


def test_what_is_refused_and_untold_is_noted(follow, monkeypatch):
    monkeypatch.setattr("cni_plugin.agent.coordination._TICK_S", 0.2)
    node = follow(0)
    node.source.broken = "nodes is forbidden"
    late = member("node-9", "192.168.1.19", "10.244.0.128/25", since="z")
    node.source.tell(Listed((*MEMBERS, late)))
    found = node.wait(lambda: (each := noted(node)) and each.untold and each, "the failure")
    assert found.untold == "nodes is forbidden"
    assert [refusal.name for refusal in found.refused] == ["node-9"]
    node.source.broken = ""
    node.wait(lambda: noted(node).untold == "", "the failure's end")  # type: ignore[union-attr]


def test_it_is_not_written_again_and_again(follow, monkeypatch):
    monkeypatch.setattr("cni_plugin.agent.coordination._TICK_S", 0.05)
    node = follow(0)
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("PodwireReady")
    node.wait(lambda: (found := noted(node)) and found.said, "what is said")
    with node.node.entered():
        folder = StateFolder(node_key(), "cluster")
    before = folder.stamp()
    turns: list[int] = []
    bring_about = Notice.show
    monkeypatch.setattr(Notice, "show", lambda *args: turns.append(1) or bring_about(*args))
    node.wait(lambda: len(turns) > 5, "some turns")
    assert folder.stamp() == before


# --- the tool -------------------------------------------------------------------------------------

ABOUT = About("etcd", ("http://192.168.1.10:2379",), 253_402_300_799)
STATE = ClusterState(ABOUT, "node-1", "away", 1_700_000_000, "etcd: it is gone")


@pytest.fixture
def entered(node: Namespace) -> Iterator[None]:
    with node.entered():
        yield


@pytest.fixture
def locked(entered: None, tmp_path: Path) -> Iterator[None]:
    """With the locks of an agent that follows."""
    held = clusterlock.claim(str(tmp_path / "nodes.json"), LOGGER)
    yield
    for fd in held:
        os.close(fd)


def _gather() -> dict[str, Any] | None:
    report = tool_cluster.gather()
    json.dumps(report)
    return report["cluster"]


def test_nobody_follows(entered):
    assert _gather() is None


def test_what_is_noted_is_read(locked):
    refusal = clusterstate.Refusal("node-2", "PodCIDROverlap", "they overlap", "node-1")
    said = Readiness(True, "PodwireReady", "pods get addresses")
    state = STATE._replace(said=said, refused=(refusal,), untold="forbidden")
    Notice(LOGGER).show(state)
    assert clusterstate.read() == state
    cluster = _gather()
    assert cluster is not None
    assert cluster["following"] is True
    assert (cluster["kind"], cluster["servers"]) == ("etcd", ["http://192.168.1.10:2379"])
    assert cluster["since"] == "2023-11-14T22:13:20Z"
    assert cluster["leaseUntil"] == "9999-12-31T23:59:59Z"
    assert cluster["said"] == said._asdict()
    assert cluster["refused"] == [refusal._asdict()]


def test_an_agent_that_was_killed(locked, tmp_path):
    Notice(LOGGER).show(STATE)
    assert _gather()["following"] is True  # type: ignore[index]
    assert tool_cluster.is_kept(str(tmp_path / "nodes.json")) is True


def test_one_that_nobody_keeps(entered, tmp_path):
    inventory = str(tmp_path / "nodes.json")
    assert tool_cluster.is_kept(inventory) is None
    for fd in clusterlock.claim(inventory, LOGGER):
        os.close(fd)
    Notice(LOGGER).show(STATE)
    cluster = _gather()
    assert cluster is not None
    assert cluster["following"] is False
    ((_, line),) = tool_cluster.lines(cluster)
    assert "followed by no agent" in line
    assert tool_cluster.is_kept(inventory) is False


def test_uninstall_removes_it(locked):
    Notice(LOGGER).show(STATE)
    with RouteSocket() as route_socket:
        teardown.datapath(route_socket)
    assert clusterstate.read() is None
    assert not os.path.exists(StateFolder(node_key(), "cluster").path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"[" * 100_000,
        b'{"about": 7}',
        b'{"about": {"servers": [7]}}',
        b'{"since": 1e300}',
        b'{"since": 253402300800}',
        b'{"since": -1}',
        b'{"said": "yes"}',
        b'{"refused": [null]}',
    ],
)
def test_garbage_is_nothing(locked, content):
    StateFolder(node_key(), "cluster").write("state", content)
    assert _gather() is None


def test_what_a_version_to_come_leaves_out(locked):
    StateFolder(node_key(), "cluster").write("state", b'{"more": [1]}')
    cluster = _gather()
    assert cluster is not None
    assert list(tool_cluster.lines(cluster))


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_what_is_no_file_is_left_out(locked, kind):
    path = StateFolder(node_key(), "cluster").path
    os.makedirs(path)
    make = {"folder": os.mkdir, "fifo": os.mkfifo, "link": lambda at: os.symlink("/dev/zero", at)}
    make[kind](f"{path}/state")
    assert tool_cluster.gather() == {}
