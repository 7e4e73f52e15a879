"""What the Go reference plugins made for an attachment, found by the names that they derive.

A node may change over to podwire while pods run: their DEL comes to podwire then, and the rules
that bridge, ptp, portmap, bandwidth and firewall had made for them would stay. Who gets the same
address or the same host port later would be served by them.

Where their rules are:
- `ip nat` and `ip6 nat`, which iptables-nft keeps: chain `CNI-<hash>` (masquerading), jumped to
  from POSTROUTING for each address; `CNI-DN-<hash>` (host ports), jumped to from
  CNI-HOSTPORT-DNAT; `CNI-SN-<hash>`, which old versions of portmap made.
- `ip filter` and `ip6 filter`: two rules for each address in CNI-FORWARD (firewall).
- `inet cni_plugins_masquerade`: rules of chain `masq_checks` with a hash in the comment.
- `ip cni_hostport` and `ip6 cni_hostport`: rules with the container for a comment; it has them for
  all its networks, so only those that speak of the attachment's addresses are its.
- Link `bwp<hash>`: the pod's own traffic is shaped there.

Everything that several pods share stays: CNI-HOSTPORT-*, CNI-FORWARD, CNI-ADMIN, the tables.

Source: github.com/containernetworking/plugins, pkg/utils, pkg/ip, plugins/meta.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Collection, Iterable, Iterator

from cni_plugin.kernel import messages, nftview
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel.messages import NLM_F_REQUEST, Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftrules import Terms, terms
from cni_plugin.kernel.nftview import RuleState
from cni_plugin.spec import Attachment, CniError, Code, IPAddress
from cni_plugin.typed import NamedTuple

NAT, FILTER = "nat", "filter"
HOSTPORTS_TABLE, HOSTPORTS_CHAIN = "cni_hostport", "hostports"
DNAT_CHAIN = "CNI-HOSTPORT-DNAT"
_HOSTPORT_CHAINS = (HOSTPORTS_CHAIN, "hostip_hostports", "masquerading")
_MASQUERADE_TABLE, _MASQUERADE_CHAIN = "cni_plugins_masquerade", "masq_checks"
_FIREWALL_CHAIN = "CNI-FORWARD"
_CHAIN_LENGTH, _LINK_LENGTH, _COMMENT_LENGTH = 28, 15, 16
_NO_NFTABLES = (errnos.EINVAL, errnos.ENOENT, errnos.EOPNOTSUPP, errnos.EPROTONOSUPPORT)
_CHANGED = (errnos.ERESTART, errnos.ENOENT)  # since it was looked at
_TRIES = 5

_FROM_ADDRESS = ("payload", "cmp", "immediate")
_TO_ADDRESS = (
    ("payload", "cmp", "match", "immediate"),
    ("payload", "cmp", "ct", "bitwise", "cmp", "immediate"),
)


class Names(NamedTuple):
    """What the plugins call things of one attachment; `masquerading` begins a rule's comment."""

    chain: str
    dnat_chain: str
    old_snat_chain: str
    link: str
    masquerading: str
    container_id: str


def names_of(network: str, attachment: Attachment) -> Names:
    """All but the comment leave the interface out: a container's interfaces share them."""
    container_id, ifname = attachment
    both = network + container_id
    comment = (_hashed("", each, _COMMENT_LENGTH) for each in (network, f"{ifname}:{container_id}"))
    return Names(
        chain=_hashed("CNI-", both, _CHAIN_LENGTH),
        dnat_chain=_hashed("CNI-DN-", both, _CHAIN_LENGTH),
        old_snat_chain=_hashed("CNI-SN-", both, _CHAIN_LENGTH),
        link=_hashed("bwp", both, _LINK_LENGTH),
        masquerading="-".join(comment),
        container_id=container_id,
    )


def _hashed(prefix: str, text: str, length: int) -> str:
    from hashlib import sha512  # takes 4 ms to load, and few nodes have such pods

    return (prefix + sha512(text.encode("utf-8", "surrogatepass")).hexdigest())[:length]


# --- removing ---------------------------------------------------------------------------------


def remove_link(route_socket: RouteSocket, names: Names) -> None:
    """Raises CniError 104 when the kernel refuses; no-op when it is not there."""
    route_socket.batch([messages.delete_link(names.link)], ignore=(errnos.ENODEV,))


def remove_rules(
    netfilter: NetfilterSocket, names: Names, addresses: Collection[IPAddress]
) -> None:
    """Take away the rules made for the attachment, which has had these addresses until now.

    One transaction for each family. Raises CniError 104 when the kernel refuses, 11 when somebody
    changes the ruleset all the time.
    """
    if _has_nftables(netfilter):
        for version in (4, 6, nft.INET):
            _clear(netfilter, version, names, addresses)


def _has_nftables(netfilter: NetfilterSocket) -> bool:
    try:
        netfilter.generation()
    except KernelError as e:
        if e.errno in _NO_NFTABLES:
            return False  # then it has no rules either
        raise
    return True


