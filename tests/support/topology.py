"""Nodes, sandboxes and the cables between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        switch.batch(
            "link add br0 up type bridge",
            *(
                f"link add port{number} master br0 up type veth"
                f" peer name {ifname} netns {node.path}"
                for number, node in enumerate(nodes)
            ),
        )
        for node, addresses in nodes.items():
            node.batch(*_given(ifname, addresses))
        return switch


def _given(ifname: str, addresses: tuple[str, ...]) -> Iterator[str]:
    """Lines for `ip -batch` that give a link its addresses and set it up."""
    for address in addresses:
        yield f"addr add {address} dev {ifname}{' nodad' * (':' in address)}"
    yield f"link set {ifname} up"


class Split:
    """Three nodes: 0 and 1 on one link, 2 on one behind two routers, which forward both families.

    Node i of the first two has 192.168.1.<i+2> and fd00:1::<i+2>, node 2 192.168.2.2 and
    fd00:2::2, all on eth0, with the nearer router as their default gateway. The pod subnets are
    10.244.<i>.0/24 and fd00:10:244:<i>::/64. `versions` are the families of the inventory's node
    addresses: what the nodes have is both.
    """

    ADDRESSES = (
        ("192.168.1.2/24", "fd00:1::2/64"),
        ("192.168.1.3/24", "fd00:1::3/64"),
        ("192.168.2.2/24", "fd00:2::2/64"),
    )

    def __init__(self, topology: Topology, folder: Path, versions: tuple[int, ...] = (4, 6)):
        self.nodes = [topology.node(f"node-{number}") for number in range(3)]
        self.routers = (topology.node("router"), topology.node("far-router"))
        for namespace in (*self.nodes, *self.routers):
            namespace.run("sysctl", "-qw", "net/ipv6/conf/default/accept_dad=0")
        self.switch = topology.cable(
            {
                self.nodes[0]: self.ADDRESSES[0],
                self.nodes[1]: self.ADDRESSES[1],
                self.routers[0]: ("192.168.1.1/24", "fd00:1::1/64"),
            }
        )
        self._route()
        self._give(self.nodes[2], "eth0", *self.ADDRESSES[2])
        for number, node in enumerate(self.nodes):
            link = 2 if number == 2 else 1
            for gateway in (f"192.168.{link}.1", f"fd00:{link}::1"):
                node.run("ip", "route", "add", "default", "via", gateway)
        self.path = folder / "nodes.json"
        self._folder = folder
        self.entries: list[dict[str, Any]] = [
            {
                "name": f"node-{number}",
                "addresses": [
                    a for a in self.ADDRESSES[number] if (6 if ":" in a else 4) in versions
                ],
                "podCIDRs": [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"],
            }
            for number in range(3)
        ]
        self.write()

    def _route(self) -> None:
        """The routers, the leg between them, and the second one's link to node 2."""
        near, far = self.routers
        self._join(near, "leg", far, "leg")
        self._join(self.nodes[2], "eth0", far, "eth0")
        self._give(near, "leg", "192.168.9.1/24", "fd00:9::1/64")
        self._give(far, "leg", "192.168.9.2/24", "fd00:9::2/64")
        self._give(far, "eth0", "192.168.2.1/24", "fd00:2::1/64")
        for router in self.routers:
            for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
                router.run("sysctl", "-qw", f"{name}=1")
        for network, gateway in (("192.168.2.0/24", "192.168.9.2"), ("fd00:2::/64", "fd00:9::2")):
            near.run("ip", "route", "add", network, "via", gateway)
        for network, gateway in (("192.168.1.0/24", "192.168.9.1"), ("fd00:1::/64", "fd00:9::1")):
            far.run("ip", "route", "add", network, "via", gateway)

    def narrow(self, mtu: int) -> None:
        """The leg between the routers takes packets of `mtu` bytes at most."""
        for router in self.routers:
            router.run("ip", "link", "set", "leg", "mtu", str(mtu))

    @staticmethod
    def _join(one: Namespace, ifname: str, other: Namespace, peer: str) -> None:
        one.run(
            *("ip", "link", "add", ifname, "up", "type", "veth"),
            *("peer", "name", peer, "netns", other.path),
        )

    @staticmethod
    def _give(node: Namespace, ifname: str, *addresses: str) -> None:
        node.batch(*_given(ifname, addresses))

    def write(self) -> None:
        """Write the inventory anew, from `entries`."""
        self.path.write_text(json.dumps({"nodes": self.entries}))

    def conf(self, number: int, **keys: Any) -> dict[str, Any]:
        """The configuration of one node, whose pods get the next free addresses."""
        data_dir = str(self._folder / f"networks-{number}")
        conf = {"cniVersion": "1.1.0", "name": "podnet", "type": "podwire"}
        ipam = {"type": "host-local", "dataDir": data_dir}
        return {**conf, "nodes": str(self.path), "ipam": ipam, **keys}

    def move_in(self) -> None:
        """Node 2 is on the link of the others as well, with the addresses that it has."""
        node, there = self.nodes[2], self.ADDRESSES[2]
        self._join(node, "eth1", self.switch, "port9")
        self.switch.run("ip", "link", "set", "port9", "master", "br0", "up")
        # IPv6 answers for an address only on the link that has it.
        self._give(node, "eth1", there[1].replace("/64", "/128"))
        for network, own in zip(("192.168.1.0/24", "fd00:1::/64"), there, strict=True):
            node.run("ip", "route", "add", network, "dev", "eth1", "src", own.split("/")[0])
        for other in self.nodes[:2]:
            for address in there:
                other.run("ip", "route", "add", address.split("/")[0], "dev", "eth0")

    def move_out(self) -> None:
        """The opposite of `move_in`."""
        for other in self.nodes[:2]:
            for address in self.ADDRESSES[2]:
                other.run("ip", "route", "del", address.split("/")[0], "dev", "eth0")
        self.nodes[2].run("ip", "link", "del", "eth1")
