"""The same sites as `byhand`, with pods that plugins made."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import Any

from bench import byhand
from bench.contenders import Contender
from bench.nodes import Node, Place
from bench.sites import SUBNETS, UNDERLAY, Site

_NAMES = ("node-1", "node-2")


def same_node(contender: Contender, place: Place, stack: ExitStack) -> Site:
    """Two pods on one node."""
    node = Node(contender, place, stack, pods=2)
    for pod in (0, 1):
        node.run("ADD", pod)
    return Site(node.sandbox(0), node.sandbox(1), node.address(1))


def by_route(contender: Contender, place: Place, stack: ExitStack) -> Site:
    """A pod on each of two nodes; the routes are podwire's own, and made by hand for others."""
    return _two_nodes(contender, place, stack, {"backend": "host-gw"})


def by_vxlan(contender: Contender, place: Place, stack: ExitStack) -> Site:
    """A pod on each of two nodes, by the VXLAN device that podwire makes."""
    return _two_nodes(contender, place, stack, {"backend": "vxlan"})


def _two_nodes(
    contender: Contender, place: Place, stack: ExitStack, backend: dict[str, Any]
) -> Site:
    namespaces = byhand.cabled(stack)
    inventory = write_inventory(place.new("inventory"))
    nodes = []
    for number, namespace in enumerate(namespaces):
        options: dict[str, Any] = {}
        if contender.ours:
            options = {"nodes": inventory, "nodeName": _NAMES[number], **backend}
        else:
            other = 1 - number
            byhand.ip(namespace, f"route add {SUBNETS[other]} via {UNDERLAY[other]}")
        node = Node(contender, place, stack, 1, namespace=namespace, **options)
        node.config["ipam"]["ranges"] = [[{"subnet": SUBNETS[number]}]]
        node.run("ADD", 0)
        nodes.append(node)
    return Site(nodes[0].sandbox(0), nodes[1].sandbox(0), nodes[1].address(0))


def write_inventory(folder: str) -> str:
    """The two nodes as a file for podwire; its path."""
    nodes = [
        {"name": name, "addresses": [f"{address}/24"], "podCIDRs": [subnet]}
        for name, address, subnet in zip(_NAMES, UNDERLAY, SUBNETS, strict=True)
    ]
    path = os.path.join(folder, "nodes.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"nodes": nodes}, file)
    return path
