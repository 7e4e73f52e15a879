"""nftables messages by pyroute2's message classes: tables, chains, rules; `nftsets` has the rest.

Rules are lists of expressions, as the kernel keeps them; `expressions` has those that podwire
uses. What they say in nft's own language is in docs/datapath.md.

Source: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from cni_plugin.kernel import bare, codec
from cni_plugin.kernel.messages import (
    AF_INET,
    AF_INET6,
    CHANGE,
    DUMP,
    NLM_F_REQUEST,
    Message,
)
from cni_plugin.typed import Any

_NFT: Any = bare.load("pyroute2.netlink.nfnetlink.nftsocket")
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_MESSAGES = {
    "table": (0, _NFT.nft_table_msg),
    "chain": (3, _NFT.nft_chain_msg),
    "rule": (6, _NFT.nft_rule_msg),
    "set": (9, _NFT.nft_set_msg),
    "elements": (12, _NFT.nft_set_elem_list_msg),
}
NEW, GET, DELETE = 0, 1, 2  # beside the number above
_GET_GENERATION, _NEW_GENERATION = 16, 15
_APPEND = 0x800  # NLM_F_APPEND: behind the chain's other rules
ELEMENTS_CLASS: Any = _NFT.nft_set_elem_list_msg
_RULE_EXPRESSIONS, ELEMENTS, _LIST_ELEMENT = 4, 3, 1  # NFTA_*
_HEADER = bytes(4)  # struct nfgenmsg
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT and NFTNL_UDATA_SET_ELEM_COMMENT (libnftnl)
_LONGEST_COMMENT = 127  # bytes; nft shows no longer ones
ACCEPT, DROP = 1, 0  # NF_ACCEPT, NF_DROP

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


def protocol(version: int) -> int:
    """NFPROTO_IPV4 or NFPROTO_IPV6 for an IP version; ANY and INET are NFPROTO_* themselves."""
    return _PROTOCOLS[version]


def family_name(version: int) -> str:
    """The family's name in nft's language."""
    return _NAMES[version]


def version_of(number: int) -> int:
    """The reverse; -1 for a family that is none of these (arp, bridge, netdev)."""
    return _VERSIONS.get(number, -1)


def request(
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
    return request("table", NEW, version, attrs, ADD, f"add table {family_name(version)} {name}")


def delete_table(version: int, name: str) -> Message:
    attrs = [("NFTA_TABLE_NAME", name)]
    return request(
        "table", DELETE, version, attrs, CHANGE, f"delete table {family_name(version)} {name}"
    )


def get_table(version: int, name: str) -> Message:
    what = f"look up table {family_name(version)} {name}"
    return request("table", GET, version, [("NFTA_TABLE_NAME", name)], NLM_F_REQUEST, what)


def dump_tables(version: int) -> Message:
    return request("table", GET, version, [], DUMP, "list tables")


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
    return request(
        "chain", NEW, version, attrs, ADD, f"add chain {family_name(version)} {table} {name}"
    )


def delete_chain(version: int, table: str, name: str) -> Message:
    attrs = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    what = f"delete chain {family_name(version)} {table} {name}"
    return request("chain", DELETE, version, attrs, CHANGE, what)


def dump_chains(version: int) -> Message:
    """All chains of the family, of all tables."""
    return request("chain", GET, version, [], DUMP, "list chains")


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
    return request("rule", NEW, version, attrs, flags, what)


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
    return request("rule", DELETE, version, attrs, CHANGE, what)


def dump_rules(version: int, table: str = "", chain: str = "") -> Message:
    attrs = [("NFTA_RULE_TABLE", table)] if table else []
    if chain:
        attrs.append(("NFTA_RULE_CHAIN", chain))
    return request("rule", GET, version, attrs, DUMP, "list rules")


def expressions_of(entry: Any) -> list[Any]:
    """The expressions of a decoded rule."""
    data = entry.get_attr("NFTA_RULE_EXPRESSIONS") or b""
    found = whole(_NFT.nft_rule_msg, _RULE_EXPRESSIONS, data).get_attr("NFTA_RULE_EXPRESSIONS")
    return list(found)


def whole(cls: Any, number: int, content: bytes) -> Any:
    """A message of the class with one attribute, which was left as it came."""
    return codec.decode(cls, _HEADER + struct.pack("=HH", len(content) + 4, number) + content)


def raw_expressions(expressions: Iterable[Expression]) -> bytes:
    """The expressions of a rule as bytes, as the kernel gives them back."""
    return b"".join(map(_raw_expression, expressions))


@lru_cache(1024)  # the same few dozen stand in all rules
def _raw_expression(expression: Expression) -> bytes:
    data = codec.encode(_NFT.nft_rule_msg.nft_expr, _expression(*expression))
    return struct.pack("=HH", len(data) + 4, _LIST_ELEMENT) + data


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
