"""rtnetlink messages, built with pyroute2's message classes.

Each builder returns a `Message`: encoded, with its type and flags, and in words what it asks for,
which is what an error says. Nothing here talks to the kernel.
"""

from __future__ import annotations

from functools import lru_cache

from cni_plugin.datapath import ROUTE_PROTOCOL, SCOPE_LINK, HostVeth, PodLink
from cni_plugin.drift import MAIN_TABLE
from cni_plugin.kernel import codec
from cni_plugin.kernel.bare import ifaddrmsg, ifinfmsg, ndmsg, rtmsg
from cni_plugin.spec import IPAddress, IPInterface, IPNetwork, Route
from cni_plugin.typed import Any, NamedTuple

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_DELNEIGH = 29
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
IFF_UP, IFF_PROMISC = 0x1, 0x100
IFA_F_NODAD, IFA_F_TENTATIVE, IFA_F_DADFAILED = 0x02, 0x40, 0x08
RTPROT_BOOT = 3
RTN_UNICAST = 1
_RTEXT_FILTER_SKIP_STATS = 8
_GEN_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, include/uapi/linux/if_link.h

_ONE_QUEUE = (("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1))

CREATE = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
ADD = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
CHANGE = NLM_F_REQUEST | NLM_F_ACK
DUMP = NLM_F_REQUEST | NLM_F_DUMP


class Message(NamedTuple):
    """One netlink request: what follows its header, and `what` it does, for errors."""

    body: bytes
    type: int
    flags: int
    what: str


def _message(cls: Any, value: dict[str, Any], kind: int, flags: int, what: str) -> Message:
    return Message(codec.encode(cls, value), kind, flags, what)


# To put one together takes longer than to send it. These are the same for many pods: the bridge's,
# and those of links that have the same name and index in each sandbox.
_same_for_many_pods = lru_cache(maxsize=64)


def family(version: int) -> int:
    """AF_INET or AF_INET6 for an IP version."""
    return AF_INET if version == 4 else AF_INET6


# --- links ------------------------------------------------------------------------------------


@_same_for_many_pods
def get_link(name: str) -> Message:
    attrs = [("IFLA_IFNAME", name), ("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    return _message(ifinfmsg, {"attrs": attrs}, RTM_GETLINK, NLM_F_REQUEST, f"look up link {name}")


def dump_links(kind: str = "", master: int = 0) -> Message:
    """All links, or those of one kind, or the ports of one bridge: the kernel filters."""
    attrs: list[tuple[str, Any]] = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    if kind:
        attrs.append(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]}))
    if master:
        attrs.append(("IFLA_MASTER", master))
    return _message(ifinfmsg, {"attrs": attrs}, RTM_GETLINK, DUMP, "list links")


def create_bridge(name: str, mac: str, mtu: int, filtered: bool = False) -> Message:
    """The bridge, down. A MAC address that is set does not follow the ports.

    `filtered`: what it forwards passes the packet filter of IP, whatever the node's sysctl
    bridge-nf-call-iptables says. Without the module br_netfilter the kernel takes the wish, and
    nothing comes of it.
    """
    kind: list[tuple[str, Any]] = [("IFLA_INFO_KIND", "bridge")]
    if filtered:
        data = [("IFLA_BR_NF_CALL_IPTABLES", 1), ("IFLA_BR_NF_CALL_IP6TABLES", 1)]
        kind.append(("IFLA_INFO_DATA", {"attrs": data}))
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_LINKINFO", {"attrs": kind}),
    ]
    if mtu:
        attrs.append(("IFLA_MTU", mtu))
    return _message(ifinfmsg, {"attrs": attrs}, RTM_NEWLINK, CREATE, f"create bridge {name}")


def set_bridge(index: int, name: str, promisc: bool, mac: str, alias: str) -> Message:
    """The bridge up; promiscuous when asked; `mac` and `alias` are set unless they are ""."""
    flags = IFF_UP | (IFF_PROMISC if promisc else 0)
    wanted = {"IFLA_ADDRESS": mac, "IFLA_IFALIAS": alias}
    attrs = [(name, text) for name, text in wanted.items() if text]
    value = {"index": index, "flags": flags, "change": flags, "attrs": attrs}
    return _message(ifinfmsg, value, RTM_NEWLINK, CHANGE, f"set up bridge {name}")


