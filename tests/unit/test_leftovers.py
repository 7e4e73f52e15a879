"""What `podwire uninstall` removes beside a socket: cni_plugin/leftovers.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cni_plugin import leftovers


def test_what_dead_agents_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    for name in ("agent.sock", ".podwire-123"):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(tmp_path / name))
    (tmp_path / "agent.sock.lock").touch()
    (tmp_path / "agent.ready").write_text("123\n")
    (tmp_path / "agent.ready.124").write_text("124\n")
    (tmp_path / "agent.log").write_text("time=2026-01-01T00:00:00.000Z level=info msg=serving\n")
    (tmp_path / "agent.log.1").write_text('{"time": "2026-01-01T00:00:00.000Z"}\n')
    assert len(leftovers.agent_files(str(path))) == 7
    assert list(tmp_path.iterdir()) == []
    assert leftovers.agent_files(str(path)) == []


@pytest.mark.parametrize("socket_name", ["precious.txt", "app.sock", "app"])
def test_files_of_others_stay(tmp_path: Path, socket_name: str) -> None:
    for name in ("precious.txt", "app", "app.sock", "app.sock.lock", "app.log", "app.ready"):
        (tmp_path / name).write_text("somebody else's")
    (tmp_path / "precious.txt.lock").mkdir()
    (tmp_path / "app.lock").symlink_to("precious.txt")
    before = sorted(tmp_path.iterdir())
    assert leftovers.agent_files(str(tmp_path / socket_name)) == []
    assert sorted(tmp_path.iterdir()) == before


def test_what_an_agent_knew_of_its_cluster(tmp_path):
    files = {
        "api-server": "https://192.168.1.2:6443\n",
        "nodes.json": '{"nodes": []}\n',
        "etcd-lease.json": "{}",
    }
    paths = [tmp_path / name for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    lock = tmp_path / "nodes.json.lock"
    lock.touch()
    names, held = [*map(str, paths)], {str(lock), str(tmp_path / "cluster.lock")}
    assert leftovers.cluster_files(held, *names) == [*names, str(lock)]
    assert list(tmp_path.iterdir()) == []
    assert leftovers.cluster_files(held, *names) == []
    for path in (*paths, lock):
        path.write_text("somebody else's")
    assert leftovers.cluster_files(held, *names) == []


def test_a_lock_that_is_not_held_stays(tmp_path):
    """Its file must not go under whoever has it, or is about to."""
    lock = tmp_path / "nodes.json.lock"
    lock.touch()
    names = [str(tmp_path / name) for name in ("api-server", "nodes.json", "etcd-lease.json")]
    assert leftovers.cluster_files((), *names) == []
    assert lock.exists()
