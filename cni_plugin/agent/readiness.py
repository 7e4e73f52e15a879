"""Telling others that the agent serves: systemd by its socket, everybody by a file.

The protocol is sd_notify(3)'s: a datagram to the socket that NOTIFY_SOCKET names. The file holds
the agent's process ID and exists exactly while it serves; a dead agent's is replaced by the next.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket


def ready_path(socket_path: str) -> str:
    """The readiness file of the agent at `socket_path`: agent.sock has agent.ready beside it."""
    return socket_path.removesuffix(".sock") + ".ready"


def announce(socket_path: str, environ: Mapping[str, str]) -> None:
    """The agent serves from now on. Raises OSError when the file can't be written."""
    path = ready_path(socket_path)
    own = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(own)
    fd = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="ascii") as file:  # a new file, whatever others put there
        file.write(f"{os.getpid()}\n")
    os.rename(own, path)
    notify(environ, f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving at {socket_path}")


def retract(socket_path: str, environ: Mapping[str, str]) -> None:
    """The agent takes no more calls."""
    notify(environ, "STOPPING=1\nSTATUS=finishing what was begun")
    path = ready_path(socket_path)
    with suppress(FileNotFoundError):
        with open(path, encoding="ascii", errors="replace") as file:
            ours = file.read() == f"{os.getpid()}\n"
        if ours:  # not a successor's
            os.unlink(path)


def notify(environ: Mapping[str, str], state: str) -> None:
    """Send a state to the service manager, if one listens. It is no error that none does."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace of unix(7)
        address = "\0" + address[1:]
    with socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC) as manager, suppress(OSError):
        manager.sendto(state.encode(), address)
