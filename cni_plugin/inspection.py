"""CHECK and STATUS: the commands that look and change nothing."""

from __future__ import annotations

from cni_plugin import (
    additions,
    chained,
    datapath,
    leases,
    netconf,
    results,
    skel,
    upkeep,
)
from cni_plugin.additions import Way
from cni_plugin.drift import drift
from cni_plugin.fields import Fields
from cni_plugin.kernel import bridge, observe, privileges
from cni_plugin.node import Node, cluster_of, leases_of, record_of, sandbox
from cni_plugin.ruleset import OPEN
from cni_plugin.spec import CniError, Code, Request, Result, Route
from cni_plugin.typed import NamedTuple

# --- CHECK ------------------------------------------------------------------------------------


def check(request: Request, node: Node) -> bytes:
    conf = netconf.parse(request)
    previous = conf.prev_result
    if previous is None:
        raise CniError(
            Code.INVALID_CONFIG,
            "prevResult: missing, and CHECK compares with it",
            "the runtime passes the result of ADD as prevResult",
        )
    if conf.chained:
        return _verdict(*chained.check(request, node, conf))
    nodes = cluster_of(conf, node)
    source = leases_of(request, node, nodes)
    with sandbox(node, request.netns) as fd:
        mine = _own_part(request, previous)
        plan = datapath.plan(conf, request.attachment, mine.leases)
        if mine.host_veth:
            plan = plan._replace(host=plan.host._replace(name=mine.host_veth))
        seen = observe.attachment(
            node.route_socket,
            fd,
            plan.pod.name,
            plan.host.name,
            plan.bridge.name if plan.bridge else "",
        )
    found = drift(plan, mine.mac, seen)
    way = Way(plan.host.name, plan.bridge.name if plan.bridge else plan.host.name)
    pod_ips = tuple(address.ip for address in plan.pod.addresses)
    wanted = additions.plan(conf, request.attachment, way, pod_ips)
    found += additions.differences(node, wanted, way)
    shared = upkeep.differences(node.fabric, record_of(conf, plan.subnets))
    try:
        source.check([ip.address.ip for ip in mine.leases.ips])
    except CniError as e:
        if e.code != Code.CHECK_FAILED:
            raise
        found.append(e.msg)
    return _verdict(found, shared)


def _verdict(found: list[str], shared: list[str]) -> bytes:
    """`found` is of the pod alone, `shared` of what the node's networks share."""
    remedy = "delete the pod, so that it is made anew"
    if not found:
        remedy = "an agent puts this back at once, else the next ADD of the network does"
    found = [*found, *shared]
    if found:
        raise CniError(Code.CHECK_FAILED, "; ".join(found), remedy)
    return b""


class _OwnPart(NamedTuple):
    """What prevResult says of this attachment. A pod that another plugin made before podwire took
    the node over has a host veth with a name of that plugin's choosing."""

    mac: str
    host_veth: str
    leases: Result


def _own_part(request: Request, previous: Result) -> _OwnPart:
    """This attachment's part of the result of the whole chain."""
    name = request.attachment.ifname
    for index, interface in enumerate(previous.interfaces):
        if interface.name == name and interface.sandbox:
            ips = tuple(ip for ip in previous.ips if ip.interface in (index, None))
            before = previous.interfaces[index - 1] if index else None
            host = before.name if before is not None and not before.sandbox else ""
            routes = _whole_routes(request, previous.routes)
            return _OwnPart(interface.mac, host, previous._replace(ips=ips, routes=routes))
    raise CniError(
        Code.INVALID_CONFIG,
        f"prevResult.interfaces: holds no interface {name} of a sandbox",
        "it must be the result of the ADD of this attachment",
    )


def _whole_routes(request: Request, routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """prevResult's routes, as CHECK can compare them.

    What a version before 1.1.0 can't say of them (a table, a metric) is taken from the configured
    route they came from. One without a gateway that is not configured here belongs to an earlier
    plugin of the chain, and only that one knows which way it leads.
    """
    configured = _configured_routes(request)
    whole = {(route.dst, route.gw): route for route in configured}
    known = [route for route in routes if route.gw is not None or (route.dst, None) in whole]
    if skel.at_least(request.version, "1.1.0"):
        return tuple(known)
    return tuple(whole.get((route.dst, route.gw), route) for route in known)


def _configured_routes(request: Request) -> tuple[Route, ...]:
    try:
        return results.decode_routes(Fields(request.conf).child("ipam"), "routes")
    except CniError:
        if netconf.ipam_type(request.conf) in leases.IN_PROCESS:
            raise
        return ()  # another plugin's section, whose routes may look otherwise


# --- STATUS ---------------------------------------------------------------------------------


def status(request: Request, node: Node) -> bytes:
    """Succeeds only if an ADD would be served. Never changes anything."""
    conf = netconf.parse(request)
    try:
        privileges.require()
        nodes = cluster_of(conf, node)
        source = leases_of(request, node, nodes)
        source.status()
        datapath.refuse_small_mtu(conf, {gateway.version for gateway in source.gateways()})
        if conf.mode == "bridge":
            gateways = source.gateways() if conf.is_gateway and not conf.force_address else ()
            bridge.refuse_unusable(node.route_socket, conf.bridge, gateways)
        if nodes and not upkeep.are_reached(node.fabric, record_of(conf)):
            from cni_plugin import cluster

            cluster.refuse_obstructed(nodes, node.route_socket, patient=bool(conf.mtu))
        if conf.ip_masq or conf.maps_ports or conf.ingress_policy != OPEN:
            node.fabric.netfilter.generation()  # a kernel without nftables refuses
    except CniError as e:
        if e.code >= Code.POOL_EXHAUSTED or e.code == Code.IO_FAILURE:
            raise CniError(Code.NOT_AVAILABLE, e.msg, e.details) from e
        raise
    return b""
