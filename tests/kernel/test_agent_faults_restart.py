"""The agent is ended and started again while many calls are on their way."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

import pytest

from cni_plugin import wire
from tests.support import netns
from tests.support.agent import Agent, ask
from tests.support.netns import Namespace
from tests.support.plugin import Config, Plugin, Reply, hold_to_specification, read_reply

pytestmark = pytest.mark.unmeasured

COUNT = 200
TRY_AGAIN_LATER = 11
IPAM = {"ranges": [[{"subnet": "10.244.0.0/23"}]]}


@pytest.fixture
def pods(topology) -> list[Namespace]:
    """Eight sandboxes with 25 interfaces each are as many attachments as 200 pods."""
    return [topology.sandbox(f"p{number}") for number in range(8)]


def attachments(pods: list[Namespace]) -> list[dict[str, str]]:
    return [
        {
            "CNI_CONTAINERID": f"{pod.name}-{number}",
            "CNI_IFNAME": f"eth{number}",
            "CNI_NETNS": pod.path,
        }
        for number in range(COUNT // len(pods))
        for pod in pods
    ]


def all_at_once(
    plugin: Plugin, command: str, conf: Config, envs: list[dict[str, str]]
) -> list[Reply]:
    """One process for each; each reply is held to the specification."""
    started = [plugin.start(command, conf, env) for env in envs]
    replies = []
    for process in started:
        out, err = process.communicate(timeout=120)
        replies.append(read_reply(process.returncode, out, err))
        hold_to_specification(command, replies[-1])
    return replies


def failures(replies: list[Reply]) -> Counter[str]:
    return Counter(f"{r.error['code']}: {r.error['msg']}" for r in replies if not r.ok)


def assert_clean(node: Namespace, conf: Config, pods: list[Namespace]) -> None:
    """No link of a pod, no route, no address that is taken."""
    assert set(node.links()) == {"lo", "eth0", "cni0"}
    for pod in pods:
        assert set(pod.links()) == {"lo"}
        assert pod.routes() == []
    folder = os.path.join(conf["ipam"]["dataDir"], conf["name"])
    left = {name for name in os.listdir(folder) if not name.startswith("last_reserved_ip.")}
    assert left == {"lock"}


class Restarting:
    """A thread that ends the agent and starts it anew, each time after a few calls."""

    def __init__(self, agent: Agent, number: int) -> None:
        self._agent, self._number = agent, number
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self.count = 0
        self._thread = threading.Thread(target=self._guarded)
        self._thread.start()

    def __enter__(self) -> Restarting:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert not self._errors, self._errors

    def _guarded(self) -> None:
        try:
            while not self._over.is_set():
                self._once()
        except BaseException as e:
            self._errors.append(e)

    def _once(self) -> None:
        before = len(self._agent.served())
        while len(self._agent.served()) - before < 12:
            if self._over.wait(0.02):
                return
        if self._number == signal.SIGTERM:
            self._agent.terminate()
        else:
            self._agent.kill()
        self._agent.start()
        self.count += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_restarted_under_two_hundred_calls(agent, client_executable, make_conf, pods, number):
    """With SIGTERM nobody notices; with SIGKILL those at work get error 11 or were done. The ADDs
    take seconds, as many starts of Python do, and the DELs are as fast as on a node."""
    conf, envs = make_conf(ipam=IPAM), attachments(pods)
    restarts = 0
    for command, plugin in (("ADD", agent.plugin()), ("DEL", agent.plugin(client_executable))):
        with Restarting(agent, number) as restarting:
            replies = all_at_once(plugin, command, conf, envs)
        restarts += restarting.count
        codes = {reply.error["code"] for reply in replies if not reply.ok}
        allowed = {TRY_AGAIN_LATER} if number == signal.SIGKILL else set()
        assert codes <= allowed, failures(replies)
        if command == "ADD":
            addresses = [reply.addresses()[0] for reply in replies if reply.ok]
            assert len(set(addresses)) == len(addresses) > COUNT / 10
    assert restarts >= 2, "the agent was hardly restarted"
    for env in envs:
        assert ask(agent, plugin.environ("DEL", env), conf) == (wire.SERVED, 0, b"")
    assert_clean(plugin.node, conf, pods)


def test_a_drain_lets_a_slow_call_end(
    agent, fake_ipam, bin_folder, sandbox, make_conf, tmp_path
):  # fmt: skip
    """SIGTERM: new calls go another way at once, the one at work ends with its result."""
    address = '{"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.9/24"}]}'
    waiting = f"until [ -e {tmp_path}/over ]; do sleep 0.05; done"
    slow = fake_ipam(f"[ $CNI_COMMAND != ADD ] || {{ {waiting}; echo '{address}'; }}")
    conf = make_conf() | {
        "ipam": {"type": slow.name},
        "isGateway": False,
        "isDefaultGateway": False,
    }
    plugin = agent.plugin(cni_path=str(bin_folder))
    env = {"CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0", "CNI_NETNS": sandbox.path}
    process = plugin.start("ADD", conf, env)
    netns.wait_until(slow.calls, what="the delegate runs")
    agent.signal(signal.SIGTERM)
    netns.wait_until(lambda: not os.path.exists(agent.socket), what="the socket is withdrawn")
    assert not os.path.exists(agent.ready_file)
    assert plugin.status(make_conf(cniVersion="1.1.0")).ok
    assert process.poll() is None
    (tmp_path / "over").touch()
    out, err = process.communicate(timeout=20)
    assert read_reply(process.returncode, out, err).addresses() == ["10.244.0.9/24"]
    assert agent.wait() == 0
    assert agent.files() == []
    assert agent.served() == [("ADD", "ok")]
    assert plugin.call("DEL", conf, env).ok
    assert set(sandbox.links()) == {"lo"}


def test_a_second_agent_is_refused_and_does_no_harm(agent, make_agent, make_conf, sandbox):
    """One socket, one agent: the second says so, ends with 1, and leaves the first in place."""
    second = Agent(agent.node, agent.command, os.path.dirname(agent.socket), "agent")
    second.launch()
    assert second.wait(20) == 1
    assert "another agent serves" in agent.text()
    conf = make_conf()
    assert agent.plugin().add(conf, sandbox).ok
    assert agent.plugin().delete(conf, sandbox).ok
    agent.terminate()
    records = [line for line in agent.text().splitlines() if line.startswith("{")]
    assert sum('"served"' in line for line in records) == 2


def test_the_successor_of_a_killed_agent_takes_its_place(agent, make_conf, sandbox):
    """Socket, lock and readiness of the dead one lie about, and give way."""
    conf, plugin = make_conf(), agent.plugin()
    for _ in range(3):
        agent.kill()
        assert agent.files() == ["agent.ready", "agent.sock", "agent.sock.lock"]
        assert plugin.add(conf, sandbox).ok  # refused: served in process
        agent.start()
        assert plugin.delete(conf, sandbox).ok
    agent.terminate()
    assert agent.served()[-1] == ("DEL", "ok")
