"""The agent on demand where it can't be: the call is served all the same."""

from __future__ import annotations

import os
import sys
import time

import pytest

from tests.support import netns, ondemand
from tests.support.plugin import Plugin

OTHER = "/run/elsewhere/below"


def test_its_folder_is_made(called, machine, auto_conf, make_sandbox):
    keys = auto_conf(agentSocket=f"{OTHER}/agent.sock")
    assert called.add(keys, make_sandbox("a")).stderr == ""
    agents = ondemand.Agents(machine, OTHER)
    agents.one()
    assert os.stat(f"/proc/{machine.pid}/root{OTHER}").st_mode & 0o7777 == 0o700
    assert called.add(keys, make_sandbox("b"), cid="b").ok
    agents.served("ADD")


def assert_served_without(called, agents, conf, path, why):
    reply = called.add(conf, path)
    assert reply.addresses() == ["10.244.0.2/24"]
    assert reply.stderr.startswith("podwire: no agent could be started: ")
    assert why in reply.stderr
    assert agents.pids() == []
    assert called.delete(conf, path).ok


@pytest.mark.parametrize(
    ("socket", "why"),
    [
        ("/proc/nowhere/agent.sock", "/proc/nowhere"),
        ("/sys/agent.sock", "/sys/agent.sock.lock"),
        ("/etc/passwd/agent.sock", "/etc/passwd"),
        ("/var/lib/open/agent.sock", "can be written by others"),
    ],
)
def test_a_folder_that_is_of_no_use(called, agents, machine, auto_conf, make_sandbox, socket, why):
    machine.run("install", "-d", "-m", "0777", "/var/lib/open")
    assert_served_without(called, agents, auto_conf(agentSocket=socket), make_sandbox("a"), why)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        ("ln -s /run/target", "agent.log"),
        ("mkfifo", "agent.log"),
        ("mkdir", "agent.log"),
        ("ln -s /run/target", "agent.sock.lock"),
        ("mkdir", "agent.sock.lock"),
    ],
)
def test_a_file_in_its_way(called, agents, machine, auto_conf, make_sandbox, make, name):
    """Neither followed nor waited for: a FIFO has no reader."""
    machine.run("sh", "-c", f"mkdir {ondemand.FOLDER} && {make} {ondemand.FOLDER}/{name}")
    assert_served_without(called, agents, auto_conf(), make_sandbox("a"), name)
    assert not os.path.exists(f"/proc/{machine.pid}/root/run/target")


@pytest.mark.parametrize(
    "fault",
    [
        "executable.path = lambda: ['/proc/nowhere/podwire']",
        "executable.path = lambda: ['/etc/passwd']",
        "os.posix_spawn = lambda *a, **k: os.close(-1)",
        "import errno; os.posix_spawn = raising(BlockingIOError(errno.EAGAIN, 'no process'))",
        "os.posix_spawn = raising(MemoryError('none left'))",
    ],
)
def test_a_start_that_fails(machine, agents, auto_conf, make_sandbox, fault):
    """Exit status, stdout and the pod are as if nobody had asked for an agent."""
    called = faulty(machine, fault)
    assert_served_without(called, agents, auto_conf(), make_sandbox("a"), "")
    assert agents.files() in (["agent.log", "agent.sock.lock"], ["agent.sock.lock"])


def test_an_agent_that_ends_at_once(machine, agents, auto_conf, make_sandbox):
    """What it says before it has opened its log is in there."""
    called = faulty(machine, "executable.path = lambda: ['/bin/ls']")
    path = make_sandbox("a")
    reply = called.add(auto_conf(), path)
    assert (reply.ok, reply.stderr) == (True, "")
    netns.wait_until(lambda: "ls: " in agents.text("agent.log"), what="a word of ls")
    assert called.delete(auto_conf(), path).ok


def faulty(machine, fault):
    """The plugin, with a line of Python executed before it does anything."""
    code = f"""if True:
        import os, sys
        from cni_plugin import executable
        from cni_plugin.__main__ import main
        def raising(e):
            def fail(*a, **k): raise e
            return fail
        {fault}
        sys.argv = ["podwire"]
        sys.exit(main())
    """
    called = Plugin(sys.executable, machine)
    called.argv = lambda: [*machine.prefix(), sys.executable, "-c", code]
    return called


def test_a_node_in_another_namespace(called, agents, machine, auto_conf, make_sandbox):
    """Two nodes that share /run: the agent of one declines the other's calls, which are served in
    process; they neither start a second one nor keep the first alive."""
    assert called.add(auto_conf(agentIdle=3), make_sandbox("a")).ok
    pid = agents.one()
    inside = ["nsenter", f"--net={make_sandbox('node')}"]
    called.argv = lambda: [*machine.prefix(), *inside, called.executable]
    path = make_sandbox("b")
    given = auto_conf(agentIdle=3, ipam={"dataDir": machine.path("other")})
    reply = called.add(given, path)
    assert (reply.addresses(), reply.stderr) == (["10.244.0.2/24"], "")
    assert agents.pids() == [pid]
    agents.served("ADD", outcome="declined")
    deadline = time.monotonic() + 30
    while agents.pids() == [pid]:
        assert called.check({**given, "prevResult": reply.result}, path).ok
        assert time.monotonic() < deadline, "calls that it declines keep the agent alive"
