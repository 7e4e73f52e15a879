"""What an attachment gets beside its link: limits on its bandwidth, and host ports.

The same for a pod whose link podwire made and, chained, for one that has its link from an earlier
plugin. All of it is found again by the attachment alone. Limits come before ports, so that whoever
reaches the pod by a port finds it limited; what comes last goes first.
"""

from __future__ import annotations

from contextlib import ExitStack
from errno import ENOENT
from json import dumps, loads

from cni_plugin import hostports, names, shaping, upkeep
from cni_plugin.fields import Fields
from cni_plugin.hostports import PortRecord
from cni_plugin.kernel import portlock
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.netconf import NetConf
from cni_plugin.node import Node
from cni_plugin.shaping import Shaping
from cni_plugin.spec import Attachment, CniError, Code, IPAddress
from cni_plugin.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cni_plugin.kernel.hostports import HostPorts


_TRIES = 5
_PORTS = "ports"  # the kind of state that host ports are remembered in
_LIMITS = "limits"  # limits on links of other plugins


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
    network, attachment = wanted.ports.network, wanted.ports.attachment
    name = names.host_veth_name(network, attachment)
    if way.host_link != name:  # another plugin's, which may stay when the pod is gone
        limited = {
            "link": way.host_link,
            "index": index,
            "network": network,
            **attachment._asdict(),
        }
        undo.callback(_limits(node).remove, name)
        _limits(node).write(name, dumps(limited).encode())
    shapers.apply(node.route_socket, index, wanted.shaping, names.alias(network, attachment), undo)


def unlimit(node: Node, network: str, attachment: Attachment) -> None:
    """Take the limits off a link that another plugin made; podwire's own links take theirs along.

    What limits the pod's own sending, the ifb, has to go after that.
    """
    name = names.host_veth_name(network, attachment)
    folder = _limits(node)
    if not folder.has(name):
        return
    from cni_plugin.kernel import shaping as shapers

    limited = _limited(folder, name)
    if limited is not None:
        shapers.take_back(node.route_socket, limited.link, limited.ifindex)
    folder.remove(name)


def limit_strays(node: Node, network: str, valid: frozenset[Attachment]) -> list[Attachment]:
    """For GC: attachments of the network that are not valid and have limits on others' links."""
    folder = _limits(node)
    found = [_limited(folder, name) for name in folder.names()]
    return [each.attachment for each in found if each and each.is_stray(network, valid)]


class _Limited(NamedTuple):
    """A link of another plugin's, by name and interface index, that was limited for a pod."""

    link: str
    ifindex: int
    network: str
    attachment: Attachment

    def is_stray(self, network: str, valid: frozenset[Attachment]) -> bool:
        return self.network == network and self.attachment not in valid


def _limited(folder: StateFolder, name: str) -> _Limited | None:
    """What the file says; None for one that says nothing, which only its DEL removes."""
    try:
        fields = Fields(loads(folder.read(name) or b"{}"))
        attachment = Attachment(fields.text("container_id"), fields.text("ifname"))
        index = fields.integer("index", 1, 2**31) or 0
        return _Limited(fields.text("link"), index, fields.text("network"), attachment)
    except (CniError, ValueError, RecursionError, AttributeError):
        return None


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
    """Take the attachment's host ports away; no-op when it has none.

    Elements whose record was lost are looked for only where all records seem to be: that takes
    10 ms where there are 1,000, which every DEL of a pod without ports would pay. What else was
    lost is left to GC and the agent.
    """
    name = names.host_veth_name(network, attachment)
    folder = _folder(node)
    if folder.has(name):
        _host_ports(node).close(name)
    elif not folder.has(portlock.WHOLE):
        try:
            ports = _host_ports(node)
        except CniError as e:
            if e.code != Code.KERNEL_REFUSED:
                raise
            return  # a kernel without netfilter has no host ports
        ports.close_lost(PortRecord(attachment, network, "", True, ()))


def collect_ports(node: Node, network: str, valid: frozenset[Attachment]) -> None:
    """For GC: broken records, and elements of the network that have none and no valid owner."""
    _host_ports(node).collect(network, valid)


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


def _limits(node: Node) -> StateFolder:
    return StateFolder(node.fabric.key, _LIMITS)


def _folder(node: Node) -> StateFolder:
    return StateFolder(node.fabric.key, _PORTS)


def _host_ports(node: Node) -> HostPorts:
    from cni_plugin.kernel.hostports import HostPorts

    fabric = node.fabric
    return HostPorts(fabric.netfilter, node.route_socket, _folder(node), node.host.sysctls)