def create_veth(host: HostVeth, pod: PodLink, sandbox: int, mtu: int, master: int) -> Message:
    """Both ends, down: the host's a port of `master`, the pod's in the netns with fd `sandbox`.

    Each has one queue: left alone the kernel makes one for each CPU, with folders in sysfs, and
    has a use for the others only with XDP or GRO switched on (drivers/net/veth.c).
    """
    peer: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", pod.name),
        ("IFLA_ADDRESS", pod.mac),
        ("IFLA_NET_NS_FD", sandbox),
        *_ONE_QUEUE,
    ]
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", host.name),
        ("IFLA_ADDRESS", host.mac),
        *_ONE_QUEUE,
    ]
    if mtu:
        peer.append(("IFLA_MTU", mtu))
        attrs.append(("IFLA_MTU", mtu))
    if master:
        attrs.append(("IFLA_MASTER", master))
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}
    attrs.append(("IFLA_LINKINFO", info))
    what = f"create link {host.name} with {pod.name} in the sandbox"
    return _message(ifinfmsg, {"attrs": attrs}, RTM_NEWLINK, CREATE, what)


def set_host_veth(index: int, host: HostVeth, port: bool) -> Message:
    """The host's end up, with its alias and, as a bridge's port, the port's flags."""
    attrs: list[tuple[str, Any]] = [("IFLA_IFALIAS", host.alias)]
    if port:
        attrs.append(_port_flags(IFLA_BRPORT_MODE=host.hairpin, IFLA_BRPORT_ISOLATED=host.isolated))
    value = {"index": index, "flags": IFF_UP, "change": IFF_UP, "attrs": attrs}
    return _message(ifinfmsg, value, RTM_NEWLINK, CHANGE, f"set up link {host.name}")


def isolate_port(index: int, name: str) -> Message:
    """Keep a port of a bridge apart from other isolated ones."""
    value = {"index": index, "attrs": [_port_flags(IFLA_BRPORT_ISOLATED=True)]}
    return _message(ifinfmsg, value, RTM_NEWLINK, CHANGE, f"isolate port {name}")


def _port_flags(**flags: bool) -> tuple[str, Any]:
    data = {"attrs": [(name, int(value)) for name, value in flags.items()]}
    slave = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", data)]
    return "IFLA_LINKINFO", {"attrs": slave}


@_same_for_many_pods
def no_link_local(index: int, name: str) -> Message:
    """Let IPv6 give the link no address of its own."""
    settings = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _GEN_MODE_NONE)]})]}
    value = {"index": index, "attrs": [("IFLA_AF_SPEC", settings)]}
    return _message(ifinfmsg, value, RTM_NEWLINK, CHANGE, f"keep link-local addresses off {name}")


@_same_for_many_pods
def link_up(index: int, name: str) -> Message:
    value = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return _message(ifinfmsg, value, RTM_NEWLINK, CHANGE, f"set link {name} up")


def set_mac(index: int, name: str, mac: str) -> Message:
    value = {"index": index, "attrs": [("IFLA_ADDRESS", mac)]}
    return _message(ifinfmsg, value, RTM_NEWLINK, CHANGE, f"set the MAC address of {name}")


def delete_link(name: str) -> Message:
    value = {"attrs": [("IFLA_IFNAME", name)]}
    return _message(ifinfmsg, value, RTM_DELLINK, CHANGE, f"delete link {name}")


# --- addresses --------------------------------------------------------------------------------


def _address(address: IPInterface, index: int, dad: bool) -> dict[str, Any]:
    text = str(address.ip)
    flags = 0 if dad or address.version == 4 else IFA_F_NODAD
    attrs: list[tuple[str, Any]] = [("IFA_ADDRESS", text), ("IFA_LOCAL", text)]
    if flags:
        attrs.append(("IFA_FLAGS", flags))
    prefix = address.network.prefixlen
    if address.version == 4 and prefix < 31:
        attrs.append(("IFA_BROADCAST", str(address.network.broadcast_address)))
    return {
        "family": family(address.version),
        "prefixlen": prefix,
        "index": index,
        "attrs": attrs,
    }


