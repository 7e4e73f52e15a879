"""iptables-legacy's FORWARD chain: the same rules as `forwardaccept` keeps in nftables.

A host may still have its firewall in the kernel's older packet filter, which nftables knows
nothing of. Its tables are read and replaced whole, by socket options; iptables holds a lock file
meanwhile, and so does this. Rules of others and their counters stay as they are.

Only for a table that is there (see `forwardaccept.legacy_versions`): the kernel would make it for
whoever asks.

What changes in it `legacytable` decides; this reads and writes it. Source of the options:
include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import addressof, byref, c_uint, create_string_buffer
from socket import SOCK_CLOEXEC, SOCK_DGRAM, socket
from time import monotonic, sleep

from cni_plugin.kernel import libc
from cni_plugin.kernel.legacytable import FORMATS, Edited, Table, edited
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.spec import CniError, Code, IPNetwork

_LOCK = "/run/xtables.lock"  # iptables'
_LOCK_WAIT_S = 5.0
_FILTER = b"filter".ljust(32, b"\0")
_GET_INFO = _REPLACE = 64  # IPT_SO_*, IP6T_SO_*
_GET_ENTRIES = _ADD_COUNTERS = 65
_INFO = struct.Struct("=32sI5I5III")
_REPLACE_HEAD = struct.Struct("=32sIII5I5IIQ")
_HEAD_BYTES = 40  # of struct ipt_get_entries and xt_counters_info: name, number, padding
_COUNTERS = 16
_TRIES = 5


def ensure(version: int, accepted: tuple[IPNetwork, ...], change: bool = True) -> bool:
    """Keep the rules; whether some had to be changed (or would have to).

    Raises CniError 104 when the kernel refuses, 11 when somebody holds iptables' lock.
    """
    form = FORMATS[version]
    with socket(form.family, SOCK_DGRAM | SOCK_CLOEXEC) as sock:
        if edited(_read(sock, version), accepted) is None:
            return False
        if change:
            with _locked():
                _change(sock, version, accepted)
        return True


def _change(sock: socket, version: int, accepted: tuple[IPNetwork, ...]) -> None:
    for _ in range(_TRIES):
        table = _read(sock, version)
        wanted = edited(table, accepted)
        if wanted is None:
            return
        try:
            _replace(sock, table, wanted)
        except KernelError as e:
            if e.errno != errno.EAGAIN:  # somebody changed it who holds no lock
                raise
        else:
            return
    raise CniError(Code.TRY_AGAIN_LATER, "somebody changes iptables' filter table all the time")


# --- the kernel -------------------------------------------------------------------------------


def _read(sock: socket, version: int) -> Table:
    for _ in range(_TRIES):
        info = create_string_buffer(_FILTER, _INFO.size)
        _option("getsockopt", sock, version, _GET_INFO, info)
        _, hooks, *numbers, count, size = _INFO.unpack(info.raw)
        buffer = create_string_buffer(struct.pack("=32sI4x", _FILTER, size), _HEAD_BYTES + size)
        try:
            _option("getsockopt", sock, version, _GET_ENTRIES, buffer)
        except KernelError as e:
            if e.errno == errno.EAGAIN:  # it has another size meanwhile
                continue
            raise
        offsets = tuple(numbers[:5]), tuple(numbers[5:10])
        return Table(version, hooks, *offsets, count, buffer.raw[_HEAD_BYTES:])
    raise CniError(Code.TRY_AGAIN_LATER, "somebody changes iptables' filter table all the time")


def _replace(sock: socket, table: Table, wanted: Edited) -> None:
    """The new table, and then the counters that the old one had until that moment."""
    blob = b"".join(wanted.entries)
    counters = create_string_buffer(_COUNTERS * table.length)
    head = _REPLACE_HEAD.pack(
        _FILTER,
        table.valid_hooks,
        len(wanted.entries),
        len(blob),
        *wanted.hook_entry,
        *wanted.underflow,
        table.length,
        addressof(counters),
    )
    message = create_string_buffer(head + blob, len(head) + len(blob))
    _option("setsockopt", sock, table.version, _REPLACE, message)
    old = counters.raw
    kept = b"".join(
        old[_COUNTERS * origin : _COUNTERS * (origin + 1)] if origin >= 0 else bytes(_COUNTERS)
        for origin in wanted.origins
    )
    head = struct.pack("=32sI4x", _FILTER, len(wanted.entries))
    message = create_string_buffer(head + kept, len(head) + len(kept))
    _option("setsockopt", sock, table.version, _ADD_COUNTERS, message)


def _option(call: str, sock: socket, version: int, number: int, buffer: object) -> None:
    """The socket module's own reads at most 1,024 bytes, and gives none to the kernel."""
    size = c_uint(len(buffer))  # type: ignore[arg-type]
    length = byref(size) if call == "getsockopt" else size
    try:
        libc.call(call, sock.fileno(), FORMATS[version].level, number, buffer, length)
    except OSError as e:
        verb = "read" if call == "getsockopt" else "change"
        what = f"{verb} iptables' (legacy) IPv{version} filter table"
        raise KernelError(e.errno or errno.EIO, what) from e


@contextmanager
def _locked() -> Iterator[None]:
    """iptables' own lock, for all of the machine's namespaces."""
    fd = os.open(_LOCK, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    try:
        deadline = monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() > deadline:
                    raise CniError(
                        Code.TRY_AGAIN_LATER,
                        f"{_LOCK} is held by another program",
                        "an iptables command runs: `fuser /run/xtables.lock` shows which",
                    ) from None
                sleep(0.01)
        yield
    finally:
        os.close(fd)