def _clear(
    netfilter: NetfilterSocket, version: int, names: Names, addresses: Collection[IPAddress]
) -> None:
    own = [each for each in addresses if each.version == version]
    keep_chains = False
    for _ in range(_TRIES):
        generation = netfilter.generation()
        removals = list(_removals(netfilter, version, names, own, keep_chains))
        try:
            netfilter.transaction(removals, generation)
        except KernelError as e:
            if e.errno == errnos.EBUSY and not keep_chains:
                keep_chains = True  # rules of others lead there: an empty chain does nothing
            elif e.errno not in _CHANGED:
                raise
        else:
            return
    raise CniError(Code.TRY_AGAIN_LATER, "somebody changes the nftables rules all the time")


def _removals(
    netfilter: NetfilterSocket,
    version: int,
    names: Names,
    addresses: Collection[IPAddress],
    keep_chains: bool,
) -> Iterator[Message]:
    if version == nft.INET:
        rules = _rules(netfilter, version, _MASQUERADE_TABLE, _MASQUERADE_CHAIN)
        mine = [rule for rule in rules if rule.comment.startswith(names.masquerading)]
        yield from _without(version, _MASQUERADE_TABLE, _MASQUERADE_CHAIN, mine)
        return
    entries = {
        names.chain: "POSTROUTING",
        names.dnat_chain: DNAT_CHAIN,
        names.old_snat_chain: "CNI-HOSTPORT-SNAT",
    }
    present = existing(netfilter, version, [(NAT, chain) for chain in entries])
    for table, chain in present:
        jumps = jumps_to(_rules(netfilter, version, table, entries[chain]), chain)
        mine = [rule for rule, found in jumps if _is_for(found, addresses)]
        yield from _without(version, table, entries[chain], mine)
        if len(mine) == len(jumps):  # else the container's other interface has it as well
            yield nft.delete_rule(version, table, chain)
            if not keep_chains:
                yield nft.delete_chain(version, table, chain)
    if addresses:
        yield from _of_addresses(netfilter, version, names, addresses)


def _of_addresses(
    netfilter: NetfilterSocket, version: int, names: Names, addresses: Collection[IPAddress]
) -> Iterator[Message]:
    """The rules that nothing but the address tells to be the attachment's."""
    own = [address.packed for address in addresses]
    rules = _rules(netfilter, version, FILTER, _FIREWALL_CHAIN)
    mine = [rule for rule in rules if _speaks_of(rule, own) and _is_firewalls(rule, own)]
    yield from _without(version, FILTER, _FIREWALL_CHAIN, mine)
    for chain in _HOSTPORT_CHAINS:
        rules = _rules(netfilter, version, HOSTPORTS_TABLE, chain)
        mine = [
            rule for rule in rules if rule.comment == names.container_id and _speaks_of(rule, own)
        ]
        yield from _without(version, HOSTPORTS_TABLE, chain, mine)


def _without(version: int, table: str, chain: str, rules: Iterable[RuleState]) -> Iterator[Message]:
    return (nft.delete_rule(version, table, chain, rule.handle) for rule in rules)


def _is_for(found: Terms, addresses: Collection[IPAddress]) -> bool:
    """Whether a jump is not for another address: the container's other interface has that one."""
    if not addresses or len(found.source) != len(next(iter(addresses)).packed):
        return True
    return found.source in {address.packed for address in addresses}


def _speaks_of(rule: RuleState, addresses: Iterable[bytes]) -> bool:
    """Whether one of the addresses stands in it, before it is taken apart."""
    return any(address in rule.expressions for address in addresses)


def _is_firewalls(rule: RuleState, addresses: Collection[bytes]) -> bool:
    """Whether it accepts what comes from an address, or the answers to it, and asks no more."""
    found = terms(rule.entry)
    if not found.accepts:
        return False
    kinds = tuple(kind for kind in found.kinds if kind != "counter")
    if kinds == _FROM_ADDRESS:
        return found.source in addresses
    answers = "match" not in kinds or found.matches == ("conntrack",)
    return kinds in _TO_ADDRESS and answers and found.destination in addresses


# --- looking ----------------------------------------------------------------------------------


def existing(
    netfilter: NetfilterSocket, version: int, chains: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Those chains, as (table, chain), that are there."""
    asked = list(chains)
    answers = netfilter.batch([get_chain(version, *each) for each in asked], (errnos.ENOENT,))
    return [each for each, answer in zip(asked, answers, strict=True) if answer is not None]


def get_chain(version: int, table: str, chain: str) -> Message:
    what = f"look up chain {nft.family_name(version)} {table} {chain}"
    attrs = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", chain)]
    return nft.request("chain", nft.GET, version, attrs, NLM_F_REQUEST, what)


def jumps_to(rules: Iterable[RuleState], chain: str) -> list[tuple[RuleState, Terms]]:
    named = chain.encode() + b"\0"
    candidates = ((rule, terms(rule.entry)) for rule in rules if named in rule.expressions)
    return [(rule, found) for rule, found in candidates if found.jump == chain]


def _rules(netfilter: NetfilterSocket, version: int, table: str, chain: str) -> list[RuleState]:
    """No rules where there is no such chain."""
    return nftview.rules(netfilter, version, table, chain).get(chain, [])
