"""A network and a mount namespace for the whole run, so that tests and machine do not meet. With
workers each has its own, and they do not meet there either.

What tests do to "the machine's own" links, rules, routes and mounts they do to these namespaces:
a bug cannot cut the machine off, and what others do on the machine meanwhile (docker, another
run) is not taken for a leak. /run/netns, and /run/podwire, where podwire keeps what a reboot may
take, are empty in the beginning: the machine's own are not seen, nor written to. (The folders
themselves are made on a machine that has none, to be mounted on.) All of it vanishes with the run,
however the run ends.

PODWIRE_TEST_PRIVATE=0 leaves it out, for tests that need the machine's real network.
"""

from __future__ import annotations

import ctypes
import os

from tests.support import netns

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_FOLDERS = {"/run/netns": 0o755, "/run/podwire": 0o700}  # with the modes that they have


def enter() -> str:
    """Move this thread, which starts all others that tests need, into new namespaces; "" or why it
    cannot. (xdist's own threads, which only talk to the run's first process, stay behind.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    mounts = [(None, "/", None, _MS_REC | _MS_PRIVATE, None)]
    for folder, mode in _FOLDERS.items():
        os.makedirs(folder, mode, exist_ok=True)
        mounts.append((b"tmpfs", folder, b"tmpfs", 0, f"mode={mode:o}".encode()))
    for source, target, kind, flags, data in mounts:
        if libc.mount(source, target.encode(), kind, flags, data) != 0:
            return f"mount {target}: {os.strerror(ctypes.get_errno())}"
    netns.run(["ip", "link", "set", "lo", "up"])
    return ""
