"""podwire's table as wanted against what is there: the messages that make it good, and why.

Pure. A packet filter is small and its parts refer to each other: when a chain or a rule is not as
it should be, all chains are written anew, in the same transaction; sets and maps stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cni_plugin import ruleset
from cni_plugin.alike import same_ends
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel import nftsets, nftview, setlayout
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.nftlayout import ChainLayout, TableLayout
from cni_plugin.kernel.nftsets import Element
from cni_plugin.kernel.nftview import ChainState, RuleState, TableState
from cni_plugin.kernel.setlayout import SetLayout
from cni_plugin.ruleset import TABLE, FamilyRules, NodeRules
from cni_plugin.typed import Any, NamedTuple

_INTERVALS = (ruleset.MASQUERADE, ruleset.DIRECT, ruleset.PODS)
_CHAINS = (  # those that jump before those that they jump to
    ruleset.CHAIN_GUARD,
    ruleset.CHAIN_PREROUTING,
    ruleset.CHAIN_OUTPUT,
    ruleset.CHAIN_POSTROUTING,
    ruleset.CHAIN_FORWARD,
    ruleset.CHAIN_INPUT,
    ruleset.CHAIN_HOST_PORTS,
    ruleset.CHAIN_OVERLAY,
)


class Repair(NamedTuple):
    """A difference in words and the messages that make it good. `emptied` are the IP versions
    whose host-port maps are made anew by that."""

    words: str
    messages: tuple[Message, ...]
    emptied: tuple[int, ...] = ()


def removal(version: int) -> Repair:
    words = f"the nftables table {_name(version)} is there, and nothing needs it"
    return Repair(words, (nft.delete_table(version, TABLE),))


def table_repairs(
    wanted: TableLayout,
    seen: TableState | None,
    chains: Mapping[str, ChainState],
    rebuild: bool = False,
) -> Iterator[Repair]:
    """`chains` are those of the table, by name. With `rebuild` all of it is made anew."""
    name = _name(wanted.version)
    if seen is None:
        yield Repair(f"the nftables table {name} is missing", _whole(wanted), _maps(wanted))
        return
    changed = [s.name for s in wanted.sets if seen.sets[s.name] not in (None, s.attributes)]
    wrong = _wrong_chains(wanted, seen, chains)
    # The kernel takes no chain in the transaction that wakes the table (EINVAL).
    if changed or rebuild or (seen.flags and wrong):
        messages = (nft.delete_table(wanted.version, TABLE), *_whole(wanted))
        yield Repair(_why_anew(name, changed), messages, _maps(wanted))
        return
    if seen.flags:
        awake = nft.add_table(wanted.version, TABLE)
        yield Repair(f"the nftables table {name} is dormant", (awake,))
    yield from _set_repairs(wanted, seen)
    if wrong:
        words = f"the chains {', '.join(wrong)} of the nftables table {name} are not as they were"
        yield Repair(words, tuple(_rewritten(wanted, chains)))


def _why_anew(name: str, changed: Sequence[str]) -> str:
    if changed:
        return f"the sets {', '.join(changed)} of the nftables table {name} are of another kind"
    return f"the nftables table {name} is not as it was"


def _name(version: int) -> str:
    return f"{nft.family_name(version)} {TABLE}"


def _whole(wanted: TableLayout) -> tuple[Message, ...]:
    return (
        nft.add_table(wanted.version, TABLE),
        *(m for each in wanted.sets for m in _set_messages(wanted.version, each)),
        *_chain_messages(wanted),
    )


# --- sets -------------------------------------------------------------------------------------


def _maps(wanted: TableLayout) -> tuple[int, ...]:
    has_maps = any(each.elements is None for each in wanted.sets)
    return (wanted.version,) if has_maps else ()


def _set_messages(version: int, layout: SetLayout) -> Iterator[Message]:
    yield nftsets.add_set(version, TABLE, layout.name, layout.attributes)
    yield from nftsets.add_elements(version, TABLE, layout.name, layout.elements or ())


def _set_repairs(wanted: TableLayout, seen: TableState) -> Iterator[Repair]:
    version = wanted.version
    for layout in wanted.sets:
        which = f"the set {layout.name} of the nftables table {_name(version)}"
        if seen.sets[layout.name] is None:
            emptied = (version,) if layout.elements is None else ()
            yield Repair(f"{which} is missing", (*_set_messages(version, layout),), emptied)
        elif layout.elements is not None:
            messages = _element_changes(version, layout, set(seen.elements[layout.name]))
            if messages:
                yield Repair(_other_elements(layout.name, version), messages)


def _other_elements(name: str, version: int) -> str:
    which = f"the set {name} of the nftables table {_name(version)}"
    return f"{which} has other elements than it should"


def _element_changes(version: int, layout: SetLayout, seen: set[Element]) -> tuple[Message, ...]:
    """What makes the elements right: the difference alone, as when a peer comes or goes among
    thousands; all anew when what is there, or is wanted, is not whole intervals."""
    wanted = layout.elements or ()
    if seen == set(wanted):
        return ()
    name = layout.name
    parts = _intervals if name in _INTERVALS else _singles
    before, after = parts(seen), parts(wanted)
    if before is None or after is None:
        return (
            nftsets.flush_elements(version, TABLE, name),
            *nftsets.add_elements(version, TABLE, name, wanted),
        )
    gone, new = sorted(before - after), sorted(after - before)
    return (
        *nftsets.delete_elements(version, TABLE, name, [each for part in gone for each in part]),
        *nftsets.add_elements(version, TABLE, name, [each for part in new for each in part]),
    )


_Parts = set[tuple[Element, ...]]


def _singles(elements: Iterable[Element]) -> _Parts:
    return {(element,) for element in elements}


def _intervals(elements: Iterable[Element]) -> _Parts | None:
    """Beginnings with their ends; None when they are not pairs.

    An interval goes and comes as a whole: its beginning with the end of another one is none that
    the kernel knows. Where two meet, the end of the first comes before the other's beginning.
    """
    ordered = sorted(elements, key=lambda element: (element.key, not element.end))
    pairs = list(zip(ordered[::2], ordered[1::2], strict=False))
    if len(ordered) % 2 or any(first.end or not last.end for first, last in pairs):
        return None
    return set(pairs)


# --- sets that are known ------------------------------------------------------------------------


def address_changes(former: NodeRules, rules: NodeRules) -> list[Repair] | None:
    """What turns a ruleset that holds the former rules into one that holds these; None where more
    than sets of addresses differs, or that takes a look at the kernel's."""
    if (former.accept, former.mark) != (rules.accept, rules.mark):
        return None
    if len(former.families) != len(rules.families):
        return None
    found: list[Repair] = []
    for was, family in zip(former.families, rules.families, strict=True):
        if was._replace(direct=family.direct, nodes=family.nodes) != family:
            return None
        if bool(was.nodes) != bool(family.nodes) or bool(was.direct) != bool(family.direct):
            return None
        changes = (
            (ruleset.DIRECT, _range_changes(was, family)),
            (ruleset.NODES, _node_changes(was, family)),
        )
        for name, messages in changes:
            if messages is None:
                return None
            if messages:
                found.append(Repair(_other_elements(name, family.version), messages))
    return found


