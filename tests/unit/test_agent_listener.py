"""The agent's socket: one owner at a time, taken over from the dead, given up without a loss."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cni_plugin import sysio
from cni_plugin.agent import lock
from cni_plugin.agent.listener import Listener
from cni_plugin.spec import CniError, Code
from tests.unit.agent_rig import nothing_left_open


@pytest.fixture
def listen() -> Iterator[Callable[[str], Listener]]:
    made: list[Listener] = []

    def make(path: str) -> Listener:
        made.append(Listener(path))
        return made[-1]

    yield make
    for listener in made:
        if listener.socket.fileno() >= 0:
            listener.withdraw()
            listener.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


def connected(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(path)
    return client


def test_a_socket_for_its_user_alone(listen: Callable[[str], Listener], path: str) -> None:
    before = os.umask(0)
    try:
        listen(path)
    finally:
        os.umask(before)
    status = os.stat(path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert sorted(os.listdir(os.path.dirname(path))) == ["agent.sock", "agent.sock.lock"]


def test_its_folder_is_made_for_its_user_alone(
    listen: Callable[[str], Listener], tmp_path: Path
) -> None:
    listen(str(tmp_path / "podwire" / "agent.sock"))
    assert stat.S_IMODE((tmp_path / "podwire").stat().st_mode) == 0o700


def test_nothing_is_left(path: str) -> None:
    with nothing_left_open():
        listener = Listener(path)
        listener.withdraw()
        listener.withdraw()
        listener.close()
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_longest_path(listen: Callable[[str], Listener], ratio: float) -> None:
    """Of 107 bytes, with a short and a long name at its end."""
    with TemporaryDirectory(dir="/tmp") as folder:
        room = 107 - len(folder) - 4
        name = "x" * (1 + int(room * ratio))
        path = os.path.join(folder, "y" * (1 + room - int(room * ratio)), name)
        assert len(path) == 107
        listen(path)
        connected(path).close()


@pytest.mark.parametrize("path", ["", "agent.sock", "./a", "~/a", "/" + "x" * 107, "/" + "é" * 54])
def test_what_is_no_path_of_a_socket(path: str) -> None:
    with nothing_left_open(), pytest.raises(CniError) as caught:
        Listener(path)
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith("socket: ")


# --- one owner ----------------------------------------------------------------------------------


def test_a_second_agent_is_refused(listen: Callable[[str], Listener], path: str) -> None:
    first = listen(path)
    with nothing_left_open(), pytest.raises(lock.BusyError) as caught:
        Listener(path)
    assert caught.value.code == Code.TRY_AGAIN_LATER
    assert path in caught.value.msg
    with connected(path):
        assert first.socket.accept()[0].fileno() > 0


def test_of_many_at_once_one_listens(path: str) -> None:
    made: list[Listener] = []
    refused: list[lock.BusyError] = []
    start = threading.Barrier(16)

    def listen() -> None:
        start.wait()
        try:
            made.append(Listener(path))
        except lock.BusyError as e:
            refused.append(e)

    threads = [threading.Thread(target=listen) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(made), len(refused)) == (1, 15)
    connected(path).close()
    made[0].withdraw()
    made[0].close()


_DIE = "import os, sys; from cni_plugin.agent.listener import Listener; Listener(sys.argv[1]); "


def test_a_dead_agents_socket_is_replaced(listen: Callable[[str], Listener], path: str) -> None:
    subprocess.run([sys.executable, "-c", _DIE + "os.kill(os.getpid(), 9)", path], check=False)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    with pytest.raises(ConnectionRefusedError):
        connected(path)
    listener = listen(path)
    with connected(path):
        listener.socket.accept()[0].close()


def test_a_socket_that_nobody_listens_at_is_replaced(
    listen: Callable[[str], Listener], path: str
) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
    listen(path)
    connected(path).close()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_socket_is_not_ours_to_replace(path: str, tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").write_text("kept")
    if kind == "file":
        Path(path).write_text("an inventory, say")
    else:
        Path(path).symlink_to("other")
    before = sorted(tmp_path.iterdir())
    with nothing_left_open(), pytest.raises(CniError, match="is no socket") as caught:
        Listener(path)
    assert caught.value.code == Code.IO_FAILURE
    assert sorted(tmp_path.iterdir()) == before
    assert kind == "link" or Path(path).read_text() == "an inventory, say"


def test_a_folder_at_the_path_is_an_error(path: str) -> None:
    os.mkdir(path)
    with nothing_left_open(), pytest.raises(CniError) as caught:
        Listener(path)
    assert caught.value.code == Code.IO_FAILURE
    assert path in caught.value.msg


def test_a_lock_that_its_last_owner_takes_away_is_made_anew(
    listen: Callable[[str], Listener], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of the file and the lock on it: else two would hold a lock each."""
    taken = []

    def locking(fd: int, operation: int) -> None:
        if not taken:
            os.unlink(lock.lock_path(path))
        taken.append(fd)
        flock(fd, operation)

    flock = fcntl.flock
    monkeypatch.setattr(lock.fcntl, "flock", locking)
    listen(path)
    assert len(taken) == 2
    with pytest.raises(lock.BusyError):
        Listener(path)


