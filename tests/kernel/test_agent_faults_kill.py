"""An agent that is killed at any moment of an ADD or DEL: nothing is lost with it.

The client gives one answer, a result or error 11. What the runtime does next, through a new agent
or without one, leaves the node clean.
"""

from __future__ import annotations

import itertools
import signal
import time

import pytest

from tests.support import faults
from tests.support.agent import AgentStage
from tests.support.faults import Ended

pytestmark = pytest.mark.unmeasured

TRY_AGAIN_LATER = 11


def answered(ended: Ended, silent: bool) -> list[str]:
    """Complaints about an answer: only success, or error 11 as one document, are right."""
    if ended.stderr:
        return [f"stderr: {ended}"]
    if ended.rc == 0:
        right = not ended.stdout if silent else bool(ended.document().get("ips"))
        return [] if right else [f"no result: {ended}"]
    document = ended.document()
    right = ended.rc == 1 and document.get("code") == TRY_AGAIN_LATER and document.get("msg")
    return [] if right else [f"neither done nor error 11: {ended}"]


def recover(stage: AgentStage, way: str) -> list[str]:
    """What a runtime does after a failure; an agent runs afterwards."""
    stage.agent.arm("")
    if way == "alone":
        commands, plugin = ["DEL"], stage.alone
    else:
        stage.agent.start()
        commands, plugin = {"agent": ["DEL"], "retry": ["DEL", "ADD", "DEL"]}[way], stage.plugin
    for command in commands:
        reply = plugin.call(command, stage.conf, stage.env())
        if not reply.ok:
            return [f"{way}: {command}: {reply}"]
    if way == "alone":
        stage.agent.start()
    return []


def ready(both: list[AgentStage], command: str) -> dict[AgentStage, faults.World]:
    """How the nodes look when nothing is left: before their first day, or for DEL in use."""
    worlds = {}
    for stage in both:
        if command == "DEL":
            stage.use()
        worlds[stage] = stage.world()
    return worlds


def points(stage: AgentStage, command: str, fresh: bool) -> list[str]:
    """What an agent that has just started passes, on a node like those of the sweep."""
    if command == "DEL":
        assert stage.run_out("ADD").rc == 0
    elif fresh:
        stage.start_over()
    stage.agent.terminate()
    stage.agent.start()
    names = stage.points(command)
    assert stage.run_out("DEL").rc == 0
    assert len(names) > (20 if command == "ADD" else 8), names
    return names


def kills(names: list[str], skip: tuple[str, ...]) -> list[str]:
    """Before each point, which is after the one before it, and after the reply."""
    picked = [f"kill:{i}" for i, name in enumerate(names, 1) if not name.startswith(skip)]
    return picked + [
        f"kill-after:{i}" for i, name in enumerate(names, 1) if name.startswith("sendall")
    ]


def sweep_kills(
    both: list[AgentStage], command: str, skip: tuple[str, ...], fresh: bool = False
) -> None:
    """Kill the agent at the points of the command on a node in use. With `fresh` at each point on
    a node's first day, and at every second one in use, most of which are the same."""
    worlds = ready(both, command)
    for stage in both:
        stage.use()  # the first call of all turns forwarding on, which starting over does not undo
    in_use = kills(points(both[0], command, False), skip)
    picked = [(fault, False) for fault in in_use[:: 2 if fresh else 1]]
    if fresh:
        picked += [(fault, True) for fault in kills(points(both[0], command, True), skip)]
    ways = itertools.cycle(("agent", "alone", "retry"))

    def body(stage: AgentStage, point: tuple[tuple[str, bool], str]) -> list[str]:
        (fault, first_day), way = point

        def before() -> None:
            if command == "DEL":
                assert stage.run_out("ADD").rc == 0
            elif first_day:
                stage.start_over()

        ended = stage.struck(command, fault, before)
        assert stage.agent.wait() == -signal.SIGKILL
        found = answered(ended, silent=command == "DEL")
        found += recover(stage, way)
        return found + faults.leftovers(worlds[stage], stage.world())

    faults.sweep(both, zip(picked, ways, strict=False), body)
    for stage in both:
        stage.assert_pool_is_whole()
        stage.agent.terminate()


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_killed_at_each_system_call_of_an_add(agent_stages, client_executable, mode):
    ipam = ("open", "mkdir", "symlink", "rename", "unlink", "link", "utime", "flock", "write")
    skip = ("recv ", "open /proc/sys") + (ipam if mode == "ptp" else ())
    both = agent_stages(client=client_executable, mode=mode)
    sweep_kills(both, "ADD", skip, fresh=mode == "bridge")


def test_killed_at_each_system_call_of_a_delete(agent_stages, client_executable):
    sweep_kills(agent_stages(client=client_executable), "DEL", ("recv ",))


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed_after_a_delay_with_several_calls_at_work(agent_stages, client_executable, command):
    """Four attachments at once; each call gets its one answer, and each DEL works."""
    both = agent_stages(client=client_executable)
    worlds = {}
    for stage in both:
        stage.use()
        worlds[stage] = stage.world(*stage.others)

    def started(stage: AgentStage, command: str) -> list:
        envs = [stage.env(pod.name, sandbox=pod.path) for pod in stage.others[:4]]
        return [stage.plugin.start(command, stage.conf, env) for env in envs]

    def ended(processes: list) -> list[Ended]:
        return [Ended(p.wait(60), p.stdout.read(), p.stderr.read()) for p in processes]

    def body(stage: AgentStage, delay: float) -> list[str]:
        if command == "DEL":
            assert [e.rc for e in ended(started(stage, "ADD"))] == [0] * 4
        began = started(stage, command)
        time.sleep(delay)
        stage.agent.kill()
        found = [line for e in ended(began) for line in answered(e, silent=command == "DEL")]
        stage.agent.start()
        found += [str(e) for e in ended(started(stage, "DEL")) if e.rc or e.stdout]
        return found + faults.difference(worlds[stage], stage.world(*stage.others))

    faults.sweep(both, [0.002 + number / 160 for number in range(8)], body)
    for stage in both:
        stage.assert_pool_is_whole()
        stage.agent.terminate()
