"""`kernel.hostports` on a node by itself: what it works with, records for it, what nft shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any, NamedTuple

from cni_plugin import hostports
from cni_plugin.fields import Fields
from cni_plugin.hostports import PortRecord
from cni_plugin.kernel.firewall import Firewall
from cni_plugin.kernel.hostports import HostPorts
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.statefolder import StateFolder, node_key
from cni_plugin.kernel.sysctl import Sysctls
from cni_plugin.ruleset import NetworkRules, node_rules
from cni_plugin.spec import Attachment
from tests.support.netns import Namespace

SUBNETS = (ip_network("10.244.0.0/24"), ip_network("fd00:10:244::/64"))


class Ways(NamedTuple):
    """The node's host ports, and what they work with."""

    node: Namespace
    ports: HostPorts
    folder: StateFolder
    route_socket: RouteSocket


@contextmanager
def opened(node: Namespace) -> Iterator[Ways]:
    """On a node with podwire's rules and a bridge. The caller is in the node's namespace."""
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    with node.entered(), NetfilterSocket() as netfilter, RouteSocket() as route_socket:
        sysctls = Sysctls()
        key = node_key()
        folder = StateFolder(key, "ports")
        firewall = Firewall(netfilter)
        firewall.ensure(node_rules([NetworkRules(SUBNETS)]))
        ports = HostPorts(netfilter, route_socket, folder, sysctls, firewall.transaction)
        yield Ways(node, ports, folder, route_socket)
        shutil.rmtree(f"/run/podwire/node-{key}", ignore_errors=True)
        sysctls.close()


def record(
    *mappings: dict[str, Any],
    pod: str = "web",
    number: int = 5,
    ifname: str = "eth0",
    network: str = "podnet",
    **options: Any,
) -> PortRecord:
    fields = Fields({"runtimeConfig": {"portMappings": list(mappings)}, **options})
    addresses = (subnet[number] for subnet in SUBNETS)
    parsed = hostports.parse(fields)
    return hostports.record(parsed, network, Attachment(pod, ifname), "cni0", addresses)


def held(ways: Ways) -> dict[tuple[str, ...], str]:
    """Who holds which element, by family, map and key."""
    listed = json.loads(ways.node.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    found = {}
    for entry in listed:
        kept = entry.get("map") or entry.get("set") or {}
        if "ports" not in kept.get("name", ""):
            continue
        for element in kept.get("elem", []):
            key = (element[0] if isinstance(element, list) else element)["elem"]
            words = [str(word) for word in key["val"]["concat"]]
            found[(kept["family"], kept["name"], *words)] = key["comment"]
    return found


V4 = ("ip", "host_ports", "tcp", "8080")
BOTH = {
    V4: "web eth0 podnet",
    ("ip6", "host_ports", "tcp", "8080"): "web eth0 podnet",
}
