"""Netlink messages encoded and decoded by the tables of pyroute2's message classes.

The classes say which fields a message has, and which number and type each attribute; that is not
ours to maintain. Their objects, one for each attribute, cost 100 to 400 µs a message, and an ADD
has thirty. So the tables are read once, into a `Layout` for each class, and messages are packed
and taken apart with these, in 5 to 20 µs. tests/unit/test_codec.py holds every message that is
sent against pyroute2's own encoding, byte for byte.

What no type here covers (multipath routes, encapsulations) is given to pyroute2 itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import FunctionType

from cni_plugin.kernel.nlatypes import ValueType, type_of
from cni_plugin.typed import Any, NamedTuple

_NLA = struct.Struct("=HH")
_HEADER_BYTES = 16  # struct nlmsghdr
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

Value = Mapping[str, Any]
"""A message as pyroute2's `setvalue` takes it: fields by name, and `attrs`, a list of pairs."""


class UncoveredError(Exception):
    """A type that is left to pyroute2."""


class _Attribute(NamedTuple):
    """`nested` is the class of its content, or a function that chooses it by the attributes
    beside it; None when `type` says all. Of an `array` the content is a list of such."""

    number: int
    type: ValueType | None
    nested: Any
    array: bool = False


# --- layouts ----------------------------------------------------------------------------------


class Layout:
    """The fields and attributes of one of pyroute2's message or attribute classes."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        fields = tuple(cls.fields)
        codes = "".join(code for _, code in fields)
        # nfnetlink's header has one field of more than a byte, in network order.
        order = ">" if "!" in codes else "="
        self._struct = struct.Struct(order + codes.replace("!", ""))
        self._fields = tuple(name for name, code in fields if code[-1] != "x")
        self._defaults = tuple(cls.defaults.get(name, 0) for name in self._fields)
        self.size = self._struct.size
        self._attributes: dict[str, _Attribute] = {}
        for position, entry in enumerate(cls.nla_map):
            number, name, kind, *flags = entry if isinstance(entry[0], int) else (position, *entry)
            if not flags:
                self._attributes[name] = self._attribute(number, kind)

    def _attribute(self, number: int, kind: str) -> _Attribute:
        element = getattr(self.cls, kind[1:], None) if kind[0] == "*" else None
        if isinstance(element, type):  # a function's elements are no attributes
            return _Attribute(number, None, element, array=True)
        known = type_of(self.cls, kind)
        return _Attribute(number, known, None if known else getattr(self.cls, kind, None))

    def attribute(self, name: str) -> _Attribute:
        try:
            return self._attributes[name]
        except KeyError:
            raise UncoveredError(name) from None

    def encode(self, value: Value, family: int = 0) -> bytes:
        """Fields and attributes, without a header; raises UncoveredError."""
        family = value.get("family", 0) or family
        fields = [
            value.get(name, default)
            for name, default in zip(self._fields, self._defaults, strict=True)
        ]
        parts = [self._struct.pack(*fields), _PADDING[self.size & 3]]
        attrs = value.get("attrs", ())
        for name, content in attrs:
            number, known, nested, array = self.attribute(name)
            if known is not None:
                data = known.pack(content, family)
            elif array:
                data = _packed_array(nested, content, family)
            else:
                data = _nested(self.cls, nested, dict(attrs).get, value).encode(content, family)
            parts += (_NLA.pack(len(data) + 4, number), data, _PADDING[len(data) & 3])
        return b"".join(parts)

    def fields(self, data: bytes, start: int) -> dict[str, Any]:
        return dict(zip(self._fields, self._struct.unpack_from(data, start), strict=True))


class _Beside:
    """What a table's function looks at to choose the class of an attribute's content."""

    def __init__(self, cls: Any, get_attr: Callable[[str], Any], fields: Value) -> None:
        self._cls = cls
        self._fields = fields
        self.get_attr = get_attr

    def __getitem__(self, name: str) -> Any:
        return self._fields.get(name, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cls, name)


def _nested(cls: Any, nested: Any, get_attr: Callable[[str], Any], fields: Value) -> Layout:
    if isinstance(nested, FunctionType):
        nested = nested(_Beside(cls, get_attr, fields))
    return _content(nested)


def _packed_array(nested: Any, content: Any, family: int) -> bytes:
    """Each element as an attribute, numbered from 1 unless its class says otherwise."""
    parts: list[bytes] = []
    for index, element in enumerate(content, 1):
        data = _content(nested).encode(element, family)
        header = _NLA.pack(len(data) + 4, nested.header_type or index)
        parts += (header, data, _PADDING[len(data) & 3])
    return b"".join(parts)


@cache  # as many as there are classes
def _content(cls: Any) -> Layout:
    """The layout of an attribute's content: a struct, attributes, or a struct before attributes."""
    fields = getattr(cls, "fields", ())
    text = any(code[-1] == "s" for _, code in fields)
    known = bool(getattr(cls, "nla_map", ())) or (len(fields) > 1 and not _has_own_coding(cls))
    if not known or cls.nla_flags or text:
        raise UncoveredError(str(cls))
    return Layout(cls)


