"""nftables messages for sets, maps and their elements, built as those of `nftmessages`."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from cni_plugin.kernel.messages import CHANGE, CREATE, DUMP, NLM_F_REQUEST, Message
from cni_plugin.kernel.nftmessages import (
    ADD,
    DELETE,
    ELEMENTS,
    ELEMENTS_CLASS,
    GET,
    NEW,
    comment,
    comment_of,
    family_name,
    request,
    whole,
)
from cni_plugin.typed import Any, NamedTuple

_ELEM_KEY, _ELEM_FLAGS = 1, 3  # NFTA_SET_ELEM_*
_LENGTH = struct.Struct("=H").unpack_from
_PER_MESSAGE = 500  # elements: a netlink attribute holds 64 KiB
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END


class Element(NamedTuple):
    """An element of a set or map: `end` marks the first key behind an interval.

    `comment` tells people, and podwire, whose it is.
    """

    key: bytes
    data: bytes = b""
    comment: str = ""
    end: bool = False


def get_set(version: int, table: str, name: str) -> Message:
    """A set or map, without its elements."""
    attrs = [("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", name)]
    what = f"look up set {family_name(version)} {table} {name}"
    return request("set", GET, version, attrs, NLM_F_REQUEST, what)


def add_set(version: int, table: str, name: str, attributes: dict[str, Any]) -> Message:
    """A set or a map; `attributes` are those of nft_set_msg that say which."""
    attrs = [("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", name), *attributes.items()]
    if "NFTA_SET_ID" not in attributes:  # the kernel wants one; here sets are known by their names
        attrs.append(("NFTA_SET_ID", 1))
    return request(
        "set", NEW, version, attrs, ADD, f"add set {family_name(version)} {table} {name}"
    )


def dump_sets(version: int, table: str) -> Message:
    attrs = [("NFTA_SET_TABLE", table)]
    return request("set", GET, version, attrs, DUMP, f"list sets of {family_name(version)} {table}")


def add_elements(
    version: int, table: str, name: str, elements: Sequence[Element], exclusive: bool = False
) -> list[Message]:
    """Elements for a set or map; `exclusive`: EEXIST when one is there, whatever its data."""
    flags = CREATE if exclusive else ADD
    return _elements(version, table, name, elements, NEW, flags, "add elements to")


def delete_elements(
    version: int, table: str, name: str, elements: Sequence[Element]
) -> list[Message]:
    """ENOENT when one is not there, and then none is removed."""
    return _elements(version, table, name, elements, DELETE, CHANGE, "remove elements of")


def flush_elements(version: int, table: str, name: str) -> Message:
    """Empty a set or map."""
    attrs = [("NFTA_SET_ELEM_LIST_TABLE", table), ("NFTA_SET_ELEM_LIST_SET", name)]
    what = f"empty the set {family_name(version)} {table} {name}"
    return request("elements", DELETE, version, attrs, CHANGE, what)


def get_element(version: int, table: str, name: str, key: bytes) -> Message:
    """The element with this key: answered by nothing when there is none."""
    what = "look up an element of"
    return _elements(version, table, name, [Element(key)], GET, NLM_F_REQUEST, what)[0]


def dump_elements(version: int, table: str, name: str) -> Message:
    attrs = [("NFTA_SET_ELEM_LIST_TABLE", table), ("NFTA_SET_ELEM_LIST_SET", name)]
    return request("elements", GET, version, attrs, DUMP, f"list the set {table} {name}")


def _elements(
    version: int,
    table: str,
    name: str,
    elements: Sequence[Element],
    action: int,
    flags: int,
    verb: str,
) -> list[Message]:
    what = f"{verb} set {family_name(version)} {table} {name}"
    made = []
    for start in range(0, len(elements), _PER_MESSAGE):
        attrs = [
            ("NFTA_SET_ELEM_LIST_TABLE", table),
            ("NFTA_SET_ELEM_LIST_SET", name),
            (
                "NFTA_SET_ELEM_LIST_ELEMENTS",
                [_element(each) for each in elements[start : start + _PER_MESSAGE]],
            ),
        ]
        made.append(request("elements", action, version, attrs, flags, what))
    return made


def _element(element: Element) -> dict[str, Any]:
    key, data, note, end = element
    attrs: list[tuple[str, Any]] = []
    if end:
        attrs.append(("NFTA_SET_ELEM_FLAGS", _INTERVAL_END))
    attrs.append(("NFTA_SET_ELEM_KEY", _value(key)))
    if data:
        attrs.append(("NFTA_SET_ELEM_DATA", _value(data)))
    if note:
        attrs.append(("NFTA_SET_ELEM_USERDATA", comment(note)))
    return {"attrs": attrs}


def _value(data: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def decode_elements(entries: Iterable[Any]) -> list[Element]:
    """The elements in the replies to `dump_elements` or `get_element`."""
    found = []
    for entry in entries:
        data = entry.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or b""
        message = whole(ELEMENTS_CLASS, ELEMENTS, data)
        for each in message.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS"):
            data = each.get_attr("NFTA_SET_ELEM_DATA")
            found.append(
                Element(
                    key=each.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE"),
                    data=data.get_attr("NFTA_DATA_VALUE") if data is not None else b"",
                    comment=comment_of(each.get_attr("NFTA_SET_ELEM_USERDATA") or b""),
                    end=bool((each.get_attr("NFTA_SET_ELEM_FLAGS") or 0) & _INTERVAL_END),
                )
            )
    return found


def keys_of(entry: Any) -> Iterator[Element]:
    """The keys alone of what `decode_elements` reads: far quicker, for sets of thousands."""
    data = entry.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or b""
    for start, behind in _attributes_in(data, 0, len(data)):
        key, end = b"", False
        for inner, inner_end in _attributes_in(data, start, behind):
            number = data[inner - 2]
            if number == _ELEM_KEY:
                key = data[inner + 4 : inner_end]  # behind the header of NFTA_DATA_VALUE
            elif number == _ELEM_FLAGS:
                end = bool(data[inner + 3] & _INTERVAL_END)
        yield Element(key, end=end)


def _attributes_in(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the content of each attribute begins and ends."""
    while offset + 4 <= end:
        length = _LENGTH(data, offset)[0]
        if length < 4:
            return
        yield offset + 4, min(offset + length, end)
        offset += length + 3 & ~3
