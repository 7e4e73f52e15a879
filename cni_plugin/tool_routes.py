"""`podwire routes`: the routes to the other nodes, desired against actual."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click

from cni_plugin import cluster, netconf, tool_conf, tool_output
from cni_plugin.cluster import Cluster
from cni_plugin.kernel import observe, privileges
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.spec import CniError, Code
from ipam import inventory as inventories
from ipam import routes as node_routes


class RouteRow(NamedTuple):
    """One route to another node. `state` is ok, missing, wrong gateway or stale; `present` is the
    gateway that the kernel has instead of `via`, "" when there is no other."""

    dst: str
    via: str
    node: str
    state: str
    present: str = ""


def find_node(path: str, node_name: str, route_socket: RouteSocket) -> Cluster:
    """The inventory and this node in it, overlaps or not: to look at, not to act on."""
    known = inventories.load(path)
    own = inventories.find_self(
        known,
        node_name,
        os.uname().nodename,
        lambda: [address.ip for _, address in observe.local_addresses(route_socket)],
    )
    return Cluster(known, own)


def compare(found: Cluster, route_socket: RouteSocket) -> list[RouteRow]:
    """Every route that is desired, and every one of ours that is not."""
    wanted = node_routes.desired(found.inventory, found.own)
    owned = KernelRouteTable(route_socket).owned()
    changes = node_routes.difference(wanted, owned)
    gateways = {route.dst: str(route.via) for route in owned}
    rows = []
    for route in wanted:
        state, present = "ok", ""
        if route in changes.add:
            state = "missing"
        elif route in changes.replace:
            state, present = "wrong gateway", gateways[route.dst]
        rows.append(RouteRow(str(route.dst), str(route.via), route.node, state, present))
    rows += [RouteRow(str(r.dst), str(r.via), "", "stale") for r in changes.remove]
    return rows


def text(route: Mapping[str, Any]) -> str:
    """A route in words, for a list."""
    node = f" ({route['node']})" if route["node"] else ""
    present = f", it is {route['present']}" if route["present"] else ""
    return f"{route['dst']} via {route['via']}{node}: {route['state']}{present}"


@click.group()
def routes() -> None:
    """Show or repair the routes to the other nodes' pods.

    podwire's routes carry protocol number 112; no other route is ever touched.
    """


def _source_options(command: Any) -> Any:
    for option in (
        click.option("--node", metavar="NAME", help="This node's name in the --inventory."),
        click.option(
            "--inventory", metavar="FILE", help="Take this node inventory, and no configuration."
        ),
        tool_conf.config_options,
    ):
        command = option(command)
    return command


@routes.command()
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(
    config: str | None, conf_dir: str, inventory: str | None, node: str | None, as_json: bool
) -> None:
    """Compare the routes this node should have with those it has."""
    with RouteSocket() as route_socket:
        rows = compare(_join(config, conf_dir, inventory, node, route_socket), route_socket)
    if as_json:
        tool_output.show_json([row._asdict() for row in rows])
        return
    tool_output.show_table(
        ("DESTINATION", "GATEWAY", "NODE", "STATE"),
        [
            (
                row.dst,
                row.via,
                row.node or "-",
                row.state + (f": {row.present}" * bool(row.present)),
            )
            for row in rows
        ],
        "no routes: this node has no peers with pods",
    )


@routes.command()
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sync(
    config: str | None, conf_dir: str, inventory: str | None, node: str | None, as_json: bool
) -> None:
    """Make the routes what the inventory says: add, replace and remove podwire's own.

    A second call finds nothing to do.
    """
    privileges.require()
    with RouteSocket() as route_socket:
        found = _join(config, conf_dir, inventory, node, route_socket)
        changes = cluster.sync(found, route_socket)
    rows = list(_changed(changes))
    if as_json:
        tool_output.show_json([{"action": a, "dst": d, "via": v, "node": n} for a, d, v, n in rows])
        return
    for action, dst, via, name in rows:
        click.echo(f"{action} {dst} via {via}" + (f" (node {name})" if name else ""))
    if not rows:
        click.echo("nothing to do: all routes are in place")


def _changed(changes: node_routes.Changes) -> Iterator[tuple[str, str, str, str]]:
    for action in ("remove", "replace", "add"):
        for route in getattr(changes, action):
            yield action, str(route.dst), str(route.via), route.node


def _join(
    config: str | None,
    conf_dir: str,
    inventory: str | None,
    node: str | None,
    route_socket: RouteSocket,
) -> Cluster:
    """The cluster that the options name, refused when its subnets overlap."""
    if inventory:
        if config:
            raise click.UsageError("--config and --inventory exclude each other")
        return cluster.join(os.path.abspath(inventory), node or "", route_socket)
    if node:
        raise click.UsageError("--node needs --inventory")
    file = tool_conf.find(config, conf_dir)
    conf = netconf.parse(tool_conf.podwire_of(file).request())
    if not conf.nodes:
        raise CniError(
            Code.INVALID_CONFIG,
            f"{file.path}: nodes: not set, so there are no routes to other nodes",
            'add "nodes" with the path of the node inventory, or name one with --inventory',
        )
    return cluster.join(conf.nodes, conf.node_name, route_socket)
