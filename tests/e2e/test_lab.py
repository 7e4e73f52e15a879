"""`podwire lab`, run as people run it: the demo, and a lab that stays up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import require

_TIMEOUT_S = 60


def _environ() -> dict[str, str]:
    env = dict(os.environ)
    if env.get("PODWIRE_COVERAGE"):
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        env["COVERAGE_PROCESS_START"] = os.path.join(root, "pyproject.toml")
        env["COVERAGE_FILE"] = env["PODWIRE_COVERAGE"]
    return env


@pytest.fixture
def tool(podwire_executable: str) -> Any:
    def run(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [podwire_executable, *args],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
            text=True,
            timeout=_TIMEOUT_S,
            env=_environ(),
        )

    return run


# --- the demo ---------------------------------------------------------------------------------


def test_the_demo_tells_the_whole_story(tool: Any) -> None:
    done = tool("lab", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    text = done.stdout
    for name, address in (
        ("node-1/pod-1", "10.244.0.2"),
        ("node-1/pod-2", "10.244.0.3"),
        ("node-1/pod-3", "10.244.0.4"),
        ("node-2/pod-1", "10.244.1.2"),
    ):
        assert f"{name}  {address}  ADD took" in text
    assert '"code": 106' in text
    assert "10.244.0.0/24 of node node-1" in text
    assert "node-1: 10.244.1.0/24 via 192.168.1.3 proto 112" in text
    assert "node-2: 10.244.0.0/24 via 192.168.1.2 proto 112" in text
    assert "12 of 12 paths work. NAT: none" in text
    assert "56 of 56 paths work. NAT: none" in text
    assert "podwire lab demo --pause" in text
    assert "no link, no address, no reservation" in text
    assert "WRONG" not in text
    assert "\x1b[" not in text  # no colours where nobody sees them
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.unmeasured
def test_demos_beside_each_other(tool: Any) -> None:
    with ThreadPoolExecutor(max_workers=3) as pool:
        done = list(pool.map(lambda _: tool("lab", "demo"), range(3)))
    assert [d.returncode for d in done] == [0, 0, 0], [d.stdout[-500:] + d.stderr for d in done]


@pytest.mark.unmeasured
@pytest.mark.parametrize("delay", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_leaves_nothing(
    podwire_executable: str, number: signal.Signals, delay: float
) -> None:
    """Ctrl-C reaches the plugin as well. That nothing is left is the snapshot's to find; a signal
    that comes when all is removed already finds a process without a handler."""
    process = _demo(podwire_executable)
    assert process.stdout is not None
    process.stdout.readline()  # from here on there is something to remove
    time.sleep(delay)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode in (0, 130, -number), err
    assert "Traceback" not in err


def test_what_a_killed_demo_left_goes_with_the_next(podwire_executable: str, tool: Any) -> None:
    process = _demo(podwire_executable)
    assert process.stdout is not None
    while "ADD took" not in process.stdout.readline():
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=_TIMEOUT_S)
    assert [name for name in os.listdir("/run/netns") if name.startswith("podwire-demo-")]
    assert tool("lab", "down", "--name", _name()).returncode == 0


def test_a_demo_whose_reader_goes_away(podwire_executable: str) -> None:
    process = _demo(podwire_executable)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=_TIMEOUT_S)
    assert (process.returncode, err) == (1, "")


def _demo(executable: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [executable, "lab", "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**_environ(), "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


# --- a lab that stays -------------------------------------------------------------------------


def _name() -> str:
    return f"test-{os.getpid()}"


class _Lab:
    def __init__(self, tool: Any) -> None:
        self._tool = tool
        self.conf = f"/run/podwire-lab/{_name()}/node-1.conf"

    def __call__(self, command: str, *args: str) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = self._tool(
            "lab", command, "--name", _name(), *args
        )
        return done

    def on(self, member: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return self("exec", member, "--", *argv)

    def podwire(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.on("node-1", "podwire", *args, "--config", self.conf)


@pytest.fixture
def lab(tool: Any) -> Iterator[_Lab]:
    made = _Lab(tool)
    yield made
    done = made("down")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_every_path_of_a_lab(lab: _Lab, mode: str, family: str) -> None:
    done = lab("up", "--mode", mode, "--family", family, "--nodes", "3", "--pods", "2")
    assert done.returncode == 0, done.stderr
    done = lab("status", "--matrix", "--json")
    assert done.returncode == 0, done.stdout
    paths = json.loads(done.stdout)
    assert len(paths) == 9 * 8 * (2 if family == "dual" else 1)
    assert all(path["right"] for path in paths)


def test_a_lab_to_look_into(lab: _Lab) -> None:
    for command in (("status",), ("exec", "node-1", "true")):
        down = lab(*command)
        assert down.returncode == 1
        assert f"hint: podwire lab up --name {_name()}\n" in down.stderr
    assert json.loads(lab("status", "--json").stdout)["error"]["code"] == 7
    assert lab("up", "--pods", "1").returncode == 0
    again = lab("up")
    assert again.returncode == 1
    assert "is up already" in again.stderr
    rows = json.loads(lab("status", "--json").stdout)
    assert [row["name"] for row in rows] == [
        "node-1",
        "node-1/pod-1",
        "node-2",
        "node-2/pod-1",
        "switch",
    ]
    assert rows[1]["addresses"] == [{"link": "eth0", "address": "10.244.0.2/24"}]
    assert "10.244.0.2/24" in lab.on("node-1/pod-1", "ip", "address").stdout
    assert lab.on("node-1/pod-1", "sh", "-c", "exit 7").returncode == 7
    assert lab("exec", "node-1", "sh", "-c", "exit 8").returncode == 8
    assert "Usage: podwire ipam" in lab("exec", "node-1", "podwire", "ipam", "--help").stdout
    missing = lab.on("node-1", "no-such-program")
    assert missing.returncode == 127
    assert missing.stderr.startswith("error: no-such-program")
    wrong = lab.on("node-3", "true")
    assert wrong.returncode == 1
    assert "it has node-1, node-1/pod-1" in wrong.stderr


def test_processes_in_a_lab_go_with_it(lab: _Lab, podwire_executable: str) -> None:
    assert lab("up", "--nodes", "1", "--pods", "1").returncode == 0
    argv = [podwire_executable, "lab", "exec", "--name", _name(), "node-1/pod-1", "sleep", "600"]
    with subprocess.Popen(argv) as sleeper:
        while "sleep" not in _command(sleeper.pid):
            time.sleep(0.01)
        assert lab("down").returncode == 0
        assert sleeper.wait(timeout=10) == -signal.SIGTERM


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as f:
        return f.read().strip()


def test_the_matrix_finds_a_missing_route_and_sync_repairs_it(lab: _Lab) -> None:
    assert lab("up", "--pods", "1").returncode == 0
    assert lab.on("node-1", "ip", "route", "del", "10.244.1.0/24").returncode == 0
    lab.on("node-1", "ip", "route", "add", "10.244.8.0/24", "via", "192.168.1.9", "proto", "112")
    lab.on("node-1", "ip", "route", "add", "10.244.9.0/24", "via", "192.168.1.9")
    shown = json.loads(lab.podwire("routes", "show", "--json").stdout)
    assert {row["dst"]: row["state"] for row in shown} == {
        "10.244.1.0/24": "missing",
        "10.244.8.0/24": "stale",
    }
    wrong = lab("status", "--matrix")
    assert wrong.returncode == 1
    assert "paths work. Wrong are" in wrong.stdout
    synced = lab.podwire("routes", "sync")
    assert synced.returncode == 0
    assert "add 10.244.1.0/24 via 192.168.1.3 (node node-2)" in synced.stdout
    assert "remove 10.244.8.0/24 via 192.168.1.9" in synced.stdout
    assert lab.podwire("routes", "sync").stdout == "nothing to do: all routes are in place\n"
    assert "10.244.9.0/24" in lab.on("node-1", "ip", "route").stdout  # somebody else's
    assert lab("status", "--matrix").returncode == 0


def test_a_wrong_gateway_is_shown_and_replaced(lab: _Lab) -> None:
    assert lab("up", "--pods", "1").returncode == 0
    route = ("10.244.1.0/24", "via", "192.168.1.77", "proto", "112")
    assert lab.on("node-1", "ip", "route", "replace", *route).returncode == 0
    (row,) = json.loads(lab.podwire("routes", "show", "--json").stdout)
    assert (row["state"], row["actual"]) == ("wrong gateway", "192.168.1.77")
    text = lab.podwire("status").stdout
    assert "wrong gateway 192.168.1.77" in text
    assert f"podwire routes sync --config {lab.conf}" in text
    assert lab.podwire("routes", "sync").stdout.startswith("replace 10.244.1.0/24 via 192.168.1.3")


def test_the_matrix_finds_address_translation(lab: _Lab) -> None:
    nft = require.program("nft")
    assert lab("up", "--pods", "1").returncode == 0
    rules = (
        "add table ip t; add chain ip t p { type nat hook postrouting priority 100; };"
        " add rule ip t p oifname eth0 masquerade"
    )
    made = lab.on("node-1", nft, rules)
    assert made.returncode == 0, made.stderr
    done = lab("status", "--matrix")
    assert done.returncode == 1
    assert "node-1/pod-1 to node-2/pod-1: 192.168.1.2 NAT!" in done.stdout


def test_status_on_a_node(lab: _Lab) -> None:
    assert lab("up", "--pods", "2").returncode == 0
    done = lab.podwire("status", "--json")
    assert done.returncode == 0, done.stdout
    (network,) = json.loads(done.stdout)["networks"]
    assert network["bridge"] == {
        "name": "cni0",
        "present": True,
        "up": True,
        "addresses": ["10.244.0.1/24"],
        "ports": 2,
    }
    assert network["ipam"]["ranges"] == [
        {"range": "10.244.0.1-10.244.0.254", "used": 2, "free": 251}
    ]
    assert network["node"]["name"] == "node-1"
    assert [peer["name"] for peer in network["peers"]] == ["node-2"]
    assert [route["state"] for route in network["routes"]] == ["ok"]
    inventory = f"/run/podwire-lab/{_name()}/nodes.json"
    with open(inventory) as file:
        text = file.read()
    with open(inventory, "w") as file:
        file.write(text.replace("10.244.1.0/24", "10.244.0.0/25"))
    done = lab.podwire("status")
    assert done.returncode == 1
    assert "NOT ready (106)" in done.stdout
    assert "10.244.0.0/25 of node node-2" in done.stdout


def test_an_address_in_use_is_not_freed(lab: _Lab) -> None:
    assert lab("up", "--nodes", "1", "--pods", "1").returncode == 0
    refused = lab.podwire("ipam", "free", "10.244.0.2", "--yes")
    assert refused.returncode == 1
    assert "is in use" in refused.stderr
    assert lab.podwire("ipam", "free", "10.244.0.2", "--yes", "--force").returncode == 0
    assert "no address is reserved" in lab.podwire("ipam", "list").stdout


def test_an_address_whose_link_is_gone_is_freed(lab: _Lab) -> None:
    """And not if there are links of another plugin's making: its pod may be behind one of them."""
    assert lab("up", "--nodes", "1", "--pods", "1").returncode == 0
    shown = lab.on("node-1", "ip", "-o", "link", "show", "type", "veth").stdout
    (veth,) = (
        line.split()[1].partition("@")[0] for line in shown.splitlines() if "alias podwire" in line
    )
    assert lab.on("node-1", "ip", "link", "del", veth).returncode == 0
    add = ("ip", "link", "add", "vethother", "type", "veth", "peer", "vethpod")
    assert lab.on("node-1", *add).returncode == 0
    refused = lab.podwire("ipam", "free", "10.244.0.2", "--yes")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error 101: can't tell")
    assert "vethother" in refused.stderr
    assert "--force" in refused.stderr
    assert lab.on("node-1", "ip", "link", "del", "vethother").returncode == 0
    assert lab.podwire("ipam", "free", "10.244.0.2", "--yes").stdout == "10.244.0.2 freed\n"
