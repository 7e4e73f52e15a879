"""The client dies, is not read from, or is overtaken by another call while the agent works."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.support import netns
from tests.support.agent import Agent, AgentPlugin
from tests.support.plugin import Config, read_reply

pytestmark = pytest.mark.unmeasured

PATIENCE_S = 1

# An agent that waits for its clients for one second instead of ten.
IMPATIENT = (
    "import struct, sys; from cni_plugin.agent import connection; "
    f"connection._TIMEOUT = struct.pack('@ll', {PATIENCE_S}, 0); "
    "from cni_plugin.__main__ import main; sys.argv[0] = 'podwire'; sys.exit(main())"
)
ADDRESS = '{"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.9/24"}]}'


class Slow(NamedTuple):
    """A network whose IPAM delegate waits in an ADD, and notes its calls."""

    plugin: AgentPlugin
    conf: Config
    env: dict[str, str]
    calls: Callable[[], list[str]]


@pytest.fixture
def slow(agent, fake_ipam, bin_folder, make_conf, sandbox) -> Callable[..., Slow]:
    """slow("sleep 4"): the delegate waits by this shell command."""

    def make(wait: str, agent: Agent = agent) -> Slow:
        ipam = fake_ipam(f"[ $CNI_COMMAND != ADD ] || {{ {wait}; echo '{ADDRESS}'; }}")
        conf = make_conf(isGateway=False, isDefaultGateway=False) | {"ipam": {"type": ipam.name}}
        env = {"CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0", "CNI_NETNS": sandbox.path}
        return Slow(agent.plugin(cni_path=str(bin_folder)), conf, env, ipam.calls)

    return make


def taken_back(agent: Agent, command: str = "ADD") -> bool:
    """Whether the agent has noted a call that it did not finish."""
    return any(c == command and outcome != "ok" for c, outcome in agent.served())


def assert_nothing(node: netns.Namespace, sandbox: netns.Namespace) -> None:
    assert not [name for name in node.links() if name.startswith("veth")]
    assert set(sandbox.links()) == {"lo"}
    assert sandbox.routes() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_client_is_killed_during_an_add(agent, slow, node, sandbox, number):
    """Nobody waits for the result: what was made is unmade, without a DEL."""
    made = slow("sleep 0.7")
    process = made.plugin.start("ADD", made.conf, made.env)
    netns.wait_until(made.calls, what="the delegate runs", pause=0.005)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == -number
    netns.wait_until(lambda: taken_back(agent), what="the ADD taken back")
    assert made.calls() == ["ADD", "DEL"]
    assert_nothing(node, sandbox)
    assert made.plugin.call("ADD", made.conf, made.env).ok
    assert made.plugin.call("DEL", made.conf, made.env).ok
    assert_nothing(node, sandbox)


@pytest.mark.parametrize("delay", [0.03, 0.045, 0.06, 0.075, 0.09])
def test_the_client_is_killed_at_any_moment(agent, make_conf, node, sandbox, reservations, delay):
    """Without a slow delegate: the DEL that follows finds all there is."""
    conf, plugin = make_conf(), agent.plugin()
    assert plugin.add(conf, sandbox, cid="first").ok
    assert plugin.delete(conf, sandbox, cid="first").ok
    env = {"CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0", "CNI_NETNS": sandbox.path}
    for command in ("ADD", "DEL"):
        process = plugin.start(command, conf, env)
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=10)
        assert plugin.delete(conf, sandbox, cid="pod").ok
        assert_nothing(node, sandbox)
        assert reservations() == {}
        assert plugin.add(conf, sandbox, cid="pod").ok
    assert plugin.delete(conf, sandbox, cid="pod").ok


def test_a_delete_whose_client_is_killed_is_done(agent, make_conf, node, sandbox, reservations):
    """DEL has nothing to undo: once begun it goes on, with the client or without."""
    conf, plugin = make_conf(), agent.plugin()
    assert plugin.add(conf, sandbox, cid="pod").ok
    env = {"CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0", "CNI_NETNS": sandbox.path}
    agent.signal(signal.SIGSTOP)
    process = plugin.start("DEL", conf, env)
    netns.wait_until(lambda: asleep(process), what="the client waits for the agent")
    process.kill()
    process.communicate(timeout=10)
    agent.signal(signal.SIGCONT)
    netns.wait_until(lambda: "DEL" in dict(agent.served()), what="the DEL in the log")
    assert_nothing(node, sandbox)
    assert reservations() == {}


def asleep(process: subprocess.Popen) -> bool:
    """The client, which only sleeps when its request is in the socket, does so for a while."""
    for _ in range(20):
        with open(f"/proc/{process.pid}/stat") as f:
            if f.read().rpartition(")")[2].split()[0] != "S":
                return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("then", ["killed", "waits"])
def test_a_delete_overtakes_a_running_add(agent, slow, node, sandbox, bin_folder, then):
    """It waits for the ADD's end, which a dead client hastens, and leaves nothing."""
    made = slow(f"sleep 1.2; echo ended >>{bin_folder}/fake-ipam.log")
    adding = made.plugin.start("ADD", made.conf, made.env)
    netns.wait_until(made.calls, what="the delegate runs", pause=0.005)
    if then == "killed":
        adding.kill()
    assert made.plugin.call("DEL", made.conf, made.env).ok
    out, err = adding.communicate(timeout=10)
    calls = made.calls()
    assert calls[0] == "ADD"
    if then == "waits":
        assert read_reply(adding.returncode, out, err).ok
        assert calls[1] == "ended", "it did not wait"
    assert set(calls[1:]) - {"ended"} == {"DEL"}
    assert_nothing(node, sandbox)


