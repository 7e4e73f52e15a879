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
    that are kept out, and this node's addresses."""

    claims: Claims
    met: Mapping[Claim, Claim]
    local: Local
    own: Collection[IPAddress]


class Announced:
    """What all members announce."""

    def __init__(self) -> None:
        self._macs: dict[str, set[_Rank]] = {}  # who says that its VTEP has it
        self._derived: dict[str, str] = {}  # from which member's name it follows
        self._overlay = Claims()  # where members want the overlay to be sent to

    def note(self, member: Member, vni: int, there: bool) -> set[str]:
        """That a member is there, or no more; for whom that may make a difference."""
        derived = vtep_mac(vni, member.name)
        if there:
            self._derived[derived] = member.name
        else:
            del self._derived[derived]
        ranks = set(self._macs.get(derived, ()))
        if mac := member.vtep_mac:
            said = self._macs.setdefault(mac, set())
            (said.add if there else said.discard)((member.since, member.name))
            ranks |= said
            if not said:
                del self._macs[mac]
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
        holder = self._derived.get(mac, "")
        if not mac or holder == member.name:
            return None
        if not nodes.is_mac(mac):
            return refusals.of_mac(member, "which no single station can have")
        if holder:
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
        if why := _unusable(said, addresses, held):
            return refusals.of_overlay(member, why)
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


def _unusable(said: IPAddress, addresses: Collection[IPAddress], held: Held) -> str:
    """Why nobody could be sent the overlay there, or not by this member's peers; "" if one can."""
    if nodes.is_unreachable(said):
        return "where no other node can send to"
    if said in held.own:
        return "which is the address of the node that was to send there"
    if all(address.version != said.version for address in addresses):
        return f"and has no IPv{said.version} address"
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
