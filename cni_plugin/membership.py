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
- What members announce of their ends of the overlay comes after that, and refuses nobody's address
  or subnet (`announced`). What this node announced itself is left out: it knows better what it has,
  whoever wrote there something else.
- A change concerns no claims but those within the widest network around it. Usually that is one,
  and a change costs microseconds, however many nodes there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from functools import partial
from ipaddress import IPv4Network, IPv6Network

from cni_plugin import refusals
from cni_plugin.announced import Announced, Held
from cni_plugin.claims import Claim, Claims, Local, Place, claims_of, place_of
from cni_plugin.crossnode import CrossNode
from cni_plugin.refusals import INVALID as INVALID
from cni_plugin.refusals import NO_ADDRESS as NO_ADDRESS
from cni_plugin.refusals import OVERLAP as OVERLAP
from cni_plugin.refusals import VTEP as VTEP
from cni_plugin.refusals import Refusal as Refusal
from cni_plugin.sources import Change, Gone, Listed, Member, Put
from cni_plugin.spec import IPAddress, IPNetwork
from ipam import nodes
from ipam.nodes import Node


class Membership:
    """The table of members. One thread uses it; `own_name` is this node's name."""

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._vni = CrossNode().vni
        self._local: Local = ()
        self._members: dict[str, Member] = {}
        self._claims = Claims()
        self._claimed: dict[str, tuple[Claim, ...]] = {}  # by whom
        self._unclaimed: set[str] = set()  # who has something that can't be claimed
        self._met: dict[Claim, Claim] = {}  # refused claims, with what they met
        self._announced = Announced()
        self._names: list[str] = []  # of the nodes, sorted
        self._nodes: list[Node] = []  # in the same order
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
        names = set(self._unclaimed)
        for _, network in set(local).symmetric_difference(self._local):
            place = place_of(network)
            names.update(claim.name for claim in self._claims.around(*place))
            names.update(claim.name for claim in self._claims.within(*place))
            for end in (network.network_address, network.broadcast_address):
                names |= self._announced.within(place_of(end))
        return self._anew(names, partial(setattr, self, "_local", local))

    def overlay_of(self, vni: int) -> bool:
        """Which overlay VTEPs' addresses are derived for; whether anything has changed. Without
        this it is the usual one."""
        if vni == self._vni:
            return False
        return self._anew(set(self._members), partial(setattr, self, "_vni", vni))

    def _anew(self, names: Collection[str], change: Callable[[], None]) -> bool:
        """Change what these members are judged by."""
        members = {name: self._members[name] for name in names}
        former = self.nodes(), self.refusals()
        self._update(dict.fromkeys(members))
        change()
        self._update(members)
        return former != (self.nodes(), self.refusals())

    def _update(self, members: Mapping[str, Member | None]) -> bool:
        """Put members in the place of those of the same names; None for those that are gone."""
        changed = {name: new for name, new in members.items() if self._members.get(name) != new}
        concerned = set(changed)
        places: set[Place] = set()
        for name in changed:
            former = self._members.pop(name, None)
            self._unclaimed.discard(name)
            if former is not None:
                concerned |= self._note(former, there=False)
                for claim in self._claimed.pop(name):
                    self._claims.remove(claim)
                    self._met.pop(claim, None)
                    places.add(claim.place)
        for name, member in changed.items():
            if member is not None:
                self._members[name] = member
                concerned |= self._note(member, there=True)
                self._claimed[name] = tuple(claims_of(member, self._local))
                if len(self._claimed[name]) < len(member.addresses) + len(member.pod_cidrs):
                    self._unclaimed.add(name)
                for claim in self._claimed[name]:
                    self._claims.add(claim)
                    places.add(claim.place)
        for place in {self._claims.widest(*place) for place in places}:
            concerned |= self._judge(place)
            concerned |= self._announced.within(place)
        return sum(map(self._settle, concerned)) > 0

    def _note(self, member: Member, there: bool) -> set[str]:
        """That a member is there or no more; for whom what it announces makes a difference."""
        concerned = self._announced.note(member, self._vni, there)
        if member.name == self._own_name:  # whose addresses count even where they don't stand
            for address in member.addresses:
                concerned |= self._announced.within(place_of(address))
        return concerned

    def _judge(self, place: Place) -> set[str]:
        """Decide which claims within a network stand; the names of those for whom that is new."""
        concerned = set()
        claims = sorted(self._claims.within(*place), key=_order)
        standing = Claims()
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
        node, found = (None, ()) if member is None else self._work_out(member)
        at = bisect_left(self._names, name)
        former = self._nodes[at] if at < len(self._names) and self._names[at] == name else None
        if former == node and self._refusals.get(name, ()) == found:
            return False
        if node is None:
            if former is not None:
                del self._names[at], self._nodes[at]
        elif former is None:
            self._names.insert(at, name)
            self._nodes.insert(at, node)
        elif former != node:
            self._nodes[at] = node
        self._refusals.pop(name, None)
        if found:
            self._refusals[name] = found
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
        return tuple(self._nodes)

    def first(self, count: int) -> list[str]:
        """The names of the first few of them."""
        return self._names[:count]

    # --- one member ----------------------------------------------------------------------------

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

    def _work_out(self, member: Member) -> tuple[Node | None, tuple[Refusal, ...]]:
        """The member as a node of the inventory, and what of it is refused."""
        found = list(refusals.of_member(member, self._local, self._own_name))
        for claim in self._claimed[member.name]:
            met = self._met.get(claim)
            if met is not None:
                found.append(refusals.of_claim(claim, met))
        addresses, subnets = self._standing(member)
        if not addresses or not nodes.is_name(member.name):
            return None, tuple(sorted(found))
        node = Node(member.name, addresses, (), subnets)
        if member.name != self._own_name:
            own = self.told_addresses()
            held = Held(self._claims, self._met, self._local, own, self._own_name)
            no_mac = self._announced.mac_refusal(member)
            no_overlay = self._announced.overlay_refusal(member, addresses, held)
            found += filter(None, (no_mac, no_overlay))
            node = node._replace(
                overlay_address=member.overlay_address if no_overlay is None else None,
                vtep_mac=member.vtep_mac if no_mac is None else "",
            )
        return node, tuple(sorted(found))


def _order(claim: Claim) -> tuple[str, str, bool, int]:
    return claim.order
