"""Forwarding for the pods where somebody else's chain at the forward hook drops by policy.

Docker does that (iptables-nft's `ip filter FORWARD`), and ufw, and many an /etc/nftables.conf: a
packet has to pass every chain of a hook, so an accept in a table of our own would help nothing.
In each such chain two rules for each pod subnet stand at the end: they decide in place of the
policy what no rule of the owner's has decided, and override none. They are written as iptables-nft
writes `-s SUBNET -j ACCEPT`, so that it shows and saves them, and carry the comment
"podwire acceptForwarding".

Where the policy drops no more they are taken away.

A firewall of iptables-legacy is none of nftables': `xtables` keeps the same rules there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from cni_plugin.kernel import expressions as ex
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel import nftview
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftmessages import Expression
from cni_plugin.kernel.nftview import ChainState, RuleState
from cni_plugin.kernel.tablerepair import Repair
from cni_plugin.ruleset import NOTE, TABLE
from cni_plugin.spec import IPNetwork

_FORWARD = 2  # NF_INET_FORWARD
_OWNER = 2  # NFT_TABLE_F_OWNER
_COMMENT_MATCH = NOTE.encode().ljust(256, b"\0")  # struct xt_comment_info


def repairs(
    socket: NetfilterSocket, chains: Iterable[ChainState], accepted: tuple[IPNetwork, ...]
) -> Iterator[Repair]:
    """What is missing or too much in the chains of others."""
    for chain in chains:
        if chain.kind == "filter" and chain.hook == _FORWARD and not _is_own(chain):
            found = nftview.rules(socket, chain.version, chain.table, chain.name)
            ours = [rule for rule in found.get(chain.name, ()) if is_ours(rule)]
            wanted = _wanted(chain, accepted) if chain.policy == nft.DROP else []
            needed = list(_chain_repairs(chain, ours, wanted))
            if needed and not _is_owned(socket, chain):
                yield from needed


def _is_own(chain: ChainState) -> bool:
    """podwire has no table of the family inet: one of its name there is somebody else's."""
    return chain.table == TABLE and chain.version != nft.INET


def _is_owned(socket: NetfilterSocket, chain: ChainState) -> bool:
    """Whether a program has its table for itself (firewalld may): the kernel lets nobody in."""
    table = socket.get(nft.get_table(chain.version, chain.table))
    return table is not None and bool((table.get_attr("NFTA_TABLE_FLAGS") or 0) & _OWNER)


def is_ours(rule: RuleState) -> bool:
    """By its comment, in either way of keeping one: iptables' own holds 256 bytes."""
    if rule.comment:
        return rule.comment == NOTE
    return _COMMENT_MATCH in rule.expressions and any(
        nftview.is_comment(expression) for expression in nft.expressions_of(rule.entry)
    )


def _wanted(chain: ChainState, accepted: tuple[IPNetwork, ...]) -> list[tuple[Expression, ...]]:
    return [
        (
            *(ex.of_family(network.version) if chain.version == nft.INET else ()),
            *ex.in_network(network, is_source),
            ex.counter(),
            ex.accept(),
        )
        for network in accepted
        if chain.version in (network.version, nft.INET)
        for is_source in (True, False)
    ]


def _chain_repairs(
    chain: ChainState, ours: list[RuleState], wanted: list[tuple[Expression, ...]]
) -> Iterator[Repair]:
    where = (chain.version, chain.table, chain.name)
    name = f"chain {nft.family_name(chain.version)} {chain.table} {chain.name}"
    left = list(ours)
    missing: list[Message] = []
    for expressions in wanted:
        present = next((rule for rule in left if nftview.is_rule(rule, expressions)), None)
        if present is None:
            missing.append(nft.add_rule(*where, expressions, NOTE))
        else:
            left.remove(present)
    if missing:
        yield Repair(f"{name} drops what it has no rule for, and pods' packets too", (*missing,))
    if left:
        removals = tuple(nft.delete_rule(*where, rule.handle) for rule in left)
        yield Repair(f"{name} has rules of podwire's that are not needed", removals)


# --- iptables-legacy --------------------------------------------------------------------------

_LEGACY = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}


def keep_legacy(accepted: tuple[IPNetwork, ...], change: bool = True) -> list[int]:
    """The IP versions whose legacy FORWARD chain had to be changed (or would have to). The kernel
    tells nobody of changes there: it is looked at each time, when there is one at all."""
    versions = legacy_versions()
    if not versions:
        return []
    from cni_plugin.kernel import xtables

    return [version for version in versions if xtables.ensure(version, accepted, change)]


def legacy_versions() -> list[int]:
    """The IP versions that iptables-legacy has a filter table for in this network namespace."""
    return [version for version, path in _LEGACY.items() if _lists_filter(path)]


def _lists_filter(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # a kernel without these tables, or none was loaded
    try:
        return b"filter\n" in os.read(fd, 4096)
    finally:
        os.close(fd)
