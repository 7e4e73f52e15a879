"""One call of a plugin, timed, and the order of many."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from time import monotonic, perf_counter_ns
from typing import Any, NamedTuple, TypeVar

from bench.namespaces import Namespace

TIMEOUT_S = 60.0
BUDGET_S = 40.0
_OUTPUT_BYTES = 1 << 20

T = TypeVar("T")


class Call(NamedTuple):
    """Everything an execution depends on, but for the namespace it runs in."""

    executable: str
    environ: Mapping[str, str]
    config: Mapping[str, Any]

    def shell(self, namespace: str = "") -> str:
        """The call as text for a shell, in the network namespace of that name if one is given."""
        enter = f"ip netns exec {namespace} " if namespace else ""
        words = [f"{name}={value}" for name, value in self.environ.items()]
        text = f"{enter}env -i {' '.join(shlex.quote(word) for word in words)} \\\n"
        return f"{text}  {shlex.quote(self.executable)} <<'EOF'\n{json.dumps(self.config)}\nEOF"


class Sample(NamedTuple):
    """One execution in ns: `wall` from before fork to after exit, `cpu` user and system time of
    the process and of all that it waited for."""

    wall: int
    cpu: int


class Budget:
    """How long a scenario may take: BUDGET_S from its construction."""

    def __init__(self) -> None:
        self._end = monotonic() + BUDGET_S

    def spent(self, taken: int, least: int) -> bool:
        """Whether to stop; never before `least` samples were taken."""
        return taken >= least and monotonic() > self._end


class CallFailedError(Exception):
    """A call that must succeed for the measurement to mean anything did not."""


def execute(call: Call, namespace: Namespace | None = None) -> tuple[Sample, bytes]:
    """Run the call to its end, in the namespace if one is given: the times, and its stdout.

    Raises CallFailedError for an exit status other than 0, and after TIMEOUT_S.
    """
    stdin, feed = os.pipe()
    output, stdout = os.pipe()
    try:
        os.write(feed, json.dumps(call.config).encode())  # far below what a pipe holds
        os.close(feed)
        with namespace.entered() if namespace else nullcontext():
            sample, status = _run(call, stdin, stdout)
        os.close(stdout)
        stdout = -1
        said = os.read(output, _OUTPUT_BYTES)
    finally:
        for fd in (stdin, output, stdout):
            if fd >= 0:
                os.close(fd)
    if status:
        raise CallFailedError(
            f"exit {status}: {said.decode(errors='replace').strip()}\n{call.shell()}"
        )
    return sample, said


def _run(call: Call, stdin: int, stdout: int) -> tuple[Sample, int]:
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    start = perf_counter_ns()
    pid = os.posix_spawn(call.executable, [call.executable], call.environ, file_actions=actions)
    handle = os.pidfd_open(pid)
    try:
        if not _ended(handle):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        end = perf_counter_ns()
    finally:
        os.close(handle)
    cpu = round((usage.ru_utime + usage.ru_stime) * 1e9)
    return Sample(end - start, cpu), os.waitstatus_to_exitcode(status)


def _ended(handle: int) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(TIMEOUT_S * 1000))


def rotated(items: Sequence[T], turn: int) -> Iterator[T]:
    """The items in the order of this turn: each comes first equally often."""
    start = turn % len(items)
    yield from items[start:]
    yield from items[:start]
