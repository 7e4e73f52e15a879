"""Bandwidth limits in the kernel: `shaping`'s plan becomes token buckets and an ifb.

Order, and why:
1. The ifb, with its alias, so that a killed ADD leaves nothing that GC does not find.
2. In one batch the place for filters on the host veth, the buckets, and the filter that leads the
   pod's traffic to the ifb, which by then has its limit and is up.

A bucket is put on a link that is down, if that can be: on one that is up the kernel waits until no
CPU is still sending by the queue that was there.

Only what concerns traffic from the pod needs the ifb. Deleting it, and the host veth, takes all of
this away. The ifb needs no MTU: what it takes it gives back, unchecked, at the host veth; it gets
that of the veth for those who look at it.
"""

from __future__ import annotations

import errno as errnos
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from fcntl import ioctl

from cni_plugin.kernel import codec, device, messages, tcmsg
from cni_plugin.kernel.bare import ifinfmsg
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.observe import link
from cni_plugin.names import derived_mac
from cni_plugin.shaping import Seen, Shaping, for_mtu
from cni_plugin.spec import CniError, Code
from cni_plugin.typed import Any, NamedTuple

_SIOCGIFNAME = 0x8910
_IFREQ = struct.Struct("16si20x")  # struct ifreq: the name, and a number
_GONE = (errnos.ENODEV, errnos.ENOENT, errnos.EINVAL)  # EINVAL: the queue is not ours
_TWICE = "if an earlier plugin of the list limits the pod as well, leave bandwidth to one of them"
_LACKING = (errnos.EOPNOTSUPP, errnos.ENOENT)  # what the kernel says of a kind it does not know


class _Step(NamedTuple):
    """A request and the kernel modules that serve it."""

    message: Message
    modules: tuple[str, ...]


class _Link(NamedTuple):
    ifindex: int
    name: str
    mtu: int


# --- ADD --------------------------------------------------------------------------------------


def apply(
    route_socket: RouteSocket, index: int, plan: Shaping, alias: str, undo: ExitStack
) -> None:
    """Limit the traffic through the host veth with this interface index; `alias` is for the ifb.

    What was made goes when `undo` unwinds. Raises CniError 104 when the kernel refuses, with the
    module in its details when it lacks one, and 102 when the ifb of the attachment is there.
    """
    host = _link(route_socket, index)
    ifb = _create_ifb(route_socket, plan.ifb, host.mtu, alias, undo) if plan.egress else None
    steps = _steps(host, ifb, plan)
    place = steps[0].message  # the kernel goes on after a failure, and tells the first
    try:
        _send(route_socket, steps)
    except KernelError as e:
        ours = ifb is not None and not _concerns(e, place)
        undo.callback(_take_back, route_socket, host, ours)
        raise
    undo.callback(_take_back, route_socket, host, ifb is not None)


def _link(route_socket: RouteSocket, index: int) -> _Link:
    try:
        reply = ioctl(route_socket.fileno(), _SIOCGIFNAME, _IFREQ.pack(b"", index))
    except OSError as e:
        raise KernelError(e.errno or 0, f"look for link {index}") from e
    name = _IFREQ.unpack(reply)[0].rstrip(b"\0").decode()
    return _Link(index, name, device.mtu(route_socket, name))


def _create_ifb(
    route_socket: RouteSocket, name: str, mtu: int, alias: str, undo: ExitStack
) -> _Link:
    steps = [_Step(create_ifb(name, mtu), ("ifb",)), _Step(set_alias(name, alias), ())]
    try:
        _send(route_socket, steps)
    except KernelError as e:
        if e.errno == errnos.EEXIST:
            raise CniError(
                Code.INTERFACE_EXISTS,
                f"the host already has the device {name} of this attachment",
                f"{_TWICE}; or an earlier ADD was not followed by DEL: call DEL, then ADD again",
            ) from e
        undo.callback(_remove_ifb, route_socket, name)  # its reply may be all that was lost
        raise
    undo.callback(_remove_ifb, route_socket, name)
    index = device.index(route_socket, name)
    if not index:
        raise KernelError(errnos.ENODEV, f"find device {name} that was just made")
    return _Link(index, name, mtu)


