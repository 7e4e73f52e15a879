"""An ADD or DEL that is killed or terminated at any moment; the DEL after it leaves nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.support import faults
from tests.support.faults import Ended, Stage
from tests.support.topology import Topology

pytestmark = pytest.mark.unmeasured

SIGKILLED, SIGTERMED = -signal.SIGKILL, -signal.SIGTERM


@pytest.fixture
def stages(topology: Topology, podwire_executable: str, tmp_path) -> Callable[..., list[Stage]]:
    """stages(**conf) is two equal stages, so that a sweep uses two processors."""

    def make(**keys) -> list[Stage]:
        return [Stage(topology, podwire_executable, str(tmp_path), name, **keys) for name in "ab"]

    return make


IPAM = ("open", "write", "mkdir", "symlink", "rename", "unlink", "link", "utime", "flock")


def _numbered(names: list[str], skip: tuple[str, ...]) -> list[int]:
    return [i for i, name in enumerate(names, 1) if not name.startswith(skip)]


def _faults(action: str, numbers: list[int]) -> list[str]:
    return [f"{action}:{number}" for number in numbers]


# --- SIGKILL ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_add_killed_at_each_system_call(stages, mode):
    both = stages(mode=mode)
    worlds = {stage: stage.world() for stage in both}
    names = both[0].points("ADD")
    assert both[0].run("DEL").rc == 0

    def body(stage: Stage, fault: str) -> list[str]:
        stage.start_over()
        killed = stage.run("ADD", fault)
        if killed.rc not in (SIGKILLED, 0):
            return [f"instead of dying: {killed}"]
        if int(fault.split(":")[1]) % 5 == 0:
            stage.use()  # another pod is not hindered by what lies about
        deleted = stage.run("DEL")
        if deleted.rc != 0 or deleted.stdout:
            return [f"DEL: {deleted}"]
        return faults.leftovers(worlds[stage], stage.world())

    skip = ("recv", "open /proc/sys", "write 1")
    if mode == "ptp":
        skip += IPAM  # is the same
    faults.sweep(both, _faults("kill", _numbered(names, skip)), body)
    for stage in both:
        stage.assert_pool_is_whole()


def test_add_killed_on_a_node_in_use(stages):
    """The directory and the bridge exist, and another pod keeps what it has."""
    both = stages()
    for stage in both:
        other = stage.env("stays", sandbox=stage.others[0].path)
        assert stage.plugin.call("ADD", stage.conf, other).ok
    worlds = {stage: stage.world(stage.others[0]) for stage in both}
    names = both[0].points("ADD")
    assert both[0].run("DEL").rc == 0

    def body(stage: Stage, fault: str) -> list[str]:
        killed = stage.run("ADD", fault)
        deleted = stage.run("DEL")
        if killed.rc not in (SIGKILLED, 0) or deleted.rc != 0:
            return [f"{killed} {deleted}"]
        return faults.difference(worlds[stage], stage.world(stage.others[0]))

    picked = _numbered(names, ("recv", "open /proc/sys", "write"))
    faults.sweep(both, _faults("kill", picked[::2]), body)


def test_add_killed_after_a_delay(stages):
    both = stages()
    worlds = {stage: stage.world() for stage in both}
    began = time.monotonic()
    assert both[0].run("ADD").rc == 0
    whole = time.monotonic() - began
    assert both[0].run("DEL").rc == 0

    def body(stage: Stage, delay: float) -> list[str]:
        if round(delay * 1e4) % 2:
            stage.start_over()
        process = stage.plugin.start("ADD", stage.conf, stage.env())
        time.sleep(delay)
        process.kill()
        process.communicate()
        deleted = stage.run("DEL")
        if deleted.rc != 0 or deleted.stdout:
            return [f"DEL: {deleted}"]
        return faults.leftovers(worlds[stage], stage.world())

    faults.sweep(both, [whole * number / 28 for number in range(30)], body)
    for stage in both:
        stage.assert_pool_is_whole()


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_delete_killed_at_each_system_call(stages, mode):
    both = stages(mode=mode)
    for stage in both:
        stage.use()
    worlds = {stage: stage.world() for stage in both}
    assert both[0].run("ADD").rc == 0
    names = both[0].points("DEL")

    def body(stage: Stage, fault: str) -> list[str]:
        added, killed, deleted = stage.run("ADD"), stage.run("DEL", fault), stage.run("DEL")
        if added.rc != 0 or killed.rc not in (SIGKILLED, 0) or deleted.rc != 0:
            return [f"{added} {killed} {deleted}"]
        return faults.leftovers(worlds[stage], stage.world())

    skip = ("recv", *IPAM) if mode == "ptp" else ("recv",)
    faults.sweep(both, _faults("kill", _numbered(names, skip)), body)
    for stage in both:
        stage.assert_pool_is_whole()


def test_the_lock_of_a_killed_holder_is_free(stages):
    """The lock of the directory is the kernel's: it goes with the process that held it."""
    stage = stages()[0]
    stage.use()
    names = stage.points("ADD")
    assert stage.run("DEL").rc == 0
    linked = next(i for i, name in enumerate(names, 1) if name.startswith("link"))
    assert stage.run("ADD", f"kill-after:{linked}").rc == SIGKILLED
    began = time.monotonic()
    stage.use()
    assert time.monotonic() - began < 5
    assert stage.run("DEL").rc == 0
    stage.assert_pool_is_whole()


