"""`podwire routes`: the paths to the other nodes, desired against actual."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from shlex import join as shell
from typing import Any, NamedTuple

import click

from cni_plugin import cluster, netconf, tool_conf, tool_output, upkeep
from cni_plugin.cluster import Cluster, LocalAddresses
from cni_plugin.crossnode import CrossNode
from cni_plugin.fabric import Fabric
from cni_plugin.kernel import observe, overlay, privileges
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.netconf import NetConf
from cni_plugin.node import record_of
from cni_plugin.paths import Changes, State, Survey
from cni_plugin.spec import CniError, Code
from ipam import inventory as inventories
from ipam import routes as node_routes


class RouteRow(NamedTuple):
    """One route to another node. `path` is direct or vxlan. `state` is ok, missing, wrong gateway,
    incomplete (the route is right, and the overlay lacks what leads to the node) or stale;
    `actual` is the gateway that the kernel has, None when it has no route; `node` is None for a
    stale one."""

    dst: str
    via: str
    node: str | None
    path: str
    state: str
    actual: str | None


def find_node(
    path: str, node_name: str, route_socket: RouteSocket, cross: CrossNode | None = None
) -> Cluster:
    """The inventory and this node in it, overlaps or not: to look at, not to act on."""
    return cluster.identify(
        inventories.load(path), node_name, observe.local_addresses(route_socket), cross
    )


def compare(found: Cluster, route_socket: RouteSocket) -> list[RouteRow]:
    """Every route that is desired, and every one of ours that is not."""
    survey = cluster.survey(found, route_socket)
    state = cluster.observed(found, survey, route_socket)
    wanted, owned = survey.peers.routes, state.routes
    changes = node_routes.difference(wanted, owned)
    added, replaced = frozenset(changes.add), frozenset(changes.replace)
    gateways = {route.dst: str(route.via) for route in owned}
    rows = []
    for route in wanted:
        word = "ok"
        if route in added:
            word = "missing"
        elif route in replaced:
            word = "wrong gateway"
        elif route.overlay and not _complete(route, survey, state):
            word = "incomplete"
        actual = None if word == "missing" else gateways[route.dst]
        rows.append(
            RouteRow(str(route.dst), str(route.via), route.node, _path(route), word, actual)
        )
    rows += [
        RouteRow(str(r.dst), str(r.via), None, _path(r), "stale", str(r.via))
        for r in changes.remove
    ]
    return rows


def _path(route: node_routes.NodeRoute) -> str:
    return "vxlan" if route.overlay else "direct"


def _complete(route: node_routes.NodeRoute, survey: Survey, state: State) -> bool:
    """Whether the overlay has what leads to the node: device, neighbour, forwarding entry."""
    if survey.device is None or state.device is None:
        return False
    gateway = route.via.packed
    mac = survey.entries.neighbours[gateway]
    tunnels = {pair for pair in survey.entries.tunnels if pair[0] == mac}
    return (
        overlay.same(survey.device, state.device)
        and state.entries.neighbours.get(gateway) == mac
        and tunnels <= state.entries.tunnels
    )


def text(route: Mapping[str, Any]) -> str:
    """A route in words, for a list."""
    node = f" ({route['node']})" if route["node"] else ""
    path = " by vxlan" if route["path"] == "vxlan" else ""
    return f"{route['dst']} via {route['via']}{node}{path}: {_state(route)}"


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
        conf = _configuration(config, conf_dir, inventory, node)
        found = _find(conf, inventory, node, local)
        rows = [row._asdict() for row in compare(found, route_socket)]
    if not as_json:
        tool_output.show_table(
            ("DESTINATION", "GATEWAY", "NODE", "PATH", "STATE"),
            [
                (row["dst"], row["via"], row["node"] or "-", row["path"], _state(row))
                for row in rows
            ],
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
    """Make the routes what the inventory says, and the overlay with them.

    Adds, replaces and removes podwire's own. A second call finds nothing to do. A running agent
    goes by the same configuration from then on.
    """
    privileges.require()
    conf = _configuration(config, conf_dir, inventory, node)
    with RouteSocket() as route_socket:
        local = observe.local_addresses(route_socket)
        found = _find(conf, inventory, node, local)
        cluster.refuse_overlaps(found, local)
        with closing(Fabric(route_socket)) as fabric:
            if conf is not None:  # before the routes: an agent would put back what its record says
                fabric.records.remember(record_of(conf))
            upkeep.keep_rules(fabric)  # they let the overlay's packets of a new node in
        changes = cluster.sync(found, route_socket)
    rows = list(_changed(changes))
    if as_json:
        tool_output.show_json(rows)
        return
    for row in rows:
        if row["action"] == "overlay":
            tool_output.say(str(row["done"]))
            continue
        name = f" (node {row['node']})" if row["node"] else ""
        tool_output.say(f"{row['action']} {row['dst']} via {row['via']}{name}")
    if not rows:
        tool_output.say("nothing to do: all routes are in place")


def _changed(changes: Changes) -> Iterator[dict[str, str | None]]:
    for done in changes.overlay:
        yield {"action": "overlay", "done": done}
    for action in ("remove", "replace", "add"):
        for route in getattr(changes.routes, action):
            dst, via, node = str(route.dst), str(route.via), route.node or None
            yield {"action": action, "dst": dst, "via": via, "node": node, "path": _path(route)}


def _find(
    conf: NetConf | None, inventory: str | None, node: str | None, local: LocalAddresses
) -> Cluster:
    """The cluster of a configuration or of an inventory, overlaps or not; without a configuration
    the others are reached as usual. A name of None or "" is to be found out."""
    if conf is not None:
        path, name, cross = conf.nodes, conf.node_name, conf.cross_node
    else:
        path, name, cross = os.path.abspath(inventory or ""), node or "", CrossNode()
    return cluster.identify(inventories.load(path), name, local, cross)


def _configuration(
    config: str | None, conf_dir: str, inventory: str | None, node: str | None
) -> NetConf | None:
    """The configuration that the options name, None with an inventory in its place.

    Raises CniError 7 for one that names no inventory.
    """
    if inventory:
        if config:
            raise click.UsageError("--config and --inventory exclude each other")
        return None
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
    return conf
