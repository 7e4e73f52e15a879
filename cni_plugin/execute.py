"""Executing another plugin: bounded in time, in output, and by a signal to ourselves.

stdin and stderr are files in memory, so that a plugin that does not read holds nobody up, nor a
child that it leaves behind: our caller waits until nobody holds our own stderr any more. The
plugin gets a session of its own, and what is left of that is killed when it has to be given up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import FileIO
from time import monotonic

from cni_plugin import waiting
from cni_plugin.spec import CniError, Code

_TIMEOUT_S = 90.0  # a DHCP lease may take its time; our client and the runtime give up later
_GRACE_S = 0.2  # for what is still in the pipe when the plugin has ended
_LARGEST = 16 * 1024 * 1024
_PASSED_ON = 64 * 1024  # of the plugin's stderr
_TICK_S = 0.05


def execute(
    executable: str,
    environ: Mapping[str, str],
    stdin: bytes,
    interrupted: Callable[[], bool],
) -> tuple[int, bytes]:
    """Run a program without arguments: its exit status (negative for a signal) and its stdout.

    Raises CniError: 11 when `interrupted`, 105 when it takes too long or says too much; OSError
    when it can't be started.
    """
    from subprocess import PIPE, Popen

    waiting.begins()

    with _in_memory(stdin) as source, _in_memory(b"") as said:
        process = Popen(
            [executable],
            stdin=source,
            stdout=PIPE,
            stderr=said,
            env=dict(environ),
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101 - it was asked for
        with process.stdout as pipe:
            try:
                stdout = _collected(pipe.fileno(), process.poll, interrupted, executable)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            finally:
                with suppress(OSError):
                    os.write(2, os.pread(said.fileno(), _PASSED_ON, 0))
        return process.wait(), stdout


def _in_memory(data: bytes) -> FileIO:
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    file = FileIO(fd, "r+")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return file


def _collected(
    fd: int, ended: Callable[[], int | None], interrupted: Callable[[], bool], name: str
) -> bytes:
    """What comes through the pipe until it is closed, or shortly after the program has ended: a
    child that it left behind may keep the pipe open for ever."""
    from select import select

    parts: list[bytes] = []
    room = _LARGEST
    deadline = monotonic() + _TIMEOUT_S
    until = None
    while True:
        if interrupted():
            raise CniError(Code.TRY_AGAIN_LATER, f"ended by a signal while {name} ran")
        if select([fd], [], [], _TICK_S)[0]:
            part = os.read(fd, 1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
            room -= len(part)
        if room < 0 or monotonic() > deadline:
            what = "says more than a result" if room < 0 else f"took more than {_TIMEOUT_S:g} s"
            raise CniError(Code.DELEGATE_FAILED, f"{name} {what}, and was ended")
        if until is None and ended() is not None:
            until = monotonic() + _GRACE_S
        if until is not None and monotonic() > until:
            return b"".join(parts)
