"""The agent that a contender's calls are served by: started, looked at, ended."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping
from time import monotonic, sleep
from typing import NamedTuple

from bench.namespaces import Namespace

_START_S, _END_S = 60.0, 30.0  # a first start unpacks the runtime
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.002
_QUIET_S = 0.1
_libc = ctypes.CDLL(None, use_errno=True)


class Usage(NamedTuple):
    """What an agent holds: resident memory in KiB (VmRSS), file descriptors, threads."""

    rss_kib: int
    fds: int
    threads: int


class AgentError(Exception):
    """No agent came to serve, or it did not end."""


class Agent:
    """A resident agent in a node's network namespace. It ends when the benchmark does."""

    def __init__(
        self, executable: str, path: str, node: Namespace, environ: Mapping[str, str]
    ) -> None:
        """Returns when the agent accepts calls at `path`. Raises AgentError if it never does."""
        self._log = f"{path}.log"
        argv = [executable, "agent", "--socket", path]
        with node.entered(), open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                argv,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )
        try:
            self._await(path)
        except BaseException:
            self.end()
            raise

    def _await(self, path: str) -> None:
        end = monotonic() + _START_S
        while server(path) is None:
            if self._process.poll() is not None or monotonic() > end:
                with open(self._log, errors="replace") as log:
                    raise AgentError(f"no agent at {path}: {log.read().strip()}")
            sleep(_POLL_S)

    def usage(self) -> Usage:
        return usage(self._process.pid)

    def await_quiet(self) -> None:
        """Wait until it has used no CPU for _QUIET_S. Raises AgentError if it never stops."""
        end = monotonic() + _END_S
        before = -1
        while (used := self._used()) != before:
            if monotonic() > end:
                raise AgentError(f"the agent was still busy after {_END_S:.0f} s")
            before = used
            sleep(_QUIET_S)

    def _used(self) -> int:
        """CPU time, user and system, in clock ticks."""
        with open(f"/proc/{self._process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def end(self) -> None:
        """Ask it to end, and wait for that. Raises AgentError when it has to be killed."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AgentError(f"the agent took longer than {_END_S:.0f} s to end") from None


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """For a child, before exec: it gets this signal when the benchmark ends, however it does."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)


def server(path: str) -> int | None:
    """The process that listens at the UNIX socket `path`; None when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        try:
            s.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        data = s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", data)[0]
    return pid


def end_server(path: str) -> None:
    """End the agent that serves at `path`, who is nobody's child; there may be none.

    Raises AgentError when it does not end.
    """
    pid = server(path)
    if pid is None:
        return
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(_END_S * 1000):
            raise AgentError(f"the agent {pid} took longer than {_END_S:.0f} s to end")
    finally:
        os.close(handle)


def usage(pid: int) -> Usage:
    """Of one process, from /proc."""
    fields = {}
    with open(f"/proc/{pid}/status") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            fields[name] = value.split()
    return Usage(
        int(fields["VmRSS"][0]), len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"][0])
    )
