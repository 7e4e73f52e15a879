"""What `podwire status` found out, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cni_plugin import agentconf, tool_cluster, tool_datapath, tool_output, tool_routes
from cni_plugin.client import NEVER

MOST = 2**53 - 1  # the largest count that every reader of JSON keeps: it stands for more as well
_LISTED = 10  # peers and routes that the text shows; --json has all
_UNKEPT = "the agent that keeps that file is gone: nodes that come, change or go are not heard of"


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `tool_status.gather`, line by line."""
    for number, broken in enumerate(report["broken"]):
        yield _line("warning", f"{broken['file']}: {broken['reason']}")
        if not number:
            yield _line("", "it sorts first: containerd stops at it, others pass it over")
    if report["file"]:
        yield _line("file", f"{report['file']} (plugins: {', '.join(report['plugins'])})")
        if report.get("unused"):
            yield _line("", f"not used, they sort behind it: {', '.join(report['unused'])}")
    for missing in report.get("missing", ()):
        folders = " and ".join(missing["folders"])
        yield _line("warning", f"plugin {missing['plugin']} is not in {folders} (--cni-path)")
    for network in report["networks"]:
        yield from _network_lines(network, report["file"])
    if report.get("cluster"):
        yield from (_line(label, text) for label, text in tool_cluster.lines(report["cluster"]))
    if report["ready"]:
        yield _line("status", "ready: a pod could be added now")
        return
    error = report["error"]
    reason = error["msg"].removeprefix(f"{report['file']}: ")
    yield _line("status", f"NOT ready ({error['code']}): {reason}")
    if error["details"]:
        yield _line("", f"hint: {error['details']}")


def _line(label: str, text: str) -> str:
    return f"{label:<10} {text}"


def _network_lines(network: dict[str, Any], file: str) -> Iterator[str]:
    declared, newest = network["cniVersion"], network["newestVersion"]
    offer = "" if declared == newest else f", offers up to {newest}"
    mode = f", mode {network['mode']}" if "mode" in network else ""
    yield _line("network", f"{network['name']}, cniVersion {declared}{offer}{mode}")
    if "agent" in network:
        yield _line("agent", _agent_text(network["agent"]))
    if "bridge" in network:
        yield _line("bridge", _bridge_text(network["bridge"]))
    yield from _block("addresses", list(_address_texts(network.get("ipam"))))
    if "node" in network:
        yield _line("node", f"{_node_text(network['node'])}, by {network['inventory']}")
        if network["kept"] is False:
            yield _line("warning", _UNKEPT)
        yield from _block("peers", [_node_text(peer) for peer in network["peers"]])
        yield from _block("routes", [tool_routes.text(route) for route in network["routes"]])
        if any(route["state"] != "ok" for route in network["routes"]):
            yield _line("", f"hint: {tool_routes.remedy('--config', file)}")
    if "findings" in network:
        yield from (_line(label, text) for label, text in tool_datapath.lines(network))


def _agent_text(agent: dict[str, Any]) -> str:
    if agent["use"] == NEVER:
        return "never used by this network: each call is served by a process of its own"
    if agent["serving"] is None:
        return f"root alone may see whether one serves at {agent['socket']}"
    if agent["serving"]:
        return f"serving at {agent['socket']}"
    started = "; the next ADD starts one" if agent["use"] == agentconf.ON_DEMAND else ""
    return f"none at {agent['socket']}: each call is served by a process of its own{started}"


def _bridge_text(bridge: dict[str, Any]) -> str:
    if not bridge["present"]:
        return f"{bridge['name']}: not there yet, the first pod makes it"
    state = "up" if bridge["up"] else "DOWN"
    addresses = ", ".join(bridge["addresses"]) or "no address"
    return f"{bridge['name']}: {state}, {addresses}, {tool_output.count(bridge['ports'], 'port')}"


def _address_texts(ipam: dict[str, Any] | None) -> Iterator[str]:
    if ipam is None:
        return
    for entry in ipam.get("ranges", ()):
        free = entry["free"]
        shown = str(free) if free < 1_000_000 else f"about 2^{free.bit_length()}"
        if free == MOST:
            shown = "2^53 or more"
        yield f"{entry['range']}: {entry['used']} used, {shown} free"
    if "ranges" not in ipam:
        yield f"by plugin {ipam['type']}" if ipam["type"] else "none: layer 2 only"


def _node_text(node: dict[str, Any]) -> str:
    pods = ", ".join(node["podCIDRs"]) or "none"
    return f"{node['name']}: {', '.join(node['addresses'])}, pods {pods}"


def _block(label: str, lines: list[str]) -> Iterator[str]:
    """Lines under one label; of a long list the beginning."""
    for index, line in enumerate(lines[:_LISTED]):
        yield _line(label if index == 0 else "", line)
    if len(lines) > _LISTED:
        yield _line("", f"and {len(lines) - _LISTED} more (--json lists all)")