def _range_changes(was: FamilyRules, family: FamilyRules) -> tuple[Message, ...] | None:
    """None for ranges up to the last address of all, whose ends the set does not hold."""
    gone, new = _difference(was.direct, family.direct)
    version, size = family.version, setlayout.ADDRESS_BYTES[family.version]
    if any((last + 1) >> 8 * size for _, last in (*gone, *new)):
        return None
    return (
        *nftsets.delete_elements(
            version, TABLE, ruleset.DIRECT, [*setlayout.intervals(version, gone)]
        ),
        *nftsets.add_elements(version, TABLE, ruleset.DIRECT, [*setlayout.intervals(version, new)]),
    )


def _node_changes(was: FamilyRules, family: FamilyRules) -> tuple[Message, ...]:
    gone, new = _difference(was.nodes, family.nodes)
    version, size = family.version, setlayout.ADDRESS_BYTES[family.version]
    elements = [[Element(number.to_bytes(size, "big")) for number in each] for each in (gone, new)]
    return (
        *nftsets.delete_elements(version, TABLE, ruleset.NODES, elements[0]),
        *nftsets.add_elements(version, TABLE, ruleset.NODES, elements[1]),
    )


def _difference(was: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    """What only the one and only the other has of two that are sorted: most is the same."""
    begin, end = same_ends(was, now)
    gone, new = set(was[begin : len(was) - end]), set(now[begin : len(now) - end])
    return sorted(gone - new), sorted(new - gone)


# --- chains -----------------------------------------------------------------------------------


def _chain_messages(wanted: TableLayout) -> Iterator[Message]:
    version = wanted.version
    for chain in wanted.chains:
        yield nft.add_chain(version, TABLE, chain.name, chain.kind, chain.hook, chain.priority)
        for rule in chain.rules:
            yield nft.add_rule(version, TABLE, chain.name, rule)


def _wrong_chains(
    wanted: TableLayout, seen: TableState, chains: Mapping[str, ChainState]
) -> list[str]:
    wrong = [
        chain.name
        for chain in wanted.chains
        if not _is_like(wanted.version, chain, chains.get(chain.name))
        or not _has_rules(chain, seen.rules.get(chain.name, []))
    ]
    names = {chain.name for chain in wanted.chains}
    return wrong + [name for name in _CHAINS if name in chains and name not in names]


def _is_like(version: int, chain: ChainLayout, state: ChainState | None) -> bool:
    """Whether the kernel calls the chain where it should, and it drops nothing by itself."""
    return state == ChainState(
        version, TABLE, chain.name, chain.kind, chain.hook, chain.priority, nft.ACCEPT
    )


def _has_rules(chain: ChainLayout, rules: list[RuleState]) -> bool:
    return len(rules) == len(chain.rules) and all(map(nftview.is_rule, rules, chain.rules))


def _rewritten(wanted: TableLayout, chains: Mapping[str, ChainState]) -> Iterator[Message]:
    """All chains of podwire's anew; those that can stay do, since others may refer to them."""
    version = wanted.version
    layouts = {chain.name: chain for chain in wanted.chains}
    present = [name for name in _CHAINS if name in chains]
    for name in present:
        yield nft.delete_rule(version, TABLE, name)
    for name in present:
        layout, state = layouts.get(name), chains[name]._replace(policy=nft.ACCEPT)
        if layout is None or not _is_like(version, layout, state):
            yield nft.delete_chain(version, TABLE, name)
    yield from _chain_messages(wanted)
