"""`podwire status`: what a runtime would use here, and whether an ADD would be served.

The verdict is the plugin's own: the code behind STATUS gives it. Everything else explains it, so
whatever can't be found out is left out, and the verdict says why.
"""

from __future__ import annotations

import os
from typing import Any

import click

from cni_plugin import (
    agentconf,
    confdir,
    netconf,
    pluginfiles,
    sysio,
    tool_cluster,
    tool_conf,
    tool_datapath,
    tool_output,
    tool_routes,
    tool_statustext,
    tool_verdict,
)
from cni_plugin.client import DEFAULT_SOCKET, SOCKET_VARIABLE
from cni_plugin.cluster import Cluster
from cni_plugin.fields import Fields
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.leases import IN_PROCESS
from cni_plugin.netconf import NetConf
from cni_plugin.spec import CniError, Code, IPNetwork, Request
from cni_plugin.tool_conf import NetworkFile, Plugin
from ipam import config as ipam_config
from ipam import host_local
from ipam.ranges import RangeSet, describe, find, withheld

_CONNECT_MS = 2000


@click.command(cls=tool_output.JsonCommand)
@tool_conf.config_options
@click.option(
    "--cni-path",
    metavar="DIRS",
    default=tool_conf.BIN_DIR,
    show_default=True,
    help="Where plugins that podwire delegates to are found.",
)
@tool_output.json_option
def status(config: str | None, conf_dir: str, cni_path: str, as_json: bool) -> int:
    """Show podwire's networks on this node.

    Exit status 0: a pod could be added now. 1: it could not, and the reason is printed.
    """
    report = gather(config, conf_dir, cni_path)
    if as_json:
        tool_output.show_json(report)
    else:
        for line in tool_statustext.lines(report):
            tool_output.say(line)
    return 0 if report["ready"] else 1


def gather(config: str | None, conf_dir: str, cni_path: str) -> dict[str, Any]:
    """The whole report; `ready` says whether an ADD would be served, `error` why not."""
    report: dict[str, Any] = {"ready": False, "file": None, "broken": [], "networks": []}
    report |= tool_cluster.gather()
    stopped = None
    try:
        stopped = None if config else _stopped(conf_dir)
        file = _file(config, conf_dir, report)
        tool_conf.podwire_of(file)
    except CniError as e:
        report["error"] = tool_output.error_document(stopped or e)
        return report
    folders = cni_path.split(":")
    missing = pluginfiles.missing((plugin.type for plugin in file.plugins), folders)
    report["missing"] = [{"plugin": name, "folders": folders} for name in missing]
    with RouteSocket() as route_socket:
        report["networks"] = [
            _network(file, plugin, cni_path, route_socket) for plugin in file.podwires()
        ]
    failures = [network["error"] for network in report["networks"] if network["error"]]
    failures = [tool_output.error_document(stopped), *failures] if stopped else failures
    report["ready"] = not failures
    report["error"] = failures[0] if failures else None
    return report


def _file(config: str | None, conf_dir: str, report: dict[str, Any]) -> NetworkFile:
    if config:
        file = tool_conf.load(config)
    else:
        choice = tool_conf.choose(conf_dir)
        report["broken"] = [{"file": path, "reason": reason} for path, reason in choice.broken]
        _refuse_tried(conf_dir, report)
        if choice.chosen is None:
            raise tool_conf.nothing_usable(conf_dir, choice)
        file = choice.chosen
        report["unused"] = list(choice.behind)
    report["file"] = file.path
    report["plugins"] = [plugin.type for plugin in file.plugins]
    return file


def _refuse_tried(conf_dir: str, report: dict[str, Any]) -> None:
    """Raises the CniError of a file that runtimes take, and that no pod can be added by: of a
    version that podwire does not speak, say."""
    used = confdir.in_use(conf_dir)
    broken = [each["file"] for each in report["broken"]]
    if used is None or used.problem or used.path not in broken:
        return
    report["broken"] = report["broken"][: broken.index(used.path)]
    report |= {"file": used.path, "plugins": list(used.types)}
    if used.ours:
        tool_conf.load(used.path)
    plugins = tuple(Plugin(kind, {}) for kind in used.types)
    tool_conf.podwire_of(NetworkFile(used.path, used.network, "", plugins, ""))


def _stopped(conf_dir: str) -> CniError | None:
    """Why containerd has no network at all, though a file further behind could be used."""
    first = confdir.stopping(conf_dir)
    if first is None:
        return None
    return CniError(
        Code.INVALID_CONFIG,
        f"{first.path}: {first.problem}",
        "correct or remove this file: it sorts first, and containerd has no network with it there",
    )


