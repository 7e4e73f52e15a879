"""nftables messages, built with pyroute2's message classes: tables, chains, rules, sets, elements.

Rules are lists of expressions, as the kernel keeps them; `expressions` has those that podwire
uses. What they say in nft's own language is in docs/datapath.md.

Source: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from cni_plugin.kernel import bare, codec
from cni_plugin.kernel.messages import (
    AF_INET,
    AF_INET6,
    CHANGE,
    CREATE,
    DUMP,
    NLM_F_REQUEST,
    Message,
)
from cni_plugin.spec import IPNetwork
from cni_plugin.typed import Any, NamedTuple

_NFT: Any = bare.load("pyroute2.netlink.nfnetlink.nftsocket")
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_MESSAGES = {
    "table": (0, _NFT.nft_table_msg),
    "chain": (3, _NFT.nft_chain_msg),
    "rule": (6, _NFT.nft_rule_msg),
    "set": (9, _NFT.nft_set_msg),
    "elements": (12, _NFT.nft_set_elem_list_msg),
}
_NEW, _GET, _DELETE = 0, 1, 2  # beside the number above
_GET_GENERATION, _NEW_GENERATION = 16, 15
_APPEND = 0x800  # NLM_F_APPEND: behind the chain's other rules
_RULE_EXPRESSIONS, _ELEM_LIST_ELEMENTS, _LIST_ELEMENT = 4, 3, 1  # NFTA_*
_ELEM_KEY, _ELEM_FLAGS = 1, 3  # NFTA_SET_ELEM_*
_HEADER = bytes(4)  # struct nfgenmsg
_LENGTH = struct.Struct("=H").unpack_from
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT and NFTNL_UDATA_SET_ELEM_COMMENT (libnftnl)
_LONGEST_COMMENT = 127  # bytes; nft shows no longer ones
_PER_MESSAGE = 500  # elements: a netlink attribute holds 64 KiB
ACCEPT, DROP = 1, 0  # NF_ACCEPT, NF_DROP
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END

ADD = CHANGE | 0x400  # NLM_F_CREATE: no error when it is there


def _raw(cls: Any, attribute: str) -> Any:
    """The class, with one attribute left as it came: most of these are only compared, or many."""
    nla_map = tuple((name, "cdata" if name == attribute else kind) for name, kind in cls.nla_map)
    return type(f"raw_{cls.__name__}", (cls,), {"nla_map": nla_map})


_RAW_RULE = _raw(_NFT.nft_rule_msg, "NFTA_RULE_EXPRESSIONS")
_RAW_ELEMENTS = _raw(_NFT.nft_set_elem_list_msg, "NFTA_SET_ELEM_LIST_ELEMENTS")
REPLIES: dict[int, Any] = {
    **{_SUBSYSTEM | number: cls for number, cls in _MESSAGES.values()},
    _SUBSYSTEM | _MESSAGES["rule"][0]: _RAW_RULE,
    _SUBSYSTEM | _MESSAGES["elements"][0]: _RAW_ELEMENTS,
    _SUBSYSTEM | _NEW_GENERATION: _NFT.nft_gen_msg,
}

ANY, INET = 0, 1
"""In place of an IP version: all families at once (for lists), and the one of both versions."""

_PROTOCOLS = {4: AF_INET, 6: AF_INET6, ANY: 0, INET: 1}
_VERSIONS = {number: version for version, number in _PROTOCOLS.items()}
_NAMES = {4: "ip", 6: "ip6", INET: "inet", ANY: "any"}

Attributes = tuple[tuple[str, Any], ...]
Expression = tuple[str, Attributes]
"""The name of a kernel's expression and its attributes; one that holds attributes has a tuple of
them for its value."""


class Element(NamedTuple):
    """An element of a set or map: `end` marks the first key behind an interval.

    `comment` tells people, and podwire, whose it is.
    """

    key: bytes
    data: bytes = b""
    comment: str = ""
    end: bool = False


def protocol(version: int) -> int:
    """NFPROTO_IPV4 or NFPROTO_IPV6 for an IP version; ANY and INET are NFPROTO_* themselves."""
    return _PROTOCOLS[version]


def family_name(version: int) -> str:
    """The family's name in nft's language."""
    return _NAMES[version]


def version_of(number: int) -> int:
    """The reverse; -1 for a family that is none of these (arp, bridge, netdev)."""
    return _VERSIONS.get(number, -1)


def _message(
    kind: str, action: int, version: int, attrs: list[tuple[str, Any]], flags: int, what: str
) -> Message:
    number, cls = _MESSAGES[kind]
    body = codec.encode(cls, {"nfgen_family": protocol(version), "attrs": attrs})
    return Message(body, _SUBSYSTEM | number + action, flags, what)


def get_generation() -> Message:
    body = codec.encode(_NFT.nft_gen_msg, {})
    what = "read the ruleset's generation"
    return Message(body, _SUBSYSTEM | _GET_GENERATION, NLM_F_REQUEST, what)


def comment(text: str) -> bytes:
    """A note as nft reads and shows it."""
    data = text.encode()[:_LONGEST_COMMENT] + b"\0"
    return bytes((_COMMENT, len(data))) + data


# --- tables, chains, rules --------------------------------------------------------------------


def add_table(version: int, name: str) -> Message:
    """A table; one that is there is woken, should somebody have put it to sleep (dormant)."""
    attrs: list[tuple[str, Any]] = [("NFTA_TABLE_NAME", name), ("NFTA_TABLE_FLAGS", 0)]
    return _message("table", _NEW, version, attrs, ADD, f"add table {family_name(version)} {name}")


def delete_table(version: int, name: str) -> Message:
    attrs = [("NFTA_TABLE_NAME", name)]
    return _message(
        "table", _DELETE, version, attrs, CHANGE, f"delete table {family_name(version)} {name}"
    )


def get_table(version: int, name: str) -> Message:
    what = f"look up table {family_name(version)} {name}"
    return _message("table", _GET, version, [("NFTA_TABLE_NAME", name)], NLM_F_REQUEST, what)


def dump_tables(version: int) -> Message:
    return _message("table", _GET, version, [], DUMP, "list tables")


def add_chain(
    version: int, table: str, name: str, kind: str = "", hook: int = 0, priority: int = 0
) -> Message:
    """A chain; one with a `kind` (filter, nat) is called by the kernel at a hook (NF_INET_*), and
    accepts what no rule of it decides."""
    attrs: list[tuple[str, Any]] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    if kind:
        where = [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]
        attrs += [("NFTA_CHAIN_TYPE", kind), ("NFTA_CHAIN_HOOK", {"attrs": where})]
        attrs.append(("NFTA_CHAIN_POLICY", ACCEPT))
    return _message(
        "chain", _NEW, version, attrs, ADD, f"add chain {family_name(version)} {table} {name}"
    )


def delete_chain(version: int, table: str, name: str) -> Message:
    attrs = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    what = f"delete chain {family_name(version)} {table} {name}"
    return _message("chain", _DELETE, version, attrs, CHANGE, what)


def dump_chains(version: int) -> Message:
    """All chains of the family, of all tables."""
    return _message("chain", _GET, version, [], DUMP, "list chains")


def add_rule(
    version: int,
    table: str,
    chain: str,
    expressions: Iterable[Expression],
    note: str = "",
    first: bool = False,
) -> Message:
    """A rule behind the others of its chain, or in front of them."""
    attrs: list[tuple[str, Any]] = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", [_expression(*each) for each in expressions]),
    ]
    if note:
        attrs.append(("NFTA_RULE_USERDATA", comment(note)))
    flags = ADD if first else ADD | _APPEND
    what = f"add a rule to chain {family_name(version)} {table} {chain}"
    return _message("rule", _NEW, version, attrs, flags, what)


def _expression(name: str, attributes: Attributes) -> dict[str, Any]:
    attrs = [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", _nested(attributes))]
    return {"attrs": attrs}


def _nested(attributes: Attributes) -> dict[str, Any]:
    attrs = [
        (name, _nested(value) if isinstance(value, tuple) else value) for name, value in attributes
    ]
    return {"attrs": attrs}


def delete_rule(version: int, table: str, chain: str, handle: int = 0) -> Message:
    """One rule, or all of the chain's (`handle` 0)."""
    attrs: list[tuple[str, Any]] = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", chain)]
    if handle:
        attrs.append(("NFTA_RULE_HANDLE", handle))
    what = f"delete rules of chain {family_name(version)} {table} {chain}"
    return _message("rule", _DELETE, version, attrs, CHANGE, what)


