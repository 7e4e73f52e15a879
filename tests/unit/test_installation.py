"""`podwire install` and `uninstall` with a small executable, by processes of the real tool, in
folders of the test's own; tests/e2e has the executable itself."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cni_plugin import installation, madefolders
from cni_plugin.spec import CniError, Code
from tests.support import require
from tests.support.runtimes import PROJECT, make_executable

TOGETHER = 6
_BYTES = 40 << 20
NAMES = {"podwire", "podwire-ipam"}


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def _executable(path: Path, size: int = _BYTES) -> Path:
    """One that takes a while to copy, and that nobody takes for another."""
    end = make_executable(path, {}).read_bytes()
    path.write_bytes(os.urandom(1 << 10) * (size >> 10) + end)
    return path


def _tool(source: Path, *words: str | Path) -> list[str]:
    return [sys.executable, "-X", f"podwire={source}", "-m", "cni_plugin", *map(str, words)]


def _start(argv: Sequence[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=PROJECT, stdout=pipe, stderr=pipe, text=True)


def _installs(sources: Sequence[Path], there: Path) -> list[subprocess.Popen[str]]:
    words = ["install", "--bin-dir", f"{there}/opt/cni/bin", "--conf-dir", f"{there}/net.d"]
    return [_start(_tool(each, *words, "--subnet", "10.244.0.0/24")) for each in sources]


def _watched(processes: Sequence[subprocess.Popen[str]], path: Path) -> set[int]:
    """The sizes that the file has had until all are done, each of which has to succeed."""
    sizes = set()
    while any(process.poll() is None for process in processes):
        if path.exists():
            sizes.add(path.stat().st_size)
        time.sleep(0.001)
    for process in processes:
        _, stderr = process.communicate()
        assert (process.returncode, stderr) == (0, "")
    return sizes


# --- several at once --------------------------------------------------------------------------


def test_installs_at_once_all_succeed_and_nobody_sees_half_a_file(
    tmp_path: Path, there: Path
) -> None:
    installed = there / "opt/cni/bin/podwire"
    for name, size in (("new", _BYTES), ("newer", _BYTES + 4096)):  # nothing there; an older one
        source = _executable(tmp_path / name, size)
        before = {installed.stat().st_size} if installed.exists() else set()
        sizes = _watched(_installs([source] * TOGETHER, there), installed)
        assert sizes <= {source.stat().st_size} | before
        assert installed.read_bytes() == source.read_bytes()
        assert installed.samefile(installed.parent / "podwire-ipam")
        assert set(os.listdir(installed.parent)) == NAMES | {madefolders.MARKER}
        assert set(os.listdir(there / "net.d")) == {"05-podwire.conflist", madefolders.MARKER}
    with madefolders.alone([str(installed.parent)]):
        installation.remove_executable(str(installed.parent))
        madefolders.remove(str(installed.parent))
    assert os.listdir(there) == ["net.d"]  # whoever made which part of opt/cni/bin


def test_installs_of_two_versions_at_once_leave_one_of_them(tmp_path: Path, there: Path) -> None:
    one = _executable(tmp_path / "one")
    other = _executable(tmp_path / "other", _BYTES + 4096)
    installed = there / "opt/cni/bin/podwire"
    sizes = _watched(_installs([one, other] * (TOGETHER // 2), there), installed)
    assert sizes <= {one.stat().st_size, other.stat().st_size}
    assert installed.read_bytes() in (one.read_bytes(), other.read_bytes())
    assert installed.samefile(installed.parent / "podwire-ipam")


def test_one_that_never_lets_go_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(madefolders, "PATIENCE_S", 0.1)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(CniError) as raised, madefolders.alone([str(tmp_path)]):
            pass
    finally:
        os.close(fd)
    assert raised.value.code == Code.TRY_AGAIN_LATER
    assert str(tmp_path) in raised.value.msg


def test_one_folder_by_two_names_is_locked_once(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "link").symlink_to("bin")
    with madefolders.alone([f"{tmp_path}/bin", f"{tmp_path}/link"], make=True) as made:
        assert made == []


def test_a_folder_that_is_removed_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    lock = madefolders._lock

    def uninstalled_first(fd: int, path: str) -> None:
        monkeypatch.setattr(madefolders, "_lock", lock)
        folder.rmdir()

    monkeypatch.setattr(madefolders, "_lock", uninstalled_first)
    with madefolders.alone([str(folder)], make=True) as made:
        assert made == [str(folder)]
        assert (folder / madefolders.MARKER).read_text() == str(folder)


def test_what_a_killed_install_left_goes_with_the_next(tmp_path: Path) -> None:
    left = tmp_path / "bin" / f".podwire.{'0a' * 8}.new"
    left.mkdir(parents=True)
    (left / "podwire").write_text("half of it")
    (left / ".podwire.new").write_text("half of it")
    (tmp_path / "bin" / ".podwire.mine.new").mkdir()  # no name of ours
    installation.place_executable(str(make_executable(tmp_path / "podwire")), f"{tmp_path}/bin")
    assert set(os.listdir(tmp_path / "bin")) == NAMES | {".podwire.mine.new"}


def test_an_empty_note_of_what_was_made_removes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / madefolders.MARKER).touch()
    assert madefolders.remove(f"{tmp_path}/bin") == []
    assert tmp_path.is_dir()


# --- what is in the way -----------------------------------------------------------------------


@pytest.mark.timeout(20)  # a FIFO would hold it up for ever
@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
def test_no_file_in_the_way_is_refused_and_kept(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(os.path.relpath(path))  # its absolute path may be too long
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
    with pytest.raises(CniError) as raised:
        installation.place_executable(__file__, str(tmp_path))
    assert raised.value.code == Code.IO_FAILURE
    assert raised.value.msg == f"{path} exists and is not podwire's executable"
    assert installation.remove_executable(str(tmp_path)) == ([], [str(path)])
    assert os.listdir(tmp_path) == [name]


def test_a_full_disk_is_told_with_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    require.root()
    source = _executable(tmp_path / "podwire", 4 << 20)
    folder = tmp_path / "bin"
    folder.mkdir()
    script = 'mount -t tmpfs -o size=2m tmpfs "$0"; "$@"; status=$?; ls -A "$0"; exit $status'
    tool = _tool(source, "install", "--bin-dir", folder)
    process = _start(["unshare", "-m", "sh", "-c", script, str(folder), *tool])
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout == ""
    assert stderr.startswith(f"error 5: {folder}/podwire: No space left on device\nhint: free some")


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    source = make_executable(tmp_path / "podwire")
    process = _start(_tool(source, "install", "--bin-dir", source / "bin"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.startswith(f"error 5: {source}: Not a directory\nhint: ")
