"""Who may follow a cluster on a node: cni_plugin/agent/clusterlock.py."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_plugin.agent import clusterlock
from cni_plugin.spec import CniError, Code

LOGGER = logging.getLogger("test.clusterlock")
_HOLD = """
import sys, logging
from cni_plugin.agent import clusterlock
clusterlock.namespace_lock = lambda: sys.argv[1]
clusterlock.make_folder = lambda: None
held = clusterlock.claim(sys.argv[2], logging.getLogger())
print(len(held), flush=True)
sys.stdin.read()
"""

Claim = Callable[[str, str], tuple[int, ...]]


@pytest.fixture
def claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Claim]:
    """claim(namespace, inventory) is what an agent does there, in this process."""
    held: list[int] = []

    def take(namespace: str, inventory: str) -> tuple[int, ...]:
        path = str(tmp_path / namespace / "cluster.lock")
        monkeypatch.setattr(clusterlock, "namespace_lock", lambda: path)
        found = clusterlock.claim(str(tmp_path / inventory), LOGGER)
        held.extend(found)
        return found

    monkeypatch.setattr(clusterlock, "make_folder", lambda: None)
    monkeypatch.setattr(clusterlock, "PATIENCE_S", 0.3)
    yield take
    for fd in held:
        os.close(fd)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which follows in the namespace "one" with the inventory a/nodes.json."""
    argv = [sys.executable, "-c", _HOLD, str(tmp_path / "one" / "cluster.lock")]
    with subprocess.Popen(
        [*argv, str(tmp_path / "a/nodes.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "2\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("namespace", "inventory", "doing"),
    [("one", "b/nodes.json", "follows a cluster here"), ("two", "a/nodes.json", "writes ")],
)
def test_a_second_one_is_told_whose_place_it_is(
    claim: Claim,
    other: subprocess.Popen[str],
    namespace: str,
    inventory: str,
    doing: str,
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CniError) as caught:
        claim(namespace, inventory)
    assert caught.value.code == Code.TRY_AGAIN_LATER
    assert caught.value.msg.startswith(f"another agent, process {other.pid}, {doing}")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(claim("three", "c/nodes.json")) == 2


def test_the_lock_of_a_killed_one_is_free_at_once(
    claim: Claim, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other.kill()
    other.wait()
    monkeypatch.setattr(clusterlock, "sleep", lambda seconds: pytest.fail("it waits"))
    assert len(claim("one", "a/nodes.json")) == 2


def test_a_successor_waits_for_the_end(
    claim: Claim,
    other: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(clusterlock, "PATIENCE_S", 20)
    ending = threading.Timer(0.5, other.kill)
    ending.start()
    began = time.monotonic()
    assert len(claim("one", "a/nodes.json")) == 2
    assert 0.4 < time.monotonic() - began < 15
    ending.join()
    assert [record.msg for record in caplog.records] == ["waiting"]
    assert caplog.records[0].fields["holder"] == f"process {other.pid}"  # type: ignore[attr-defined]


def test_a_file_that_was_removed_is_locked_by_nobody(claim: Claim, tmp_path: Path) -> None:
    claim("one", "a/nodes.json")
    (tmp_path / "one" / "cluster.lock").unlink()
    claim("one", "b/nodes.json")
    with pytest.raises(CniError, match="another agent, process"):
        claim("one", "c/nodes.json")


@pytest.mark.parametrize("kind", ["fifo", "stranger"])
def test_what_is_no_lock_of_ours_is_not_taken(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, own = tmp_path / "nodes.json.lock", os.geteuid()
    os.mkfifo(path) if kind == "fifo" else path.touch()
    if kind == "stranger":
        own += 1
        monkeypatch.setattr(os, "geteuid", lambda: own)
    with pytest.raises(CniError, match=f"is not a file of user {own}") as caught:
        claim("one", "nodes.json")
    assert caught.value.code == Code.PERMISSION_DENIED


def test_a_link_is_not_followed(claim: Claim, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cluster.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CniError, match="Too many levels of symbolic links") as caught:
        claim("one", "nodes.json")
    assert caught.value.code == Code.IO_FAILURE
    assert not (tmp_path / "precious").exists()


def test_an_inventory_that_can_not_be_written_is_no_reason_to_end(
    claim: Claim, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Following tells of it, and heals when it can be."""
    (tmp_path / "nodes.json.lock").symlink_to(tmp_path / "nodes.json.lock")
    assert len(claim("one", "nodes.json")) == 1
    assert [record.msg for record in caplog.records] == ["no lock"]


# --- whoever takes the node apart -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "inventory", "doing"),
    [("one", "b/nodes.json", "follows a cluster here"), ("two", "a/nodes.json", "writes ")],
)
def test_what_an_agent_holds_is_refused_at_once(
    other: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    namespace: str,
    inventory: str,
    doing: str,
) -> None:
    monkeypatch.setattr(
        clusterlock, "namespace_lock", lambda: str(tmp_path / namespace / "cluster.lock")
    )
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(CniError) as caught,
        clusterlock.keep_out(str(tmp_path / inventory)),
    ):
        pass
    assert caught.value.code == Code.TRY_AGAIN_LATER
    assert caught.value.msg.startswith(f"an agent, process {other.pid}, {doing}")
    assert len(os.listdir("/proc/self/fd")) == before
    other.kill()
    other.wait()
    with clusterlock.keep_out(str(tmp_path / inventory)) as held:
        assert len(held) == 1


def test_no_agent_begins_while_the_node_is_taken_apart(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, and then has locks that are there."""
    path, lock = tmp_path / "one" / "cluster.lock", tmp_path / "nodes.json.lock"
    monkeypatch.setattr(clusterlock, "namespace_lock", lambda: str(path))
    path.parent.mkdir()
    lock.touch()
    with clusterlock.keep_out(str(tmp_path / "nodes.json")) as held:
        assert held == {str(path), str(lock)}
        with pytest.raises(CniError, match="another agent, process"):
            claim("one", "nodes.json")
        shutil.rmtree(path.parent)
        lock.unlink()
    claim("one", "nodes.json")
    with pytest.raises(CniError, match="an agent, process"):
        clusterlock.keep_out(str(tmp_path / "nodes.json")).__enter__()


def test_where_nothing_is_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusterlock, "namespace_lock", lambda: str(tmp_path / "a" / "cluster.lock"))
    with clusterlock.keep_out(str(tmp_path / "b" / "nodes.json")) as held:
        assert held == frozenset()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_lock_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cluster.lock"
    path.symlink_to("elsewhere")
    monkeypatch.setattr(clusterlock, "namespace_lock", lambda: str(path))
    with (
        pytest.raises(CniError, match="Too many levels of symbolic links") as caught,
        clusterlock.keep_out(str(tmp_path / "nodes.json")),
    ):
        pass
    assert caught.value.code == Code.IO_FAILURE
    assert not (tmp_path / "elsewhere").exists()
