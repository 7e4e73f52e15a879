"""Whether pod subnets are their nodes' own: overlaps are found and refused, both owners named.

The check puts both families on one number line and sweeps it once: of all ranges that begin
before one, those of a kind overlap it if the furthest-reaching does. 5,000 nodes cost a sort of
numbers; who holds them is looked up when something overlaps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter

from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam.inventory import Inventory, Node

Span = tuple[int, int]
"""The first and the last address of a range, on the line of `span`."""


class _Claim(NamedTuple):
    """A range of addresses that somebody holds; `first` and `last` are on the line of `span`."""

    first: int
    last: int
    pod: bool
    mine: bool
    node: str
    label: str  # what a message puts in front of `held`
    held: IPNetwork | IPAddress

    def __str__(self) -> str:
        return f"{self.label}{self.held} of node {self.node}"


def refuse_overlaps(
    inventory: Inventory, own: Node, local_networks: Collection[tuple[str, IPNetwork]] = ()
) -> None:
    """Raise CniError 106, naming both holders, when a pod subnet overlaps what is not its own.

    That is another pod subnet (of any two nodes: two peers that claim one subnet make the routes
    ambiguous here, too), the address of a node, or a node network: one the inventory knows by its
    prefix, or one of `local_networks`, (link, network) pairs connected to this node. The caller
    leaves the pod bridge out of these. Overlaps that involve this node are reported first.
    """
    if not _any_conflict(inventory.nodes, [network for _, network in local_networks]):
        return
    conflict = _first_conflict(_claims(inventory, own, local_networks))
    if conflict is None:
        return
    subject, rival = conflict
    if not subject.pod or (rival.pod and rival.mine and not subject.mine):
        subject, rival = rival, subject
    itself = " itself" if subject.node == rival.node else ""
    raise CniError(
        Code.SUBNET_OVERLAP,
        f"pod subnet {subject} overlaps {rival}{itself}",
        f"give each node a podCIDR of its own in {inventory.source}"
        if rival.pod
        else f"choose podCIDRs outside the networks of the nodes in {inventory.source}",
    )


def _any_conflict(nodes: Iterable[Node], others: Iterable[IPNetwork]) -> bool:
    """Whether a pod subnet overlaps anything: the same sweep without the names."""
    networks = set(others)
    ranges: list[tuple[int, int, bool]] = []
    for node in nodes:
        networks.update(node.networks)
        ranges += ((*span(cidr), True) for cidr in node.pod_cidrs)
        for address in node.addresses:
            at = int(address) + (address.version << 128)
            ranges.append((at, at, False))
    ranges += ((*span(network), False) for network in networks)
    ranges.sort()
    furthest = furthest_pod = -1
    for first, last, pod in ranges:
        if first <= (furthest if pod else furthest_pod):
            return True
        if last > furthest:
            furthest = last
        if pod and last > furthest_pod:
            furthest_pod = last
    return False


def _claims(
    inventory: Inventory, own: Node, local_networks: Collection[tuple[str, IPNetwork]]
) -> Iterator[_Claim]:
    for node in inventory.nodes:
        name, mine = node.name, node.name == own.name
        for cidr in node.pod_cidrs:
            yield _Claim(*span(cidr), True, mine, name, "", cidr)
        for network in node.networks:
            yield _Claim(*span(network), False, mine, name, "the node network ", network)
        for address in node.addresses:
            yield _Claim(*span_of_address(address), False, mine, name, "the address ", address)
    for link, network in local_networks:
        yield _Claim(*span(network), False, True, own.name, f"link {link}'s network ", network)


def span(network: IPNetwork) -> Span:
    """First and last address on one number line, where IPv4 and IPv6 never meet."""
    first = int(network.network_address) + (network.version << 128)
    return first, first + (1 << (network.max_prefixlen - network.prefixlen)) - 1


def span_of_address(address: IPAddress) -> Span:
    """The same of one address."""
    at = int(address) + (address.version << 128)
    return at, at


def _first_conflict(claims: Iterable[_Claim]) -> tuple[_Claim, _Claim] | None:
    """A pod subnet and what it overlaps, in either order; one that involves this node if any."""
    furthest: dict[tuple[bool, bool], _Claim] = {}
    found: tuple[_Claim, _Claim] | None = None
    for claim in sorted(claims, key=attrgetter("first")):
        for earlier in furthest.values():
            if earlier.last < claim.first or not (earlier.pod or claim.pod):
                continue
            if earlier.mine or claim.mine:
                return claim, earlier
            found = found or (claim, earlier)
        kind = (claim.pod, claim.mine)
        if kind not in furthest or claim.last > furthest[kind].last:
            furthest[kind] = claim
    return found


def refuse_foreign_subnet(inventory: Inventory, own: Node, subnet: IPNetwork) -> None:
    """Check a subnet that the ipam section of this node configures against the inventory, in which
    nothing overlaps: what is inside of a subnet of this node's is nobody else's.

    Raises CniError: 106 when it overlaps another node's pod subnet, 7 when it is not inside one
    of this node's own, because no other node would have a route to it.
    """
    first, last = span(subnet)
    if any(start <= first and last <= end for start, end in map(span, own.pod_cidrs)):
        return
    for node in inventory.nodes:
        if node.name == own.name:
            continue
        for cidr in node.pod_cidrs:
            start, end = span(cidr)
            if start <= last and first <= end:
                raise CniError(
                    Code.SUBNET_OVERLAP,
                    f"ipam: subnet {subnet} of node {own.name} overlaps {cidr} of node {node.name}",
                    f"use a podCIDR of node {own.name} in {inventory.source}, or leave the ranges"
                    " out: they are then taken from there",
                )
    raise CniError(
        Code.INVALID_CONFIG,
        f"ipam: subnet {subnet} is not inside a podCIDR of node {own.name}"
        f" ({', '.join(map(str, own.pod_cidrs)) or 'it has none'})",
        f"the other nodes have no route to it: add it to podCIDRs in {inventory.source}",
    )
