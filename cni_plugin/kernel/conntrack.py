"""Connection tracking: forgetting the UDP flows that a host port's coming or going made wrong.

The kernel decides once for each flow where it leads, and UDP has no end that it could see: a
client that goes on sending from one port keeps its flow alive, and reaches a pod that is gone, or
the node where there is a pod now. TCP and SCTP start anew with a handshake.

Rules:
- The kernel picks the flows (CTA_FILTER). It removes them by itself from Linux 6.11 on; earlier
  ones list them from 5.8 on, and all flows before that. What was listed is looked at here.
- IPv6 flows are picked by their ports alone: where an address should match, kernels take those
  flows for which it does not.
- For several ports the flows are listed once and looked at here: each question walks the table.
- Only flows to the host port at one of the node's own addresses, or to the pod's port, are
  forgotten. The same port number elsewhere in the world is no business of ours.

Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import ip_address

from cni_plugin.hostports import PROTOCOLS, HostPort
from cni_plugin.kernel import bare, codec, messages
from cni_plugin.kernel.codec import Entry
from cni_plugin.kernel.messages import CHANGE, DUMP, Message, family
from cni_plugin.kernel.netlink import KernelError, NetlinkSocket, RouteSocket
from cni_plugin.spec import CniError, Code, IPAddress
from cni_plugin.typed import Any, NamedTuple

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_CT: Any = bare.load("pyroute2.netlink.nfnetlink.nfctsocket").nfct_msg
_UDP = PROTOCOLS["udp"]
_RTN_LOCAL = 2
# Which parts of a tuple count: CTA_FILTER_F_* of net/netfilter/nf_conntrack_netlink.c's order.
_SRC, _DST, _NUMBER, _SRC_PORT, _DST_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5
_NOT_KNOWN = (errnos.EINVAL, errnos.EOPNOTSUPP)
_MANY = 4  # ports of one family for which one list is quicker


class Flow(NamedTuple):
    """A flow's first packet as it came, and its `id`, by which the kernel tells it from a later
    one with the same numbers; `from_address` and `from_port` are whom the answers come from."""

    src: str
    dst: str
    src_port: int
    dst_port: int
    from_address: str
    from_port: int
    id: int


class _Wanted(NamedTuple):
    """Flows of UDP: to `dst_port` of `dst` (None: anywhere), or answered by `answerer`; all flows
    of the family without either."""

    version: int
    dst: IPAddress | None = None
    dst_port: int = 0
    answerer: tuple[IPAddress, int] | None = None

    def matches(self, flow: Flow) -> bool:
        if self.answerer is not None:
            address, port = self.answerer
            return flow.from_port == port and flow.from_address == str(address)
        return flow.dst_port == self.dst_port and self.dst in (None, ip_address(flow.dst))

    @property
    def anywhere(self) -> bool:
        """Whether no address is told, so that only the node's own are meant."""
        return self.dst is None and self.answerer is None

    @property
    def certain(self) -> bool:
        """Whether the kernel can pick exactly these flows."""
        return self.version == 4 and (self.dst is not None or self.answerer is not None)


class ConntrackSocket(NetlinkSocket):
    """The connection tracking of the current network namespace."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_NETFILTER, {_NEW: _CT})


def forget_opened(route_socket: RouteSocket, ports: Iterable[HostPort]) -> None:
    """After the ports have come: no flow to them goes on past the pod.

    Raises CniError 104 when the kernel refuses.
    """
    wanted = [
        _Wanted(port.version, port.host_ip, port.host_port)
        for port in ports
        if port.protocol == "udp"
    ]
    _forget(route_socket, wanted)


def forget_closed(route_socket: RouteSocket, ports: Iterable[HostPort]) -> None:
    """After the ports have gone: no flow leads to the pod any more. Errors as above."""
    wanted = dict.fromkeys(
        _Wanted(port.version, answerer=(port.pod, port.container_port))
        for port in ports
        if port.protocol == "udp"
    )
    _forget(route_socket, list(wanted))


def _forget(route_socket: RouteSocket, wanted: Sequence[_Wanted]) -> None:
    if not wanted:
        return
    with ConntrackSocket() as conntrack:
        for version in (4, 6):
            group = [each for each in wanted if each.version == version]
            if len(group) >= _MANY:
                _forget_listed(conntrack, route_socket, group, _Wanted(version))
                continue
            for each in group:
                if not (each.certain and _forgotten(conntrack, each)):
                    _forget_listed(conntrack, route_socket, [each], each)


def _forgotten(conntrack: ConntrackSocket, wanted: _Wanted) -> bool:
    """Let the kernel remove them; False when it can't."""
    try:
        conntrack.batch([_request(wanted, _DELETE, CHANGE, "forget")])
    except KernelError as e:
        if e.errno not in _NOT_KNOWN:
            raise
        return False
    return True


def _forget_listed(
    conntrack: ConntrackSocket, route_socket: RouteSocket, wanted: Sequence[_Wanted], asked: _Wanted
) -> None:
    """List the flows `asked` for, and remove those that any of `wanted` means, one by one."""
    sure, unsure = _meant(_listed(conntrack, asked), wanted)
    own = _own_addresses(route_socket, {flow.dst for flow in unsure})
    flows = sure + [flow for flow in unsure if flow.dst in own]
    conntrack.batch([_delete_flow(asked.version, flow) for flow in flows], ignore=(errnos.ENOENT,))


