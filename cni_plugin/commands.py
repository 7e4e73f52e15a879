"""ADD and DEL, and who serves the rest: the order of things, and the way back when one fails.

Every policy is elsewhere and pure (`netconf`, `datapath`, `drift`, `ipam`), every effect is in
`kernel` and `ipam`; this module puts them in order. It serves a process of its own and, the same,
an agent.

The rule of ADD: whatever has been made registers its undo at once; only a result that is encoded
and ready cancels the undoing. The rule of DEL: go by the attachment alone, and release an address
only when its link is known to be gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from cni_plugin import (
    additions,
    chained,
    datapath,
    garbage,
    inspection,
    leases,
    names,
    netconf,
    results,
    takeover,
    upkeep,
)
from cni_plugin.additions import Way
from cni_plugin.datapath import PodNetwork
from cni_plugin.fields import as_object
from cni_plugin.kernel import attach, detach, privileges
from cni_plugin.kernel.netns import NotANamespaceError
from cni_plugin.netconf import NetConf, is_chained
from cni_plugin.node import Node, all_or_nothing, cluster_of, leases_of, record_of, sandbox
from cni_plugin.records import NetworkRecord
from cni_plugin.spec import CniError, Code, Request, Result


def run(request: Request, node: Node) -> bytes:
    """Serve a request of the main plugin: the bytes for stdout, none for a silent success.

    Raises CniError, with nothing left behind; OSError where the system failed.
    """
    return _COMMANDS[request.command](request, node)


def run_ipam(request: Request, node: Node) -> bytes:
    """Serve a request of `podwire-ipam`, to which another main plugin delegates."""
    strict = request.command in ("ADD", "CHECK", "STATUS")
    own = leases.own(request, strict)
    if request.command == "ADD":
        with all_or_nothing() as undo:
            result = own.add()
            undo.callback(own.delete)
            return node.hand_over(results.encode_result(result, request.version))
    if request.command == "DEL":
        own.delete()
    elif request.command == "CHECK":
        previous = _previous(request)
        own.check([ip.address.ip for ip in previous.ips] if previous else [])
    elif request.command == "GC":
        own.collect(garbage.valid_attachments(request))
    else:
        own.status()
    return b""


# --- ADD --------------------------------------------------------------------------------------


def _add(request: Request, node: Node) -> bytes:
    conf = netconf.parse(request)
    privileges.require()
    if conf.chained:
        return chained.add(request, node, conf)
    with sandbox(node, request.netns) as fd, attach.entered(fd) as pod:
        nodes = cluster_of(conf, node)
        if nodes and not conf.mtu:
            conf = conf._replace(mtu=upkeep.pod_mtu(node.fabric, record_of(conf)))
        source = leases_of(request, node, nodes)
        attach.refuse_existing(pod, request.attachment.ifname)
        with all_or_nothing() as undo:
            leased = source.add()
            undo.callback(source.delete)
            _refuse_no_address(conf, leased)
            plan = datapath.plan(conf, request.attachment, leased, source.gateways())
            way = Way(plan.host.name, plan.bridge.name if plan.bridge else plan.host.name)
            pod_ips = tuple(address.ip for address in plan.pod.addresses)
            wanted = additions.plan(conf, request.attachment, way, pod_ips)
            applied = attach.attach(node.host, pod, plan, undo)
            additions.limit(node, wanted, way, undo)
            reply = results.encode_result(
                datapath.result(conf, plan, request.netns, applied), request.version
            )
            alone = partial(_is_alone, request, node)
            upkeep.keep_for(node.fabric, _record(conf, plan, source), nodes, undo, alone)
            takeover.refuse_held(node, wanted.ports.ports)
            additions.open_ports(node, wanted, undo)
            attach.forward(node.host, plan)
            attach.announce(node.host, pod, plan)
            return node.hand_over(reply)  # from now on the pod is the runtime's


def _record(conf: NetConf, plan: PodNetwork, source: leases.Leases) -> NetworkRecord:
    """What the node has to keep up: for the subnets of all ranges, as far as they are known."""
    ranges = (gateway.network for gateway in source.gateways())
    return record_of(conf, tuple(dict.fromkeys((*plan.subnets, *ranges))))


def _is_alone(request: Request, node: Node) -> bool:
    """Whether this is the only pod of its network here."""
    own = frozenset([request.attachment])
    return not (
        detach.strays(
            node.route_socket,
            names.alias_prefix(request.network),
            frozenset([names.alias(request.network, request.attachment)]),
        )
        or additions.port_strays(node, request.network, own)
    )


def _refuse_no_address(conf: NetConf, leased: Result) -> None:
    if conf.ipam_type and not leased.ips:
        raise CniError(
            Code.DELEGATE_FAILED,
            f"ipam.type: {conf.ipam_type} gave no address",
            "see the logs of that plugin",
        )


# --- DEL --------------------------------------------------------------------------------------


def _delete(request: Request, node: Node) -> bytes:
    source = leases.of(request, node.environ, strict=False)
    with ExitStack() as stack:
        sandbox = stack.enter_context(_sandbox_if_any(node, request.netns))
        additions.close_ports(node, request.network, request.attachment)
        additions.unlimit(node, request.network, request.attachment)
        network, attachment = request.network, request.attachment
        failure: CniError | None = None
        if not takeover.is_own(node, network, attachment):
            failure = takeover.forget(node, request, attachment, _readable(request))
        # To ask for what most pods lack costs least before what they have (`Reaper.remove`).
        links = names.ifb_name(network, attachment), names.host_veth_name(network, attachment)
        node.remove_links(*links)
        if sandbox is not None:
            detach.remove_pod_link(
                sandbox, request.attachment.ifname, lambda: _listed(request) or source.holds()
            )
    source.delete()
    if failure is not None:
        raise failure
    return b""


@contextmanager
def _sandbox_if_any(node: Node, path: str) -> Iterator[int | None]:
    """The sandbox, or None when it is gone: DEL must do without (specification, DEL)."""
    try:
        fd = node.open_sandbox(path) if path else None
    except NotANamespaceError:
        fd = None
    except CniError as e:
        if e.code != Code.UNKNOWN_CONTAINER:
            raise
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _listed(request: Request) -> bool:
    """Whether prevResult names the interface: proof that an ADD of this attachment succeeded.

    Chained podwire has made no link, and the one that prevResult names is another plugin's.
    """
    previous = _readable(request)
    if previous is None or is_chained(request, previous):
        return False
    name = request.attachment.ifname
    return any(i.name == name and i.sandbox for i in previous.interfaces)


def _readable(request: Request) -> Result | None:
    try:
        return _previous(request)
    except CniError:
        return None  # DEL goes on without a prevResult that can't be read


def _previous(request: Request) -> Result | None:
    value = request.conf.get("prevResult")
    if value is None:
        return None
    return results.decode_result(as_object(value, "prevResult"), request.version)


_COMMANDS: Mapping[str, Callable[[Request, Node], bytes]] = {
    "ADD": _add,
    "DEL": _delete,
    "CHECK": inspection.check,
    "GC": garbage.collect,
    "STATUS": inspection.status,
}
