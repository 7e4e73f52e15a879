"""Which ports of the node the Go reference plugin portmap leads to its pods.

With iptables-nft CNI-HOSTPORT-DNAT has the ports of each container, and leads to a chain that has
the addresses of the node; with nftables (from 1.6 on) one chain has both.
"""

from __future__ import annotations

from collections.abc import Iterator

from cni_plugin.hostports import PROTOCOLS, HostPort
from cni_plugin.kernel import goplugins
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel.goplugins import DNAT_CHAIN, HOSTPORTS_CHAIN, HOSTPORTS_TABLE, NAT
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftrules import Terms, about_port, terms

_PLACES = ((NAT, DNAT_CHAIN), (HOSTPORTS_TABLE, HOSTPORTS_CHAIN))


def holder(netfilter: NetfilterSocket, port: HostPort) -> str:
    """The chain that takes packets to this port, with its family and table; "" for none.

    Where portmap has no chains that costs one question and no more.
    """
    for table, chain in goplugins.existing(netfilter, port.version, _PLACES):
        for found in _about(netfilter, port, table, chain):
            target = found.jump or chain
            if not found.jump:
                taken = _takes(found, port)
            else:
                asked = list(_about(netfilter, port, table, target))
                taken = not asked or any(_takes(each, port) for each in asked)
            if taken:
                return f"chain {nft.family_name(port.version)} {table} {target}"
    return ""


def _about(netfilter: NetfilterSocket, port: HostPort, table: str, chain: str) -> Iterator[Terms]:
    """The rules of the chain that are for this port, of whichever address."""
    asked = nft.dump_rules(port.version, table, chain)
    for rule in netfilter.dump_with(asked, *about_port(port.host_port)):
        if rule.get_attr("NFTA_RULE_CHAIN") != chain or rule.get_attr("NFTA_RULE_TABLE") != table:
            continue  # old kernels list all
        found = terms(rule)
        if found.protocol == PROTOCOLS[port.protocol] and port.host_port in found.ports:
            yield found


def _takes(found: Terms, port: HostPort) -> bool:
    """Whether a packet could be for both: on one of two different addresses it can't."""
    if port.host_ip is None or not found.destination:
        return True
    return found.destination == port.host_ip.packed
