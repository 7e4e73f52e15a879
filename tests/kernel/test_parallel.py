"""Many calls at once: on a fresh bridge, with failures and kills among them, and beside the Go
plugins on the same directory and the same bridge."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from tests.support import faults, netns, probe, require
from tests.support.faults import Stage
from tests.support.netns import Namespace
from tests.support.plugin import Plugin, Reply, hold_to_specification, read_reply
from tests.support.topology import Topology

pytestmark = pytest.mark.unmeasured

RANGES = [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:2::/64"}]]
LATE = [{"dst": "10.9.0.0/16", "gw": "172.31.0.1"}]  # refused by the kernel, as the last step


@pytest.fixture
def make_stage(
    topology: Topology, podwire_executable: str, tmp_path, by_way
) -> Callable[..., Stage]:
    def make(**ipam) -> Stage:
        ipam = {"ranges": RANGES} | ipam
        stage = Stage(topology, podwire_executable, str(tmp_path), ipam=ipam)
        stage.plugin = by_way(stage.plugin)
        return stage

    return make


@pytest.fixture
def pods(topology: Topology) -> Callable[[int], list[Namespace]]:
    return lambda count: [topology.sandbox(f"p{number}") for number in range(count)]


Call = tuple[Plugin, str, dict, dict]


def at_once(calls: Iterable[Call], timeout: float = 120) -> list[Reply]:
    """Start all, then wait for all; each reply is held to the specification."""
    started = [(command, plugin.start(command, c, env)) for plugin, command, c, env in calls]
    replies = []
    for command, process in started:
        out, err = process.communicate(timeout=timeout)
        replies.append(read_reply(process.returncode, out, err))
        hold_to_specification(command, replies[-1])
    return replies


def calls(stage: Stage, command: str, pods: list[Namespace], conf: dict | None = None):
    conf = stage.conf if conf is None else conf
    return [(stage.plugin, command, conf, stage.env(pod.name, sandbox=pod.path)) for pod in pods]


def all_ok(replies: list[Reply]) -> None:
    failures = Counter(f"{r.stdout} {r.stderr}" for r in replies if not r.ok)
    assert not failures, failures


def assert_one_network(stage: Stage, pods: list[Namespace], replies: list[Reply]) -> None:
    """Distinct addresses, one gateway, one bridge, and everybody reaches the gateway."""
    for position in (0, 1):
        assert len({reply.addresses()[position] for reply in replies}) == len(replies)
    bridges = [
        name
        for name, link in stage.node.links().items()
        if link.get("linkinfo", {}).get("info_kind") == "bridge"
    ]
    assert bridges == ["cni0"]
    assert sorted(stage.node.addresses("cni0")) == ["10.244.0.1/24", "fd00:2::1/64"]
    macs = {r.result["interfaces"][0]["mac"] for r in replies}
    assert macs == {stage.node.links()["cni0"]["address"]}
    for pod in pods:
        probe.tcp(pod, stage.node, "10.244.0.1")
    probe.tcp(pods[0], stage.node, "fd00:2::1")
    probe.tcp(pods[0], pods[-1], replies[-1].addresses()[0].split("/")[0])


def test_fifty_adds_on_a_fresh_bridge(make_stage, pods):
    stage, fifty = make_stage(), pods(50)
    before = stage.world()
    replies = at_once(calls(stage, "ADD", fifty))
    all_ok(replies)
    assert_one_network(stage, fifty, replies)
    all_ok(at_once(calls(stage, "DEL", fifty)))
    assert faults.leftovers(before, stage.world()) == []
    for pod in fifty:
        assert set(pod.links()) == {"lo"}


@pytest.mark.parametrize("round_number", range(2))
def test_failures_do_not_take_the_bridge_from_others(make_stage, pods, round_number):
    """Some fail at the last step, when others use the bridge that they made; some early."""
    stage, twenty = make_stage(), pods(20)
    before = stage.world()
    stage.plugin.call("ADD", stage.conf, stage.env("first", sandbox=twenty[0].path)).addresses()
    assert stage.run("DEL", env=stage.env("first", sandbox=twenty[0].path)).rc == 0
    stage.remove_bridge()
    late = {**stage.conf, "ipam": {**stage.conf["ipam"], "routes": LATE}}
    early = {**stage.conf, "runtimeConfig": {"ips": ["10.244.0.1"]}}
    mixed = []
    for number, pod in enumerate(twenty):
        conf = stage.conf if number % 2 else (early if number % 6 == 4 else late)
        mixed += calls(stage, "ADD", [pod], conf)
    random.Random(round_number).shuffle(mixed)
    replies = at_once(mixed)
    good = [
        (pod, reply)
        for (_, _, conf, env), reply in zip(mixed, replies, strict=True)
        for pod in twenty
        if conf is stage.conf and env["CNI_NETNS"] == pod.path
    ]
    all_ok([reply for _, reply in good])
    assert sum(reply.ok for reply in replies) == 10
    assert_one_network(stage, [pod for pod, _ in good], [reply for _, reply in good])
    all_ok(at_once(calls(stage, "DEL", twenty)))
    assert faults.leftovers(before, stage.world()) == []


def test_all_fail_on_a_fresh_bridge(make_stage, pods):
    """Nothing of them is left; the bridge may be, where its maker saw that others use it."""
    stage, some = make_stage(routes=LATE), pods(12)
    before = stage.world()
    replies = at_once(calls(stage, "ADD", some))
    assert not any(reply.ok for reply in replies)
    assert faults.leftovers(before, stage.world()) == []


def test_two_adds_of_one_attachment(make_stage, pods):
    """Exactly one succeeds, and the loser's undo leaves the winner alone."""
    stage, (pod,) = make_stage(), pods(1)
    before = stage.world(pod)
    for _ in range(4):
        replies = at_once(calls(stage, "ADD", [pod, pod]))
        assert sorted(reply.ok for reply in replies) == [False, True]
        (winner,) = [reply for reply in replies if reply.ok]
        conf = {**stage.conf, "prevResult": winner.result}
        checked = stage.plugin.call("CHECK", conf, stage.env(pod.name, sandbox=pod.path))
        assert checked.ok, checked
        all_ok(at_once(calls(stage, "DEL", [pod, pod])))
        assert faults.leftovers(before, stage.world(pod)) == []
        stage.remove_bridge()


