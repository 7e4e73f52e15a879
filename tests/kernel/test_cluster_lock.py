"""Two agents that are to follow a cluster on one node: the second one waits for the first."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_plugin.agent import clusterlock
from tests.support.agent import Agent
from tests.support.netns import Namespace, wait_until
from tests.support.topology import Topology


@pytest.fixture
def start(tmp_path: Path, podwire_executable: str) -> Callable[[Namespace, str, str], Agent]:
    """start(node, name, inventory) launches an agent whose API server never answers."""
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": True}
    content = {
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    kubeconfig.write_text(json.dumps(content))

    def launch(node: Namespace, name: str, inventory: str) -> Agent:
        options = ["--kubernetes", "--kubeconfig", str(kubeconfig), "--conf-dir", str(tmp_path)]
        options += ["--node-name", "node-1", "--inventory", str(tmp_path / inventory)]
        agent = Agent(node, podwire_executable, str(tmp_path), name=name, options=options)
        agent.launch()
        return agent

    return launch


@pytest.mark.parametrize("place", ["namespace", "inventory"])
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_second_agent_begins_when_the_first_has_ended(
    topology: Topology, start: Callable[[Namespace, str, str], Agent], place: str, end: str
) -> None:
    node = topology.node("node")
    other = node if place == "namespace" else topology.node("other")
    inventory = "other.json" if place == "namespace" else "nodes.json"
    first = start(node, "first", "nodes.json")
    second: Agent | None = None
    try:
        wait_until(lambda: first.log("serving"), 20, "the first serves", 0.05)
        second = start(other, "second", inventory)
        wait_until(lambda: second.log("waiting"), 20, "the second waits", 0.05)
        (waiting,) = second.log("waiting")
        assert waiting["holder"] == f"process {first.pid}"
        assert not Path(second.socket).exists()
        first.terminate() if end == "terminate" else first.kill()
        wait_until(lambda: second.log("serving"), 5, "the second serves", 0.05)
        second.terminate()
    finally:
        first.close()
        if second is not None:
            second.close()


@pytest.mark.parametrize("options", [(), ("--force",)], ids=["plain", "forced"])
def test_a_node_whose_agent_follows_is_not_taken_apart(
    topology: Topology,
    start: Callable[[Namespace, str, str], Agent],
    podwire_executable: str,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    """Whatever its socket, and whatever its inventory; when it has ended, nothing of it is left."""
    node = topology.node("node")
    with node.entered():
        state = Path(clusterlock.namespace_lock()).parent
    agent = start(node, "first", "nodes.json")

    def uninstall() -> subprocess.CompletedProcess[str]:
        argv = (podwire_executable, "uninstall", "--bin-dir", str(tmp_path / "bin"), *options)
        argv += ("--socket", str(tmp_path / "other.sock"))
        env = {**os.environ, "PODWIRE_RUNTIME": str(tmp_path / "runtime")}
        return node.run(*argv, check=False, env=env)

    try:
        wait_until(lambda: (state / "cluster" / "state").exists(), 20, "the first follows", 0.05)
        before = sorted(state.rglob("*"))
        refused = uninstall()
        assert (refused.returncode, refused.stdout) == (1, "")
        said = f"error 11: an agent, process {agent.pid}, follows a cluster here: it holds {state}/"
        assert refused.stderr.startswith(said)
        assert sorted(state.rglob("*")) == before
        agent.terminate()
    finally:
        agent.close()
    done = uninstall()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{state}: removed\n" in done.stdout
    assert not state.exists()


def test_agents_of_two_nodes_do_not_meet(
    topology: Topology, start: Callable[[Namespace, str, str], Agent]
) -> None:
    agents = [start(topology.node(f"node-{n}"), f"agent{n}", f"nodes-{n}.json") for n in range(2)]
    try:
        for agent in agents:
            wait_until(lambda agent=agent: agent.log("serving"), 20, "it serves", 0.05)
            assert agent.log("waiting") == []
        for agent in agents:
            agent.terminate()
    finally:
        for agent in agents:
            agent.close()
