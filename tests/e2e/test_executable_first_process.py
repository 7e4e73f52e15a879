"""The executable as the first process of a container, which gets no signal it has not asked for."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.support import executable, netns, require

_TRIES = 5
# A /run of its own: the runtime is unpacked there first, so the start takes a while.
_SCRIPT = 'mount -t tmpfs tmpfs /run; exec "$0" agent --socket /run/agent.sock'


def test_an_agent_that_is_told_to_end_while_it_starts_ends() -> None:
    """Once is enough: on a busy machine a try may come when it has started."""
    require.root()
    path = executable.executable()
    assert any(_ends_while_starting(path) for _ in range(_TRIES))


def _ends_while_starting(path: str) -> bool:
    """Whether SIGTERM came while the agent held it. It has to end in any case."""
    flags = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    outer = subprocess.Popen(
        ["unshare", *flags, "sh", "-ec", _SCRIPT, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        pid = netns.wait_until(lambda: _child(outer.pid), what="the first process")
        netns.wait_until(lambda: _is_podwire(pid), 30, pause=0.01)
        netns.wait_until(lambda: _has(pid, "SigBlk") or _has(pid, "SigCgt"), 60, pause=0.01)
        held = _has(pid, "SigBlk")
        os.kill(pid, signal.SIGTERM)
        assert outer.wait(60) == 0
    finally:
        outer.kill()
        outer.wait()
    return held


def _child(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = file.read().split()
    return int(found[0]) if found else 0


def _is_podwire(pid: int) -> bool:
    """And not what executes it."""
    return os.path.basename(os.readlink(f"/proc/{pid}/exe")) in ("podwire", "ld.so")


def _has(pid: int, field: str) -> bool:
    """Whether SIGTERM is in that set of the process."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return bool(int(fields[field], 16) >> (signal.SIGTERM - 1) & 1)
