"""The network under a cluster: two links with a router between them, and the control plane's host.

    192.168.1.0/24, fd00:1::/64   n1 .2, n2 .3, the control plane .10
    192.168.2.0/24, fd00:2::/64   n3 .2

The router is .1 on both, and the default gateway of all. It knows no pod's address.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.support.netns import Namespace, Namespaces, run

PLANE_ADDRESSES = ("192.168.1.10", "fd00:1::10")


class Place(NamedTuple):
    """Where a node stands: the number of its link and its addresses, IPv4 first."""

    link: int
    addresses: tuple[str, str]


PLACES = {
    "n1": Place(1, ("192.168.1.2", "fd00:1::2")),
    "n2": Place(1, ("192.168.1.3", "fd00:1::3")),
    "n3": Place(2, ("192.168.2.2", "fd00:2::2")),
}


class Ground:
    """Both links and the router; `plane` is the namespace for the control plane, which also stands
    for a client outside of the cluster. `connect` cables a node."""

    def __init__(self, namespaces: Namespaces) -> None:
        self.plane = namespaces.make("plane")
        self.router = namespaces.make("router")
        self._switches = {link: namespaces.make(f"switch-{link}") for link in (1, 2)}
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.router.run("sysctl", "-qw", f"{key}=1")
        for link, switch in self._switches.items():
            switch.run("ip", "link", "add", "br0", "up", "type", "bridge")
            self._cable(link, self.router.path, f"eth{link}", _gateways(link))
        self.connect(1, self.plane.path, PLANE_ADDRESSES)

    def connect(self, link: int, namespace: str, addresses: tuple[str, str]) -> None:
        """Give the network namespace at a path eth0 on a link, and its default routes."""
        self._cable(link, namespace, "eth0", addresses)
        for gateway in _gateways(link):
            _inside(namespace, "ip", "route", "add", "default", "via", gateway)

    def _cable(self, link: int, namespace: str, ifname: str, addresses: tuple[str, str]) -> None:
        switch: Namespace = self._switches[link]
        port = f"port{len(switch.links())}"
        switch.run(
            *("ip", "link", "add", port, "master", "br0", "up", "type", "veth"),
            *("peer", "name", ifname, "netns", namespace),
        )
        for address, length in zip(addresses, (24, 64), strict=True):
            dad = ("nodad",) if ":" in address else ()
            _inside(namespace, "ip", "addr", "add", f"{address}/{length}", "dev", ifname, *dad)
        _inside(namespace, "ip", "link", "set", ifname, "up")


def _gateways(link: int) -> tuple[str, str]:
    return f"192.168.{link}.1", f"fd00:{link}::1"


def _inside(namespace: str, *argv: str) -> None:
    run(["nsenter", f"--net={namespace}", "--", *argv])