def _network(
    file: NetworkFile, plugin: Plugin, cni_path: str, route_socket: RouteSocket
) -> dict[str, Any]:
    report: dict[str, Any] = {"name": file.name, "error": None}
    report |= {"cniVersion": file.declared, "newestVersion": file.version}
    failure = tool_verdict.verdict(plugin, file.version, cni_path)
    if failure:
        report["error"] = tool_output.error_document(failure)
    try:
        request = plugin.request(cni_path)
        conf = netconf.parse(request)
    except CniError as e:
        _note(report, e)
        return report
    report["mode"] = conf.mode
    report["agent"] = _agent(agentconf.parse(Fields(request.conf)))
    if conf.mode == "bridge":
        report["bridge"] = _bridge(conf, route_socket)
    subnets: tuple[IPNetwork, ...] | None = None
    cluster = None
    if conf.nodes:
        try:
            cross = conf.cross_node
            cluster = tool_routes.find_node(conf.nodes, conf.node_name, route_socket, cross)
            subnets = cluster.own.pod_cidrs
            report |= _cluster(cluster, route_socket)
        except CniError as e:
            _note(report, e)
    report |= tool_datapath.gather(conf, cluster, route_socket)
    try:
        report["ipam"] = _addresses(request, conf, subnets)
    except CniError as e:
        _note(report, e)
    return report


def _note(report: dict[str, Any], error: CniError) -> None:
    """The verdict's error stands; another one only where the verdict had none."""
    report["error"] = report["error"] or tool_output.error_document(error)


def _agent(conf: agentconf.AgentConf) -> dict[str, Any]:
    """`serving` is None when this user may not know."""
    path = conf.socket or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
    serving: bool | None = False
    try:
        sysio.close(sysio.connect(path, _CONNECT_MS))
        serving = True
    except PermissionError:
        serving = None
    except OSError:
        pass  # nobody is there
    return {"use": conf.mode or "if running", "socket": path, "serving": serving}


def _bridge(conf: NetConf, route_socket: RouteSocket) -> dict[str, Any]:
    link = observe.link(route_socket, conf.bridge)
    if link is None:
        return {"name": conf.bridge, "present": False, "up": False, "addresses": [], "ports": 0}
    return {
        "name": conf.bridge,
        "present": True,
        "up": link.up,
        "addresses": [
            str(address)
            for address in observe.addresses(route_socket, link.ifindex)
            if not address.ip.is_link_local
        ],
        "ports": len(observe.ports(route_socket, link.ifindex)),
    }


def _cluster(cluster: Cluster, route_socket: RouteSocket) -> dict[str, Any]:
    return {
        "inventory": cluster.inventory.source,
        "kept": tool_cluster.is_kept(cluster.inventory.source),
        "node": _node(cluster.own),
        "peers": [_node(node) for node in cluster.inventory.nodes if node is not cluster.own],
        "routes": [state._asdict() for state in tool_routes.compare(cluster, route_socket)],
    }


def _node(node: Any) -> dict[str, Any]:
    return {
        "name": node.name,
        "addresses": [str(address) for address in node.addresses],
        "podCIDRs": [str(cidr) for cidr in node.pod_cidrs],
    }


def _addresses(
    request: Request, conf: NetConf, subnets: tuple[IPNetwork, ...] | None
) -> dict[str, Any]:
    if conf.ipam_type not in IN_PROCESS:
        return {"type": conf.ipam_type}
    parsed = ipam_config.parse(request, subnets)
    held = [found.address for found in host_local.reservations(parsed.place)]
    ranges = []
    for range_set in parsed.range_sets:
        used = sum(1 for address in held if find(range_set, address))
        free = min(max(0, _size(range_set) - used), tool_statustext.MOST)
        ranges.append({"range": describe(range_set), "used": used, "free": free})
    return {"type": conf.ipam_type, "dataDir": parsed.data_dir, "ranges": ranges}


def _size(range_set: RangeSet) -> int:
    """How many addresses the set can hand out."""
    from netaddr import IPAddress, IPRange, IPSet  # of the tool's commands only this one counts

    addresses = IPSet()
    for entry in range_set:
        addresses |= IPSet(IPRange(str(entry.start), str(entry.end)))
    version = range_set[0].subnet.version
    return int((addresses - IPSet(IPAddress(n, version) for n in withheld(range_set))).size)