def dump_rules(version: int, table: str = "", chain: str = "") -> Message:
    attrs = [("NFTA_RULE_TABLE", table)] if table else []
    if chain:
        attrs.append(("NFTA_RULE_CHAIN", chain))
    return _message("rule", _GET, version, attrs, DUMP, "list rules")


def expressions_of(entry: Any) -> list[Any]:
    """The expressions of a decoded rule."""
    data = entry.get_attr("NFTA_RULE_EXPRESSIONS") or b""
    found = _whole(_NFT.nft_rule_msg, _RULE_EXPRESSIONS, data).get_attr("NFTA_RULE_EXPRESSIONS")
    return list(found)


def _whole(cls: Any, number: int, content: bytes) -> Any:
    """A message of the class with one attribute, which was left as it came."""
    return codec.decode(cls, _HEADER + struct.pack("=HH", len(content) + 4, number) + content)


def raw_expressions(expressions: Iterable[Expression]) -> bytes:
    """The expressions of a rule as bytes, as the kernel gives them back."""
    return b"".join(map(_raw_expression, expressions))


@lru_cache(1024)  # the same few dozen stand in all rules
def _raw_expression(expression: Expression) -> bytes:
    data = codec.encode(_NFT.nft_rule_msg.nft_expr, _expression(*expression))
    return struct.pack("=HH", len(data) + 4, _LIST_ELEMENT) + data


