"""podwire's tables as objects of nftables: sets, chains and rules, made from a `FamilyRules`.

Pure. What stands here is shown in nft's language, with the reasons, in docs/datapath.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from sys import byteorder

from cni_plugin import ruleset
from cni_plugin.kernel import expressions as ex
from cni_plugin.kernel.nftmessages import Expression
from cni_plugin.kernel.setlayout import (
    ADDRESS_BYTES,
    IFNAME_BYTES,
    SetLayout,
    link_bytes,
    port_bytes,
    sets,
)
from cni_plugin.ruleset import FamilyRules
from cni_plugin.typed import NamedTuple

_PREROUTING, _INPUT, _FORWARD, _OUTPUT, _POSTROUTING = 0, 1, 2, 3, 4  # NF_INET_*
_RAW, _BEHIND_DSTNAT, _FILTER, _BEHIND_SRCNAT = -300, -95, 0, 105


class ChainLayout(NamedTuple):
    """A chain and its rules; with a `kind` the kernel calls it at a hook."""

    name: str
    rules: tuple[tuple[Expression, ...], ...]
    kind: str = ""
    hook: int = 0
    priority: int = 0


class TableLayout(NamedTuple):
    version: int
    sets: tuple[SetLayout, ...]
    chains: tuple[ChainLayout, ...]


def table(family: FamilyRules, mark: int) -> TableLayout:
    """The table of a family; a chain stands behind those that it jumps to."""
    return TableLayout(family.version, tuple(sets(family)), tuple(_chains(family, mark)))


# --- chains -----------------------------------------------------------------------------------


def _chains(family: FamilyRules, mark: int) -> Iterator[ChainLayout]:
    version = family.version
    if family.nodes:
        rules = tuple(_input_rules(family))
        yield ChainLayout(ruleset.CHAIN_INPUT, rules, "filter", _INPUT, _RAW)
    if family.is_guarded:
        yield ChainLayout(ruleset.CHAIN_OVERLAY, tuple(_overlay_rules(family)))
    if guards := tuple(_guard_rules(family)):
        yield ChainLayout(ruleset.CHAIN_GUARD, guards, "filter", _PREROUTING, _RAW)
    if family.host_ports:
        yield ChainLayout(ruleset.CHAIN_HOST_PORTS, tuple(_host_port_rules(version, mark)))
        local = (*ex.to_this_node(), ex.jump(ruleset.CHAIN_HOST_PORTS))
        # No answer from outside gets in to ::1: refused at once, a client takes 127.0.0.1.
        own = () if version == 4 else (ex.destination(6), ex.compare(_LOOPBACK_6, equal=False))
        for name, hook, rule in (
            (ruleset.CHAIN_PREROUTING, _PREROUTING, local),
            (ruleset.CHAIN_OUTPUT, _OUTPUT, (*own, *local)),
        ):
            yield ChainLayout(name, (rule,), "nat", hook, _BEHIND_DSTNAT)
    if family.host_ports or family.masquerade:
        rules = tuple(_postrouting_rules(family, mark))
        yield ChainLayout(ruleset.CHAIN_POSTROUTING, rules, "nat", _POSTROUTING, _BEHIND_SRCNAT)
    if family.closed:
        rules = (tuple(_forward_rule()),)
        yield ChainLayout(ruleset.CHAIN_FORWARD, rules, "filter", _FORWARD, _FILTER)


_LOOPBACK = b"\x7f"  # 127.0.0.0/8
_LOOPBACK_6 = bytes(15) + b"\1"  # ::1
_UDP = b"\x11"
_VETH = b"veth"  # how the links of pods without a bridge begin
# fib daddr . iif type local: the address is one of the link that the packet came in by. At hook
# input all kernels can tell this; that the way back leads there, only those from Linux 5.17 on.
_TO_ADDRESS_OF_IN_LINK: tuple[Expression, ...] = (
    ("fib", (("NFTA_FIB_DREG", 1), ("NFTA_FIB_RESULT", 3), ("NFTA_FIB_FLAGS", 0x2 | 0x8))),
    ex.compare((2).to_bytes(4, byteorder)),  # RTN_LOCAL
)


def _guard_rules(family: FamilyRules) -> Iterator[tuple[Expression, ...]]:
    """127.0.0.0/8 belongs to this node alone, whatever route_localnet lets the kernel route."""
    if family.host_ports and family.version == 4:
        for load in (ex.first_byte(is_source=True), ex.first_byte(is_source=False)):
            yield (
                *ex.not_from_loopback(),
                load,
                ex.compare(_LOOPBACK),
                ex.drop(),
            )
    if family.is_guarded:
        # What is sent to this node meets chain `input`: here it costs one comparison.
        others: tuple[Expression, ...] = ()
        if len(family.own) == 1:
            own = ex.compare(_own_address(family), equal=False)
            others = ex.destination(family.version), own
        yield *_to_overlayport_bytes(family), *others, ex.jump(ruleset.CHAIN_OVERLAY)


def _overlay_rules(family: FamilyRules) -> Iterator[tuple[Expression, ...]]:
    """What would pass for a node's at the next node: a stranger's packet, which this node may
    masquerade, and a pod's with the source of a node."""
    to_node = ex.destination(family.version), ex.in_set(ruleset.NODES)
    yield *_by_other_links(family), *_from_node(family), ex.accept()
    yield *_from_node(family), *ex.has_no_way_back(), ex.drop()
    yield *to_node, *_from_node(family, inside=False), ex.drop()


