"""The agent on demand as a process: what it has of its caller, and what happens when many calls
start it, when it dies, and when it can't be started. The runtimes are in test_on_demand.py."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import signal
import subprocess
import termios
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import netns, ondemand
from tests.support.plugin import Plugin, read_reply


def environ(path, **more):
    name = os.path.basename(path)
    return {"CNI_CONTAINERID": name, "CNI_NETNS": path, "CNI_IFNAME": "eth0", **more}


# --- what it has of its caller -------------------------------------------------------------------


def test_it_has_nothing_of_its_caller(called, agents, auto_conf, make_sandbox, machine):
    """Neither descriptors nor terminal, session, folder, umask, signals and environment."""
    path = make_sandbox("a")
    watched, held = os.pipe()
    terminal, other_end = pty.openpty()
    memory, namespace = os.memfd_create("caller"), os.open("/proc/self/ns/net", os.O_RDONLY)

    def be_a_caller():
        os.setsid()
        fcntl.ioctl(other_end, termios.TIOCSCTTY, 0)
        os.umask(0o077)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))

    more = {"CNI_ARGS": "IgnoreUnknown=1", "NOTIFY_SOCKET": "/run/notify", "SECRET": "s"}
    process = subprocess.Popen(
        [*machine.prefix(), "sh", "-c", 'cd /tmp && exec "$0"', called.executable],
        **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
        env=called.environ("ADD", environ(path, **more)),
        pass_fds=(held, other_end, memory, namespace),
        preexec_fn=be_a_caller,
    )
    for fd in (held, other_end, memory, namespace):
        os.close(fd)
    # Returns when nobody holds stdout or stderr any more.
    stdout, stderr = process.communicate(json.dumps(auto_conf()).encode(), timeout=30)
    reply = read_reply(process.returncode, stdout, stderr)
    assert reply.addresses() == ["10.244.0.2/24"]
    assert reply.stderr == ""
    pid = agents.one()
    assert os.read(watched, 1) == b""
    os.close(watched)
    os.close(terminal)
    assert ondemand.foreign(pid) == []
    status = ondemand.status(pid)
    assert ondemand.terminal(pid) == 0
    assert status["NSsid"] == status["NSpid"] == status["NSpgid"]
    assert status["Umask"] == "0022"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert ondemand.signals(pid, "SigBlk") == set()
    assert ondemand.signals(pid, "SigIgn") == {signal.SIGPIPE, signal.SIGXFSZ}  # Python's own
    assert not {name for name in ondemand.environ(pid) if "CNI" in name or name in more}


def test_what_confines_its_caller_confines_it(called, agents, auto_conf, make_sandbox, machine):
    path = make_sandbox("a")

    def be_confined():
        os.nice(5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("500")

    done = subprocess.run(
        called.argv(),
        input=json.dumps(auto_conf()).encode(),
        capture_output=True,
        check=True,
        env=called.environ("ADD", environ(path)),
        preexec_fn=be_confined,
        timeout=30,
    )
    assert done.stderr == b""
    pid = agents.one()
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (300, 400)
    with open(f"/proc/{pid}/oom_score_adj") as f:
        assert f.read() == "500\n"
    assert ondemand.cgroups(pid) == ondemand.cgroups(os.getpid())
    for kind in ("net", "mnt", "pid"):
        link = os.readlink(f"/proc/{pid}/ns/{kind}")
        assert link == os.readlink(f"/proc/{machine.pid}/ns/{kind}")


# --- which call starts it ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["CHECK", "DEL", "GC", "STATUS", "VERSION"])
def test_only_an_add_starts_it(called, agents, auto_conf, make_sandbox, command):
    path = make_sandbox("a")
    result = called.add(auto_conf(agent="never"), path, cid="a").result
    more = {"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}
    given = {**auto_conf(), "prevResult": result, **(more if command == "GC" else {})}
    if command == "VERSION":
        given = {"cniVersion": "1.1.0", "agent": "auto"}
    assert called.call(command, given, environ(path)).ok
    assert agents.pids() == []


@pytest.mark.parametrize("mode", ["", "never"])
def test_it_is_not_started_unasked(called, agents, auto_conf, make_sandbox, mode):
    assert called.add(auto_conf(agent=mode, bridge="auto"), make_sandbox("a")).ok
    assert agents.pids() == []
    assert agents.files() == []


def test_a_call_that_fails_starts_none(called, agents, auto_conf):
    assert called.add(auto_conf(), "/run/netns/missing").code == 3
    assert called.add(auto_conf(agentIdle=0), "/run/netns/missing").code == 7
    assert agents.pids() == []


def test_podwire_ipam_starts_it_too(machine, agents, auto_conf, podwire_ipam_executable):
    ipam = Plugin(podwire_ipam_executable, machine)
    assert ipam.call("ADD", auto_conf(), environ("/run/netns/a")).ok
    agents.one()
    assert ipam.call("DEL", auto_conf(), environ("/run/netns/a")).ok
    agents.served("DEL")


# --- many, and dead ones -------------------------------------------------------------------------


def test_of_32_calls_at_once_one_starts_it(called, agents, auto_conf, machine):
    names = [f"p{number}" for number in range(33)]
    machine.run("sh", "-c", 'for name; do ip netns add "$name"; done', "-", *names)

    def add(name):
        return called.add(auto_conf(), f"/run/netns/{name}", cid=name)

    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(add, names[:32]))
    assert len({address for reply in replies for address in reply.addresses()}) == 32
    assert {reply.stderr for reply in replies} == {""}
    pid = agents.one()
    assert add(names[32]).ok
    netns.wait_until(
        lambda: names[32] in [record["container"] for record in agents.log("served")],
        what="the log of the call after them",
    )
    assert [record["msg"] for record in agents.log("serving")] == ["serving"]
    assert agents.text("agent.log").count("serving") == 1  # nor did another one end at once
    assert agents.pids() == [pid]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_an_agent_leaves_is_in_nobodys_way(called, agents, auto_conf, make_sandbox, number):
    assert called.add(auto_conf(), make_sandbox("a")).ok
    first = agents.one()
    begun = time.monotonic()
    agents.end(number)
    assert time.monotonic() - begun < 5
    left = ["agent.log"]
    if number == signal.SIGKILL:
        left += ["agent.ready", "agent.sock", "agent.sock.lock"]
    assert agents.files() == left
    reply = called.add(auto_conf(), make_sandbox("b"), cid="b")
    assert (reply.ok, reply.stderr) == (True, "")
    netns.wait_until(lambda: agents.pids() not in ([], [first]), what="another agent")
    agents.one()
    assert called.delete(auto_conf(), "/run/netns/b", cid="b").ok
    agents.served("DEL")
