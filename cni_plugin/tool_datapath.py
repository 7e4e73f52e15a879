"""What `podwire status` tells of a network's datapath: sizes, rules, host ports, bandwidth.

Nothing is changed. Findings are what is wrong though a pod could be added, each with a remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cni_plugin import cluster as clusters
from cni_plugin import names, tool_output, upkeep
from cni_plugin.agent import mtus
from cni_plugin.cluster import Cluster
from cni_plugin.fabric import PORTS, Fabric
from cni_plugin.kernel import nftmessages, nftview, observe, overlay, sysctl
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.portrecords import PortRecords
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.netconf import NetConf
from cni_plugin.ruleset import TABLE
from cni_plugin.spec import CniError, Code

_FORWARD = 2  # NF_INET_FORWARD
_LEGACY_TABLES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
_FAMILIES = {4: "ip", 6: "ip6"}
_BRIDGE_FILTER = "bridge/bridge-nf-call-iptables"  # there when the kernel has br_netfilter loaded
_WITHOUT_BRIDGE_FILTER = (
    "`modprobe br_netfilter`: without it a pod can't reach a Kubernetes Service whose endpoint is "
    "on its own bridge"
)


def gather(conf: NetConf, cluster: Cluster | None, route_socket: RouteSocket) -> dict[str, Any]:
    """The network's datapath; what this user may not see is left out."""
    report: dict[str, Any] = {"findings": []}
    counts = mtus.of_pods(route_socket, conf.network)
    if cluster is not None:
        _look(report, lambda: _cross_node(conf, cluster, route_socket, counts, report))
    if conf.nodes and conf.mode == "bridge" and sysctl.read(_BRIDGE_FILTER) is None:
        _find(report, "br_netfilter is not loaded", _WITHOUT_BRIDGE_FILTER)
    report["shaped"] = _shaped(conf, route_socket)
    fabric = Fabric(route_socket)
    try:
        _look(report, lambda: _rules(conf, fabric, report))
        _look(report, lambda: _host_ports(conf, fabric))
    finally:
        fabric.close()
    return report


def _look(report: dict[str, Any], look: Callable[[], dict[str, Any]]) -> None:
    """Add what a look gives; what it can't find out is a finding."""
    try:
        report |= look()
    except CniError as e:
        if e.code != Code.PERMISSION_DENIED:  # root alone may see it
            _find(report, e.msg, e.details)


def _find(report: dict[str, Any], problem: str, remedy: str) -> None:
    report["findings"].append({"problem": problem, "remedy": remedy})


def _cross_node(
    conf: NetConf,
    cluster: Cluster,
    route_socket: RouteSocket,
    counts: Mapping[int, int],
    report: dict[str, Any],
) -> dict[str, Any]:
    """How the peers are reached, and the sizes in bytes; 0 for one that there is not."""
    cross = conf.cross_node
    sizes = clusters.mtus(cluster._replace(cross=cross), route_socket)
    new = conf.mtu or sizes.pods
    others = {mtu: count for mtu, count in counts.items() if new and mtu != new}
    if others:
        _find(
            report,
            f"new pods get an MTU of {new}, others have {mtus.in_words(others)}",
            "restart the pods that were made before the network between the nodes changed",
        )
    return {
        "crossNode": {
            "backend": cross.backend,
            "underlay": sizes.link or None,
            "device": overlay.device_name(cross.vni) if sizes.overlay else None,
        },
        "mtu": {
            "underlay": sizes.underlay,
            "overlay": sizes.overlay,
            "device": sizes.device,
            "newPods": new,
            "pods": [{"mtu": mtu, "count": count} for mtu, count in counts.items()],
        },
    }


def _shaped(conf: NetConf, route_socket: RouteSocket) -> int:
    """How many pods have a bandwidth for what they send: each has a device of its own for it."""
    prefix = names.alias_prefix(conf.network)
    return sum(1 for link in observe.links(route_socket, "ifb") if link.alias.startswith(prefix))


