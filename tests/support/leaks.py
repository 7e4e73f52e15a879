"""Has a test left something on the machine? Snapshots of what a leak would show up in."""

from __future__ import annotations

import os
import time

from tests.support import netns

RUN_VARIABLE = "PODWIRE_TEST_RUN"

_FOLDERS = ("/run/netns", "/var/lib/cni", "/run/cni")
_IP_QUERIES = (
    ("link", ("-o", "link", "show"), 2),
    ("rule -4", ("-4", "rule", "show"), None),
    ("rule -6", ("-6", "rule", "show"), None),
    ("route -4", ("-4", "route", "show", "table", "all"), None),
    ("route -6", ("-6", "route", "show", "table", "all"), None),
)

Snapshot = dict[str, frozenset[str]]


def snapshot() -> Snapshot:
    """Links, rules, routes, mounts, processes of this run, and files where CNI keeps state."""
    taken = {name: frozenset(_ip(argv, words)) for name, argv, words in _IP_QUERIES}
    taken["mounts"] = frozenset(_mounts())
    taken["processes"] = frozenset(_processes())
    taken["files"] = frozenset(_files())
    return taken


def leaked(before: Snapshot, patience: float = 15) -> list[str]:
    """What is different now, in words; waits for what the kernel is still tidying up."""
    deadline = time.monotonic() + patience
    while True:
        now = snapshot()
        found = [
            *(f"{kind} left: {item}" for kind in now for item in now[kind] - before[kind]),
            *(
                f"{kind} gone: {item}"
                for kind in now
                if kind != "processes"
                for item in before[kind] - now[kind]
            ),
        ]
        if not found or time.monotonic() > deadline:
            return sorted(found)
        time.sleep(0.05)


def _ip(argv: tuple[str, ...], words: int | None) -> list[str]:
    lines = netns.run(["ip", *argv], check=False).stdout.splitlines()
    return [" ".join(line.split()[:words]) for line in lines]


def _mounts() -> list[str]:
    with open("/proc/self/mountinfo") as f:
        return [" ".join(line.split()[3:5]) for line in f]


def _processes() -> list[str]:
    """Processes that carry this run's variable in their environment, by pid and command."""
    wanted = f"{RUN_VARIABLE}={os.getpid()}".encode()
    found = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                if wanted not in f.read().split(b"\0"):
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                found.append(f"{pid} {f.read().replace(bytes(1), b' ').decode().strip()}")
        except OSError:
            continue
    return found


def _files() -> list[str]:
    return [
        os.path.join(folder, name)
        for top in _FOLDERS
        for folder, folders, files in os.walk(top)
        for name in (*folders, *files)
    ]
