"""Calls of a plugin, timed, and the order of many."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
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


class Reply(NamedTuple):
    """How an execution ended: its times, its exit status, and its stdout."""

    sample: Sample
    status: int
    said: bytes


class Budget:
    """How long a scenario may take: BUDGET_S, or `seconds`, from its construction."""

    def __init__(self, seconds: float = BUDGET_S) -> None:
        self._end = monotonic() + seconds

    def spent(self, taken: int, least: int) -> bool:
        """Whether to stop; never before `least` samples were taken."""
        return taken >= least and monotonic() > self._end


class CallFailedError(Exception):
    """A call that must succeed for the measurement to mean anything did not."""


def execute(call: Call, namespace: Namespace | None = None) -> tuple[Sample, bytes]:
    """Run the call to its end, in the namespace if one is given: the times, and its stdout.

    Raises CallFailedError for an exit status other than 0, and after TIMEOUT_S.
    """
    reply = execute_all([call], namespace)[0]
    return reply.sample, succeeded(call, reply)


def succeeded(call: Call, reply: Reply) -> bytes:
    """What the call said on stdout. Raises CallFailedError unless its exit status is 0."""
    if reply.status:
        said = reply.said.decode(errors="replace").strip()
        raise CallFailedError(f"exit {reply.status}: {said}\n{call.shell()}")
    return reply.said


def execute_all(calls: Sequence[Call], namespace: Namespace | None = None) -> list[Reply]:
    """Start all calls, one right after the other, and wait for all of them.

    The wall time of each is its own, from before its fork to after its exit. Calls that last
    longer than TIMEOUT_S are killed.
    """
    with ExitStack() as stack:
        runs = [_Run(call, stack) for call in calls]
        with namespace.entered() if namespace else nullcontext():
            for run in runs:
                run.start()
            _await(runs)
        return [run.reply() for run in runs]


class _Run:
    """One execution: pipes that are ready before it begins, then a process, then its end."""

    def __init__(self, call: Call, stack: ExitStack) -> None:
        self._call = call
        self._stdin, feed = os.pipe()
        stack.callback(os.close, self._stdin)
        self._output, self._stdout = os.pipe()
        stack.callback(os.close, self._output)
        stack.callback(self._close_stdout)
        try:
            os.write(feed, json.dumps(call.config).encode())  # far below what a pipe holds
        finally:
            os.close(feed)
        self._stack = stack
        self.handle = -1
        self._begin = self._cpu = self._end = self._status = 0

    def _close_stdout(self) -> None:
        if self._stdout >= 0:
            os.close(self._stdout)
            self._stdout = -1

    def start(self) -> None:
        actions = [(os.POSIX_SPAWN_DUP2, self._stdin, 0), (os.POSIX_SPAWN_DUP2, self._stdout, 1)]
        path = self._call.executable
        self._begin = perf_counter_ns()
        self._pid = os.posix_spawn(path, [path], self._call.environ, file_actions=actions)
        self.handle = os.pidfd_open(self._pid)
        self._stack.callback(os.close, self.handle)

    def ended(self) -> None:
        """Take the exit of the process, which has ended, or is about to by SIGKILL."""
        _, status, usage = os.wait4(self._pid, 0)
        self._end = perf_counter_ns()
        self._cpu = round((usage.ru_utime + usage.ru_stime) * 1e9)
        self._status = os.waitstatus_to_exitcode(status)

    def reply(self) -> Reply:
        self._close_stdout()
        os.set_blocking(self._output, False)  # whoever else holds the other end may keep it
        try:
            said = os.read(self._output, _OUTPUT_BYTES)
        except BlockingIOError:
            said = b""
        return Reply(Sample(self._end - self._begin, self._cpu), self._status, said)


def _await(runs: Sequence[_Run]) -> None:
    poller = select.poll()
    waiting = {run.handle: run for run in runs}
    for handle in waiting:
        poller.register(handle, select.POLLIN)
    end = monotonic() + TIMEOUT_S
    while waiting:
        ready = poller.poll(max(0.0, end - monotonic()) * 1000)
        if not ready:
            for handle in waiting:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            end = monotonic() + TIMEOUT_S
        for handle, _ in ready:
            poller.unregister(handle)
            waiting.pop(handle).ended()


def rotated(items: Sequence[T], turn: int) -> Iterator[T]:
    """The items in the order of this turn: each comes first equally often."""
    start = turn % len(items)
    yield from items[start:]
    yield from items[:start]
