"""Nodes, sandboxes and the cables between them."""

from __future__ import annotations

from tests.support.netns import Namespace, Namespaces


class Topology:
    """Makes namespaces that stand for nodes, pods' sandboxes and switches."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces

    def node(self, name: str = "node", *addresses: str) -> Namespace:
        """A node; with addresses such as "192.168.1.2/24" it gets eth0 on a switch of its own.

        Use `cable` to put several nodes on one link.
        """
        node = self._namespaces.make(name)
        if addresses:
            self.cable({node: addresses})
        return node

    def sandbox(self, name: str = "pod") -> Namespace:
        """An empty namespace with lo, as a runtime makes it for a pod."""
        return self._namespaces.make(name)

    def cable(self, nodes: dict[Namespace, tuple[str, ...]], ifname: str = "eth0") -> Namespace:
        """Put nodes on one layer-2 link, each with its addresses on `ifname`; returns the switch.

        cable({a: ("192.168.1.2/24",), b: ("192.168.1.3/24",)})
        """
        switch = self._namespaces.make("switch")
        switch.run("ip", "link", "add", "br0", "type", "bridge")
        switch.run("ip", "link", "set", "br0", "up")
        for number, (node, addresses) in enumerate(nodes.items()):
            port = f"port{number}"
            switch.run(
                *("ip", "link", "add", port, "master", "br0", "up", "type", "veth"),
                *("peer", "name", ifname, "netns", node.path),
            )
            for address in addresses:
                dad = ("nodad",) if ":" in address else ()
                node.run("ip", "addr", "add", address, "dev", ifname, *dad)
            node.run("ip", "link", "set", ifname, "up")
        return switch
