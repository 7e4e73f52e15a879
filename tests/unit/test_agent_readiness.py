"""Readiness: a file beside the socket, and sd_notify(3) by the manager's socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_plugin.agent import readiness
from tests.unit.agent_rig import nothing_left_open


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and what NOTIFY_SOCKET says."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@podwire-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + name[1:] if name[0] == "@" else name)
        bound.settimeout(5)
        yield bound, name


def test_from_ready_to_stopping(manager: tuple[socket.socket, str], tmp_path: Path) -> None:
    bound, name = manager
    path = str(tmp_path / "agent.sock")
    with nothing_left_open():
        readiness.announce(path, {"NOTIFY_SOCKET": name})
        said = bound.recv(1000).decode().splitlines()
        assert said[:2] == ["READY=1", f"MAINPID={os.getpid()}"]
        assert said[2].startswith("STATUS=")
        assert (tmp_path / "agent.ready").read_text() == f"{os.getpid()}\n"
        readiness.retract(path, {"NOTIFY_SOCKET": name})
    assert bound.recv(1000).decode().splitlines()[0] == "STOPPING=1"
    assert not (tmp_path / "agent.ready").exists()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/proc/nowhere"}])
def test_nobody_has_to_listen(environ: dict[str, str], tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    readiness.announce(path, environ)
    readiness.retract(path, environ)
    readiness.retract(path, environ)
    assert list(tmp_path.iterdir()) == []


def test_a_dead_agents_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "agent.ready").write_text("1\n")
    (tmp_path / f"agent.ready.{os.getpid()}").write_text("cut sho")
    readiness.announce(str(tmp_path / "agent.sock"), {})
    assert (tmp_path / "agent.ready").read_text() == f"{os.getpid()}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["agent.ready"]


def test_links_of_others_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("kept")
    for name in ("agent.ready", f"agent.ready.{os.getpid()}"):
        (tmp_path / name).symlink_to("passwd")
    readiness.announce(str(tmp_path / "agent.sock"), {})
    assert (tmp_path / "passwd").read_text() == "kept"
    assert (tmp_path / "agent.ready").read_text() == f"{os.getpid()}\n"


def test_everybody_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        readiness.announce(str(tmp_path / "agent.sock"), {})
    finally:
        os.umask(before)
    assert (tmp_path / "agent.ready").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("socket_path", "ready"),
    [("/run/podwire/agent.sock", "/run/podwire/agent.ready"), ("/run/a", "/run/a.ready")],
)
def test_where_it_is(socket_path: str, ready: str) -> None:
    assert readiness.ready_path(socket_path) == ready


def test_a_file_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(OSError):
        readiness.announce("/proc/nowhere/agent.sock", {})
