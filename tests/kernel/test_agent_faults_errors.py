"""System calls fail in an agent that lives on: one error, all undone, the next call served."""

from __future__ import annotations

import itertools

import pytest

from tests.support import faults, netns
from tests.support.agent import AgentStage

pytestmark = pytest.mark.unmeasured

_serial = itertools.count(1)
CODES = (5, 11, 100, 101, 102, 103, 104, 105, 106)


def refused(ended: faults.Ended) -> list[str]:
    if ended.rc != 1 or ended.stderr or not ended.document().get("msg"):
        return [f"no error: {ended}"]
    code = ended.document()["code"]
    return [] if code in CODES else [f"code {code}: {ended}"]


def served_again(stage: AgentStage) -> list[str]:
    """The agent serves what comes next, whichever of its threads that meets."""
    stage.agent.arm("")
    cid = f"after-{next(_serial)}"
    stage.use(cid)

    def noted() -> bool:  # the log is written after the reply
        return len([r for r in stage.agent.log("served") if r.get("container") == cid]) == 3

    netns.wait_until(noted, 30, f"the calls of {cid} in the agent's log", 0.002)
    return []


@pytest.mark.parametrize("action", ["fail", "lost"])
def test_a_system_call_of_an_add_fails(agent_stages, action):
    """EIO (lost: the kernel or the client did its part all the same): undone, or not touched."""
    both = agent_stages()
    for stage in both:
        stage.use()
    names = both[0].fewest_points("ADD")
    worlds = {stage: stage.world() for stage in both}
    if action == "fail":
        numbers = [i for i, n in enumerate(names, 1) if not n.startswith(("write", "recv "))]
    else:
        numbers = [i for i, n in enumerate(names, 1) if n.startswith(("send", "recv"))]

    def body(stage: AgentStage, number: int) -> list[str]:
        ended = stage.struck("ADD", f"{action}:{number}", lambda: None)
        if ended.rc == 0:
            found = [] if ended.document().get("ips") else [f"no result: {ended}"]
            deleted = stage.run("DEL")
            found += [] if deleted.rc == 0 else [f"DEL: {deleted}"]
        else:
            found = refused(ended)
        found += served_again(stage)
        return found + faults.difference(worlds[stage], stage.world())

    faults.sweep(both, numbers, body)
    for stage in both:
        stage.assert_pool_is_whole()
        stage.agent.terminate()


def test_a_system_call_of_a_delete_fails(agent_stages):
    """It fails or not; the one after it leaves nothing."""
    both = agent_stages()
    for stage in both:
        stage.use()
    worlds = {stage: stage.world() for stage in both}
    names = both[0].fewest_points("DEL")

    def body(stage: AgentStage, fault: str) -> list[str]:
        added = []
        ended = stage.struck("DEL", fault, lambda: added.append(stage.run_out("ADD")))
        found = [] if ended.rc == 0 and not ended.stdout else refused(ended)
        deleted = stage.run("DEL")
        if any(one.rc for one in (*added, deleted)) or deleted.stdout:
            found.append(f"{added} {deleted}")
        return found + served_again(stage) + faults.difference(worlds[stage], stage.world())

    picked = [f"fail:{i}" for i in range(1, len(names) + 1)]
    picked += [f"lost:{i}" for i, n in enumerate(names, 1) if n.startswith(("send", "recv"))]
    faults.sweep(both, picked, body)
    for stage in both:
        stage.assert_pool_is_whole()
        stage.agent.terminate()
