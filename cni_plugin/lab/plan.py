"""What the nodes of a lab are to be, and the files that say so to podwire. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from json import dumps
from typing import Any, NamedTuple

FAMILIES = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}
NETWORK = "podwire-lab"


class Node(NamedTuple):
    """A node as it is to be: its addresses on the switch and the subnets of its pods."""

    number: int
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"node-{self.number}"


def node(number: int, versions: Sequence[int], subnet: int | None = None) -> Node:
    """Node `number` (from 1): 192.168.1.<number + 1>, pods 10.244.<number - 1>.0/24.

    `subnet` gives it the pod subnet of another number, which is what podwire must refuse.
    """
    third = number - 1 if subnet is None else subnet - 1
    addresses = {4: f"192.168.1.{number + 1}/24", 6: f"fd00:1::{number + 1:x}/64"}
    cidrs = {4: f"10.244.{third}.0/24", 6: str(ip_network(f"fd00:10:244:{third:x}::/64"))}
    return Node(
        number,
        tuple(addresses[version] for version in versions),
        tuple(cidrs[version] for version in versions),
    )


def inventory(nodes: Sequence[Node]) -> list[str]:
    """The inventory file of these nodes: a line for each."""
    entries = [
        dumps({"name": n.name, "addresses": list(n.addresses), "podCIDRs": list(n.pod_cidrs)})
        for n in nodes
    ]
    listed = [f"    {entry}," for entry in entries[:-1]] + [f"    {entries[-1]}"]
    return ["{", '  "nodes": [', *listed, "  ]", "}"]


def configuration(own: Node, mode: str, data_dir: str, inventory: str) -> list[str]:
    """A node's network configuration; `inventory` is the file's path, "" for ranges of its own."""
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": NETWORK,
        "type": "podwire",
        "mode": mode,
        "isDefaultGateway": True,
    }
    ipam: dict[str, Any] = {"type": "host-local", "dataDir": data_dir}
    if inventory:
        conf["nodes"] = inventory
    else:
        ipam["ranges"] = [[{"subnet": cidr}] for cidr in own.pod_cidrs]
    return _legible({**conf, "ipam": ipam}).splitlines()


def _legible(document: dict[str, Any], indent: str = "") -> str:
    """JSON with a line for each key, and lists in one line."""
    inner = indent + "  "
    entries = []
    for key, value in document.items():
        text = _legible(value, inner) if isinstance(value, dict) else dumps(value)
        entries.append(f"{inner}{dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