# --- sets and maps ----------------------------------------------------------------------------


def get_set(version: int, table: str, name: str) -> Message:
    """A set or map, without its elements."""
    attrs = [("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", name)]
    what = f"look up set {family_name(version)} {table} {name}"
    return _message("set", _GET, version, attrs, NLM_F_REQUEST, what)


def add_set(version: int, table: str, name: str, attributes: dict[str, Any]) -> Message:
    """A set or a map; `attributes` are those of nft_set_msg that say which."""
    attrs = [("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", name), *attributes.items()]
    if "NFTA_SET_ID" not in attributes:  # the kernel wants one; here sets are known by their names
        attrs.append(("NFTA_SET_ID", 1))
    return _message(
        "set", _NEW, version, attrs, ADD, f"add set {family_name(version)} {table} {name}"
    )


def dump_sets(version: int, table: str) -> Message:
    attrs = [("NFTA_SET_TABLE", table)]
    return _message(
        "set", _GET, version, attrs, DUMP, f"list sets of {family_name(version)} {table}"
    )


def add_elements(
    version: int, table: str, name: str, elements: Sequence[Element], exclusive: bool = False
) -> list[Message]:
    """Elements for a set or map; `exclusive`: EEXIST when one is there, whatever its data."""
    flags = CREATE if exclusive else ADD
    return _elements(version, table, name, elements, _NEW, flags, "add elements to")


def delete_elements(
    version: int, table: str, name: str, elements: Sequence[Element]
) -> list[Message]:
    """ENOENT when one is not there, and then none is removed."""
    return _elements(version, table, name, elements, _DELETE, CHANGE, "remove elements of")


def flush_elements(version: int, table: str, name: str) -> Message:
    """Empty a set or map."""
    attrs = [("NFTA_SET_ELEM_LIST_TABLE", table), ("NFTA_SET_ELEM_LIST_SET", name)]
    what = f"empty the set {family_name(version)} {table} {name}"
    return _message("elements", _DELETE, version, attrs, CHANGE, what)


def get_element(version: int, table: str, name: str, key: bytes) -> Message:
    """The element with this key: answered by nothing when there is none."""
    what = "look up an element of"
    return _elements(version, table, name, [Element(key)], _GET, NLM_F_REQUEST, what)[0]


def dump_elements(version: int, table: str, name: str) -> Message:
    attrs = [("NFTA_SET_ELEM_LIST_TABLE", table), ("NFTA_SET_ELEM_LIST_SET", name)]
    return _message("elements", _GET, version, attrs, DUMP, f"list the set {table} {name}")


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
        made.append(_message("elements", action, version, attrs, flags, what))
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


def intervals(networks: Iterable[IPNetwork]) -> list[Element]:
    """Elements of an interval set for networks, none of which may lie in another."""
    elements = []
    for network in networks:
        elements.append(Element(network.network_address.packed))
        behind = int(network.broadcast_address) + 1
        if behind >> network.max_prefixlen == 0:  # else open: it reaches to the last address
            size = network.max_prefixlen // 8
            elements.append(Element(behind.to_bytes(size, "big"), end=True))
    return elements


def decode_elements(entries: Iterable[Any]) -> list[Element]:
    """The elements in the replies to `dump_elements` or `get_element`."""
    found = []
    for entry in entries:
        data = entry.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or b""
        whole = _whole(_NFT.nft_set_elem_list_msg, _ELEM_LIST_ELEMENTS, data)
        for each in whole.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS"):
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


def comment_of(notes: bytes) -> str:
    """The comment among the notes (type, length, value) that came with an object."""
    offset = 0
    while offset + 2 <= len(notes):
        kind, length = notes[offset : offset + 2]
        if kind == _COMMENT:
            return notes[offset + 2 : offset + 2 + length].rstrip(b"\0").decode("utf-8", "replace")
        offset += 2 + length
    return ""


def _ip(version: int) -> str:
    return _NAMES[version]