def test_a_lock_that_is_a_link_is_not_followed(path: str, tmp_path: Path) -> None:
    os.symlink(tmp_path / "made-by-us", lock.lock_path(path))
    with nothing_left_open(), pytest.raises(CniError) as caught:
        Listener(path)
    assert caught.value.code == Code.IO_FAILURE
    assert not (tmp_path / "made-by-us").exists()


# --- folders of others --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_folder_where_others_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with nothing_left_open(), pytest.raises(CniError) as caught:
        Listener(str(folder / "agent.sock"))
    assert caught.value.code == Code.PERMISSION_DENIED
    assert str(folder) in caught.value.msg
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_where_others_take_nothing_away_is_used(
    listen: Callable[[str], Listener], tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    folder.chmod(mode)
    listen(str(folder / "agent.sock"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away: run as root")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 4242, 4242)
    with pytest.raises(CniError) as caught:
        Listener(str(folder / "agent.sock"))
    assert caught.value.code == Code.PERMISSION_DENIED


# --- giving up ----------------------------------------------------------------------------------


def test_who_had_connected_is_served_after_the_withdrawal(
    listen: Callable[[str], Listener], path: str
) -> None:
    listener = listen(path)
    clients = [connected(path) for _ in range(100)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    listener.withdraw()
    assert not os.path.exists(path)
    accepted = []
    for _ in clients:
        connection, _ = listener.socket.accept()
        accepted.append(int(connection.recv(10)))
        connection.close()
    assert accepted == list(range(100))
    with pytest.raises(OSError):
        listener.socket.accept()
    for client in clients:
        client.close()


def test_a_client_that_comes_too_late_finds_nobody(
    listen: Callable[[str], Listener], path: str
) -> None:
    """Even one that had found the socket's file before it was taken away."""
    listener = listen(path)
    os.link(path, path + ".found")
    listener.withdraw()
    for late in (path, path + ".found"):
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
            sysio.connect(late, 1000)


def test_everybody_who_waits_for_a_client_is_woken(
    listen: Callable[[str], Listener], path: str
) -> None:
    listener = listen(path)
    woken: list[OSError] = []

    def wait() -> None:
        try:
            listener.socket.accept()
        except OSError as e:
            woken.append(e)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    listener.withdraw()
    for thread in threads:
        thread.join(10)
    assert len(woken) == 8


def test_a_successors_socket_stays(listen: Callable[[str], Listener], path: str) -> None:
    """Somebody removed the lock's file, and another agent began."""
    first = listen(path)
    os.unlink(lock.lock_path(path))
    second = listen(path)
    first.withdraw()
    with connected(path):
        second.socket.accept()[0].close()


def test_successors_take_turns(path: str) -> None:
    """Each ends while the next is waiting for it: there never are two, and the last listens."""
    for _ in range(50):
        listener = Listener(path)
        listener.withdraw()
        listener.close()
    assert os.listdir(os.path.dirname(path)) == []
