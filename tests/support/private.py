"""A network and a mount namespace for the whole run, so that tests and machine do not meet. With
workers each has its own, and they do not meet there either.

What tests do to "the machine's own" links, rules, routes and mounts they do to these namespaces:
a bug cannot cut the machine off, and what others do on the machine meanwhile (docker, another
run) is not taken for a leak. All of it vanishes with the run, however the run ends.

PODWIRE_TEST_PRIVATE=0 leaves it out, for tests that need the machine's real network.
"""

from __future__ import annotations

import ctypes
import os

from tests.support import netns

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_NETNS_FOLDER = "/run/netns"


def enter() -> str:
    """Move this thread, which starts all others that tests need, into new namespaces; "" or why it
    cannot. (xdist's own threads, which only talk to the run's first process, stay behind.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    os.makedirs(_NETNS_FOLDER, exist_ok=True)
    for source, target, kind, flags in (
        (None, b"/", None, _MS_REC | _MS_PRIVATE),
        (b"tmpfs", _NETNS_FOLDER.encode(), b"tmpfs", 0),
    ):
        if libc.mount(source, target, kind, flags, None) != 0:
            return f"mount {target.decode()}: {os.strerror(ctypes.get_errno())}"
    netns.run(["ip", "link", "set", "lo", "up"])
    return ""
