"""The members of a cluster as this node uses them: who holds which addresses and pod subnets.

Pure, and for one thread: changes of a source go in, nodes for the inventory and refusals come out.

Rules:
- Who came first keeps it: members rank by `since`, then by name. A claim is an address or a pod
  subnet. In the order of rank, the addresses of a member before its subnets, each claim stands
  unless it meets one that stands already. Hence the outcome depends on the members that there are
  now, and on no order in which they were heard of; a refused claim stands as soon as what it met
  is gone.
- Only what meets is refused: a node stays with its other subnets and addresses. One without any
  address that stands is no node of the inventory; its subnets are still its own.
- Networks either contain each other or share nothing, so a change concerns no claims but those
  within the widest network around it. Usually that is one, and a change costs microseconds, however
  many nodes there are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from cni_plugin.fields import shown
from cni_plugin.sources import Change, Gone, Listed, Member, Put
from cni_plugin.spec import IPAddress, IPNetwork
from ipam import nodes, ranges
from ipam.nodes import Node

OVERLAP, INVALID, NO_ADDRESS = "PodCIDROverlap", "PodCIDRInvalid", "NoAddress"

_LINE = {4: 1 << 128, 6: 1 << 129}  # where a family begins on the number line of all addresses


class Refusal(NamedTuple):
    """What of a member is not used: `reason` is one of the three words above; `message` names both
    owners, the subnets, and what to do. `holder` is the node that came first, "" for none."""

    name: str
    reason: str
    message: str
    holder: str = ""


class _Claim(NamedTuple):
    """A network of a member's, in the order in which claims are heard; one of `pods` is a pod
    subnet, else an address. `start` is the network's first address on the number line of all, and
    `size` the number of host bits."""

    since: str
    name: str
    pods: bool
    position: int
    start: int
    size: int
    held: IPAddress | IPNetwork


_Place = tuple[int, int]  # start and size
Local = tuple[tuple[str, IPNetwork], ...]  # networks of this node, with the names of their links


def _claims(member: Member, local: Local) -> Iterator[_Claim]:
    """What a member claims, in order, as far as it can be anybody's."""
    since, name = member.since, member.name
    for position, address in enumerate(dict.fromkeys(member.addresses)):
        if not nodes.is_unreachable(address):
            start = int(address) + _LINE[address.version]
            yield _Claim(since, name, False, position, start, 0, address)
    for position, subnet in enumerate(dict.fromkeys(member.pod_cidrs)):
        if not _unusable(subnet, local):
            start = int(subnet.network_address) + _LINE[subnet.version]
            size = subnet.max_prefixlen - subnet.prefixlen
            yield _Claim(since, name, True, position, start, size, subnet)


def _unusable(subnet: IPNetwork, local: Local) -> str:
    """Why pods here or elsewhere can't have addresses of the subnet; "" when they can."""
    if not nodes.is_plain_cidr(subnet) and (special := ranges.reserved(subnet)):
        return f"overlaps {special}, which no host has addresses of"
    if ranges.is_mapped(subnet):
        return "is IPv4 mapped into IPv6"
    if ranges.too_small(subnet):
        return "has no room for pods"
    for what, network in local:
        if network.version == subnet.version and network.overlaps(subnet):
            return f"overlaps {network} of {what}"
    return ""


class _Claims:
    """Claims by where they lie."""

    def __init__(self) -> None:
        self._at: dict[_Place, list[_Claim]] = {}
        self._sizes: dict[int, int] = {}  # how many places there are of each size
        self._places: list[_Place] = []  # sorted; with -size, so that the wider one comes first

    def add(self, claim: _Claim) -> None:
        place = claim.start, claim.size
        held = self._at.get(place)
        if held is not None:
            held.append(claim)
            return
        self._at[place] = [claim]
        self._sizes[claim.size] = self._sizes.get(claim.size, 0) + 1
        insort(self._places, (claim.start, -claim.size))

    def remove(self, claim: _Claim) -> None:
        place = claim.start, claim.size
        held = self._at[place]
        held.remove(claim)
        if held:
            return
        del self._at[place]
        del self._places[bisect_left(self._places, (claim.start, -claim.size))]
        self._sizes[claim.size] -= 1
        if not self._sizes[claim.size]:
            del self._sizes[claim.size]

    def around(self, start: int, size: int) -> Iterator[_Claim]:
        """The claims that contain the network, those to the very same one included."""
        for wider in self._sizes:
            if wider >= size:
                yield from self._at.get((start >> wider << wider, wider), ())

    def widest(self, start: int, size: int) -> _Place:
        """The widest network around this one that somebody claims; itself where there is none."""
        for wider in sorted(self._sizes, reverse=True):
            place = start >> wider << wider, wider
            if wider > size and place in self._at:
                return place
        return start, size

    def within(self, start: int, size: int) -> Iterator[_Claim]:
        """The claims that the network contains, those to the very same one included."""
        end = start + (1 << size)
        for index in range(bisect_left(self._places, (start, -size)), len(self._places)):
            first, minus_size = self._places[index]
            if first >= end:
                return
            yield from self._at[first, -minus_size]

    def meeting(self, claim: _Claim) -> _Claim | None:
        """The first in order of those that share an address with this one; None if none does."""
        found = [*self.around(claim.start, claim.size), *self.within(claim.start, claim.size)]
        return min(found, key=_order, default=None)


