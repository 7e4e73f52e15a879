"""What nftables holds where podwire looks: chains of all, podwire's own tables, others' rules."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from cni_plugin import ruleset
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel import nftsets
from cni_plugin.kernel.codec import Entry
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftlayout import TableLayout
from cni_plugin.kernel.nftmessages import Attributes, Expression
from cni_plugin.kernel.nftsets import Element
from cni_plugin.kernel.setlayout import SetLayout
from cni_plugin.typed import Any, NamedTuple

# Attributes as they stand in a message: NFTA_CHAIN_TYPE filter, NFTA_CHAIN_TABLE podwire.
_FILTERING = struct.pack("=HH7s", 11, 7, b"filter")
_OWN = struct.pack("=HH", 5 + len(ruleset.TABLE), 1) + ruleset.TABLE.encode() + b"\0"


class ChainState(NamedTuple):
    """A chain; `version` is 4, 6 or nft.INET. `kind` "" is one that others jump to."""

    version: int
    table: str
    name: str
    kind: str
    hook: int
    priority: int
    policy: int


class RuleState(NamedTuple):
    """A rule; `expressions` are the kernel's bytes, `entry` is the whole message."""

    handle: int
    comment: str
    expressions: bytes
    entry: Entry


class TableState(NamedTuple):
    """podwire's table in one family. `sets` are attributes, `elements` those of static sets."""

    flags: int
    rules: dict[str, list[RuleState]]
    sets: dict[str, dict[str, Any] | None]
    elements: dict[str, list[Element]]


def chains(socket: NetfilterSocket) -> list[ChainState]:
    """Of ip, ip6 and inet: the chains that filter at a hook, and all of podwire's."""
    found = []
    for entry in socket.dump_with(nft.dump_chains(nft.ANY), _FILTERING, _OWN):
        version = nft.version_of(entry["nfgen_family"])
        if version >= 0:
            found.append(_chain(version, entry))
    return found


def _chain(version: int, entry: Entry) -> ChainState:
    table, name = entry.get_attr("NFTA_CHAIN_TABLE"), entry.get_attr("NFTA_CHAIN_NAME")
    where = entry.get_attr("NFTA_CHAIN_HOOK")
    if where is None:
        return ChainState(version, table, name, "", 0, 0, nft.ACCEPT)
    return ChainState(
        version,
        table,
        name,
        entry.get_attr("NFTA_CHAIN_TYPE"),
        where.get_attr("NFTA_HOOK_HOOKNUM"),
        where.get_attr("NFTA_HOOK_PRIORITY"),
        entry.get_attr("NFTA_CHAIN_POLICY"),
    )


def rules(
    socket: NetfilterSocket, version: int, table: str, chain: str = ""
) -> dict[str, list[RuleState]]:
    """The rules of a table, or of one of its chains, by chain."""
    found: dict[str, list[RuleState]] = {}
    for entry in socket.dump(nft.dump_rules(version, table, chain)):
        if entry.get_attr("NFTA_RULE_TABLE") == table:  # old kernels don't filter
            state = RuleState(
                entry.get_attr("NFTA_RULE_HANDLE"),
                nft.comment_of(entry.get_attr("NFTA_RULE_USERDATA") or b""),
                entry.get_attr("NFTA_RULE_EXPRESSIONS") or b"",
                entry,
            )
            found.setdefault(entry.get_attr("NFTA_RULE_CHAIN"), []).append(state)
    return found


def table(socket: NetfilterSocket, version: int, wanted: TableLayout | None) -> TableState | None:
    """podwire's table, as far as `wanted` speaks of it; None when there is none."""
    sets = wanted.sets if wanted else ()
    messages = [nft.get_table(version, ruleset.TABLE)]
    messages += (nftsets.get_set(version, ruleset.TABLE, each.name) for each in sets)
    found, *answers = socket.batch(messages)
    if found is None:
        return None
    return TableState(
        found.get_attr("NFTA_TABLE_FLAGS") or 0,
        rules(socket, version, ruleset.TABLE) if wanted else {},
        {
            each.name: _attributes(entry, each.attributes)
            for each, entry in zip(sets, answers, strict=True)
        },
        {
            each.name: _elements(socket, version, each)
            for each, entry in zip(sets, answers, strict=True)
            if each.elements is not None and entry is not None
        },
    )


def _elements(socket: NetfilterSocket, version: int, layout: SetLayout) -> list[Element]:
    """A set's elements, but for the end of nothing that `nft` puts in front of intervals."""
    entries = socket.dump(nftsets.dump_elements(version, ruleset.TABLE, layout.name))
    found = (element for entry in entries for element in nftsets.keys_of(entry))
    elements = [each for each in found if any(each.key) or not each.end]
    size = layout.attributes["NFTA_SET_KEY_LEN"]
    if size % 4:  # a message has them filled up to whole words
        return [each._replace(key=each.key[:size]) for each in elements]
    return elements


def _attributes(entry: Entry | None, names: Iterable[str]) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {name: entry.get_attr(name) or 0 for name in names}


# --- comparing rules --------------------------------------------------------------------------


def is_rule(state: RuleState, wanted: Sequence[Expression]) -> bool:
    """Whether the rule does what it was made to do.

    A kernel may give back more than it got: then the attributes that were given must be there.
    """
    if state.expressions == nft.raw_expressions(wanted):
        return True
    actual = [e for e in nft.expressions_of(state.entry) if not is_comment(e)]
    return len(actual) == len(wanted) and all(
        entry.get_attr("NFTA_EXPR_NAME") == name
        and (name == "counter" or _holds(entry.get_attr("NFTA_EXPR_DATA"), attributes))
        for entry, (name, attributes) in zip(actual, wanted, strict=True)
    )


def is_comment(expression: Entry) -> bool:
    """Whether it is iptables' `-m comment`: after `iptables-restore` a comment is one."""
    return bool(
        expression.get_attr("NFTA_EXPR_NAME") == "match"
        and expression.get_attr("NFTA_EXPR_DATA").get_attr("NFTA_MATCH_NAME") == "comment"
    )


def _holds(entry: Any, attributes: Attributes) -> bool:
    """Whether these attributes are among the entry's; zero is the same as none."""
    if entry is None:
        return False
    for name, value in attributes:
        actual = entry.get_attr(name)
        if isinstance(value, tuple):
            if not _holds(actual, value):
                return False
        elif (actual or 0) != (value or 0):
            return False
    return True