def add_address(address: IPInterface, index: int, link: str, dad: bool) -> Message:
    """An address; `dad` False spares IPv6 the duplicate address detection: IPAM has done it."""
    value = _address(address, index, dad)
    return _message(ifaddrmsg, value, RTM_NEWADDR, CREATE, f"add address {address} to {link}")


def delete_address(address: IPInterface, index: int, link: str) -> Message:
    value = _address(address, index, True)
    return _message(ifaddrmsg, value, RTM_DELADDR, CHANGE, f"remove address {address} from {link}")


@_same_for_many_pods
def dump_addresses(index: int = 0) -> Message:
    """All addresses, or those of one link; the kernel filters on a strict socket."""
    value = {"index": index, "family": AF_UNSPEC}
    return _message(ifaddrmsg, value, RTM_GETADDR, DUMP, "list addresses")


# --- routes and neighbours --------------------------------------------------------------------


def _route(route: Route, index: int, protocol: int) -> dict[str, Any]:
    attrs: list[tuple[str, Any]] = []
    if route.dst.prefixlen:
        attrs.append(("RTA_DST", str(route.dst.network_address)))
    if route.gw is not None:
        attrs.append(("RTA_GATEWAY", str(route.gw)))
    if index:
        attrs.append(("RTA_OIF", index))
    if route.priority is not None:
        attrs.append(("RTA_PRIORITY", route.priority))
    table = route.table or MAIN_TABLE
    if table > 255:
        attrs.append(("RTA_TABLE", table))
    metrics = [("RTAX_MTU", route.mtu)] if route.mtu else []
    if route.advmss:
        metrics.append(("RTAX_ADVMSS", route.advmss))
    if metrics:
        attrs.append(("RTA_METRICS", {"attrs": metrics}))
    scope = route.scope if route.scope is not None else (0 if route.gw is not None else SCOPE_LINK)
    return {
        "family": family(route.dst.version),
        "dst_len": route.dst.prefixlen,
        "table": table if table < 256 else 0,
        "proto": protocol,
        "scope": scope if route.dst.version == 4 else 0,
        "type": RTN_UNICAST,
        "attrs": attrs,
    }


def add_route(
    route: Route, index: int = 0, protocol: int = RTPROT_BOOT, flags: int = CREATE
) -> Message:
    """A unicast route through the link with `index`, or where its gateway leads."""
    via = f" via {route.gw}" if route.gw is not None else ""
    what = f"add route to {route.dst}{via}"
    return _message(rtmsg, _route(route, index, protocol), RTM_NEWROUTE, flags, what)


def add_device_route(dst: IPNetwork, index: int) -> Message:
    """A route straight to a link: the node's way to a routed pod."""
    return add_route(Route(dst, scope=SCOPE_LINK), index, ROUTE_PROTOCOL)


def dump_routes(version: int, protocol: int = 0, index: int = 0, table: int = 0) -> Message:
    """Routes of one family, filtered by the kernel by protocol, link and table."""
    attrs: list[tuple[str, Any]] = [("RTA_OIF", index)] if index else []
    if table:
        attrs.append(("RTA_TABLE", table))
    value = {"family": family(version), "proto": protocol, "attrs": attrs}
    return _message(rtmsg, value, RTM_GETROUTE, DUMP, f"list IPv{version} routes")


def get_route(address: IPAddress) -> Message:
    """How the node would send to an address."""
    value = {
        "family": family(address.version),
        "dst_len": address.max_prefixlen,
        "attrs": [("RTA_DST", str(address))],
    }
    return _message(rtmsg, value, RTM_GETROUTE, NLM_F_REQUEST, f"find the way to {address}")


def forget_neighbour(address: IPAddress, index: int) -> Message:
    """Drop what the node remembers of an address's earlier owner."""
    value = {
        "family": family(address.version),
        "ifindex": index,
        "attrs": [("NDA_DST", str(address))],
    }
    return _message(ndmsg, value, RTM_DELNEIGH, CHANGE, f"forget neighbour {address}")


REPLIES = {RTM_NEWLINK: ifinfmsg, RTM_NEWADDR: ifaddrmsg, RTM_NEWROUTE: rtmsg}