def _steps(host: _Link, ifb: _Link | None, plan: Shaping) -> list[_Step]:
    steps: list[_Step] = []
    if ifb is not None and plan.egress is not None:
        bucket = for_mtu(plan.egress, host.mtu)
        redirect = tcmsg.add_redirect(host.ifindex, host.name, ifb.ifindex, ifb.name)
        steps = [
            _Step(tcmsg.add_ingress(host.ifindex, host.name), ("sch_ingress",)),
            _Step(messages.no_link_local(ifb.ifindex, ifb.name), ()),
            _Step(tcmsg.add_tbf(ifb.ifindex, ifb.name, bucket), ("sch_tbf",)),
            _Step(messages.link_up(ifb.ifindex, ifb.name), ()),
            _Step(redirect, ("cls_u32", "act_mirred")),
        ]
    if plan.ingress is not None:
        bucket = for_mtu(plan.ingress, host.mtu)
        steps.append(_Step(tcmsg.add_tbf(host.ifindex, host.name, bucket), ("sch_tbf",)))
    return steps


def _send(route_socket: RouteSocket, steps: Sequence[_Step]) -> None:
    try:
        # A kernel without IPv6 has no addresses to keep off.
        route_socket.batch([step.message for step in steps], ignore=(errnos.EAFNOSUPPORT,))
    except KernelError as e:
        if e.errno == errnos.EEXIST:
            e.details = f"it has a queue of somebody's; {_TWICE}, or remove that queue"
        for step in steps:
            if step.modules and e.errno in _LACKING and _concerns(e, step.message):
                e.details = _missing(step.modules, e.msg)
        raise


def _concerns(failure: KernelError, message: Message) -> bool:
    return failure.msg.startswith(f"can't {message.what}:")


def _missing(modules: Sequence[str], said: str) -> str:
    """Of the two modules of a filter the kernel's own words tell which it was."""
    if "action module" in said:
        modules = modules[1:]
    elif "classifier" in said:
        modules = modules[:1]
    which = " or ".join(modules)
    return f"the kernel lacks {which}: load it (modprobe {modules[0]}), or leave bandwidth out"


def take_back(route_socket: RouteSocket, name: str, index: int) -> None:
    """Remove the limits from a link that stays, another plugin's; no-op when it is another now."""
    if device.exists(route_socket, name) and device.index(route_socket, name) == index:
        _take_back(route_socket, _Link(index, name, 0), ours=True)


def _take_back(route_socket: RouteSocket, host: _Link, ours: bool) -> None:
    """Undo all but the ifb; `ours`: the place for filters as well."""
    batch = [
        tcmsg.delete_tbf(host.ifindex, host.name),
        tcmsg.delete_redirect(host.ifindex, host.name),
    ]
    if ours:
        batch.append(tcmsg.delete_ingress(host.ifindex, host.name))
    route_socket.batch(batch, ignore=_GONE)


def _remove_ifb(route_socket: RouteSocket, name: str) -> None:
    route_socket.batch([messages.delete_link(name)], ignore=(errnos.ENODEV,))


# --- the ifb ----------------------------------------------------------------------------------


def create_ifb(name: str, mtu: int) -> Message:
    """The device, down, with one queue."""
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", derived_mac("ifb", name)),  # or udev would set one of its own later
        ("IFLA_MTU", mtu),
        ("IFLA_NUM_TX_QUEUES", 1),
        ("IFLA_NUM_RX_QUEUES", 1),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ifb")]}),
    ]
    body = codec.encode(ifinfmsg, {"attrs": attrs})
    return Message(body, messages.RTM_NEWLINK, messages.CREATE, f"create device {name}")


def set_alias(name: str, alias: str) -> Message:
    """By name, so that it can follow the creation at once; that does not take an alias."""
    body = codec.encode(ifinfmsg, {"attrs": [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)]})
    return Message(body, messages.RTM_NEWLINK, messages.CHANGE, f"mark device {name}")


# --- CHECK ------------------------------------------------------------------------------------


def observe(route_socket: RouteSocket, host: str, ifb: str) -> Seen:
    """What CHECK compares: the queues of the host veth and of the ifb ("" for none), and where
    what comes from the pod is led."""
    veth = link(route_socket, host)
    own = link(route_socket, ifb) if ifb else None
    if veth is None:
        return Seen(host, 0, None, 0, 0, False, None)
    queues = [tcmsg.get_root(veth.ifindex, host)]
    if own is not None:
        queues.append(tcmsg.get_root(own.ifindex, ifb))
    found = route_socket.batch([*queues, messages.get_link(host)])
    filters = route_socket.dump(tcmsg.dump_filters(veth.ifindex, host))
    targets = [target for entry in filters if (target := tcmsg.redirect_of(entry))]
    return Seen(
        host=host,
        mtu=veth.mtu,
        ingress=tcmsg.tbf_of(found[0]),
        redirect=targets[0] if targets else 0,
        ifb_index=own.ifindex if own is not None else 0,
        ifb_up=own is not None and own.up,
        egress=tcmsg.tbf_of(found[1]) if own is not None else None,
    )
