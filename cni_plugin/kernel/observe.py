"""What the kernel holds, read into the types of `drift`."""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address, ip_interface, ip_network
from socket import if_indextoname

from cni_plugin.datapath import default_network
from cni_plugin.drift import LinkState, Observed, RouteState
from cni_plugin.kernel import messages, sysctl
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.netns import inside
from cni_plugin.spec import IPAddress, IPInterface, IPNetwork
from cni_plugin.typed import Any

_PORT_FORWARDING = 3  # BR_STATE_FORWARDING, include/uapi/linux/if_bridge.h


def link(route_socket: RouteSocket, name: str) -> LinkState | None:
    """The link of this name, None when there is none."""
    entry = route_socket.get(messages.get_link(name))
    return None if entry is None else state(entry)


def state(entry: Any) -> LinkState:
    """A decoded link message as a `LinkState`."""
    info = entry.get_attr("IFLA_LINKINFO")
    port = _port(info)
    flags = entry["flags"]
    return LinkState(
        ifindex=entry["index"],
        name=entry.get_attr("IFLA_IFNAME") or "",
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else "",
        mac=entry.get_attr("IFLA_ADDRESS") or "",
        mtu=entry.get_attr("IFLA_MTU") or 0,
        up=bool(flags & messages.IFF_UP),
        promisc=bool(flags & messages.IFF_PROMISC),
        forwarding=_forwards(port),
        master=entry.get_attr("IFLA_MASTER") or 0,
        peer=_peer(entry),
        alias=entry.get_attr("IFLA_IFALIAS") or "",
        hairpin=port is not None and bool(port.get_attr("IFLA_BRPORT_MODE")),
        isolated=port is not None and bool(port.get_attr("IFLA_BRPORT_ISOLATED")),
    )


def is_forwarding(entry: Any) -> bool:
    """Whether a bridge forwards for the link of a decoded message; the rest is left unread."""
    return _forwards(_port(entry.get_attr("IFLA_LINKINFO")))


def _port(info: Any) -> Any:
    """What a bridge says of its port; None for a link that is none."""
    if info is None or info.get_attr("IFLA_INFO_SLAVE_KIND") != "bridge":
        return None
    return info.get_attr("IFLA_INFO_SLAVE_DATA")


def _forwards(port: Any) -> bool:
    return port is not None and port.get_attr("IFLA_BRPORT_STATE") == _PORT_FORWARDING


def _peer(entry: Any) -> int:
    elsewhere = entry.get_attr("IFLA_LINK_NETNSID") is not None
    return int(entry.get_attr("IFLA_LINK") or 0) if elsewhere else 0


def other_end(route_socket: RouteSocket, sandbox: int, name: str) -> str:
    """The name of the link here whose other end has this name in the sandbox (an fd); "" when
    that is no veth, or its other end is elsewhere."""
    with inside(sandbox), RouteSocket() as pod_socket:
        pod_link = link(pod_socket, name)
    if pod_link is None or pod_link.kind != "veth" or not pod_link.peer:
        return ""
    found = _link_name(pod_link.peer)
    host_link = link(route_socket, found)
    return found if host_link is not None and host_link.kind == "veth" else ""


def way_to(route_socket: RouteSocket, address: IPAddress) -> str:
    """The name of the link by which this node reaches an address; "" when it can't."""
    entry = route_socket.batch([messages.get_route(address)], ignore=(errnos.ENETUNREACH,))[0]
    index = entry.get_attr("RTA_OIF") if entry is not None else None
    return _link_name(index) if index else ""


def ports(route_socket: RouteSocket, bridge: int) -> list[LinkState]:
    """The ports of the bridge with this interface index."""
    return [state(entry) for entry in route_socket.dump(messages.dump_links(master=bridge))]


def veths(route_socket: RouteSocket) -> list[LinkState]:
    """The veth links of the namespace, as `links`."""
    return links(route_socket, "veth")


def links(route_socket: RouteSocket, kind: str) -> list[LinkState]:
    """The links of a kind; one that comes or goes meanwhile may be missed."""
    dump = messages.dump_links(kind=kind)
    return [state(entry) for entry in route_socket.dump(dump, whole=False)]


