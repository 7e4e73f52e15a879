"""iptables-legacy's FORWARD chain: the same rules as `forwardaccept` keeps in nftables.

A host may still have its firewall in the kernel's older packet filter, which nftables knows
nothing of. Its tables are read and replaced whole, by socket options; iptables holds a lock file
meanwhile, and so does this. Rules of others and their counters stay as they are.

Only for a table that is there (see `forwardaccept.legacy_versions`): the kernel would make it for
whoever asks.

Source: include/uapi/linux/netfilter/x_tables.h, netfilter_ipv4/ip_tables.h,
netfilter_ipv6/ip6_tables.h; libiptc for jumps to the next rule.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import addressof, byref, c_uint, create_string_buffer
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, SOCK_CLOEXEC, SOCK_DGRAM, socket
from time import monotonic, sleep

from cni_plugin.kernel import libc
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.ruleset import NOTE
from cni_plugin.spec import CniError, Code, IPNetwork
from cni_plugin.typed import NamedTuple

_LOCK = "/run/xtables.lock"  # iptables'
_LOCK_WAIT_S = 5.0
_FILTER = b"filter".ljust(32, b"\0")
_FORWARD = 2  # NF_INET_FORWARD
_GET_INFO = _REPLACE = 64  # IPT_SO_*, IP6T_SO_*
_GET_ENTRIES = _ADD_COUNTERS = 65
_INFO = struct.Struct("=32sI5I5III")
_REPLACE_HEAD = struct.Struct("=32sIII5I5IIQ")
_HEAD_BYTES = 40  # of struct ipt_get_entries and xt_counters_info: name, number, padding
_COUNTERS = 16
_TRIES = 5

_COMMENT = struct.pack("=H29sB", 288, b"comment", 0) + NOTE.encode().ljust(256, b"\0")
_TARGET_BYTES = 40
_ACCEPT, _DROP = -2, -1  # -NF_ACCEPT - 1, -NF_DROP - 1
_TARGET = struct.Struct("=H29sBi4x")


class _Format(NamedTuple):
    """Of a family: where in an entry what stands, in bytes."""

    family: int
    level: int
    match: int  # bytes before nfcache: what it matches
    offsets: int
    counters: int
    size: int


_FORMATS = {
    4: _Format(AF_INET, IPPROTO_IP, 84, 88, 96, 112),
    6: _Format(AF_INET6, IPPROTO_IPV6, 136, 140, 152, 168),
}


class Table(NamedTuple):
    """A filter table as the kernel gives it: `hook_entry` and `underflow` are offsets into `blob`,
    by hook: where its chain begins, and its policy. `length` is the number of entries."""

    version: int
    valid_hooks: int
    hook_entry: tuple[int, ...]
    underflow: tuple[int, ...]
    length: int
    blob: bytes

    def entries(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """The entries between two offsets, each with its own."""
        sizes = _FORMATS[self.version].offsets + 2
        offset = begin
        while offset < (len(self.blob) if end is None else end):
            size = struct.unpack_from("=H", self.blob, offset + sizes)[0]
            yield offset, self.blob[offset : offset + size]
            offset += size


class Edited(NamedTuple):
    """A table to be; `origins` says for each entry which of the old ones it was, -1 for none."""

    hook_entry: tuple[int, ...]
    underflow: tuple[int, ...]
    entries: tuple[bytes, ...]
    origins: tuple[int, ...]


def ensure(version: int, accepted: tuple[IPNetwork, ...], change: bool = True) -> bool:
    """Keep the rules; whether some had to be changed (or would have to).

    Raises CniError 104 when the kernel refuses, 11 when somebody holds iptables' lock.
    """
    form = _FORMATS[version]
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


# --- deciding ---------------------------------------------------------------------------------


def edited(table: Table, accepted: tuple[IPNetwork, ...]) -> Edited | None:
    """The table with podwire's rules as they should be; None when it is so already."""
    begin, end = table.hook_entry[_FORWARD], table.underflow[_FORWARD]
    policy = next(entry for _, entry in table.entries(end))
    missing = _wanted(table.version, accepted) if _verdict(table.version, policy) == _DROP else []
    removed = set()
    for offset, entry in table.entries(begin, end):
        if _is_ours(table.version, entry):
            same = next((w for w in missing if _is_same(table.version, w, entry)), None)
            if same is None:
                removed.add(offset)
            else:
                missing.remove(same)
    if not missing and not removed:
        return None
    return _moved(table, removed, missing)


