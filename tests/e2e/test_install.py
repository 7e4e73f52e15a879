"""`podwire install` and `uninstall` by the executable, in folders of the test's own."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import runtimefolder
from tests.support.emptyroot import EXECUTABLE, EmptyRoot
from tests.support.executable import executable


class Node:
    """The folders of a node. `podwire(...)` runs the executable there."""

    def __init__(self, folder: Path) -> None:
        self.executable = executable()
        self.bin = folder / "bin"
        self.conf = folder / "net.d"
        self.runtimes = folder / "podwire"
        self.socket = folder / "run" / "agent.sock"
        for made in (self.bin, self.conf):
            made.mkdir()
        (self.bin / "bridge").write_text("another plugin")
        (self.conf / "99-other.conf").write_text("{}")

    def __call__(self, *args: str, run: str | Path = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(run or self.executable), *args],
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def environ(self) -> dict[str, str]:
        return {
            "PODWIRE_RUNTIME": str(self.runtimes),
            "PODWIRE_SOCKET": str(self.socket),
            "PATH": os.environ["PATH"],
        }

    def install(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self("install", "--bin-dir", str(self.bin), *more)

    def uninstall(self, *more: str, run: str | Path = "") -> subprocess.CompletedProcess[str]:
        return self("uninstall", "--bin-dir", str(self.bin), *more, run=run)

    def conf_options(self, *subnets: str) -> list[str]:
        words = ["--conf-dir", str(self.conf)]
        for subnet in subnets:
            words += ["--subnet", subnet]
        return words

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for folder in (self.bin, self.conf)
            for path in folder.iterdir()
        }


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def _done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout


def _refused(process: subprocess.CompletedProcess[str], code: int) -> str:
    assert process.returncode == 1, process.stdout
    assert process.stderr.startswith(f"error {code}: ")
    assert "hint: " in process.stderr
    return process.stderr


def test_uninstall_leaves_the_folders_as_they_were(node: Node) -> None:
    before = node.files()
    said = _done(node.install(*node.conf_options("10.244.0.0/24")))
    assert said.splitlines()[:3] == [
        f"{node.bin}/podwire: installed",
        f"{node.bin}/podwire-ipam: installed",
        f"{node.conf}/05-podwire.conflist: written",
    ]
    names = {"podwire", "podwire-ipam", "05-podwire.conflist"}
    assert set(node.files()) == set(before) | names
    assert stat.S_IMODE((node.bin / "podwire").stat().st_mode) == 0o755
    assert (node.bin / "podwire").samefile(node.bin / "podwire-ipam")
    assert list(node.runtimes.iterdir())
    # It removes itself, and the runtime it runs.
    options = ["--conf-dir", str(node.conf)]
    said = _done(node.uninstall(*options, run=node.bin / "podwire"))
    removed = [line for line in said.splitlines() if line.startswith(str(node.bin.parent))]
    assert len(removed) == 5  # three files, a runtime and its folder
    assert all(line.endswith(": removed") for line in removed)
    assert node.files() == before
    assert not node.runtimes.exists()
    _done(node.uninstall(*options))
    assert not node.runtimes.exists()  # that of this very call


def test_what_is_installed_works(node: Node) -> None:
    _done(node.install(*node.conf_options("10.244.0.0/24", "fd00:10:244::/64")))
    installed = node.bin / "podwire"
    assert _done(node("--version", run=installed)).startswith("podwire ")
    document = json.loads((node.conf / "05-podwire.conflist").read_text())
    assert document["plugins"][0]["ipam"]["ranges"] == [
        [{"subnet": "10.244.0.0/24"}],
        [{"subnet": "fd00:10:244::/64"}],
    ]
    status = node("status", "--json", "--conf-dir", str(node.conf), "--cni-path", str(node.bin))
    assert json.loads(status.stdout)["ready"], status.stdout


def test_again_it_changes_nothing(node: Node) -> None:
    _done(node.install(*node.conf_options("10.244.0.0/24")))
    before = {path: _identity(path) for path in (node.bin / "podwire", *node.conf.iterdir())}
    said = _done(node.install(*node.conf_options("10.244.0.0/24")))
    assert said.count("as it was") == 3
    assert {path: _identity(path) for path in before} == before


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def test_the_inventory_of_nodes_instead_of_subnets(node: Node, tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    inventory = tmp_path / "nodes.json"
    refused = _refused(node.install("--conf-dir", str(node.conf), "--nodes", str(inventory)), 5)
    assert str(inventory) in refused
    assert not (node.conf / "05-podwire.conflist").exists()
    inventory.write_text((project / "conf" / "nodes.example.json").read_text())
    _done(node.install("--conf-dir", str(node.conf), "--nodes", str(inventory)))
    plugin = json.loads((node.conf / "05-podwire.conflist").read_text())["plugins"][0]
    template = json.loads((project / "conf" / "05-podwire.conflist").read_text())["plugins"][0]
    assert plugin == template | {"nodes": str(inventory)}


def test_an_upgrade_while_the_old_one_runs(node: Node) -> None:
    """The old file keeps its content for who has it open; the name is the new one's at once."""
    _done(node.install())
    old = Path(node.executable).read_bytes()
    older = node.bin / "podwire"
    older.unlink()
    (node.bin / "podwire-ipam").unlink()
    older.write_bytes(b"#" + old[1:])  # of an older version, which ends as ours does
    with older.open("rb") as opened:
        _done(node.install())
        assert opened.read(1) == b"#"
    assert older.read_bytes() == old
    assert older.samefile(node.bin / "podwire-ipam")


