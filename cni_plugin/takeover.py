"""Pods whose links other plugins made, on a node that podwire has taken over.

Who made a link is told by its name: podwire's is derived from the attachment. Where no such link
is, an ADD by somebody else is proven by what it left: a reservation, or a prevResult that names
the pod's interface and not podwire's link.

Rules that tell their pod by nothing but its address are removed while the address is still
reserved for the attachment: afterwards it may be another pod's.
"""

from __future__ import annotations

from errno import EPROTONOSUPPORT

from cni_plugin import names
from cni_plugin.hostports import HostPort
from cni_plugin.kernel import device
from cni_plugin.leases import IN_PROCESS
from cni_plugin.netconf import ipam_type, is_chained
from cni_plugin.node import Node
from cni_plugin.spec import Attachment, CniError, Code, IPAddress, Request, Result


def is_own(node: Node, network: str, attachment: Attachment) -> bool:
    """Whether the link that podwire makes for the attachment is there: a microsecond."""
    return device.exists(node.route_socket, names.host_veth_name(network, attachment))


def forget(
    node: Node, request: Request, attachment: Attachment, previous: Result | None
) -> CniError | None:
    """Remove what the Go plugins have left in the kernel for an attachment without podwire's link.

    No-op where nothing proves an ADD. What went wrong is returned: the address must be released
    all the same, and the caller tells it afterwards.
    """
    if not _is_others(request, attachment, previous):
        return None
    try:
        reserved = _reserved(request, attachment)
        if not reserved and not _names_link(attachment, previous):
            return None
        addresses = reserved
        if ipam_type(request.conf) not in IN_PROCESS and previous is not None:
            addresses = [ip.address.ip for ip in previous.ips]
        _remove(node, request.network, attachment, addresses)
    except CniError as e:
        return e
    return None


def _is_others(request: Request, attachment: Attachment, previous: Result | None) -> bool:
    """Whether podwire has not made the pod's link, nor is to leave it to an earlier plugin."""
    if previous is None:
        return True
    own = names.host_veth_name(request.network, attachment)
    return not is_chained(request, previous) and all(i.name != own for i in previous.interfaces)


def _names_link(attachment: Attachment, previous: Result | None) -> bool:
    return previous is not None and any(
        i.name == attachment.ifname and i.sandbox for i in previous.interfaces
    )


def _reserved(request: Request, attachment: Attachment) -> list[IPAddress]:
    """The addresses that the attachment holds, or its container, in an old reservation."""
    if ipam_type(request.conf) not in IN_PROCESS:
        return []
    from ipam import config, host_local

    holders = attachment, attachment._replace(ifname="")
    return [
        held.address
        for held in host_local.reservations(config.locate(request))
        if held.attachment in holders
    ]


def _remove(node: Node, network: str, attachment: Attachment, addresses: list[IPAddress]) -> None:
    from cni_plugin.kernel import goplugins  # few nodes ever need it

    theirs = goplugins.names_of(network, attachment)
    goplugins.remove_link(node.route_socket, theirs)
    try:
        netfilter = node.fabric.netfilter
    except CniError as e:
        if isinstance(e.__cause__, OSError) and e.__cause__.errno == EPROTONOSUPPORT:
            return  # a kernel without netfilter has no rules
        raise
    goplugins.remove_rules(netfilter, theirs, addresses)


# --- host ports -------------------------------------------------------------------------------


def refuse_held(node: Node, ports: tuple[HostPort, ...]) -> None:
    """Raises CniError 103 when the Go plugin portmap leads one of these ports to a pod of its.

    Its rules come before podwire's: they would take the port's packets.
    """
    if not ports:
        return
    from cni_plugin.kernel import goports

    for port in ports:
        chain = goports.holder(node.fabric.netfilter, port)
        if chain:
            raise CniError(
                Code.LINK_CONFLICT,
                f"runtimeConfig.portMappings: host port {port.where} is held by the plugin portmap"
                f" ({chain})",
                "delete the pod that was made with it, or these rules when that pod is gone;"
                " or give this one another hostPort",
            )
