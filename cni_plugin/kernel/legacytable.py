"""iptables-legacy's filter table as bytes, and what has to change in it for podwire's rules. Pure.

Source: include/uapi/linux/netfilter/x_tables.h, netfilter_ipv4/ip_tables.h,
netfilter_ipv6/ip6_tables.h; libiptc for jumps to the next rule.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6

from cni_plugin.ruleset import NOTE
from cni_plugin.spec import IPNetwork
from cni_plugin.typed import NamedTuple

_FORWARD = 2  # NF_INET_FORWARD
_COMMENT = struct.pack("=H29sB", 288, b"comment", 0) + NOTE.encode().ljust(256, b"\0")
_TARGET_BYTES = 40
_ACCEPT, _DROP = -2, -1  # -NF_ACCEPT - 1, -NF_DROP - 1
_TARGET = struct.Struct("=H29sBi4x")


class Format(NamedTuple):
    """Of a family: its sockets, and where in an entry what stands, in bytes."""

    family: int
    level: int
    match: int  # bytes before nfcache: what it matches
    offsets: int
    counters: int
    size: int


FORMATS = {
    4: Format(AF_INET, IPPROTO_IP, 84, 88, 96, 112),
    6: Format(AF_INET6, IPPROTO_IPV6, 136, 140, 152, 168),
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
        sizes = FORMATS[self.version].offsets + 2
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
    form = FORMATS[version]
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
    offset: int = struct.unpack_from("=H", entry, FORMATS[version].offsets)[0]
    return offset


def _verdict(version: int, entry: bytes) -> int | None:
    """What an entry decides or where it jumps to; None for one with an extension's target."""
    size, name, _, verdict = _TARGET.unpack_from(
        entry.ljust(_target_offset(version, entry) + _TARGET.size, b"\0"),
        _target_offset(version, entry),
    )
    return verdict if size == _TARGET_BYTES and not name.rstrip(b"\0") else None


def _is_ours(version: int, entry: bytes) -> bool:
    size = FORMATS[version].size
    return _target_offset(version, entry) > size and entry[size:].startswith(_COMMENT)


def _is_same(version: int, one: bytes, other: bytes) -> bool:
    """But for counters and what the kernel notes for itself."""
    form = FORMATS[version]
    return one[: form.match] == other[: form.match] and one[form.size :] == other[form.size :]