def _input_rules(family: FamilyRules) -> Iterator[tuple[Expression, ...]]:
    """The overlay takes packets from nodes alone, sent to the addresses that nodes know. By a link
    that pods send by, they have to be sent to that link's own address."""
    at_port = tuple(_to_overlayport_bytes(family))
    by_node = *at_port, *_to_own(family), *_from_node(family)
    yield *by_node, *_by_other_links(family), ex.accept()
    yield *by_node, *_TO_ADDRESS_OF_IN_LINK, ex.accept()
    yield *at_port, ex.drop()


def _to_overlayport_bytes(family: FamilyRules) -> Iterator[Expression]:
    if len(family.overlay_ports) > 1:
        yield from ex.to_udp_port_in(ruleset.OVERLAY_PORTS)
    else:
        yield from (ex.protocol(), ex.compare(_UDP))
        yield from (ex.destination_port(), ex.compare(port_bytes(family.overlay_ports[0])))


def _to_own(family: FamilyRules) -> Iterator[Expression]:
    """At hook input, where all packets are sent to this node, all nodes' addresses say the same."""
    yield ex.destination(family.version)
    yield ex.compare(_own_address(family)) if len(family.own) == 1 else ex.in_set(ruleset.NODES)


def _own_address(family: FamilyRules) -> bytes:
    return family.own[0].to_bytes(ADDRESS_BYTES[family.version], "big")


def _from_node(family: FamilyRules, inside: bool = True) -> Iterator[Expression]:
    yield ex.source(family.version)
    yield ex.in_set(ruleset.NODES, inside)


def _by_other_links(family: FamilyRules) -> Iterator[Expression]:
    """By none that pods send by."""
    if family.pod_veths:
        yield from (ex.in_link(), ex.compare(_VETH, equal=False))
    if len(family.pod_links) > 1:
        yield from (ex.in_link(), ex.in_set(ruleset.POD_LINKS, inside=False))
    elif family.pod_links:
        yield from (ex.in_link(), ex.compare(link_bytes(family.pod_links[0]), equal=False))


def _host_port_rules(version: int, mark: int) -> Iterator[tuple[Expression, ...]]:
    """Of a pod's own packets, and of the node's from 127.0.0.1, the answer would not come back
    through here: they are marked, and masqueraded at last."""
    masked = (
        ex.protocol(0),
        ex.destination_port(1),
        ex.in_set(ruleset.UNMASKED_PORTS, inside=False),
        *ex.mark(mark, on=True),
    )
    yield ex.source(version), ex.in_set(ruleset.PODS), *masked
    if version == 4:
        yield ex.first_byte(is_source=True), ex.compare(_LOOPBACK), *masked
    words = ADDRESS_BYTES[version] // 4
    yield (
        ex.destination(version),
        ex.protocol(words),
        ex.destination_port(words + 1),
        ex.map_to(ruleset.HOST_PORTS_IP),
        ex.redirect(version),
    )
    yield (
        ex.protocol(0),
        ex.destination_port(1),
        ex.map_to(ruleset.HOST_PORTS),
        ex.redirect(version),
    )
    yield tuple(ex.mark(mark, on=False))


def _postrouting_rules(family: FamilyRules, mark: int) -> Iterator[tuple[Expression, ...]]:
    version = family.version
    if family.host_ports:
        yield *ex.is_marked(mark), *ex.is_redirected(), ex.masquerade()
    if family.masquerade:
        yield (
            ex.source(version),
            ex.in_set(ruleset.MASQUERADE),
            ex.destination(version),
            ex.in_set(ruleset.DIRECT, inside=False),
            ex.masquerade(),
        )


def _forward_rule() -> Iterator[Expression]:
    """From one closed bridge to another, or within one that is closed in itself."""
    yield from (ex.in_link(), ex.in_set(ruleset.CLOSED))
    yield from (ex.out_link(), ex.in_set(ruleset.CLOSED))
    yield from (ex.in_link(0), ex.out_link(IFNAME_BYTES // 4))
    yield from (ex.in_set(ruleset.WITHIN, inside=False), ex.drop())
