"""`"agent": "auto"` under real clients: the first call starts an agent, which serves the others.

What the agent has of its caller, and what happens when many start one or it can't be started, is
in test_on_demand_process.py.
"""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.support import images, netns, ondemand, require
from tests.support.cnitool import Cnitool
from tests.support.podman import Podman

IDLE_S = 60  # longer than any test


@pytest.fixture
def on_demand(network):
    """on_demand(**keys) is the conflist of a network that starts its agent."""

    def make(**keys):
        return network("1.0.0", **{"agent": "auto", "agentIdle": IDLE_S} | keys)

    return make


def assert_nobodys(pid, machine):
    """The agent belongs to nobody but the first process, and holds nothing that is not its own."""
    assert int(ondemand.status(pid)["PPid"]) == machine.pid
    assert ondemand.status(pid)["NSsid"] == ondemand.status(pid)["NSpid"]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert set(ondemand.environ(pid)) <= {"PATH", "LC_ALL", "LC_CTYPE", "XDG_RUNTIME_DIR"}
    assert ondemand.foreign(pid) == []


# --- cnitool -------------------------------------------------------------------------------------


def test_cnitool(machine, plugins, on_demand, agents):
    cnitool = Cnitool(machine, plugins)
    cnitool.configure(on_demand())
    a, b = cnitool.sandbox("a"), cnitool.sandbox("b")
    cnitool.add(a)
    pid = agents.one()
    agents.served()
    assert_nobodys(pid, machine)
    cnitool.add(b)
    cnitool.call("check", "podnet", a)
    for pod in (a, b):
        cnitool.call("del", "podnet", pod)
    agents.served("ADD", "CHECK", "DEL", "DEL")
    assert agents.pids() == [pid]
    assert machine.pod_links() == []
    agents.end()
    assert agents.files() == ["agent.log"]


def test_it_ends_when_it_has_been_idle_and_is_started_again(machine, plugins, on_demand, agents):
    cnitool = Cnitool(machine, plugins)
    cnitool.configure(on_demand(agentIdle=1))
    for name in ("a", "b"):
        cnitool.add(cnitool.sandbox(name))
        netns.wait_until(lambda: agents.log("ended"), 30, "the end of an idle agent")
        agents.wait_for_end()
        assert agents.files() == ["agent.log"]
        assert agents.log("idle")[-1]["seconds"] == "1.0"
        os.unlink(f"/proc/{machine.pid}/root{ondemand.FOLDER}/agent.log")


# --- podman --------------------------------------------------------------------------------------


def test_podman(machine, plugins, on_demand, agents, reservations):
    podman = Podman(machine, plugins, on_demand())
    podman.start("a")
    pid = agents.one()
    assert_nobodys(pid, machine)
    for name in ("b", "c"):
        podman.start(name)
    assert len({podman.address(name) for name in "abc"}) == 3
    podman.call("exec", "a", "ping", "-c1", "-W3", podman.address("c"))
    agents.served("ADD", "ADD")
    podman.call("rm", "--force", "--time", "0", "a", "b", "c")
    agents.served("ADD", "ADD", "DEL", "DEL", "DEL")
    assert agents.pids() == [pid]
    assert reservations() == {}
    assert machine.pod_links() == []
    agents.end()


def test_podman_can_remove_its_control_groups_while_the_agent_lives(
    machine, plugins, on_demand, agents
):
    """It stays where the caller is, which is neither the container's group nor conmon's."""
    podman = Podman(machine, plugins, on_demand())
    container = podman.start("a")
    pid = agents.one()
    assert ondemand.cgroups(pid) == ondemand.cgroups(os.getpid())
    made = [folder for folder in groups(machine) if container in folder]
    assert made
    podman.call("rm", "--force", "--time", "0", "a")
    assert [folder for folder in made if os.path.exists(folder)] == []
    assert agents.pids() == [pid]


def groups(machine):
    """Every control group below the one that is the machine's."""
    tops = [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if folder.endswith(machine.cgroup)]
    return [folder for top in tops for folder, _, _ in os.walk(top)]


def test_a_container_that_ends_by_itself_starts_no_agent(machine, plugins, on_demand, agents):
    """Its DEL comes from conmon's control group, which podman wants to remove."""
    podman = Podman(machine, plugins, on_demand())
    podman.start("a")
    agents.end(signal.SIGKILL)
    podman.call("kill", "a")
    netns.wait_until(lambda: plugins.calls("podwire", "DEL"), what="the DEL of podman's cleanup")
    netns.wait_until(lambda: not machine.pod_links(), what="the end of its link")
    podman.call("rm", "--force", "--time", "0", "a")
    assert agents.pids() == []


# --- containerd ----------------------------------------------------------------------------------


@pytest.fixture(params=["containerd", "containerd 2"])
def containerd(request, machine, go_plugins):
    require.modules("grpc", "google.protobuf")
    from tests.support.containerd import Containerd

    require.programs("containerd", "ctr", "runc", "busybox")
    newer = request.param == "containerd 2"
    with contextlib.ExitStack() as stack:
        folder = require.newer() + "/usr/bin" if newer else ""
        daemon = Containerd(machine, go_plugins("loopback"), folder)
        stack.callback(daemon.close)
        yield daemon


def test_pods_of_a_kubelet(containerd, machine, on_demand, agents, reservations):
    containerd.configure(on_demand())
    a = containerd.cri.run_pod("a")
    pid = agents.one()
    assert_nobodys(pid, machine)
    b = containerd.cri.run_pod("b")
    shell = a.start("shell", "sleep", "1000")
    code, said = shell.run("ping", "-c1", "-W3", b.addresses()[0])
    assert code == 0, said
    for pod in (a, b):
        pod.stop()
        pod.remove()
    agents.served("ADD", *["DEL"] * 4)
    assert agents.pids() == [pid]
    assert reservations() == {}
    assert machine.pod_links() == []
    agents.end()


def test_asking_whether_the_network_is_ready_starts_no_agent(containerd, on_demand, agents):
    """containerd 2 calls STATUS for that."""
    containerd.configure({**on_demand(), "cniVersions": ["1.0.0", "1.1.0"]})
    assert containerd.cri.condition("NetworkReady")[0]
    assert agents.pids() == []


def test_ctr_run_with_cni(containerd, machine, plugins, on_demand, agents, reservations):
    containerd.configure(on_demand())
    for inside, ours in (
        ("/etc/cni/net.d", containerd.conf_folder),
        ("/opt/cni/bin", plugins.path),
    ):
        machine.run("mount", "--bind", ours, inside)
    containerd.import_images()
    command = ("ip", "-4", "-o", "addr", "show", "eth0")
    for name in ("first", "second"):
        done = containerd.ctr(
            *("run", "--rm", "--cni", "--cgroup", f"{machine.cgroup}/ctr"),
            *(images.BUSYBOX, name, *command),
        )
        assert "10.244.0." in done.stdout
        pid = agents.one()
    commands = [record["command"] for record in agents.log("served")]
    assert "ADD" in commands  # the second's; the first's DEL may have come before there was one
    assert reservations() == {}
    assert agents.pids() == [pid]
    assert_nobodys(pid, machine)
    agents.end()
