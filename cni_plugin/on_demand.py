"""Starting an agent where nobody runs one: for podman, cnitool, a bare containerd.

With `"agent": "auto"` a call that had to be served in process starts an agent on its way out, for
the calls that follow. That agent ends when it has been idle. It is nobody's child and holds none
of the caller's descriptors, so no runtime waits for it; it stays in the caller's cgroup, where
stopping the service that called ends it like everything else there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NoReturn

from cni_plugin import executable
from cni_plugin.client import DEFAULT_SOCKET, SOCKET_VARIABLE

IDLE_S = 300
_KEPT = ("PATH", "PODWIRE_RUNTIME", "XDG_RUNTIME_DIR")


def start_if_wanted(stdin: bytes) -> None:
    """Start an agent if the configuration `stdin` says `"agent": "auto"` and none serves.

    Whatever goes wrong is told on stderr and harms no one: the call itself has been served.
    """
    path = _wanted(stdin)
    if path is None:
        return
    from cni_plugin.agent.listener import is_served

    if not is_served(path):
        start(path)


def _wanted(stdin: bytes) -> str | None:
    """The socket of the agent to start; None when the configuration does not ask for one."""
    from json import loads

    conf = loads(stdin)
    if not isinstance(conf, dict) or conf.get("agent") != "auto":
        return None
    return conf.get("agentSocket") or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


def start(path: str) -> None:
    """Start an agent at this socket, detached; it ends by itself if another one serves there."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        _detach()
        if os.fork():
            os._exit(0)
        _become_agent(path, os.environ)
    except OSError:
        os._exit(1)


def _detach() -> None:
    """Away from the caller's terminal, folder and descriptors."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _become_agent(path: str, environ: Mapping[str, str]) -> NoReturn:
    argv = [*executable.path(), "agent", "--on-demand", "--socket", path]
    argv += ["--idle", str(IDLE_S), "--log-file", path.removesuffix(".sock") + ".log"]
    os.execve(argv[0], argv, {name: environ[name] for name in _KEPT if name in environ})