def _order(claim: _Claim) -> tuple[str, str, bool, int]:
    return claim[:4]


class Membership:
    """The table of members. One thread uses it; `own_name` is this node's name."""

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._local: Local = ()
        self._members: dict[str, Member] = {}
        self._claims = _Claims()
        self._claimed: dict[str, tuple[_Claim, ...]] = {}  # by whom
        self._met: dict[_Claim, _Claim] = {}  # refused claims, with what they met
        self._macs: dict[str, set[str]] = {}  # which names say that their VTEP has it
        self._nodes: dict[str, Node] = {}
        self._names: list[str] = []  # of the nodes, sorted
        self._refusals: dict[str, tuple[Refusal, ...]] = {}

    # --- what goes in --------------------------------------------------------------------------

    def apply(self, change: Change) -> bool:
        """Take a change in; whether the nodes or the refusals have changed.

        `Away` changes nothing: what was told stays true.
        """
        if isinstance(change, Listed):
            listed: dict[str, Member | None] = dict.fromkeys(self._members)
            listed.update((member.name, member) for member in change.members)
            return self._update(listed)
        if isinstance(change, Put):
            return self._update({change.member.name: change.member})
        if isinstance(change, Gone):
            return self._update({change.name: None})
        return False

    def keep_out(self, networks: Collection[tuple[str, IPNetwork]]) -> bool:
        """Refuse pod subnets that overlap these networks, pairs of whose they are and the network;
        whether anything has changed. The caller leaves out links that carry pod subnets by right.
        """
        local = tuple(sorted(set(networks), key=str))
        if local == self._local:
            return False
        members = dict(self._members)
        former = self.nodes(), self.refusals()
        self._update(dict.fromkeys(members))
        self._local = local
        self._update(members)
        return former != (self.nodes(), self.refusals())

    def _update(self, members: Mapping[str, Member | None]) -> bool:
        """Put members in the place of those of the same names; None for those that are gone."""
        changed = {name: new for name, new in members.items() if self._members.get(name) != new}
        concerned = set(changed)
        places: set[_Place] = set()
        for name in changed:
            former = self._members.pop(name, None)
            if former is not None:
                concerned |= self._note_mac(former, there=False)
                for claim in self._claimed.pop(name):
                    self._claims.remove(claim)
                    self._met.pop(claim, None)
                    places.add((claim.start, claim.size))
        for name, member in changed.items():
            if member is not None:
                self._members[name] = member
                concerned |= self._note_mac(member, there=True)
                self._claimed[name] = tuple(_claims(member, self._local))
                for claim in self._claimed[name]:
                    self._claims.add(claim)
                    places.add((claim.start, claim.size))
        for place in {self._claims.widest(*place) for place in places}:
            concerned |= self._judge(place)
        return sum(map(self._settle, concerned)) > 0

    def _note_mac(self, member: Member, there: bool) -> frozenset[str]:
        """That the member says, or no longer, what its VTEP has; the names of all who say the same.

        A link-layer address that several have is nobody's: each has the one that follows from its
        name, and nobody gets another's packets by what it says of itself.
        """
        if not member.vtep_mac:
            return frozenset()
        names = self._macs.setdefault(member.vtep_mac, set())
        (names.add if there else names.discard)(member.name)
        if not names:
            del self._macs[member.vtep_mac]
        return frozenset(names)

    def _judge(self, place: _Place) -> set[str]:
        """Decide which claims within a network stand; the names of those for whom that is new."""
        concerned = set()
        claims = sorted(self._claims.within(*place), key=_order)
        standing = _Claims()
        for claim in claims:
            met = standing.meeting(claim) if len(claims) > 1 else None
            if self._met.get(claim) != met:
                concerned.add(claim.name)
            if met is None:
                self._met.pop(claim, None)
                standing.add(claim)
            else:
                self._met[claim] = met
        return concerned

    def _settle(self, name: str) -> bool:
        """Work out what follows for one name; whether that is new."""
        member = self._members.get(name)
        node = None if member is None else self._node(member)
        refusals = () if member is None else self._refused(member)
        former = self._nodes.get(name)
        if former == node and self._refusals.get(name, ()) == refusals:
            return False
        if node is None and former is not None:
            del self._nodes[name], self._names[bisect_left(self._names, name)]
        elif node is not None:
            if former is None:
                insort(self._names, name)
            self._nodes[name] = node
        self._refusals.pop(name, None)
        if refusals:
            self._refusals[name] = refusals
        return True

    # --- what comes out ------------------------------------------------------------------------

    def own(self) -> Member | None:
        """This node, with the addresses and subnets of it that stand; None while it is no member.

        It may have no address, and is no node of the inventory then.
        """
        member = self._members.get(self._own_name)
        if member is None:
            return None
        addresses, subnets = self._standing(member)
        return member._replace(addresses=addresses, pod_cidrs=subnets)

    def told_addresses(self) -> tuple[IPAddress, ...]:
        """This node's addresses, whether they stand or not."""
        member = self._members.get(self._own_name)
        return member.addresses if member is not None else ()

    def refusals(self) -> tuple[Refusal, ...]:
        """What of the members is not used now, sorted."""
        return tuple(sorted(each for found in self._refusals.values() for each in found))

    def nodes(self) -> tuple[Node, ...]:
        """The nodes for the inventory, by the order of their names."""
        return tuple(map(self._nodes.__getitem__, self._names))

    def _standing(self, member: Member) -> tuple[tuple[IPAddress, ...], tuple[IPNetwork, ...]]:
        """The addresses and the subnets that are the member's."""
        addresses: list[IPAddress] = []
        subnets: list[IPNetwork] = []
        for claim in self._claimed[member.name]:
            if claim in self._met:
                continue
            if isinstance(claim.held, IPv4Network | IPv6Network):
                subnets.append(claim.held)
            else:
                addresses.append(claim.held)
        return tuple(addresses), tuple(subnets)

    def _node(self, member: Member) -> Node | None:
        addresses, subnets = self._standing(member)
        if not addresses or not nodes.is_name(member.name):
            return None
        overlay, mac = member.overlay_address, member.vtep_mac
        own_mac = nodes.is_mac(mac) and len(self._macs[mac]) == 1
        return Node(
            member.name,
            addresses,
            (),
            subnets,
            None if overlay is None or nodes.is_unreachable(overlay) else overlay,
            mac if own_mac else "",
        )

    def _refused(self, member: Member) -> tuple[Refusal, ...]:
        found = list(_unclaimed(member, self._local))
        for claim in self._claimed[member.name]:
            met = self._met.get(claim)
            if met is not None:
                found.append(_refusal(claim, met))
        return tuple(sorted(found))