def test_add_and_delete_of_one_attachment(make_stage, pods):
    """Whatever their order was, a last DEL leaves nothing."""
    stage, (pod,) = make_stage(), pods(1)
    before = stage.world(pod)
    for number in range(6):
        added = calls(stage, "ADD", [pod])
        replies = at_once(added + calls(stage, "DEL", [pod]))
        assert replies[1].ok, replies[1]
        if number % 2:
            stage.remove_bridge()
        all_ok(at_once(calls(stage, "DEL", [pod])))
        assert faults.leftovers(before, stage.world(pod)) == []


def test_churn_with_kills(make_stage, pods, tmp_path):
    """ADD and DEL in random order, one in three killed; in the end all are deleted."""
    stage, all_pods = make_stage(), pods(12)
    before = stage.world(*all_pods)
    end = time.monotonic() + 6
    trouble: list[str] = []

    def churn(seed: int, mine: list[Namespace]) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end:
            pod = chance.choice(mine)
            command = chance.choice(["ADD", "ADD", "DEL"])
            process = stage.plugin.start(command, stage.conf, stage.env(pod.name, sandbox=pod.path))
            if chance.random() < 0.33:
                time.sleep(chance.uniform(0, 0.25))
                process.kill()
            out, err = process.communicate(timeout=60)
            if b"Traceback" in err or (command == "DEL" and process.returncode == 1):
                trouble.append(f"{command}: {out!r} {err!r}")

    threads = [threading.Thread(target=churn, args=(seed, all_pods[seed::4])) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not trouble, trouble[:5]
    all_ok(at_once(calls(stage, "DEL", all_pods)))
    assert faults.leftovers(before, stage.world(*all_pods)) == []
    replies = at_once(calls(stage, "ADD", all_pods))
    all_ok(replies)
    assert_one_network(stage, all_pods, replies)


def test_two_attachments_of_one_pod(make_stage, pods):
    """Each brings a default route; the reference lets the second one stand beside the first."""
    stage, (pod,) = make_stage(), pods(1)
    before = stage.world(pod)
    envs = [stage.env(pod.name, ifname, pod.path) for ifname in ("eth0", "eth1")]
    replies = at_once((stage.plugin, "ADD", stage.conf, env) for env in envs)
    at_once((stage.plugin, "DEL", stage.conf, env) for env in envs)
    assert faults.leftovers(before, stage.world(pod)) == []
    all_ok(replies)


@pytest.mark.parametrize("way", ["process"], indirect=True)  # which is stopped at each request
@pytest.mark.parametrize("what", ["add", "del"])
def test_somebody_makes_or_removes_the_bridge_meanwhile(make_stage, what):
    """Between any two requests of an ADD: it works, or is refused and leaves nothing."""
    stage = make_stage()
    stage.use()
    stage.remove_bridge()
    names = stage.points("ADD")
    assert stage.run("DEL").rc == 0
    stage.remove_bridge()
    before, complaints = stage.world(), []
    kind = ("type", "bridge") if what == "add" else ()
    sends = [n for n, name in enumerate(names, 1) if name.startswith("send")]
    for number in sends[:6] if what == "add" else sends[2::2]:
        env = {**stage.env(), "PYTHONPATH": faults.HOOK, "PODWIRE_FAULT": f"stop:{number}"}
        process = stage.plugin.start("ADD", stage.conf, env)
        netns.wait_until(lambda p=process: _stopped(p.pid), what="the process stops", pause=0.01)
        done = stage.node.run("ip", "link", what, "cni0", *kind, check=False)
        os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=60)
        reply = read_reply(process.returncode, out, err)
        hold_to_specification("ADD", reply)
        if not reply.ok:
            complaints += faults.leftovers(before, stage.world())
            if what == "add" and done.returncode == 0:
                complaints.append(f"{number}: refused: {reply.stdout}")
        assert stage.run("DEL").rc == 0
        complaints += faults.leftovers(before, stage.world())
        stage.remove_bridge()
    assert not complaints, "\n".join(complaints)


