"""What the node's packet filter must hold for podwire's networks, decided without the kernel.

One static ruleset for each family, whatever the number of pods: `node_rules` unites what the
networks of the node want; `kernel.firewall` makes it true, and docs/datapath.md shows it in nft's
language. Only what some network needs is in it: each chain costs every packet something.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from cni_plugin.spec import IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple

# --- names in nftables ------------------------------------------------------------------------

TABLE = "podwire"  # in the families ip and ip6

MASQUERADE = "masqueraded"  # set of addresses: whose are hidden behind the node's
DIRECT = "direct"  # set of addresses: destinations that see the pod's own address
PODS = "pods"  # set of addresses: all pods of this node
HOST_PORTS = "host_ports"  # map: protocol . port -> pod's address . port
HOST_PORTS_IP = "host_ports_ip"  # map: node's address . protocol . port -> pod's address . port
UNMASKED_PORTS = "unmasked_ports"  # set: protocol . port of mappings with snat false
CLOSED = "closed"  # set of links: bridges whose pods the pods of other closed bridges don't reach
WITHIN = "within"  # set: link . link, the same one twice, of closed bridges open in themselves
NODES = "nodes"  # set of addresses: the cluster's nodes, this one among them
OVERLAY_PORTS = "overlay_ports"  # set of UDP ports: where overlays listen, where there are several
POD_LINKS = "pod_links"  # set of links: bridges with pods, where there are several

CHAIN_GUARD = "guard"
CHAIN_OVERLAY = "overlay"
CHAIN_INPUT = "input"
CHAIN_PREROUTING = "prerouting"
CHAIN_OUTPUT = "output"
CHAIN_HOST_PORTS = "host_ports"
CHAIN_POSTROUTING = "postrouting"
CHAIN_FORWARD = "forward"

NOTE = "podwire acceptForwarding"  # the comment of rules in chains of others

OPEN, SAME_BRIDGE, ISOLATED = "open", "same-bridge", "isolated"
INGRESS_POLICIES = (OPEN, SAME_BRIDGE, ISOLATED)
DEFAULT_MARK = 0x2000  # bit 13, the reference's


# --- what must be there -----------------------------------------------------------------------

Range = tuple[int, int]
"""The first and the last address of an interval, as numbers."""

# Nobody answers these from outside, so the pod's own address can stay: multicast and broadcast.
_NEVER_MASQUERADED = {
    4: (ip_network("224.0.0.0/4"), ip_network("255.255.255.255/32")),
    6: (ip_network("ff00::/8"),),
}


class NetworkRules(NamedTuple):
    """What one network of the node wants.

    `subnets` are those of this node's pods; `direct` are further destinations that see a pod's
    own address; `bridge` is "" without one. `host_ports` False: no pod of it ever maps ports.
    `overlay_port` is the UDP port where the overlay may listen, 0 for no overlay; `nodes` are the
    addresses of the cluster's nodes, this one's among them, as far as they are known; `own` are
    those of this node, () while that can't be told.
    """

    subnets: tuple[IPNetwork, ...]
    masquerade: bool = False
    direct: tuple[IPNetwork, ...] = ()
    bridge: str = ""
    ingress_policy: str = OPEN
    accept_forwarding: bool = True
    host_ports: bool = True
    overlay_port: int = 0
    nodes: tuple[IPAddress, ...] = ()
    own: tuple[IPAddress, ...] = ()


class FamilyRules(NamedTuple):
    """What one table holds. Ranges are sorted, don't overlap and don't touch; all else is sorted.

    `nodes` are addresses as numbers; without them there is no overlay in this family, and the rest
    is empty too. `pod_links` are bridges, `pod_veths` is whether pods have links of their own.
    `own` are those of the nodes' addresses that are this node's.
    """

    version: int
    masquerade: tuple[Range, ...]
    direct: tuple[Range, ...]
    pods: tuple[Range, ...]
    host_ports: bool
    closed: tuple[str, ...]
    within: tuple[str, ...]
    nodes: tuple[int, ...] = ()
    overlay_ports: tuple[int, ...] = ()
    pod_links: tuple[str, ...] = ()
    pod_veths: bool = False
    own: tuple[int, ...] = ()

    @property
    def is_guarded(self) -> bool:
        """Whether packets to other nodes' overlays have to be looked at: where sources change,
        a pod's may leave with a node's."""
        return bool(self.nodes) and (self.host_ports or bool(self.masquerade))


class NodeRules(NamedTuple):
    """`families` are those that need a table; `accept` are the pod subnets that others' chains
    must let through; `mark` is the bit that host ports mark packets with on their way."""

    families: tuple[FamilyRules, ...]
    accept: tuple[IPNetwork, ...]
    mark: int = DEFAULT_MARK


def node_rules(networks: Iterable[NetworkRules], mark: int = DEFAULT_MARK) -> NodeRules:
    """The union of what the node's networks want. Of two that share a bridge the stricter
    ingress policy holds."""
    all_networks = tuple(networks)
    families = (_family_rules(version, all_networks) for version in (4, 6))
    return NodeRules(tuple(f for f in families if f is not None), _accepted(all_networks), mark)


def _family_rules(version: int, networks: tuple[NetworkRules, ...]) -> FamilyRules | None:
    here = [n for n in networks if any(subnet.version == version for subnet in n.subnets)]
    masquerading = [n for n in here if n.masquerade]
    closed = {n.bridge for n in here if n.bridge and n.ingress_policy != OPEN}
    isolated = {n.bridge for n in here if n.ingress_policy == ISOLATED}
    host_ports = any(n.host_ports for n in here)
    # The nodes' addresses may be of a family that no pod has: what counts is who carries.
    overlays = [n for n in networks if n.overlay_port]
    nodes = {int(a) for n in overlays for a in n.nodes if a.version == version}
    if not (masquerading or closed or host_ports or nodes):
        return None
    return FamilyRules(
        version=version,
        masquerade=ranges(version, _subnets(masquerading)),
        direct=ranges(version, direct_networks(version, networks)),
        pods=ranges(version, _subnets(here)),
        host_ports=host_ports,
        closed=tuple(sorted(closed)),
        within=tuple(sorted(closed - isolated)),
        nodes=tuple(sorted(nodes)),
        overlay_ports=tuple(sorted({n.overlay_port for n in overlays if nodes})),
        pod_links=tuple(sorted({n.bridge for n in networks if n.bridge and nodes})),
        pod_veths=bool(nodes) and any(not n.bridge for n in networks),
        own=_own(overlays, version) if nodes else (),
    )


def direct_networks(version: int, networks: Iterable[NetworkRules]) -> list[IPNetwork]:
    """The destinations that see a pod's own address; none where no network masquerades."""
    here = [n for n in networks if any(subnet.version == version for subnet in n.subnets)]
    if not any(n.masquerade for n in here):
        return []
    found = [*_subnets(here), *_NEVER_MASQUERADED[version]]
    found += (destination for n in here for destination in n.direct)
    return [network for network in found if network.version == version]


