"""Hostile CNI_NETNS for ADD and CHECK: refused at once, without touching anything."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.support import faults, netns
from tests.support.faults import Stage

TIMEOUT_S = 20


def refused(stage: Stage, path: str, codes: tuple[int, ...], **more) -> None:
    before = stage.world()
    for command in ("ADD", "CHECK"):
        conf = {**stage.conf, "prevResult": _result(path)} if command == "CHECK" else stage.conf
        env = {**stage.env(), "CNI_NETNS": path}
        ended = stage.run(command, env=env, conf=conf, timeout=TIMEOUT_S, **more)
        assert ended.rc == 1, ended
        assert ended.document()["code"] in codes, ended
        assert b"Traceback" not in ended.stderr
    assert faults.difference(before, stage.world()) == []


def _result(path: str) -> dict:
    interfaces = [{"name": "eth0", "sandbox": path.encode("utf-8", "replace").decode()}]
    return {
        "cniVersion": "1.0.0",
        "interfaces": interfaces,
        "ips": [{"address": "10.244.0.2/29", "interface": 0}],
    }


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/ns/net",
        "/proc/thread-self/ns/net",
        "/proc/self/task/../../self/ns/net",
        "/proc/{pid}/ns/net",
        "{node}",
        "{link}",
        "{link to link}",
        "../../../../../../../../../../../proc/self/ns/net",
        "/dev/fd/../../proc/self/ns/net",
    ],
)
def test_the_hosts_own_namespace(stage, tmp_path, path):
    (tmp_path / "link").symlink_to(stage.node.path)
    (tmp_path / "link to link").symlink_to(tmp_path / "link")
    resident = stage.node.popen("sleep", "100")
    time.sleep(0.1)
    links = {name: str(tmp_path / name) for name in ("link", "link to link")}
    path = path.format(pid=resident.pid, node=stage.node.path, **links)
    try:
        refused(stage, path, (4, 3) if path.startswith(("..", "/dev")) else (4,))
    finally:
        netns.end(resident)


def test_the_namespace_of_the_first_process(stage):
    """In a process namespace of its own, /proc/1/ns/net is where podwire runs."""
    refused(stage, "/proc/1/ns/net", (4,), wrap=["unshare", "--pid", "--fork", "--mount-proc"])


@pytest.mark.parametrize(
    "path",
    [
        *("/proc/self/ns/mnt", "/proc/self/ns/pid", "/proc/self/ns/user", "/proc/self/ns/ipc"),
        *("/dev/zero", "/dev/full", "/dev/tty", "/proc/self/mem", "/proc/kmsg", "/", "."),
        *("/proc/self/fd/0", "/dev/stdin", "/etc/passwd", "/sys/kernel/mm"),
    ],
)
def test_something_else(stage, path):
    refused(stage, path, (3, 4))


@pytest.mark.parametrize(
    "path",
    [
        *(
            "nowhere",
            "./a/b",
            "/proc/nowhere/at/all",
            "/" + "x" * 300,
            "/x" * 3000,
            "/a\nb",
            " ",
            "\t",
        ),
        *("/run/\udcff\udcfe", "/run/\u202e\u0000x".replace("\0", ""), "%s%n", "$(reboot)", "-1"),
    ],
    ids=range(13),
)
def test_nothing_there(stage, path):
    refused(stage, path, (3, 4))


def test_fifo_socket_and_loops(stage, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink(tmp_path / "one", tmp_path / "two")
    os.symlink(tmp_path / "two", tmp_path / "one")
    for name in ("fifo", "one"):
        refused(stage, str(tmp_path / name), (3, 4))


def test_a_relative_path_to_a_real_sandbox(stage):
    """Odd, and not forbidden: it works, or is refused cleanly."""
    env = {**stage.env(), "CNI_NETNS": os.path.basename(stage.sandbox.path)}
    before = stage.world()
    folder = os.path.dirname(stage.sandbox.path)
    ended = stage.run("ADD", env=env, cwd=folder)
    assert ended.rc in (0, 1)
    assert stage.run("DEL", env=env, cwd=folder).rc == 0
    assert faults.difference(before, stage.world()) == []


def test_a_path_that_is_swapped_all_the_time(stage, tmp_path):
    """Between the sandbox, the host's own namespace and a plain file: never a pod in the host."""
    path, running = tmp_path / "swapped", True
    plain = tmp_path / "plain"
    plain.touch()

    def swap() -> None:
        while running:
            for target in (stage.sandbox.path, stage.node.path, str(plain)):
                fresh = tmp_path / "fresh"
                fresh.symlink_to(target)
                os.rename(fresh, path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    env = {**stage.env(ifname="pod0"), "CNI_NETNS": str(path)}
    before = stage.world()
    try:
        outcomes = set()
        for _ in range(8):
            time.sleep(0.01)
            ended = stage.run("ADD", env=env, timeout=TIMEOUT_S)
            outcomes.add(ended.document().get("code", 0))
            now = stage.world()
            assert not any(key.startswith(f"{stage.node.name} link pod0") for key in now)
            assert stage.run("DEL", env={**env, "CNI_NETNS": ""}).rc == 0
            assert faults.difference(before, stage.world()) == []
    finally:
        running = False
        swapper.join()
    assert outcomes <= {0, 3, 4}
