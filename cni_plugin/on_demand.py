"""Starting an agent where nobody runs one: for podman, cnitool, a bare containerd.

With `"agent": "auto"` an ADD that had to be served in process starts an agent on its way out, for
the calls that follow. That agent ends when it has been idle. Why it is an ADD, and what the agent
has of the caller and what not, is in docs/on-demand.md.

Of many calls at once one starts an agent: it takes the lock of the socket and hands it on. The
agent is spawned rather than forked, by the last thing that the process does: there is no copy of
this interpreter that could hold a descriptor of the caller's, and a start that fails is noticed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from json import loads

from cni_plugin import agentconf, executable
from cni_plugin.agent import lock
from cni_plugin.client import DEFAULT_SOCKET, SOCKET_VARIABLE
from cni_plugin.dispatch import complain
from cni_plugin.fields import Fields

_KEPT = ("PATH", "PODWIRE_RUNTIME", "XDG_RUNTIME_DIR")  # where the executable's runtime may lie
_LOCK_FD = 3


def start_if_wanted(stdin: bytes, environ: Mapping[str, str]) -> None:
    """Start an agent if the configuration `stdin` says `"agent": "auto"` and none serves.

    For a process that has replied and is about to end: it loses its folder. Whatever goes wrong is
    told on stderr and harms no one, for the call itself has been served.
    """
    try:
        conf = agentconf.parse(Fields(loads(stdin)))
        if conf.mode == agentconf.ON_DEMAND:
            start(conf.socket or environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET, conf.idle_s)
    except lock.BusyError:
        pass  # one serves, or is about to
    except Exception as e:  # noqa: BLE001  nothing that happens here is the caller's concern
        complain(f"podwire: no agent could be started: {e}\n")


def start(path: str, idle_s: int) -> None:
    """Start an agent at this socket, detached from the caller.

    Raises lock.BusyError when there is one, CniError 7 and 110 for a path that can't be a socket's,
    OSError.
    """
    held = lock.take(path)
    log_file = path.removesuffix(".sock") + ".log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    log_fd = os.open(log_file, flags, 0o600)
    argv = [*executable.path(), "agent", "--socket", path, "--idle", str(idle_s)]
    argv += ["--log-file", log_file, "--lock-fd", str(_LOCK_FD)]
    _keep_descriptors()
    os.chdir("/")
    os.posix_spawn(
        argv[0],
        argv,
        {name: os.environ[name] for name in _KEPT if name in os.environ},
        file_actions=(
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, log_fd, 2),  # for what it says before its log is open
            (os.POSIX_SPAWN_DUP2, held, _LOCK_FD),
        ),
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals(),
    )


def _keep_descriptors() -> None:
    """Nothing that we hold, or were given by our caller, outlives execve."""
    for name in os.listdir("/proc/self/fd"):
        try:
            os.set_inheritable(int(name), False)
        except OSError:  # the folder's own, closed meanwhile
            continue