# --- SIGTERM ----------------------------------------------------------------------------------


def _verdict(ended: Ended, before: faults.World, now: faults.World) -> list[str]:
    """SIGTERM: one error document and nothing left, or, too late for that, a whole result."""
    if ended.rc == 0:
        return [] if ended.document().get("ips") else [f"no result: {ended}"]
    found = faults.difference(before, now)
    if ended.rc == SIGTERMED and not ended.stdout and not ended.stderr:
        return found  # before the interpreter got to main()
    try:
        if ended.rc != 1 or not ended.document()["code"]:
            found.append(f"neither done nor refused: {ended}")
    except (AssertionError, KeyError) as e:
        found.append(f"no error document: {e!r}")
    return found


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "in-use"])
def test_add_terminated_at_each_system_call(stages, fresh):
    both = stages()
    for stage in both:
        stage.use()
    names = both[0].points("ADD")
    assert both[0].run("DEL").rc == 0

    def body(stage: Stage, fault: str) -> list[str]:
        if fresh:
            stage.remove_bridge()
        before = stage.world()
        ended = stage.run("ADD", fault)
        found = _verdict(ended, before, stage.world())
        deleted = stage.run("DEL")
        return found if deleted.rc == 0 else [*found, f"DEL: {deleted}"]

    if fresh:
        for stage in both:
            stage.remove_bridge()
        names = both[0].points("ADD")
        assert both[0].run("DEL").rc == 0
    skip = ("recv", "open") if fresh else ("recv", "open", "write /", "flock", "utime")
    picked = _faults("term", _numbered(names, skip)[:: 1 if fresh else 2])
    sends = [i for i, name in enumerate(names, 1) if name.startswith("send")]
    picked += _faults("term-after", [*sends, len(names)] if fresh else sends[1::2])
    faults.sweep(both, picked, body)


def test_add_terminated_after_a_delay(stages):
    """From outside, and twice in a row, as an impatient runtime does."""
    both = stages()
    for stage in both:
        stage.use()
    began = time.monotonic()
    assert both[0].run("ADD").rc == 0
    whole = time.monotonic() - began
    assert both[0].run("DEL").rc == 0

    def body(stage: Stage, delay: float) -> list[str]:
        stage.remove_bridge()
        before = stage.world()
        process = stage.plugin.start("ADD", stage.conf, stage.env())
        time.sleep(delay)
        process.terminate()
        time.sleep(0.001)
        process.terminate()
        out, err = process.communicate(timeout=30)
        found = _verdict(Ended(process.returncode, out, err), before, stage.world())
        deleted = stage.run("DEL")
        return found if deleted.rc == 0 else [*found, f"DEL: {deleted}"]

    faults.sweep(both, [whole * (0.2 + number / 26) for number in range(24)], body)
