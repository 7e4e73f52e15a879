"""A node's nftables: podwire's firewall opened there, and what `nft` and `iptables-nft` show."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

from cni_plugin.kernel.firewall import Firewall
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.ruleset import NetworkRules, NodeRules, node_rules
from tests.support.netns import Namespace


class NodeFirewall(Firewall):
    """A firewall whose every use is in the node's namespace, as a process of the node's is."""

    def __init__(self, node: Namespace) -> None:
        self._node = node
        with node.entered():
            super().__init__(NetfilterSocket())

    def ensure(self, *args: Any, **keys: Any) -> bool:
        with self._node.entered():
            return super().ensure(*args, **keys)

    def differences(self, rules: NodeRules) -> list[str]:
        with self._node.entered():
            return super().differences(rules)


def firewall(node: Namespace) -> NodeFirewall:
    """As of a process that has just started on the node; its socket lives as long as it does."""
    return NodeFirewall(node)


def rules(*subnets: str, **keys: Any) -> NodeRules:
    """Those of one network with these subnets; `direct` are CIDRs as text."""
    return node_rules([network(*subnets, **keys)])


def network(*subnets: str, direct: tuple[str, ...] = (), **keys: Any) -> NetworkRules:
    return NetworkRules(
        tuple(map(ip_network, subnets)), direct=tuple(map(ip_network, direct)), **keys
    )


def nft(node: Namespace, *commands: str) -> None:
    """Run nft commands, in one transaction."""
    node.run("nft", "-f", "-", stdin="\n".join(commands))


def listing(node: Namespace, what: str = "ruleset") -> str:
    """What nft shows, without the state of counters."""
    return node.run("nft", "-s", "list", *what.split()).stdout


def tables(node: Namespace) -> set[tuple[str, str]]:
    shown = json.loads(node.run("nft", "-j", "list", "tables").stdout)["nftables"]
    return {(t["table"]["family"], t["table"]["name"]) for t in shown if "table" in t}


def bridge_netfilter(node: Namespace, on: bool, bridge: str = "") -> None:
    """Whether what bridges forward passes the packet filter of IP: the node's default, or that of
    this bridge. Off on both is as on a node without the module br_netfilter."""
    for key in ("iptables", "ip6tables"):
        if bridge:
            key, value = f"nf_call_{key}", str(int(on))
            node.run("ip", "link", "set", bridge, "type", "bridge", key, value)
        else:
            name = f"net/bridge/bridge-nf-call-{key}"
            assert node.sysctl(name), "kernel: no br_netfilter"
            node.run("sysctl", "-qw", f"{name}={int(on)}")
