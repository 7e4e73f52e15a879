"""What agents and killed calls leave on a node, for `podwire uninstall` to remove.

Rule: a file goes only if it is what its name says. The names come from an option, and somebody
else's file may have them.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Collection

from cni_plugin import apiserver
from cni_plugin.agent import clusterlock, lock, readiness
from cni_plugin.kernel import nodelock
from cni_plugin.sources import INVENTORY, LEASE

_UNFINISHED = re.compile(r"\.podwire-\d+")  # a socket that was bound and not yet renamed
_LOG_BEGINS = (b"time=", b'{"time"')


def agent_files(socket: str) -> list[str]:
    """Remove what agents that have ended left beside their socket; the paths."""
    folder, base = os.path.dirname(socket), socket.removesuffix(".sock")
    ready = readiness.ready_path(socket)
    sockets = [socket, *_matching(folder, _UNFINISHED)]
    readies = [ready, *_matching(folder, re.compile(re.escape(os.path.basename(ready)) + r"\.\d+"))]
    removed = [path for path in sockets if stat.S_ISSOCK(_mode(path))]
    removed += [path for path in (lock.lock_path(socket),) if _begins(path) == b""]
    removed += [path for path in readies if (_begins(path) or b"-").strip().isdigit()]
    logs = (f"{base}.log", f"{base}.log.1")
    removed += [path for path in logs if (_begins(path) or b"-").startswith(_LOG_BEGINS)]
    for path in removed:
        os.unlink(path)
    return removed


def cluster_files(
    held: Collection[str],
    note: str = apiserver.NOTE,
    inventory: str = INVENTORY,
    lease: str = LEASE,
) -> list[str]:
    """Remove what an agent was told of its cluster; the paths. The inventory's lock goes if it is
    among those that the caller has `held` since before (`clusterlock.keep_out`)."""
    known = {note: b"http", inventory: b'{"nodes"', lease: b"{"}
    removed = [path for path, start in known.items() if (_begins(path) or b"").startswith(start)]
    locks = {clusterlock.inventory_lock(inventory)}.intersection(held)
    removed += [path for path in locks if _begins(path) == b""]
    for path in removed:
        os.unlink(path)
    return removed


def node_locks() -> list[str]:
    """Remove lock files that nobody holds: killed processes left them; the paths."""
    removed = []
    for path in _matching(nodelock.FOLDER, re.compile(r"node-\d+\.lock")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue  # a call has just removed it, or it is none of ours
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
            removed.append(path)
        except OSError:
            continue  # somebody holds it
        finally:
            os.close(fd)
    return removed


def _matching(folder: str, name: re.Pattern[str]) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:  # there is no such folder
        return []
    return [os.path.join(folder, found) for found in sorted(names) if name.fullmatch(found)]


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _begins(path: str) -> bytes | None:
    """The first bytes of a regular file; None when it is none, or not there."""
    if not stat.S_ISREG(_mode(path)):
        return None
    with open(path, "rb") as file:
        return file.read(16)