def _own(overlays: Iterable[NetworkRules], version: int) -> tuple[int, ...]:
    """This node's addresses in all inventories; () while one of them does not tell its own."""
    found: set[int] = set()
    for network in overlays:
        if any(a.version == version for a in network.nodes):
            here = {int(a) for a in network.own if a.version == version}
            if not here:
                return ()
            found |= here
    return tuple(sorted(found))


def _subnets(networks: Iterable[NetworkRules]) -> Iterator[IPNetwork]:
    for network in networks:
        yield from network.subnets


def _accepted(networks: tuple[NetworkRules, ...]) -> tuple[IPNetwork, ...]:
    subnets = list(_subnets(n for n in networks if n.accept_forwarding))
    v4 = collapse_addresses(s for s in subnets if isinstance(s, IPv4Network))
    v6 = collapse_addresses(s for s in subnets if isinstance(s, IPv6Network))
    return (*v4, *v6)


def ranges(version: int, networks: Iterable[IPNetwork]) -> tuple[Range, ...]:
    """The addresses of the networks of one family as intervals: the fewest that hold them."""
    bounds = sorted(_range(network) for network in networks if network.version == version)
    merged: list[Range] = []
    for first, last in bounds:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _range(network: IPNetwork) -> Range:
    first = int(network.network_address)
    return first, first + (1 << network.max_prefixlen - network.prefixlen) - 1
