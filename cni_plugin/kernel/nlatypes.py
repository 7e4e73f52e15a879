"""How the values of netlink's types are written and read, by the names in pyroute2's tables."""

from __future__ import annotations

import struct
from collections.abc import Callable
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from cni_plugin.typed import Any, NamedTuple


class ValueType(NamedTuple):
    """How values of one type are written and read. `family` is the message's address family."""

    pack: Callable[[Any, int], bytes]
    unpack: Callable[[bytes, int], Any]


def _number(code: str) -> ValueType:
    layout = struct.Struct(code if code[0] in "<>=" else f"={code}")
    return ValueType(
        lambda value, _: layout.pack(value), lambda data, _: layout.unpack_from(data)[0]
    )


def _text(data: bytes, _: int) -> Any:
    """As pyroute2: bytes that are no UTF-8 stay bytes."""
    try:
        return data.strip(b"\0").decode()
    except UnicodeDecodeError:
        return data.strip(b"\0")


def _address(family: int) -> ValueType:
    return ValueType(
        lambda value, _: inet_pton(family, value), lambda data, _: inet_ntop(family, data)
    )


def _any_address(data: bytes, _: int) -> str:
    return inet_ntop(AF_INET6 if len(data) > 4 else AF_INET, data)


_BYTES = ValueType(lambda value, _: value, lambda data, _: data)
_NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
_BIG_ENDIAN = ("be8", "be16", "be32", "be64", "sbe32")
_ATOMS = {
    "asciiz": ValueType(lambda value, _: value.encode() + b"\0", _text),
    "l2addr": ValueType(
        lambda value, _: bytes.fromhex(value.replace(":", "")),
        lambda data, _: data[:6].hex(":"),
    ),
    "ipaddr": ValueType(
        lambda value, _: inet_pton(AF_INET6 if ":" in value else AF_INET, value), _any_address
    ),
    "ip4addr": _address(AF_INET),
    "ip6addr": _address(AF_INET6),
    "target": ValueType(
        lambda value, family: inet_pton(family, value),
        lambda data, family: inet_ntop(family, data),
    ),
    # An open file's number; pyroute2's class for it would open a path as well.
    "netns_fd": _number("I"),
    "cdata": _BYTES,
    "binary": _BYTES,
}


def type_of(cls: Any, name: str) -> ValueType | None:
    """The type that a table calls `name`, when it is one of those above."""
    if name in _ATOMS:
        return _ATOMS[name]
    known: Any = getattr(cls, name, None)
    if name in _NUMBERS or name in _BIG_ENDIAN:
        return _number(known.fields[0][1])
    # nfnetlink's: pyroute2 shows a number by its name, a set of flags by theirs, and takes notes
    # for other programs apart. Here they are the number and the bytes.
    if hasattr(known, "ops"):
        return _number(known.fields[0][1])
    return _BYTES if hasattr(known, "udata_types") or name == "comment" else None