@pytest.mark.parametrize("name", ["podwire", "podwire-ipam"])
def test_somebody_elses_file_is_not_replaced(node: Node, name: str) -> None:
    (node.bin / name).write_text("#!/bin/sh\n")
    before = node.files()
    assert f"{node.bin}/{name}" in _refused(node.install(), 5)
    assert f"{node.bin}/{name}: kept" in _done(node.uninstall())
    assert node.files() == before


def test_an_edited_conflist_stays(node: Node) -> None:
    _done(node.install(*node.conf_options("10.244.0.0/24")))
    path = node.conf / "05-podwire.conflist"
    edited = path.read_text().replace("cni0", "br1")
    path.write_text(edited)
    assert str(path) in _refused(node.install(*node.conf_options("10.244.1.0/24")), 5)
    assert f"{path}: kept" in _done(node.uninstall("--conf-dir", str(node.conf)))
    assert path.read_text() == edited


def test_a_conflist_of_ours_is_replaced(node: Node) -> None:
    _done(node.install(*node.conf_options("10.244.0.0/24")))
    _done(node.install(*node.conf_options("10.244.1.0/24")))
    assert "10.244.1.0/24" in (node.conf / "05-podwire.conflist").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--subnet", "10.244.0.0/24"],
        ["--conf-dir", "/proc/nowhere", "--subnet", "10.244.0.1/24"],
        ["--conf-dir", "/proc/nowhere", "--subnet", "10.1.0.0/24", "--subnet", "10.2.0.0/24"],
        ["--conf-dir", "/proc/nowhere", "--subnet", "10.1.0.0/24", "--nodes", "/nodes.json"],
    ],
)
def test_mistakes_in_the_arguments(node: Node, options: Sequence[str]) -> None:
    before = node.files()
    done = node.install(*options)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert node.files() == before


def test_folders_that_are_missing_are_made_and_go_again(node: Node, tmp_path: Path) -> None:
    before = node.files()
    there = tmp_path / "there"
    there.mkdir()
    options = ["--bin-dir", f"{there}/opt/cni/bin", "--conf-dir", f"{there}/net.d"]
    said = _done(node("install", *options, "--subnet", "10.244.0.0/24"))
    assert f"{there}/opt/cni/bin: made" in said
    assert (there / "opt/cni/bin/podwire").is_file()
    assert (there / "net.d/05-podwire.conflist").is_file()
    _done(node("uninstall", *options))
    assert list(there.iterdir()) == []
    assert node.files() == before


