"""What one attachment needs in the kernel, decided without the kernel.

`plan` turns a configuration and the leases of IPAM into a `PodNetwork`; `kernel` applies it,
`result` describes it to the runtime, and `drift` holds what was observed against it for CHECK.
Everything here is pure: no I/O, no clock, no randomness. Names and MAC addresses are derived from
the attachment, so that a DEL finds what an ADD made with nothing but the attachment in hand.

Both families go through the same code: a list of addresses, each of which knows its version.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_network

from cni_plugin import names
from cni_plugin.netconf import NetConf
from cni_plugin.ruleset import ISOLATED
from cni_plugin.spec import (
    Attachment,
    CniError,
    Code,
    Interface,
    IPAddress,
    IPConfig,
    IPInterface,
    IPNetwork,
    Result,
    Route,
)
from cni_plugin.typed import NamedTuple

SCOPE_LINK = 253  # RT_SCOPE_LINK, include/uapi/linux/rtnetlink.h
_IPV6_MIN_MTU = 1280  # RFC 8200, section 5


ROUTE_PROTOCOL = 112  # podwire's own; free in include/uapi/linux/rtnetlink.h and iproute2's list


class Bridge(NamedTuple):
    """The bridge of the node; `gateways` are the addresses it must carry, `siblings` those that
    other pods of the network may have put there."""

    name: str
    mtu: int
    promisc: bool
    gateways: tuple[IPInterface, ...]
    siblings: tuple[IPInterface, ...]
    force_address: bool


class HostVeth(NamedTuple):
    """The node's end of the pod's link."""

    name: str
    mac: str
    alias: str
    hairpin: bool
    isolated: bool
    addresses: tuple[IPInterface, ...]
    routes: tuple[IPNetwork, ...]


class PodLink(NamedTuple):
    """The pod's end. `routes` stand in the order in which the kernel accepts them."""

    name: str
    mac: str
    addresses: tuple[IPInterface, ...]
    routes: tuple[Route, ...]


class PodNetwork(NamedTuple):
    """Everything an ADD makes in the kernel. `bridge` is None in mode ptp; `mtu` 0 is its default.

    `forwarding` lists the IP versions for which the node must forward; `subnets` are the networks
    that the leases lie in; `leases` is what the pod holds, as the runtime is told.
    """

    bridge: Bridge | None
    host: HostVeth
    pod: PodLink
    mtu: int
    enable_dad: bool
    forwarding: tuple[int, ...]
    subnets: tuple[IPNetwork, ...]
    leases: Result


def _pod_mac(conf: NetConf, attachment: Attachment, ips: tuple[IPConfig, ...]) -> str:
    """The MAC asked for, or one made from the IPv4 address.

    A pod that inherits an address then has the MAC its predecessor had, and no neighbour's cache
    is ever wrong (the prefix 0a:58 is what Kubernetes' own kubenet used for this).
    """
    if conf.mac:
        return conf.mac
    for ip in ips:
        if isinstance(ip.address.ip, IPv4Address):
            return (b"\x0a\x58" + ip.address.ip.packed).hex(":")
    return names.derived_mac("pod", conf.network, *attachment)


# --- the plan ---------------------------------------------------------------------------------


def plan(
    conf: NetConf,
    attachment: Attachment,
    leases: Result,
    siblings: tuple[IPInterface, ...] = (),
) -> PodNetwork:
    """The network of one pod. `leases` is IPAM's result, with no addresses for layer 2 only;
    `siblings` are the gateways of all the ranges that it could have come from.

    Raises CniError 7 when the configuration and the leases don't fit together.
    """
    subnets = tuple(dict.fromkeys(ip.address.network for ip in leases.ips))
    leases = _settled(conf, leases)
    versions = tuple(sorted({ip.address.version for ip in leases.ips}))
    refuse_small_mtu(conf, versions)
    return PodNetwork(
        bridge=None if conf.mode == "ptp" else _bridge(conf, leases.ips, siblings),
        host=_host_veth(conf, attachment, leases.ips),
        pod=PodLink(
            name=attachment.ifname,
            mac=_pod_mac(conf, attachment, leases.ips),
            addresses=tuple(ip.address for ip in leases.ips),
            routes=tuple(_pod_routes(leases)),
        ),
        mtu=conf.mtu,
        enable_dad=conf.enable_dad,
        forwarding=versions if conf.is_gateway else (),
        subnets=subnets,
        leases=leases,
    )


def refuse_small_mtu(conf: NetConf, versions: Collection[int]) -> None:
    """Raises CniError 7 when an IPv6 address would not come up for the configured MTU."""
    if conf.mtu and conf.mtu < _IPV6_MIN_MTU and 6 in versions:
        raise CniError(
            Code.INVALID_CONFIG,
            f"mtu: {conf.mtu} is too small for IPv6",
            f"IPv6 needs at least {_IPV6_MIN_MTU}: raise mtu, or leave IPv6 out of ipam",
        )


def _settled(conf: NetConf, leases: Result) -> Result:
    """The leases as the pod has them: each with its gateway, host prefixes in mode ptp, the
    default routes among the routes."""
    ips = tuple(_with_gateway(conf, ip) for ip in leases.ips)
    if conf.mode == "ptp":
        ips = tuple(ip._replace(address=_host_interface(ip.address.ip)) for ip in ips)
    return leases._replace(
        ips=ips, routes=leases.routes + tuple(_default_routes(conf, ips, leases.routes))
    )


