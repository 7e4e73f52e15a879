"""nftables messages, built with pyroute2's message classes: tables, chains, rules, sets, elements.

Rules are lists of expressions, as the kernel keeps them; `expressions` has those that podwire
uses. What they say in nft's own language is in docs/datapath.md.

Source: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT and NFTNL_UDATA_SET_ELEM_COMMENT (libnftnl)
_LONGEST_COMMENT = 127  # bytes; nft shows no longer ones
_PER_MESSAGE = 500  # elements: a netlink attribute holds 64 KiB
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END

ADD = CHANGE | 0x400  # NLM_F_CREATE: no error when it is there
REPLIES: dict[int, Any] = {
    **{_SUBSYSTEM | number: cls for number, cls in _MESSAGES.values()},
    _SUBSYSTEM | _NEW_GENERATION: _NFT.nft_gen_msg,
}

Expression = tuple[str, dict[str, Any]]
"""The name of a kernel's expression and its attributes."""


class Element(NamedTuple):
    """An element of a set or map: `end` marks the first key behind an interval.

    `comment` tells people, and podwire, whose it is.
    """

    key: bytes
    data: bytes = b""
    comment: str = ""
    end: bool = False


def protocol(version: int) -> int:
    """NFPROTO_IPV4 or NFPROTO_IPV6 for an IP version."""
    return AF_INET if version == 4 else AF_INET6


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
    attrs = [("NFTA_TABLE_NAME", name)]
    return _message("table", _NEW, version, attrs, ADD, f"add table {_ip(version)} {name}")


def delete_table(version: int, name: str) -> Message:
    attrs = [("NFTA_TABLE_NAME", name)]
    return _message("table", _DELETE, version, attrs, CHANGE, f"delete table {_ip(version)} {name}")


def dump_tables(version: int) -> Message:
    return _message("table", _GET, version, [], DUMP, "list tables")


def add_chain(
    version: int, table: str, name: str, kind: str = "", hook: int = 0, priority: int = 0
) -> Message:
    """A chain; one with a `kind` (filter, nat) is called by the kernel at a hook (NF_INET_*)."""
    attrs: list[tuple[str, Any]] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    if kind:
        where = [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]
        attrs += [("NFTA_CHAIN_TYPE", kind), ("NFTA_CHAIN_HOOK", {"attrs": where})]
    return _message("chain", _NEW, version, attrs, ADD, f"add chain {_ip(version)} {table} {name}")


def delete_chain(version: int, table: str, name: str) -> Message:
    attrs = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    what = f"delete chain {_ip(version)} {table} {name}"
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
    what = f"add a rule to chain {_ip(version)} {table} {chain}"
    return _message("rule", _NEW, version, attrs, flags, what)


def _expression(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
    attrs = [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": list(attributes.items())})]
    return {"attrs": attrs}


def delete_rule(version: int, table: str, chain: str, handle: int = 0) -> Message:
    """One rule, or all of the chain's (`handle` 0)."""
    attrs: list[tuple[str, Any]] = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", chain)]
    if handle:
        attrs.append(("NFTA_RULE_HANDLE", handle))
    what = f"delete rules of chain {_ip(version)} {table} {chain}"
    return _message("rule", _DELETE, version, attrs, CHANGE, what)


def dump_rules(version: int, table: str = "", chain: str = "") -> Message:
    attrs = [("NFTA_RULE_TABLE", table)] if table else []
    if chain:
        attrs.append(("NFTA_RULE_CHAIN", chain))
    return _message("rule", _GET, version, attrs, DUMP, "list rules")


# --- sets and maps ----------------------------------------------------------------------------


def add_set(version: int, table: str, name: str, attributes: dict[str, Any]) -> Message:
    """A set or a map; `attributes` are those of nft_set_msg that say which."""
    attrs = [("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", name), *attributes.items()]
    return _message("set", _NEW, version, attrs, ADD, f"add set {_ip(version)} {table} {name}")


def dump_sets(version: int, table: str) -> Message:
    attrs = [("NFTA_SET_TABLE", table)]
    return _message("set", _GET, version, attrs, DUMP, f"list sets of {_ip(version)} {table}")


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
    what = f"empty the set {_ip(version)} {table} {name}"
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
    what = f"{verb} set {_ip(version)} {table} {name}"
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
        for each in entry.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ():
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
    return "ip" if version == 4 else "ip6"