def _rules(conf: NetConf, fabric: Fabric, report: dict[str, Any]) -> dict[str, Any]:
    """`rules` is "none" before the first pod, "ok", or "wrong"."""
    known = any(record.network == conf.network for record in fabric.records.all())
    for broken in fabric.records.broken:
        _find(report, broken.msg, broken.details)
    differences = upkeep.rule_differences(fabric) if known else []
    for difference in differences:
        _find(report, difference, "an agent puts it back at once, else the next ADD does")
    chains = [
        f"{_FAMILIES.get(chain.version, 'inet')} {chain.table} {chain.name}"
        for chain in nftview.chains(fabric.netfilter)
        if (chain.kind, chain.hook, chain.policy) == ("filter", _FORWARD, nftmessages.DROP)
        and chain.table != TABLE
    ]
    if conf.accept_forwarding:
        for path in _LEGACY_TABLES:
            _find_legacy(path, report)
    return {
        "masquerade": conf.ip_masq,
        "ingressPolicy": conf.ingress_policy,
        "rules": ("wrong" if differences else "ok") if known else "none",
        "forwardAccept": chains if conf.accept_forwarding else [],
    }


def _find_legacy(path: str, report: dict[str, Any]) -> None:
    """Rules that nftables does not show: podwire neither sees nor changes them."""
    try:
        with open(path, encoding="ascii") as file:
            tables = file.read().split()
    except OSError:  # the kernel has them not
        return
    if "filter" in tables:
        command = "ip6tables-legacy" if "ip6" in path else "iptables-legacy"
        _find(
            report,
            f"{command} has a filter table here, in which podwire can't accept forwarding",
            f"if `{command} -S FORWARD` says DROP, accept the pods' subnets there",
        )


def _host_ports(conf: NetConf, fabric: Fabric) -> dict[str, Any]:
    """How many ports of the node lead to pods of the network; both families count as one."""
    records = PortRecords(StateFolder(fabric.key, PORTS)).everything().values()
    ports = {
        (port.protocol, port.host_port, str(port.host_ip or ""))
        for record in records
        if record.network == conf.network
        for port in record.ports
    }
    return {"hostPorts": len(ports)}


# --- showing ------------------------------------------------------------------------------------


def lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The report as labels and texts."""
    if "crossNode" in report:
        yield "paths", _paths_text(report["crossNode"])
        yield "mtu", _mtu_text(report["mtu"])
    if "rules" in report:
        yield "rules", _rules_text(report)
    counts = []
    if report.get("hostPorts"):
        counts.append(tool_output.count(report["hostPorts"], "host port"))
    if report.get("shaped"):
        counts.append(f"{tool_output.count(report['shaped'], 'pod')} with a limited bandwidth")
    if counts:
        yield "ports", ", ".join(counts)
    for finding in report["findings"]:
        yield "finding", finding["problem"]
        if finding["remedy"]:
            yield "", f"hint: {finding['remedy']}"


def _paths_text(cross: Mapping[str, Any]) -> str:
    device = f", overlay {cross['device']}" if cross["device"] else ", plain routes alone"
    underlay = f" by {cross['underlay']}" if cross["underlay"] else ""
    return f"backend {cross['backend']}{underlay}{device}"


def _mtu_text(mtu: Mapping[str, Any]) -> str:
    sizes = [f"between nodes {mtu['underlay'] or 'unknown'}"]
    if mtu["overlay"]:
        there = mtu["device"]
        sizes.append(f"overlay {mtu['overlay']}{'' if there == mtu['overlay'] else _has(there)}")
    sizes.append(f"new pods {mtu['newPods'] or 'as by default'}")
    counts = {entry["mtu"]: entry["count"] for entry in mtu["pods"]}
    if counts:
        sizes.append(f"pods {mtus.in_words(counts)}")
    return ", ".join(sizes)


def _has(mtu: int) -> str:
    return f" (its device has {mtu})" if mtu else " (no device yet)"


def _rules_text(report: Mapping[str, Any]) -> str:
    state = {
        "ok": "as they should be",
        "wrong": "NOT as they should be",
        "none": "none yet, the first pod makes them",
    }[report["rules"]]
    masquerade = "on" if report["masquerade"] else "off"
    text = f"{state}; masquerade {masquerade}"
    if report["ingressPolicy"] != "open":
        text += f", ingress policy {report['ingressPolicy']}"
    if report["forwardAccept"]:
        text += f", forwarding accepted in {', '.join(report['forwardAccept'])}"
    return text