def _host_veth(conf: NetConf, attachment: Attachment, ips: tuple[IPConfig, ...]) -> HostVeth:
    name = names.host_veth_name(conf.network, attachment)
    ptp = conf.mode == "ptp"
    gateways = dict.fromkeys(ip.gateway for ip in ips if ip.gateway is not None)
    return HostVeth(
        name=name,
        mac=names.derived_mac("host", name),
        alias=names.alias(conf.network, attachment),
        hairpin=conf.hairpin or (_maps_ports(conf) and not conf.promisc),
        isolated=conf.port_isolation or conf.ingress_policy == ISOLATED,
        addresses=tuple(_host_interface(gateway) for gateway in gateways) if ptp else (),
        routes=tuple(ip.address.network for ip in ips) if ptp else (),
    )


def _maps_ports(conf: NetConf) -> bool:
    """A pod that goes to its own host port gets its packets back by the port they came from, where
    bridged packets pass the packet filter (net.bridge.bridge-nf-call-iptables)."""
    return conf.mode == "bridge" and bool(conf.ports.mappings)


def _bridge(conf: NetConf, ips: tuple[IPConfig, ...], siblings: tuple[IPInterface, ...]) -> Bridge:
    return Bridge(
        name=conf.bridge,
        mtu=conf.mtu,
        promisc=conf.promisc,
        gateways=tuple(dict.fromkeys(_gateway_addresses(ips))) if conf.is_gateway else (),
        siblings=siblings,
        force_address=conf.force_address,
    )


def _host_interface(address: IPAddress) -> IPInterface:
    """The address with a prefix that covers it alone."""
    return IPv4Interface(address) if address.version == 4 else IPv6Interface(address)


def _with_gateway(conf: NetConf, ip: IPConfig) -> IPConfig:
    """The lease with a gateway where one is needed and IPAM named none: its network's first."""
    if ip.gateway is not None and ip.gateway.version != ip.address.version:
        raise CniError(
            Code.INVALID_CONFIG,
            f"ipam: the gateway {ip.gateway} is of another family than the address {ip.address}",
        )
    if ip.gateway is not None or not conf.is_gateway:
        return ip
    network = ip.address.network
    if network.num_addresses < 4:
        raise CniError(
            Code.INVALID_CONFIG,
            f"ipam: no gateway for {ip.address}, and its network has no room for one",
            "name a gateway in the ipam section",
        )
    return ip._replace(gateway=network.network_address + 1)


def _gateway_addresses(ips: tuple[IPConfig, ...]) -> Iterator[IPInterface]:
    for ip in ips:
        if ip.gateway is None:
            continue
        network = ip.address.network
        # One outside the pod's network says nothing about the network that it lies in.
        prefix = network.prefixlen if ip.gateway in network else network.max_prefixlen
        if ip.address.version == 4:
            yield IPv4Interface((int(ip.gateway), prefix))
        else:
            yield IPv6Interface((int(ip.gateway), prefix))


_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def default_network(version: int) -> IPNetwork:
    """0.0.0.0/0 or ::/0."""
    return _DEFAULT[version]


def _default_routes(
    conf: NetConf, ips: tuple[IPConfig, ...], given: tuple[Route, ...]
) -> Iterator[Route]:
    """One default route for each family, unless IPAM's routes hold one already."""
    if not conf.is_default_gateway:
        return
    done = {route.dst.version for route in given if route.dst.prefixlen == 0}
    for ip in ips:
        version = ip.address.version
        if version not in done and ip.gateway is not None:
            done.add(version)
            yield Route(default_network(version), ip.gateway)


def _pod_routes(leases: Result) -> Iterator[Route]:
    """The pod's routes: first the way to gateways that no address of the pod covers, then the rest.

    In mode ptp each gateway is such. A route without a gateway goes through its family's first,
    as in the reference, unless its scope says that it is on the link.
    """
    gateways = [ip.gateway for ip in leases.ips if ip.gateway is not None]
    first = {gateway.version: gateway for gateway in reversed(gateways)}
    for gateway in dict.fromkeys(gateways):
        if not any(gateway in ip.address.network for ip in leases.ips):
            yield Route(_host_interface(gateway).network, scope=SCOPE_LINK)
    for route in leases.routes:
        on_link = route.scope is not None and route.scope >= SCOPE_LINK
        yield route if on_link else route._replace(gw=route.gw or first.get(route.dst.version))


# --- the result -------------------------------------------------------------------------------


class Applied(NamedTuple):
    """What only the kernel knows of a network that was applied."""

    bridge_mac: str
    bridge_mtu: int
    mtu: int


def result(conf: NetConf, network: PodNetwork, netns: str, applied: Applied) -> Result:
    """The CNI result: [bridge,] host veth and pod link, the addresses on the last of them.

    What an earlier plugin of the chain reported stays in front (CNI specification, section 2,
    ADD: prevResult is passed on).
    """
    previous = conf.prev_result or Result()
    interfaces = [
        Interface(network.host.name, network.host.mac, mtu=applied.mtu),
        Interface(network.pod.name, network.pod.mac, sandbox=netns, mtu=applied.mtu),
    ]
    if network.bridge is not None:
        bridge = Interface(network.bridge.name, applied.bridge_mac, mtu=applied.bridge_mtu)
        interfaces.insert(0, bridge)
    pod_index = len(previous.interfaces) + len(interfaces) - 1
    answers = (dns for dns in (conf.dns, network.leases.dns) if dns is not None and any(dns))
    return Result(
        interfaces=previous.interfaces + tuple(interfaces),
        ips=previous.ips + tuple(ip._replace(interface=pod_index) for ip in network.leases.ips),
        routes=previous.routes + network.leases.routes,
        dns=next(answers, previous.dns),
    )
