"""Has a test left something on the machine? Snapshots of what a leak would show up in.

Two are taken around each test that runs as root, so they are cheap: the kernel's tables are dumped
here, and only when they have changed `ip` is asked what they hold.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

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

_ROUTES, _RULES = 26, 34  # RTM_GETROUTE, RTM_GETRULE of rtnetlink(7)
_DUMP, _ERROR, _DONE = 0x301, 2, 3  # NLM_F_REQUEST | NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE
_HEAD = struct.Struct("=IHHII")

Snapshot = dict[str, frozenset[str]]
_listed: tuple[tuple[bytes, ...], Snapshot] = ((), {})  # the dump, and what `ip` made of it


def snapshot() -> Snapshot:
    """Links, rules, routes, mounts, processes of this run, and files where CNI keeps state."""
    taken = dict(_tables())
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
        time.sleep(0.01)


def _tables() -> Snapshot:
    """Links, rules and routes of all tables, in the words of `ip`."""
    global _listed
    dump = _dumped()
    if dump == _listed[0]:
        return _listed[1]
    found = {name: frozenset(_ip(argv, words)) for name, argv, words in _IP_QUERIES}
    if dump == _dumped():  # else it is neither's
        _listed = (dump, found)
    return found


def _dumped() -> tuple[bytes, ...]:
    """The same as the kernel tells it, of all families."""
    names = repr(socket.if_nameindex()).encode()
    return (names, *_messages(_ROUTES), *_messages(_RULES))


def _messages(kind: int) -> Iterator[bytes]:
    """What the kernel answers to one dump, without the headers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asked:
        asked.send(_HEAD.pack(28, kind, _DUMP, 1, 0) + bytes(12))  # struct rtmsg, fib_rule_hdr
        while True:
            data = asked.recv(1 << 18)
            while data:
                size, answer, *_ = _HEAD.unpack_from(data)
                if answer == _DONE:
                    return
                assert answer != _ERROR, f"a dump of {kind}: {data!r}"
                yield data[_HEAD.size : size]
                data = data[(size + 3) & ~3 :]


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
