"""What an attachment gets beside its link: limits on its bandwidth, and host ports.

The same for a pod whose link podwire made and, chained, for one that has its link from an earlier
plugin. All of it is found again by the attachment alone. Limits come before ports, so that whoever
reaches the pod by a port finds it limited; what comes last goes first.
"""

from __future__ import annotations

from contextlib import ExitStack
from errno import ENOENT

from cni_plugin import hostports, names, shaping, upkeep
from cni_plugin.hostports import PortRecord
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.netconf import NetConf
from cni_plugin.node import Node
from cni_plugin.shaping import Shaping
from cni_plugin.spec import Attachment, IPAddress
from cni_plugin.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cni_plugin.kernel.hostports import HostPorts


_TRIES = 5
_PORTS = "ports"  # the kind of state that host ports are remembered in


class Additions(NamedTuple):
    """`shaping` is None when nothing is limited, `ports.ports` empty when no port is mapped."""

    shaping: Shaping | None
    ports: PortRecord


class Way(NamedTuple):
    """How the node reaches the pod: the pod's own link on the host, "" when it is not known, and
    the link that the node's route leads to: the bridge, or that same link."""

    host_link: str
    route_link: str


def plan(conf: NetConf, attachment: Attachment, way: Way, pod: tuple[IPAddress, ...]) -> Additions:
    """What the configuration asks for, for a pod with these addresses.

    Raises CniError 7 for a host port of a family that the pod does not have.
    """
    return Additions(
        shaping.plan(conf.bandwidth, conf.network, attachment),
        hostports.record(conf.ports, conf.network, attachment, way.route_link, pod),
    )


def limit(node: Node, wanted: Additions, way: Way, undo: ExitStack) -> None:
    """The limits on the pod's bandwidth."""
    if wanted.shaping is None:
        return
    from cni_plugin.kernel import device  # few pods have limits
    from cni_plugin.kernel import shaping as shapers

    index = device.index(node.route_socket, way.host_link)
    alias = names.alias(wanted.ports.network, wanted.ports.attachment)
    shapers.apply(node.route_socket, index, wanted.shaping, alias, undo)


def open_ports(node: Node, wanted: Additions, undo: ExitStack) -> None:
    """The host ports. Raises CniError 103 for one that is held.

    The node's rules were there a moment ago; when somebody emptied the ruleset since, they are made
    again.
    """
    if not wanted.ports.ports:
        return
    for left in reversed(range(_TRIES)):
        try:
            _host_ports(node).open(wanted.ports, undo)
        except KernelError as e:
            if e.errno != ENOENT or not left:
                raise
            upkeep.keep_rules(node.fabric)
        else:
            return


def close_ports(node: Node, network: str, attachment: Attachment) -> None:
    """Take the attachment's host ports away; no-op when it has none."""
    name = names.host_veth_name(network, attachment)
    if _folder(node).read(name) is not None:
        _host_ports(node).close(name)


def differences(node: Node, wanted: Additions, way: Way) -> list[str]:
    """For CHECK: what is not as an ADD left it, in words."""
    found: list[str] = []
    if wanted.shaping is not None:
        from cni_plugin.kernel import shaping as shapers

        seen = shapers.observe(node.route_socket, way.host_link, wanted.shaping.ifb)
        found += shaping.drift(wanted.shaping, seen)
    if wanted.ports.ports:
        found += _host_ports(node).check(wanted.ports)
    return found


def port_strays(node: Node, network: str, valid: frozenset[Attachment]) -> dict[str, Attachment]:
    """For GC: the network's attachments that have host ports and are not valid, by the names of
    their host veths."""
    return _host_ports(node).strays(network, valid)


def _folder(node: Node) -> StateFolder:
    return StateFolder(node.fabric.key, _PORTS)


def _host_ports(node: Node) -> HostPorts:
    from cni_plugin.kernel.hostports import HostPorts

    fabric = node.fabric
    return HostPorts(fabric.netfilter, node.route_socket, _folder(node), node.host.sysctls)