def _meant(flows: Iterable[Flow], wanted: Sequence[_Wanted]) -> tuple[list[Flow], list[Flow]]:
    """The flows that are meant, and those that are if they go to one of the node's addresses."""
    by_port: dict[int, list[_Wanted]] = {}
    for each in wanted:
        port = each.dst_port if each.answerer is None else each.answerer[1]
        by_port.setdefault(port, []).append(each)
    sure: list[Flow] = []
    unsure: list[Flow] = []
    for flow in flows:
        near = {*by_port.get(flow.dst_port, ()), *by_port.get(flow.from_port, ())}
        found = [each for each in near if each.matches(flow)]
        if found:
            (unsure if all(each.anywhere for each in found) else sure).append(flow)
    return sure, unsure


def _listed(conntrack: ConntrackSocket, wanted: _Wanted) -> list[Flow]:
    try:
        # One that comes or goes meanwhile is right already, or gone.
        entries = conntrack.dump(_request(wanted, _GET, DUMP, "list"), whole=False)
    except KernelError as e:
        if e.errno not in _NOT_KNOWN:
            raise
        raise CniError(
            Code.KERNEL_REFUSED, e.msg, "is the kernel's module nf_conntrack_netlink there?"
        ) from e
    return [_flow(entry, wanted.version) for entry in entries if _is_udp(entry)]


def _own_addresses(route_socket: RouteSocket, addresses: set[str]) -> set[str]:
    """Those that are the node's, as its routing sees it."""
    asked = sorted(addresses)
    ways = route_socket.batch(
        [messages.get_route(ip_address(text)) for text in asked],
        ignore=(errnos.ENETUNREACH, errnos.EHOSTUNREACH, errnos.EINVAL, errnos.EACCES),
    )
    return {
        text
        for text, way in zip(asked, ways, strict=True)
        if way is not None and way["type"] == _RTN_LOCAL
    }


# --- messages -----------------------------------------------------------------------------------


def _request(wanted: _Wanted, kind: int, flags: int, verb: str) -> Message:
    port: list[tuple[str, Any]] = [("CTA_PROTO_NUM", _UDP)]
    ip: list[tuple[str, Any]] = []
    if wanted.answerer is not None:
        address, number = wanted.answerer
        port.append(("CTA_PROTO_SRC_PORT", number))
        if wanted.certain:
            ip.append(("CTA_IP_V4_SRC", str(address)))
        attrs = [("CTA_TUPLE_REPLY", _tuple(ip, port))]
        chosen = _filter(0, _NUMBER | _SRC_PORT | (_SRC if ip else 0))
    elif not wanted.dst_port:
        number = 0
        attrs = [("CTA_TUPLE_ORIG", _tuple(ip, port))]
        chosen = _filter(_NUMBER, 0)
    else:
        number = wanted.dst_port
        port.append(("CTA_PROTO_DST_PORT", number))
        if wanted.certain:
            ip.append(("CTA_IP_V4_DST", str(wanted.dst)))
        attrs = [("CTA_TUPLE_ORIG", _tuple(ip, port))]
        chosen = _filter(_NUMBER | _DST_PORT | (_DST if ip else 0), 0)
    body = _encode(wanted.version, attrs) + chosen
    what = f"{verb} UDP flows" + (f" to port {number}" if number else "")
    return Message(body, kind, flags, what)


def _tuple(ip: list[tuple[str, Any]], port: list[tuple[str, Any]]) -> dict[str, Any]:
    return {"attrs": [("CTA_TUPLE_IP", {"attrs": ip}), ("CTA_TUPLE_PROTO", {"attrs": port})]}


def _encode(version: int, attrs: list[tuple[str, Any]]) -> bytes:
    return codec.encode(_CT, {"nfgen_family": family(version), "attrs": attrs})


@cache
def _filter(orig: int, reply: int) -> bytes:
    """The attribute CTA_FILTER: which parts of the tuples count."""
    flags = [("CTA_FILTER_ORIG_FLAGS", orig), ("CTA_FILTER_REPLY_FLAGS", reply)]
    attrs = [("CTA_FILTER", {"attrs": flags})]
    return codec.encode_by_pyroute2(_CT, {"attrs": attrs})[codec.layout(_CT).size :]


def _delete_flow(version: int, flow: Flow) -> Message:
    ip = [(f"CTA_IP_V{version}_SRC", flow.src), (f"CTA_IP_V{version}_DST", flow.dst)]
    port: list[tuple[str, Any]] = [
        ("CTA_PROTO_NUM", _UDP),
        ("CTA_PROTO_SRC_PORT", flow.src_port),
        ("CTA_PROTO_DST_PORT", flow.dst_port),
    ]
    body = _encode(version, [("CTA_TUPLE_ORIG", _tuple(ip, port)), ("CTA_ID", flow.id)])
    return Message(body, _DELETE, CHANGE, f"forget the UDP flow from {flow.src} to {flow.dst}")


def _is_udp(entry: Entry) -> bool:
    proto = entry.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO")
    return bool(proto.get_attr("CTA_PROTO_NUM") == _UDP)


def _flow(entry: Entry, version: int) -> Flow:
    orig, reply = entry.get_attr("CTA_TUPLE_ORIG"), entry.get_attr("CTA_TUPLE_REPLY")
    ip, port = orig.get_attr("CTA_TUPLE_IP"), orig.get_attr("CTA_TUPLE_PROTO")
    return Flow(
        src=ip.get_attr(f"CTA_IP_V{version}_SRC"),
        dst=ip.get_attr(f"CTA_IP_V{version}_DST"),
        src_port=port.get_attr("CTA_PROTO_SRC_PORT"),
        dst_port=port.get_attr("CTA_PROTO_DST_PORT"),
        from_address=reply.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_V{version}_SRC"),
        from_port=reply.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_SRC_PORT"),
        id=entry.get_attr("CTA_ID"),
    )