def _has_own_coding(cls: Any) -> bool:
    """Whether a class is more than its tables: it writes or reads its content by itself."""
    return any(
        "encode" in vars(base) or "decode" in vars(base)
        for base in cls.__mro__
        if base.__module__ not in ("pyroute2.netlink", "builtins")
    )


@cache
def layout(cls: Any) -> Layout:
    """The layout of a message class."""
    return Layout(cls)


# --- messages ---------------------------------------------------------------------------------


def encode(cls: Any, value: Value) -> bytes:
    """The message without its netlink header."""
    try:
        return layout(cls).encode(value)
    except UncoveredError:
        return encode_by_pyroute2(cls, value)


def encode_by_pyroute2(cls: Any, value: Value) -> bytes:
    """The same, by pyroute2's objects."""
    message = cls()
    message.setvalue(dict(value))
    message.encode()
    data = bytes(message.data)[_HEADER_BYTES:]
    return data + _PADDING[len(data) & 3]


class Entry:
    """A message or an attribute of the kernel's, decoded as far as it is asked for.

    `data` from `start` to `end` holds the fields and the attributes. It has the two ways of
    asking that pyroute2's objects have.
    """

    __slots__ = ("_attrs", "_data", "_end", "_family", "_fields", "_layout", "_start")

    def __init__(self, layout: Layout, data: bytes, start: int, end: int, family: int = 0) -> None:
        self._layout = layout
        self._data = data
        self._start = start
        self._end = end
        self._fields = layout.fields(data, start)
        self._family = self._fields.get("family", family)
        self._attrs: dict[int, int] | None = None

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def get_attr(self, name: str) -> Any:
        """The value of the first attribute of this name; None when there is none."""
        if self._attrs is None:
            self._attrs = self._places()
        attribute = self._layout.attribute(name)
        place = self._attrs.get(attribute.number)
        if place is None:
            return None
        span = place + 4, min(place + _NLA.unpack_from(self._data, place)[0], self._end)
        if attribute.type is not None:
            return attribute.type.unpack(self._data[span[0] : span[1]], self._family)
        if attribute.array:
            return list(self._elements(_content(attribute.nested), *span))
        try:
            inner = _nested(self._layout.cls, attribute.nested, self.get_attr, self._fields)
        except UncoveredError:
            return self._by_pyroute2(name)
        return Entry(inner, self._data, *span, self._family)

    def _places(self) -> dict[int, int]:
        """Where each attribute begins, by number; no more, since a link has some eighty of them."""
        found: dict[int, int] = {}
        data, last = self._data, self._end - 4
        offset = self._start + (self._layout.size + 3 & ~3)
        unpack = _NLA.unpack_from
        while offset <= last:
            length, number = unpack(data, offset)
            if length < 4:
                break
            number &= _TYPE_MASK
            if number not in found:
                found[number] = offset
            offset += length + 3 & ~3
        return found

    def _elements(self, layout: Layout, start: int, end: int) -> Iterator[Entry]:
        while start + 4 <= end:
            length, _ = _NLA.unpack_from(self._data, start)
            if length < 4:
                return
            yield Entry(layout, self._data, start + 4, min(start + length, end), self._family)
            start += length + 3 & ~3

    def _by_pyroute2(self, name: str) -> Any:
        """pyroute2's object of an attribute; the header in front must tell the size."""
        content = self._data[self._start : self._end]
        if getattr(self._layout.cls, "is_nla", False):
            header = _NLA.pack(_NLA.size + len(content), 0)
        else:
            header = struct.pack("=IHHII", _HEADER_BYTES + len(content), 0, 0, 0, 0)
        message = self._layout.cls(header + content)
        message.decode()
        return message.get_attr(name)


def decode(cls: Any, data: bytes) -> Entry:
    """The message whose content, behind the netlink header, is `data`."""
    return Entry(layout(cls), data, 0, len(data))