def _moved(table: Table, removed: set[int], added: list[bytes]) -> Edited:
    """Take some entries away, put others in front of FORWARD's policy, and let every jump lead
    where it led: one to the policy, from the rule before it, to the first of the new ones."""
    end = table.underflow[_FORWARD]
    kept: list[bytes] = []
    origins: list[int] = []
    places: dict[int, int] = {}  # of entries, and of where jumps to them lead
    jumps: dict[int, int] = {}
    position = 0
    for index, (offset, entry) in enumerate(table.entries()):
        jumps[offset] = position
        if offset == end:
            kept += added
            origins += [-1] * len(added)
            position += sum(map(len, added))
        places[offset] = position
        if offset not in removed:
            kept.append(entry)
            origins.append(index)
            position += len(entry)
    entries = tuple(_with_jump(table.version, entry, jumps) for entry in kept)
    hook_entry = tuple(jumps.get(offset, offset) for offset in table.hook_entry)
    underflow = tuple(places.get(offset, offset) for offset in table.underflow)
    return Edited(hook_entry, underflow, entries, tuple(origins))


def _with_jump(version: int, entry: bytes, jumps: dict[int, int]) -> bytes:
    verdict = _verdict(version, entry)
    if verdict is None or verdict < 0:
        return entry
    target = _target_offset(version, entry)
    return entry[: target + 32] + struct.pack("=i", jumps[verdict]) + entry[target + 36 :]


def _wanted(version: int, accepted: tuple[IPNetwork, ...]) -> list[bytes]:
    return [
        _rule(version, network, is_source)
        for network in accepted
        if network.version == version
        for is_source in (True, False)
    ]


def _rule(version: int, network: IPNetwork, is_source: bool) -> bytes:
    form = _FORMATS[version]
    any_address = bytes(len(network.network_address.packed))
    address, mask = network.network_address.packed, network.netmask.packed
    if is_source:
        match = address + any_address + mask + any_address
    else:
        match = any_address + address + any_address + mask
    target = form.size + len(_COMMENT)
    head = match.ljust(form.offsets, b"\0") + struct.pack("=HH", target, target + _TARGET_BYTES)
    accept = _TARGET.pack(_TARGET_BYTES, b"", 0, _ACCEPT)
    return head.ljust(form.size, b"\0") + _COMMENT + accept


def _target_offset(version: int, entry: bytes) -> int:
    offset: int = struct.unpack_from("=H", entry, _FORMATS[version].offsets)[0]
    return offset


def _verdict(version: int, entry: bytes) -> int | None:
    """What an entry decides or where it jumps to; None for one with an extension's target."""
    size, name, _, verdict = _TARGET.unpack_from(
        entry.ljust(_target_offset(version, entry) + _TARGET.size, b"\0"),
        _target_offset(version, entry),
    )
    return verdict if size == _TARGET_BYTES and not name.rstrip(b"\0") else None


def _is_ours(version: int, entry: bytes) -> bool:
    size = _FORMATS[version].size
    return _target_offset(version, entry) > size and entry[size:].startswith(_COMMENT)


def _is_same(version: int, one: bytes, other: bytes) -> bool:
    """But for counters and what the kernel notes for itself."""
    form = _FORMATS[version]
    return one[: form.match] == other[: form.match] and one[form.size :] == other[form.size :]


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
        libc.call(call, sock.fileno(), _FORMATS[version].level, number, buffer, length)
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