def test_a_folder_that_others_use_meanwhile_stays(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "there" / "bin"
    _done(node("install", "--bin-dir", str(folder)))
    (folder / "bridge").write_text("another plugin")
    _done(node("uninstall", "--bin-dir", str(folder)))
    assert {path.name for path in folder.iterdir()} >= {"bridge"}
    assert not (folder / "podwire").exists()


def test_without_an_inventory_or_a_subnet_no_conflist_is_written(node: Node) -> None:
    done = node.install("--conf-dir", str(node.conf))
    assert done.returncode == 0
    if not os.path.exists("/etc/podwire/nodes.json"):
        assert "05-podwire.conflist: not written: say which pods" in done.stderr
        assert not (node.conf / "05-podwire.conflist").exists()


def test_without_the_right_to_write(tmp_path: Path) -> None:
    with EmptyRoot(str(tmp_path), executable()) as root:
        os.makedirs(root.path("/opt/cni/bin"))
        os.mkdir(root.path("/tmp"))
        os.chmod(root.path("/tmp"), 0o1777)
        done = root.run(EXECUTABLE, "install", uid=65534)
        assert done.returncode == 1
        assert done.stderr.startswith(b"error 110: /opt/cni/bin/podwire: Permission denied")
        assert b"run it as root" in done.stderr
        assert root.names("/opt/cni/bin") == []
        assert root.run(EXECUTABLE, "install").returncode == 0
        assert root.names("/opt/cni/bin") == ["podwire", "podwire-ipam"]


def test_a_killed_install_leaves_nothing_for_long(node: Node) -> None:
    for delay in (0.05, 0.08, 0.1, 0.12, 0.15):
        process = subprocess.Popen(
            [node.executable, "install", "--bin-dir", str(node.bin)],
            env=node.environ(),
            stdout=subprocess.DEVNULL,
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = Path(node.executable).stat().st_size
        for name in ("podwire", "podwire-ipam"):
            assert not (node.bin / name).exists() or (node.bin / name).stat().st_size == whole
    _done(node.install())
    assert set(node.files()) == {"podwire", "podwire-ipam", "bridge", "99-other.conf"}


@pytest.fixture
def agent(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    command = [node.executable, "agent"]
    process = subprocess.Popen(command, env=node.environ(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not node.socket.with_suffix(".ready").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_running_agent_has_to_be_stopped_first(
    node: Node, agent: subprocess.Popen[bytes]
) -> None:
    _done(node.install())
    before = node.files()
    refusal = _refused(node.uninstall(), 11)
    assert f"process {agent.pid} serves at {node.socket}" in refusal
    assert node.files() == before


def test_what_a_killed_agent_left_is_removed(node: Node, agent: subprocess.Popen[bytes]) -> None:
    _done(node.install())
    agent.kill()
    agent.wait()
    assert node.socket.exists()
    _done(node.uninstall())
    assert not list(node.socket.parent.iterdir())


def test_a_runtime_in_use_is_kept_and_told(node: Node) -> None:
    command = [node.executable, "lab", "exec", "--help"]
    assert subprocess.run(command, env=node.environ(), capture_output=True).returncode == 0
    (name,) = [path.name for path in node.runtimes.iterdir() if runtimefolder.is_runtime(path.name)]
    held = os.open(node.runtimes / name / "lock", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert f"{node.runtimes}/{name}: kept" in _done(node.uninstall())
    finally:
        os.close(held)
    assert f"{node.runtimes}/{name}: removed" in _done(node.uninstall())
    assert not node.runtimes.exists()


def test_from_a_wheel_there_is_nothing_to_install(node: Node, podwire_executable: str) -> None:
    done: Any = node("install", "--bin-dir", str(node.bin), run=podwire_executable)
    assert "no single file" in _refused(done, 5)
