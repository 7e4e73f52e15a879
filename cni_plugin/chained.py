"""ADD and CHECK of a pod whose link an earlier plugin of the chain made: podwire as portmap and
bandwidth.

What is known of the pod comes from prevResult, and what that does not tell from the kernel: which
link of the node is the other end of the pod's, and which one leads to its address.
"""

from __future__ import annotations

from ipaddress import ip_network

from cni_plugin import additions, results, takeover, upkeep
from cni_plugin.additions import Way
from cni_plugin.kernel import device, messages, observe
from cni_plugin.netconf import NetConf
from cni_plugin.node import Node, all_or_nothing, record_of, sandbox
from cni_plugin.records import NetworkRecord
from cni_plugin.ruleset import ISOLATED, OPEN
from cni_plugin.spec import CniError, Code, IPConfig, IPNetwork, Request, Result

_OF_PODS = ("bridge", "veth")  # kinds of links that lead to pods and nowhere else
_BESIDE = "+chained"  # no network's name holds a plus sign


def add(request: Request, node: Node, conf: NetConf) -> bytes:
    """Add to the pod what the configuration asks for, and pass prevResult on."""
    previous = _previous(conf)
    ips = _ips(request, previous)
    with sandbox(node, request.netns) as fd, all_or_nothing() as undo:
        way = _way(request, node, conf, fd, ips)
        wanted = additions.plan(conf, request.attachment, way, tuple(ip.address.ip for ip in ips))
        reply = results.encode_result(previous, request.version)
        additions.limit(node, wanted, way, undo)
        if conf.ingress_policy == ISOLATED:
            _isolate(node, way)
        record = _record(conf, previous, ips)
        upkeep.keep_for(node.fabric, record, None, undo, alone=lambda: False)
        takeover.refuse_held(node, wanted.ports.ports)
        additions.open_ports(node, wanted, undo)
        return node.hand_over(reply)


def check(request: Request, node: Node, conf: NetConf) -> tuple[list[str], list[str]]:
    """What is not as `add` left it, in words: of the pod, and of what networks share."""
    previous = _previous(conf)
    ips = _ips(request, previous)
    with sandbox(node, request.netns) as fd:
        way = _way(request, node, conf, fd, ips)
    wanted = additions.plan(conf, request.attachment, way, tuple(ip.address.ip for ip in ips))
    shared = upkeep.differences(node.fabric, _record(conf, previous, ips))
    return additions.differences(node, wanted, way), shared


def _previous(conf: NetConf) -> Result:
    """prevResult. Raises CniError 7 where it has to name the pod's bridge, and names no link."""
    previous = conf.prev_result or Result()
    if conf.ingress_policy != OPEN and all(link.sandbox for link in previous.interfaces):
        raise CniError(
            Code.INVALID_CONFIG,
            f"prevResult.interfaces: names no bridge, and ingressPolicy {conf.ingress_policy} is "
            "about the pods of one",
            "put podwire behind a plugin that tells the bridge, or leave ingressPolicy out",
        )
    return previous


def _ips(request: Request, previous: Result) -> tuple[IPConfig, ...]:
    """The addresses of the attachment's own interface.

    One that points to no interface that is listed counts as its, as for the reference's portmap.
    """
    others = {
        index
        for index, interface in enumerate(previous.interfaces)
        if interface.name != request.attachment.ifname or not interface.sandbox
    }
    return tuple(ip for ip in previous.ips if ip.interface not in others)


def _record(conf: NetConf, previous: Result, ips: tuple[IPConfig, ...]) -> NetworkRecord:
    """Beside the record of the plugin that made the link, which may be podwire's own entry.

    The bridge is the first link that prevResult names, as the reference's firewall takes it.
    """
    links = [interface.name for interface in previous.interfaces if not interface.sandbox]
    subnets = tuple(dict.fromkeys(_subnet(ip) for ip in ips))
    bridge = links[0] if len(links) > 1 else ""
    return record_of(conf, subnets)._replace(network=f"{conf.network}{_BESIDE}", bridge=bridge)


def _isolate(node: Node, way: Way) -> None:
    """Keep the pod apart from others of its bridge that are isolated; it goes with the link."""
    index = device.index(node.route_socket, way.host_link)
    node.route_socket.batch([messages.isolate_port(index, way.host_link)])


def _subnet(ip: IPConfig) -> IPNetwork:
    """The network that the address is said to lie in; one that is half of all is none."""
    network = ip.address.network
    return network if network.prefixlen > 1 else ip_network(ip.address.ip)


def _way(request: Request, node: Node, conf: NetConf, fd: int, ips: tuple[IPConfig, ...]) -> Way:
    """Looked up where something of it is needed."""
    host_link = route_link = ""
    if any(conf.bandwidth) or conf.ingress_policy == ISOLATED:
        host_link = observe.other_end(node.route_socket, fd, request.attachment.ifname)
        if not host_link:
            raise CniError(
                Code.INVALID_CONFIG,
                f"{'bandwidth' if any(conf.bandwidth) else 'ingressPolicy'}: "
                f"{request.attachment.ifname} has no other end on this node",
                "limits and isolation need a veth pair: leave the option out for this network",
            )
    if conf.ports.mappings and ips:
        v4 = [ip.address.ip for ip in ips if ip.address.version == 4]
        route_link = observe.way_to(node.route_socket, v4[0]) if v4 else ""
        link = observe.link(node.route_socket, route_link) if route_link else None
        if link is None or link.kind not in _OF_PODS:  # the node's own way out (macvlan)
            route_link = ""
    return Way(host_link, route_link)
