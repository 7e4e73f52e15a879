"""Whom an agent serves, and which agent a client trusts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cni_plugin import wire
from cni_plugin.version import VERSION
from tests.support import agent as wired
from tests.support import faults, netns
from tests.support.agent import AgentPlugin
from tests.support.netns import Namespace

NOBODY = 65534
PERMISSION_DENIED, TRY_AGAIN_LATER = 110, 11

# A podwire of another version, as client and as agent.
OTHER_VERSION = (
    "import sys; from cni_plugin import version; version.VERSION = '99.0.0'; "
    "from cni_plugin.__main__ import main; sys.argv[0] = 'podwire'; sys.exit(main())"
)
# Listens at argv[1], says so, and says how many bytes the first client sent.
STRANGER = (
    "import os, socket, sys; "
    "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666); "
    "s.listen(); print('listens', flush=True); c, _ = s.accept(); "
    "print(len(c.recv(65536)), flush=True)"
)


@pytest.fixture
def env(sandbox) -> dict[str, str]:
    return {"CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0", "CNI_NETNS": sandbox.path}


def declined(agent: wired.Agent) -> list[str]:
    """The reasons in the agent's log."""
    return [r["reason"] for r in agent.log("served") if r["outcome"] == "declined"]


class OtherVersion(AgentPlugin):
    """A client of another version: `executable` is Python."""

    def words(self) -> list[str]:
        return [sys.executable, "-c", OTHER_VERSION]


def test_a_client_of_another_version(agent, node, make_conf, env, sandbox, reservations):
    """Declined before anything is begun; the client does the work."""
    conf = make_conf()
    client = OtherVersion(sys.executable, node, socket=agent.socket)
    assert client.call("ADD", conf, env).addresses() == ["10.244.0.2/24"]
    assert declined(agent) == [f"client is podwire 99.0.0, agent {VERSION}"]
    assert agent.plugin().call("DEL", conf, env).ok
    assert reservations() == {}
    assert agent.plugin().call("ADD", conf, env).ok
    assert client.call("DEL", conf, env).ok
    assert reservations() == {}
    assert set(sandbox.links()) == {"lo"}


def test_an_agent_of_another_version(make_agent, podwire_executable, make_conf, env, sandbox):
    """An agent that an upgrade left behind serves nobody of the new one."""
    old = make_agent([sys.executable, "-c", OTHER_VERSION])
    plugin = old.plugin(podwire_executable)
    assert plugin.call("ADD", make_conf(), env).ok
    assert plugin.call("DEL", make_conf(), env).ok
    old.terminate()
    assert declined(old) == [f"client is podwire {VERSION}, agent 99.0.0"] * 2
    assert set(sandbox.links()) == {"lo"}


def test_a_client_of_another_network_namespace(agent, topology, make_conf, env, node):
    """Two nodes that share a file system: no node gets the other's links."""
    other = topology.node("other", "192.168.1.9/24")
    before = node.state()
    plugin = AgentPlugin(agent.command[0], other, socket=agent.socket)
    assert plugin.call("ADD", make_conf(), env).ok
    assert "cni0" in other.links()
    assert node.state() == before
    assert plugin.call("DEL", make_conf(), env).ok
    assert declined(agent) == ["client is in another network namespace"] * 2


@pytest.fixture
def open_to_all(node, podwire_executable) -> Iterator[wired.Agent]:
    """Everybody can connect to this agent's socket: only its own checks are left. It is not in
    `tmp_path`, as pytest closes the folder of all runs to others whenever a run begins."""
    folder = f"{os.path.dirname(node.path)}/open"
    os.mkdir(folder, 0o755)
    agent = wired.Agent(node, podwire_executable, folder)
    try:
        agent.start()
        os.chmod(agent.socket, 0o666)
        yield agent
        agent.terminate()
    finally:
        agent.close()
        shutil.rmtree(folder)


def as_nobody(node: Namespace, *argv: str) -> list[str]:
    """Words that run a command in the node's namespace, as user 65534 without capabilities."""
    drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return [*node.prefix(), *drop, *argv]


def test_another_user_is_not_served(open_to_all, node, make_conf, env, sandbox):
    """The client, declined, does the work itself: and has not the privileges."""
    before = node.state(), sandbox.state()
    agent = open_to_all
    plugin = agent.plugin()
    for command in ("ADD", "DEL"):
        done = subprocess.run(
            as_nobody(node, plugin.executable),
            input=json.dumps(make_conf()).encode(),
            capture_output=True,
            check=False,
            env=plugin.environ(command, env),
            timeout=30,
        )
        ended = faults.Ended(done.returncode, done.stdout, done.stderr)
        assert (ended.rc, ended.document()["code"]) == (1, PERMISSION_DENIED), ended
    assert (node.state(), sandbox.state()) == before
    refusals = agent.log("refused a user")
    assert [record["uid"] for record in refusals] == [NOBODY] * 2
    assert agent.log("served") == []


def test_another_user_cannot_connect(agent, node):
    """As it is made, the socket is root's alone: 0600."""
    assert os.stat(agent.socket).st_mode & 0o7777 == 0o600
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    done = netns.run(as_nobody(node, sys.executable, "-c", code, agent.socket), check=False)
    assert done.returncode != 0
    assert "PermissionError" in done.stderr


def test_an_agent_of_another_user_is_not_trusted(stage):
    """Error 110; it gets no byte of the request, and nothing is done."""
    folder = f"/run/podwire-tests/{os.getpid()}/nobody"
    os.mkdir(folder)
    os.chown(folder, NOBODY, NOBODY)
    path = f"{folder}/agent.sock"
    stranger = subprocess.Popen(
        as_nobody(stage.node, sys.executable, "-c", STRANGER, path),
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PODWIRE_TEST_RUN": os.environ["PODWIRE_TEST_RUN"]},
    )
    try:
        assert stranger.stdout.readline() == b"listens\n"
        before = stage.world()
        ended = stage.run("ADD", env={"PODWIRE_SOCKET": path})
        assert (ended.rc, ended.document()["code"]) == (1, PERMISSION_DENIED), ended
        assert str(NOBODY) in ended.document()["msg"]
        assert faults.difference(before, stage.world()) == []
        assert stranger.stdout.readline() == b"0\n"
    finally:
        netns.end(stranger)
        os.unlink(path)
        os.rmdir(folder)


# --- what passes for a namespace ------------------------------------------------------------------


@pytest.mark.parametrize("what", ["/etc/passwd", "/dev/zero", "/proc/self/ns/mnt", "/", "node"])
def test_the_descriptor_is_no_sandbox(agent, node, make_conf, env, what):
    """What is handed in is checked: no plain file, no other kind of namespace, not the node's."""
    before = node.state()
    path = node.path if what == "node" else what
    with wired.connect(agent.socket) as connection:
        values = agent.plugin().environ("ADD", env)
        fd = os.open(path, os.O_PATH)
        try:
            data = wired.request(values, json.dumps(make_conf()).encode(), node.path)
            wired.send(connection, data, fd)
        finally:
            os.close(fd)
        verdict, status, body = wired.answer(connection)
    assert (verdict, status) == (wire.SERVED, 1)
    assert json.loads(body)["code"] == 4
    assert node.state() == before
