"""What it costs to know many nodes.

In process, `Peering` brings routes and the overlay's entries into a kernel that has none, and then
those of one more peer: that is the programming alone. From outside, through the agent: the first
ADD of a node that knows nobody yet, and one after a peer was written into the inventory; this is
read and checked as a whole when it changed, and that is part of the times. Then the ADD after it,
which looks at what changed, and one more. The routes in the kernel are counted after each change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns, thread_time_ns
from typing import Any

from bench import byhand
from bench.contenders import AGENT, Contender
from bench.measure import Budget, CallFailedError, Sample
from bench.namespaces import Namespace
from bench.nodes import Node, Place
from bench.pods import series
from bench.results import Series
from bench.sites import new_namespace
from cni_plugin import cluster as clusters
from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.peering import Peering
from ipam import inventory as inventories

SIZES = (1_000, 5_000)
BACKENDS = ("host-gw", "vxlan")
PROGRAM, PROGRAM_MORE = "programming all", "programming one more"
FIRST, MORE = "first ADD", "ADD, one more peer"
AFTER, SAME = "the ADD after these", "ADD, nothing new"
KINDS = (PROGRAM, PROGRAM_MORE, FIRST, MORE, AFTER, SAME)
LEAST, MOST = 2, 5  # nodes that begin from nothing
_AGAIN = 4  # ADDs of each other kind on each node
_BUDGET_S = 20.0
_PROTOCOL = 112  # of podwire's routes
_PREFIX = 12


def peers(sides: Sequence[Contender], place: Place, runs: int) -> list[Series]:
    """Each backend with each of SIZES, from nothing at most MOST times."""
    side = next(side for side in sides if side.name == AGENT)
    found = []
    for backend in BACKENDS:
        for size in SIZES:
            taken: dict[str, list[Sample]] = {what: [] for what in KINDS}
            budget = Budget(_BUDGET_S / len(BACKENDS))
            for turn in range(min(runs, MOST)):
                if budget.spent(turn, LEAST):
                    break
                _in_process(backend, size, taken)
                _one_node(side, place, backend, size, taken)
            found += [
                series("peers", what, backend, samples, size) for what, samples in taken.items()
            ]
    return found


def _in_process(backend: str, size: int, taken: dict[str, list[Sample]]) -> None:
    """Into a kernel that knows no peer, without a plugin, an agent and the reading of files."""
    known = inventories.parse(json.dumps(inventory(size + _AGAIN)).encode(), "nodes.json")
    fewer = known._replace(nodes=known.nodes[: size + 1])
    cluster = clusters.identify(fewer, name(0), (), CrossNode(backend))
    with ExitStack() as stack:
        namespace = _node(stack)
        stack.enter_context(namespace.entered())
        route_socket = RouteSocket()
        stack.callback(route_socket.close)
        peering = Peering(route_socket)
        taken[PROGRAM].append(_timed(lambda: peering.update(cluster)))
        _programmed(namespace, size)
        for node in known.nodes[size + 1 :]:
            taken[PROGRAM_MORE].append(_timed(partial(peering.put, node)))
        _programmed(namespace, size + _AGAIN)


def _timed(do: Callable[[], object]) -> Sample:
    wall, cpu = perf_counter_ns(), thread_time_ns()
    do()
    return Sample(perf_counter_ns() - wall, thread_time_ns() - cpu)


def _one_node(
    side: Contender, place: Place, backend: str, size: int, taken: dict[str, list[Sample]]
) -> None:
    """A node from nothing: one first ADD, then the others."""
    path = os.path.join(place.new("inventory"), "nodes.json")
    with ExitStack() as stack:
        namespace = _node(stack)
        options: dict[str, Any] = {"nodes": path, "nodeName": name(0), "backend": backend}
        pods = 3 * (1 + _AGAIN)
        node = Node(side, place, stack, pods, namespace=namespace, **options)
        node.config["ipam"]["ranges"] = [[{"subnet": subnet(0)}]]
        for pod in range(0, pods, 3):
            _write(path, size)
            taken[MORE if pod else FIRST].append(node.run("ADD", pod))
            _programmed(namespace, size)
            _quiet(node)
            taken[AFTER].append(node.run("ADD", pod + 1))
            _quiet(node)
            taken[SAME].append(node.run("ADD", pod + 2))
            size += 1


def _quiet(node: Node) -> None:
    """Wait until the agent has done what it does on its own when an inventory changes."""
    assert node.agent is not None
    node.agent.await_quiet()


def _node(stack: ExitStack) -> Namespace:
    """A node with the address of the first one, on a link that goes to a switch."""
    node, switch = new_namespace(stack, node=True), new_namespace(stack)
    byhand.ip(
        node,
        f"link add eth0 type veth peer name port0 netns {switch.path}",
        f"address add {address(0)}/{_PREFIX} dev eth0",
        "link set eth0 up",
    )
    byhand.ip(switch, "link set port0 up")
    return node


def _write(path: str, size: int) -> None:
    """An inventory of this node and `size` peers, there at once as a whole."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(inventory(size), file)
    os.replace(f"{path}.new", path)


def inventory(size: int) -> dict[str, object]:
    """This node and `size` peers, all on one link."""
    nodes = [
        {
            "name": name(number),
            "addresses": [f"{address(number)}/{_PREFIX}"],
            "podCIDRs": [subnet(number)],
        }
        for number in range(size + 1)
    ]
    return {"nodes": nodes}


def name(number: int) -> str:
    return f"node-{number:05}"


def address(number: int) -> str:
    """Of a node: 172.16.0.1 and on; never one that ends in 0 or 255."""
    return f"172.16.{number // 200}.{number % 200 + 1}"


def subnet(number: int) -> str:
    """Of the pods of a node: 10.0.0.0/24 and on."""
    return f"10.{number // 256}.{number % 256}.0/24"


def _programmed(namespace: Namespace, size: int) -> None:
    """Raises CallFailedError unless there is a route to each of `size` peers."""
    routes = byhand.run(namespace, f"ip route show proto {_PROTOCOL}").splitlines()
    if len(routes) != size:
        raise CallFailedError(f"{len(routes)} routes to {size} peers")
