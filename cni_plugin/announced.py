"""What members announce of their ends of the overlay, and whether it can be theirs. Pure.

Nobody gets another's packets by what it says of itself:
- A link-layer address that follows from a member's name is that member's. Any other is the first's
  that announces it: that of a node of another program follows from nothing.
- Where the overlay goes to is nobody else's address and in nobody's pod subnet; where it is none of
  the member's own either, it is the first's that announces it.
What is refused is no reason to refuse more: the member has what follows from its name, and its own
address.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from cni_plugin import refusals
from cni_plugin.claims import Claim, Claims, Local, Place, claim_of_address
from cni_plugin.refusals import Refusal
from cni_plugin.sources import Member
from cni_plugin.spec import IPAddress, IPNetwork
from ipam import nodes
from ipam.peers import vtep_mac

_Rank = tuple[str, str]  # since and name


class Held(NamedTuple):
    """What else there is: the claims of all members, those of them that are refused, the networks
    that are kept out, this node's addresses, and its name."""

    claims: Claims
    met: Mapping[Claim, Claim]
    local: Local
    own: Collection[IPAddress]
    name: str


class Announced:
    """What all members announce."""

    def __init__(self) -> None:
        self._macs: dict[str, set[_Rank]] = {}  # who says that its VTEP has it
        self._derived: dict[str, set[_Rank]] = {}  # from whose names it follows; mostly one
        self._overlay = Claims()  # where members want the overlay to be sent to

    def note(self, member: Member, vni: int, there: bool) -> set[str]:
        """That a member is there, or no more; for whom that may make a difference."""
        rank = (member.since, member.name)
        derived = vtep_mac(vni, member.name)
        _note(self._derived, derived, rank, there)
        ranks = set(self._macs.get(derived, ()))
        if mac := member.vtep_mac:
            ranks |= _note(self._macs, mac, rank, there)
        concerned = {name for _, name in ranks}
        if member.overlay_address is not None:
            claim = claim_of_address(member, member.overlay_address)
            (self._overlay.add if there else self._overlay.remove)(claim)
            concerned |= self.within(claim.place)
        return concerned

    def within(self, place: Place) -> set[str]:
        """Who wants the overlay to be sent into a network."""
        return {claim.name for claim in self._overlay.within(*place)}

    def mac_refusal(self, member: Member) -> Refusal | None:
        """Why a member can't have the link-layer address that it announces; None where it can, or
        announces none."""
        mac = member.vtep_mac
        holders = self._derived.get(mac, ())
        if not mac or (member.since, member.name) in holders:
            return None
        if not nodes.is_mac(mac):
            return refusals.of_mac(member, "which no single station can have")
        if holders:
            _, holder = min(holders)
            return refusals.of_mac(member, f"which follows from the name of node {holder}", holder)
        _, first = min(self._macs[mac])
        if first == member.name:
            return None
        return refusals.of_mac(member, f"which node {first} has, which came first", first)

    def overlay_refusal(
        self, member: Member, addresses: Collection[IPAddress], held: Held
    ) -> Refusal | None:
        """Why the overlay can't be sent where a member wants it, which has these addresses; None
        where it can, or nothing is announced."""
        said = member.overlay_address
        if said is None or said in addresses:
            return None
        if why := _unusable(said, addresses):
            return refusals.of_overlay(member, why)
        if why := _in_the_way(said, held):
            return refusals.of_overlay(member, why, held.name)
        claim = claim_of_address(member, said)
        around = (each for each in held.claims.around(*claim.place) if each not in held.met)
        met = min(around, key=_order, default=None)
        if met is not None:
            what = f"which is inside podCIDR {met.held}" if met.pods else "which is the address"
            return refusals.of_overlay(member, f"{what} of node {met.name}", met.name)
        first = min(self._overlay.at(claim.place), key=_order).name
        if first == member.name:
            return None
        return refusals.of_overlay(member, f"as node {first} does, which came first", first)


def _order(claim: Claim) -> tuple[str, str, bool, int]:
    return claim.order


def _unusable(said: IPAddress, addresses: Collection[IPAddress]) -> str:
    """Why nobody could be sent the overlay there; "" if one can."""
    if nodes.is_unreachable(said):
        return "where no other node can send to"
    if all(address.version != said.version for address in addresses):
        return f"and has no IPv{said.version} address"
    return ""


def _in_the_way(said: IPAddress, held: Held) -> str:
    """Why this node can't send it there; "" if it can."""
    if said in held.own:
        return "which is the address of the node that was to send there"
    for what, network in held.local:
        if _is_nodes(said, network):
            return f"which is no node's address in {network} ({what})"
    return ""


def _is_nodes(address: IPAddress, network: IPNetwork) -> bool:
    """Whether the address is one of a network that no node can have: where that is a server's
    address alone, that; else the broadcast address, and the network's own."""
    if network.version != address.version or address not in network:
        return False
    if network.prefixlen == network.max_prefixlen:
        return True
    ends = network.network_address, network.broadcast_address
    return network.version == 4 and network.prefixlen < 31 and address in ends


def _note(known: dict[str, set[_Rank]], mac: str, rank: _Rank, there: bool) -> set[_Rank]:
    """That one more has it, or one less; who had or has it besides."""
    those = known.setdefault(mac, set())
    (those.add if there else those.discard)(rank)
    if not those:
        del known[mac]
    return those