# --- why something is not used ----------------------------------------------------------------


def _unclaimed(member: Member, local: Local) -> Iterator[Refusal]:
    """What of a member can't be anybody's."""
    name = member.name
    if not nodes.is_name(name):
        remedy = "rename it: letters, digits, '-', '_' and '.', a letter or digit first"
        yield Refusal(name, NO_ADDRESS, f"node {shown(name)}: no name for a node; {remedy}")
    if not member.addresses:
        remedy = "see why the node's agent (kubelet: --node-ip) reports none"
        yield Refusal(name, NO_ADDRESS, f"node {name} has no address; {remedy}")
    for address in member.addresses:
        if nodes.is_unreachable(address):
            what = f"node {name}: no other node can reach the address {address}"
            remedy = "give the node an address of its network"
            yield Refusal(name, NO_ADDRESS, f"{what}; {remedy}")
    for subnet in member.pod_cidrs:
        if reason := _unusable(subnet, local):
            what = f"podCIDR {subnet} of node {name} {reason}"
            yield Refusal(name, INVALID, f"{what}; choose another range for the cluster's pods")
    if member.problem:
        yield Refusal(name, INVALID, f"node {name}: {member.problem}")


def _refusal(claim: _Claim, met: _Claim) -> Refusal:
    """Of a claim that met an earlier one."""
    name, other = claim.name, "itself" if met.name == claim.name else f"node {met.name}"
    first = "" if met.name == name else ", which came first"
    anew = f"register node {name} anew, so that it gets another, or remove {other} if it is gone"
    if claim.pods and met.pods:
        what = f"podCIDR {claim.held} of node {name} overlaps {met.held} of {other}{first}"
        return Refusal(name, OVERLAP, f"{what}; {anew}", met.name)
    if claim.pods:
        what = f"podCIDR {claim.held} of node {name} holds the address {met.held} of {other}{first}"
        remedy = "choose podCIDRs outside the nodes' networks"
        return Refusal(name, INVALID, f"{what}; {remedy}", met.name)
    what = f"the address {claim.held} of node {name} is that of {other}{first}"
    if met.pods:
        what = f"the address {claim.held} of node {name} is inside podCIDR {met.held} of {other}"
        what += first
    remedy = f"give node {name} another, or remove {other} if it is gone"
    return Refusal(name, NO_ADDRESS, f"{what}; {remedy}", met.name)
