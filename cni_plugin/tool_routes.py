"""`podwire routes`: the routes to the other nodes, desired against actual."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from shlex import join as shell
from typing import Any, NamedTuple

import click

from cni_plugin import cluster, netconf, tool_conf, tool_output
from cni_plugin.cluster import Cluster, LocalAddresses
from cni_plugin.kernel import observe, privileges
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.spec import CniError, Code
from ipam import inventory as inventories
from ipam import routes as node_routes


class RouteRow(NamedTuple):
    """One route to another node. `state` is ok, missing, wrong gateway or stale; `actual` is the
    gateway that the kernel has, None when it has no route; `node` is None for a stale one."""

    dst: str
    via: str
    node: str | None
    state: str
    actual: str | None


def find_node(path: str, node_name: str, route_socket: RouteSocket) -> Cluster:
    """The inventory and this node in it, overlaps or not: to look at, not to act on."""
    return cluster.identify(
        inventories.load(path), node_name, observe.local_addresses(route_socket)
    )


def compare(found: Cluster, route_socket: RouteSocket) -> list[RouteRow]:
    """Every route that is desired, and every one of ours that is not."""
    wanted = node_routes.desired(found.inventory, found.own)
    owned = KernelRouteTable(route_socket).owned()
    changes = node_routes.difference(wanted, owned)
    gateways = {route.dst: str(route.via) for route in owned}
    rows = []
    for route in wanted:
        state = "ok"
        if route in changes.add:
            state = "missing"
        elif route in changes.replace:
            state = "wrong gateway"
        actual = None if state == "missing" else gateways[route.dst]
        rows.append(RouteRow(str(route.dst), str(route.via), route.node, state, actual))
    rows += [RouteRow(str(r.dst), str(r.via), None, "stale", str(r.via)) for r in changes.remove]
    return rows


def text(route: Mapping[str, Any]) -> str:
    """A route in words, for a list."""
    node = f" ({route['node']})" if route["node"] else ""
    return f"{route['dst']} via {route['via']}{node}: {_state(route)}"


def _state(route: Mapping[str, Any]) -> str:
    differs = route["actual"] not in (None, route["via"])
    return f"{route['state']} {route['actual']}" if differs else str(route["state"])


def remedy(*options: str) -> str:
    """What repairs routes that are not ok; `options` name the inventory as it was named."""
    return f"`{shell(('podwire', 'routes', 'sync', *options))}` makes the routes right"


@click.group()
def routes() -> None:
    """Show or repair the routes to the other nodes' pods.

    podwire's routes carry protocol number 112; no other route is ever touched.
    """


def _source_options(command: Any) -> Any:
    for option in (
        click.option("--node", metavar="NAME", help="This node's name in the --inventory."),
        click.option(
            "--inventory",
            metavar="FILE",
            type=tool_conf.FILE,
            help="Take this node inventory, and no configuration.",
        ),
        tool_conf.config_options,
    ):
        command = option(command)
    return command


@routes.command(cls=tool_output.JsonCommand)
@_source_options
@tool_output.json_option
def show(
    config: str | None, conf_dir: str, inventory: str | None, node: str | None, as_json: bool
) -> None:
    """Compare the routes this node should have with those it has.

    Subnets that overlap are an error, after the table.
    """
    with RouteSocket() as route_socket:
        local = observe.local_addresses(route_socket)
        found = _find(config, conf_dir, inventory, node, local)
        rows = [row._asdict() for row in compare(found, route_socket)]
    if not as_json:
        tool_output.show_table(
            ("DESTINATION", "GATEWAY", "NODE", "STATE"),
            [(row["dst"], row["via"], row["node"] or "-", _state(row)) for row in rows],
            "no routes: this node has no peers with pods",
        )
    cluster.refuse_overlaps(found, local)
    if as_json:
        tool_output.show_json(rows)
    elif any(row["state"] != "ok" for row in rows):
        tool_output.show_hint(remedy(*_options(config, conf_dir, inventory, node)))


def _options(
    config: str | None, conf_dir: str, inventory: str | None, node: str | None
) -> Iterator[str]:
    """The options again, as they were given."""
    given = {"--config": config, "--inventory": inventory, "--node": node}
    if conf_dir != tool_conf.CONF_DIR:
        given["--conf-dir"] = conf_dir
    for name, value in given.items():
        if value:
            yield from (name, value)


@routes.command(cls=tool_output.JsonCommand)
@_source_options
@tool_output.json_option
def sync(
    config: str | None, conf_dir: str, inventory: str | None, node: str | None, as_json: bool
) -> None:
    """Make the routes what the inventory says.

    Adds, replaces and removes podwire's own. A second call finds nothing to do.
    """
    privileges.require()
    with RouteSocket() as route_socket:
        local = observe.local_addresses(route_socket)
        found = _find(config, conf_dir, inventory, node, local)
        cluster.refuse_overlaps(found, local)
        changes = cluster.sync(found, route_socket)
    rows = list(_changed(changes))
    if as_json:
        tool_output.show_json(rows)
        return
    for row in rows:
        name = f" (node {row['node']})" if row["node"] else ""
        tool_output.say(f"{row['action']} {row['dst']} via {row['via']}{name}")
    if not rows:
        tool_output.say("nothing to do: all routes are in place")


def _changed(changes: node_routes.Changes) -> Iterator[dict[str, str | None]]:
    for action in ("remove", "replace", "add"):
        for route in getattr(changes, action):
            dst, via = str(route.dst), str(route.via)
            yield {"action": action, "dst": dst, "via": via, "node": route.node or None}


def _find(
    config: str | None,
    conf_dir: str,
    inventory: str | None,
    node: str | None,
    local: LocalAddresses,
) -> Cluster:
    """The cluster that the options name, overlaps or not."""
    path, name = _named(config, conf_dir, inventory, node)
    return cluster.identify(inventories.load(path), name, local)


def _named(
    config: str | None, conf_dir: str, inventory: str | None, node: str | None
) -> tuple[str, str]:
    """The inventory's path and this node's name, "" when it is to be found out."""
    if inventory:
        if config:
            raise click.UsageError("--config and --inventory exclude each other")
        return os.path.abspath(inventory), node or ""
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
    return conf.nodes, conf.node_name