def addresses(route_socket: RouteSocket, index: int = 0) -> tuple[IPInterface, ...]:
    """The addresses of one link, or of all links of the namespace (`index` 0)."""
    return tuple(address for _, address, _ in _address_entries(route_socket, index))


def local_addresses(route_socket: RouteSocket) -> tuple[tuple[str, IPInterface], ...]:
    """Every address of the namespace, with its link's name."""
    return tuple(
        (_link_name(index), address) for index, address, _ in _address_entries(route_socket, 0)
    )


def _link_name(index: int) -> str:
    try:
        return if_indextoname(index)
    except OSError:  # it went away since the list was made
        return f"link {index}"


def unsettled(route_socket: RouteSocket, index: int) -> dict[IPInterface, bool]:
    """Addresses of a link whose duplicate address detection is not over; True where it failed."""
    busy = messages.IFA_F_TENTATIVE | messages.IFA_F_DADFAILED
    return {
        address: bool(flags & messages.IFA_F_DADFAILED)
        for _, address, flags in _address_entries(route_socket, index)
        if flags & busy
    }


def _address_entries(
    route_socket: RouteSocket, index: int
) -> Iterator[tuple[int, IPInterface, int]]:
    for entry in route_socket.dump(messages.dump_addresses(index)):
        text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
        if text is None or (index and entry["index"] != index):
            continue
        flags = entry.get_attr("IFA_FLAGS") or entry["flags"]
        yield entry["index"], _interface(f"{text}/{entry['prefixlen']}"), flags


@lru_cache(maxsize=256)
def _interface(text: str) -> IPInterface:
    """The bridge's addresses are read for each pod: parsing one takes longer than asking for it."""
    return ip_interface(text)


def routes(route_socket: RouteSocket, index: int = 0) -> tuple[RouteState, ...]:
    """The unicast routes of both families, of one link or (`index` 0) of the whole namespace."""
    found: list[RouteState] = []
    for version in (4, 6):
        for entry in route_socket.dump(messages.dump_routes(version, index=index)):
            dst = network_of(entry)
            if dst is None or entry["type"] != messages.RTN_UNICAST:
                continue
            table = entry.get_attr("RTA_TABLE") or entry["table"]
            # A multipath route is one route for each of its next hops.
            hops = entry.get_attr("RTA_MULTIPATH") or [entry]
            found += [RouteState(dst, gateway(hop), table, entry["scope"]) for hop in hops]
    return tuple(found)


def network_of(entry: Any) -> IPNetwork | None:
    """The destination of a decoded route; None for a family that is not IP's."""
    version = {messages.AF_INET: 4, messages.AF_INET6: 6}.get(entry["family"])
    if version is None:
        return None
    dst = entry.get_attr("RTA_DST")
    if dst is None:
        return default_network(version)
    return ip_network(f"{dst}/{entry['dst_len']}")


def gateway(entry: Any) -> IPAddress | None:
    """The gateway of a decoded route message, or of one of its next hops."""
    text = entry.get_attr("RTA_GATEWAY")
    return ip_address(text) if text else None


def attachment(
    route_socket: RouteSocket, sandbox: int, pod: str, host: str, bridge: str
) -> Observed:
    """Everything CHECK compares; `sandbox` is the fd of the pod's network namespace."""
    with inside(sandbox), RouteSocket() as pod_socket:
        pod_link = link(pod_socket, pod)
        pod_addresses = addresses(pod_socket, pod_link.ifindex) if pod_link else ()
        # Of all links: prevResult also holds the routes of plugins earlier in the chain.
        pod_routes = routes(pod_socket) if pod_link else ()
    host_link = link(route_socket, host)
    bridge_link = link(route_socket, bridge) if bridge else None
    return Observed(
        pod=pod_link,
        pod_addresses=pod_addresses,
        pod_routes=pod_routes,
        host=host_link,
        host_addresses=addresses(route_socket, host_link.ifindex) if host_link else (),
        host_routes=routes(route_socket, host_link.ifindex) if host_link else (),
        bridge=bridge_link,
        bridge_addresses=addresses(route_socket, bridge_link.ifindex) if bridge_link else (),
        forwarding=tuple(v for v, name in sysctl.FORWARDING.items() if sysctl.read(name) == "1"),
    )