def test_other_attachments_do_not_wait(agent, slow, make_conf, topology, tmp_path):
    """Four slow ADDs occupy all the workers that an agent starts with; others are served."""
    made = slow(f"until [ -e {tmp_path}/over ]; do sleep 0.05; done")
    pods = [topology.sandbox(f"p{number}") for number in range(5)]
    envs = [{**made.env, "CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path} for pod in pods]
    started = [made.plugin.start("ADD", made.conf, env) for env in envs[:4]]
    netns.wait_until(lambda: len(made.calls()) == 4, what="four delegates run", pause=0.005)
    assert agent.plugin().add(make_conf(), pods[4]).ok
    assert [process.poll() for process in started] == [None] * 4
    (tmp_path / "over").touch()
    for process in started:
        out, err = process.communicate(timeout=20)
        assert read_reply(process.returncode, out, err).ok
    assert agent.plugin().delete(make_conf(), pods[4]).ok
    for env in envs[:4]:
        assert made.plugin.call("DEL", made.conf, env).ok


def test_many_slow_calls_at_once(agent, slow, topology):
    """More than the agent has threads, each as long as a DHCP server may take: all are served."""
    made = slow("sleep 4")
    pods = [topology.sandbox(f"p{number}") for number in range(3)]
    envs = [
        made.env | {"CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path, "CNI_IFNAME": f"n{number}"}
        for pod in pods
        for number in range(16)
    ]
    started = [made.plugin.start("ADD", made.conf, env) for env in envs]
    codes = []
    for process in started:
        out, err = process.communicate(timeout=60)
        reply = read_reply(process.returncode, out, err)
        codes.append(reply.code)
    for env in envs:
        assert made.plugin.call("DEL", made.conf, env).ok
    assert codes == [0] * len(envs)


# --- stdout -----------------------------------------------------------------------------------


def run_with_stdout(made: Slow, stdout: int, command: str = "ADD") -> subprocess.Popen:
    process = subprocess.Popen(
        made.plugin.argv(),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=made.plugin.environ(command, made.env),
    )
    process.stdin.write(json.dumps(made.conf).encode())
    process.stdin.close()
    return process


@pytest.mark.parametrize("kind", ["closed pipe", "full device"])
def test_the_result_cannot_be_written(agent, slow, node, sandbox, kind):
    """Exit 1, a word on stderr, and the agent has taken the ADD back."""
    made = slow("sleep 0")
    if kind == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    try:
        process = run_with_stdout(made, writing)
    finally:
        os.close(writing)
    assert process.wait(20) == 1
    with process.stderr as stderr:
        assert b"can't write the reply to stdout" in stderr.read()
    netns.wait_until(lambda: taken_back(agent), what="the ADD taken back")
    assert made.calls() == ["ADD", "DEL"]
    assert_nothing(node, sandbox)


@pytest.mark.parametrize("case", ["a pipe nobody reads", "a stopped client"])
def test_the_result_is_not_taken_in_time(make_agent, slow, node, sandbox, case):
    """The ADD is taken back, and the client, when it goes on at last, does not report success."""
    agent = make_agent([sys.executable, "-c", IMPATIENT])
    made = slow("sleep 0.4", agent)
    made.plugin.executable = os.path.join(made.plugin.cni_path, "podwire")
    reading, writing = os.pipe()
    if case == "a pipe nobody reads":
        size = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
        os.write(writing, b" " * size)
    process = run_with_stdout(made, writing)
    os.close(writing)
    if case == "a stopped client":
        netns.wait_until(made.calls, what="the delegate runs", pause=0.005)
        process.send_signal(signal.SIGSTOP)
    netns.wait_until(lambda: ("ADD", "undone") in agent.served(), what="the ADD taken back")
    assert made.calls() == ["ADD", "DEL"]
    assert_nothing(node, sandbox)
    process.send_signal(signal.SIGCONT)
    with open(reading, "rb") as pipe:
        pipe.read()
    assert process.wait(20) == 1
    process.stderr.close()
    agent.terminate()