def _stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0] == "T"


# --- beside the Go plugins ------------------------------------------------------------------------


@pytest.fixture
def go(make_stage) -> tuple[Stage, Plugin, dict]:
    """A stage, the Go bridge on its node, and the stage's configuration for it."""
    folder = require.go_plugins("bridge", "host-local")
    stage = make_stage()
    conf = {**stage.conf, "type": "bridge", "bridge": "cni0", "isGateway": True}
    return stage, Plugin(f"{folder}/bridge", stage.node, folder), conf


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "in-use"])
def test_beside_the_go_plugins(go, pods, fresh):
    """Both on one bridge and one directory; afterwards podwire deletes what Go made as well."""
    stage, go_bridge, go_conf = go
    twenty = pods(20)
    stage.use()
    before = stage.world()
    if fresh:
        stage.remove_bridge()
    mixed = []
    for number, pod in enumerate(twenty):
        env = stage.env(pod.name, sandbox=pod.path)
        if number % 2:
            mixed.append((go_bridge, "ADD", go_conf, env))
        else:
            mixed.append((stage.plugin, "ADD", stage.conf, env))
    replies = at_once(mixed)
    ours = [r for r, call in zip(replies, mixed, strict=True) if call[0] is stage.plugin]
    all_ok(ours)
    served = [(pod, r) for pod, r in zip(twenty, replies, strict=True) if r.ok]
    if not fresh:
        assert len(served) == len(twenty)  # on a fresh bridge the Go plugin loses races of its own
    for position in (0, 1):
        assert len({r.addresses()[position] for _, r in served}) == len(served)
    for pod, _ in served:
        probe.tcp(pod, stage.node, "10.244.0.1")
    all_ok(at_once(calls(stage, "DEL", twenty)))
    netns.wait_until(lambda: faults.leftovers(before, stage.world()) == [], what="nothing is left")
    for pod in twenty:
        assert set(pod.links()) == {"lo"}


@pytest.mark.parametrize("way", ["process"], indirect=True)  # it asks neither for an agent
def test_go_host_local_and_podwire_ipam_at_once(make_stage, pods, podwire_ipam_executable):
    """The IPAM plugins alone: no address twice, and each frees what the other reserved."""
    folder = require.go_plugins("host-local")
    stage = make_stage()
    both = [
        Plugin(f"{folder}/host-local", stage.node, folder),
        Plugin(podwire_ipam_executable, stage.node, folder),
    ]
    envs = [stage.env(f"c{n}", sandbox="/var/run/netns/none") for n in range(40)]

    def turn(command: str, offset: int) -> list[Reply]:
        return at_once(
            (both[(n + offset) % 2], command, stage.conf, env) for n, env in enumerate(envs)
        )

    for offset in (0, 1):
        replies = turn("ADD", offset)
        all_ok(replies)
        assert len({reply.addresses()[0] for reply in replies}) == len(envs)
        all_ok(turn("DEL", offset + 1))
        left = subprocess.run(["ls", f"{stage.data}/podnet"], capture_output=True, check=True)
        assert set(left.stdout.decode().split()) <= {
            "lock",
            "last_reserved_ip.0",
            "last_reserved_ip.1",
        }
