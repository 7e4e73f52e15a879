"""ADD, DEL, CHECK, GC and STATUS: the order of things, and the way back when one fails.

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
from typing import NamedTuple

from cni_plugin import cluster, datapath, leases, netconf, results, skel
from cni_plugin.drift import drift
from cni_plugin.fields import Fields, as_object, invalid
from cni_plugin.kernel import attach, bridge, detach, observe, privileges
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.netns import NotANamespaceError, open_sandbox
from cni_plugin.netconf import NetConf
from cni_plugin.spec import Attachment, CniError, Code, Request, Result, Route


class Node:
    """What exists once per process: the environment it was called in, its netlink socket.

    `interrupted` tells whether the process has been asked to end.
    """

    def __init__(
        self, environ: Mapping[str, str], interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        self.environ = environ
        self.interrupted = interrupted
        self._route_socket: RouteSocket | None = None

    @property
    def route_socket(self) -> RouteSocket:
        """The socket of the node's own network namespace, opened when first needed."""
        if self._route_socket is None:
            self._route_socket = RouteSocket()
        return self._route_socket

    def close(self) -> None:
        if self._route_socket is not None:
            self._route_socket.close()
            self._route_socket = None


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
        with _all_or_nothing(node) as undo:
            result = own.add()
            undo.callback(own.delete)
            return results.encode_result(result, request.version)
    if request.command == "DEL":
        own.delete()
    elif request.command == "CHECK":
        previous = _previous(request)
        own.check([ip.address.ip for ip in previous.ips] if previous else [])
    elif request.command == "GC":
        own.collect(_valid_attachments(request))
    else:
        own.status()
    return b""


@contextmanager
def _all_or_nothing(node: Node) -> Iterator[ExitStack]:
    """A stack of undos that runs when the block fails, and is forgotten when it succeeds.

    The end of the block is where a signal to end is honoured.

    The failure that is reported is the block's; an undo that fails as well is told in its details.
    """
    undo = ExitStack()
    try:
        yield undo
        _refuse_if_interrupted(node)
    except BaseException as failure:
        try:
            undo.close()
        except (CniError, OSError) as e:
            if not isinstance(failure, CniError):
                raise
            failure.details = f"{failure.details}; undoing failed: {e}".lstrip("; ")
        raise
    undo.pop_all()


def _refuse_if_interrupted(node: Node) -> None:
    if node.interrupted():
        raise CniError(Code.TRY_AGAIN_LATER, "ended by a signal; what was begun was undone")


@contextmanager
def _sandbox(path: str) -> Iterator[int]:
    fd = open_sandbox(path)
    try:
        yield fd
    finally:
        os.close(fd)


# --- ADD --------------------------------------------------------------------------------------


def _add(request: Request, node: Node) -> bytes:
    conf = netconf.parse(request)
    privileges.require()
    with _sandbox(request.netns) as sandbox:
        nodes = _cluster(conf, node)
        source = _leases(request, node, nodes)
        attach.refuse_existing(sandbox, request.attachment.ifname)
        with _all_or_nothing(node) as undo:
            leased = source.add()
            undo.callback(source.delete)
            _refuse_no_address(conf, leased)
            plan = datapath.plan(conf, request.attachment, leased, source.gateways())
            applied = attach.attach(node.route_socket, plan, sandbox, undo)
            reply = results.encode_result(
                datapath.result(conf, plan, request.netns, applied), request.version
            )
            if nodes:
                cluster.sync(nodes, node.route_socket)
            return reply


def _refuse_no_address(conf: NetConf, leased: Result) -> None:
    if conf.ipam_type and not leased.ips:
        raise CniError(
            Code.DELEGATE_FAILED, f"ipam.type: {conf.ipam_type} gave no address", "see its own logs"
        )


def _cluster(conf: NetConf, node: Node) -> cluster.Cluster | None:
    if not conf.nodes:
        return None
    return cluster.join(conf.nodes, conf.node_name, node.route_socket)


def _leases(request: Request, node: Node, nodes: cluster.Cluster | None) -> leases.Leases:
    if nodes is None:
        return leases.of(request, node.environ)
    refuse_foreign = partial(cluster.refuse_foreign, nodes)
    return leases.of(request, node.environ, nodes.own.pod_cidrs, refuse_foreign)


# --- DEL --------------------------------------------------------------------------------------


def _delete(request: Request, node: Node) -> bytes:
    source = leases.of(request, node.environ, strict=False)
    with ExitStack() as stack:
        sandbox = stack.enter_context(_sandbox_if_any(request.netns))
        detach.remove_host_veth(
            node.route_socket, datapath.host_veth_name(request.network, request.attachment)
        )
        if sandbox is not None and (_listed(request) or source.holds()):
            detach.remove_pod_link(sandbox, request.attachment.ifname)
    source.delete()
    return b""


@contextmanager
def _sandbox_if_any(path: str) -> Iterator[int | None]:
    """The sandbox, or None when it is gone: DEL must do without (specification, DEL)."""
    try:
        fd = open_sandbox(path) if path else None
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
    """Whether prevResult names the interface: proof that an ADD of this attachment succeeded."""
    try:
        previous = _previous(request)
    except CniError:
        return False  # DEL goes on without a prevResult that can't be read
    name = request.attachment.ifname
    return previous is not None and any(
        interface.name == name and interface.sandbox for interface in previous.interfaces
    )


def _previous(request: Request) -> Result | None:
    value = request.conf.get("prevResult")
    if value is None:
        return None
    return results.decode_result(as_object(value, "prevResult"), request.version)


# --- CHECK ------------------------------------------------------------------------------------


def _check(request: Request, node: Node) -> bytes:
    conf = netconf.parse(request)
    previous = conf.prev_result
    if previous is None:
        raise CniError(
            Code.INVALID_CONFIG,
            "prevResult: missing, and CHECK compares with it",
            "the runtime passes the result of ADD as prevResult",
        )
    nodes = _cluster(conf, node)
    source = _leases(request, node, nodes)
    with _sandbox(request.netns) as sandbox:
        mine = _own_part(request, previous)
        plan = datapath.plan(conf, request.attachment, mine.leases)
        if mine.host_veth:
            plan = plan._replace(host=plan.host._replace(name=mine.host_veth))
        seen = observe.attachment(
            node.route_socket,
            sandbox,
            plan.pod.name,
            plan.host.name,
            plan.bridge.name if plan.bridge else "",
        )
    found = drift(plan, mine.mac, seen)
    if nodes:
        found += cluster.missing(nodes, node.route_socket)
    try:
        source.check([ip.address.ip for ip in mine.leases.ips])
    except CniError as e:
        if e.code != Code.CHECK_FAILED:
            raise
        found.append(e.msg)
    if found:
        raise CniError(
            Code.CHECK_FAILED, "; ".join(found), "delete the pod, so that it is made anew"
        )
    return b""


class _OwnPart(NamedTuple):
    """What prevResult says of this attachment. A pod that another plugin made before podwire took
    the node over has a host veth with a name of that plugin's choosing."""

    mac: str
    host_veth: str
    leases: Result


def _own_part(request: Request, previous: Result) -> _OwnPart:
    """This attachment's part of the result of the whole chain."""
    name = request.attachment.ifname
    for index, interface in enumerate(previous.interfaces):
        if interface.name == name and interface.sandbox:
            ips = tuple(ip for ip in previous.ips if ip.interface in (index, None))
            before = previous.interfaces[index - 1] if index else None
            host = before.name if before is not None and not before.sandbox else ""
            routes = _whole_routes(request, previous.routes)
            return _OwnPart(interface.mac, host, previous._replace(ips=ips, routes=routes))
    raise CniError(
        Code.INVALID_CONFIG,
        f"prevResult.interfaces: holds no interface {name} of a sandbox",
        "it must be the result of the ADD of this attachment",
    )


def _whole_routes(request: Request, routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """prevResult's routes, as CHECK can compare them.

    What a version before 1.1.0 can't say of them (a table, a metric) is taken from the configured
    route they came from. One without a gateway that is not configured here belongs to an earlier
    plugin of the chain, and only that one knows which way it leads.
    """
    configured = _configured_routes(request)
    whole = {(route.dst, route.gw): route for route in configured}
    known = [route for route in routes if route.gw is not None or (route.dst, None) in whole]
    if skel.at_least(request.version, "1.1.0"):
        return tuple(known)
    return tuple(whole.get((route.dst, route.gw), route) for route in known)


def _configured_routes(request: Request) -> tuple[Route, ...]:
    try:
        return results.decode_routes(Fields(request.conf).child("ipam"), "routes")
    except CniError:
        if netconf.ipam_type(request.conf) in leases.IN_PROCESS:
            raise
        return ()  # another plugin's section, whose routes may look otherwise


# --- GC and STATUS ----------------------------------------------------------------------------


def _collect(request: Request, node: Node) -> bytes:
    """GC goes on after an error, and reports them all (specification, GC)."""
    valid = _valid_attachments(request)
    source = leases.of(request, node.environ, strict=False)
    if valid is None:
        source.collect(None)
        return b""
    aliases = frozenset(datapath.alias(request.network, attachment) for attachment in valid)
    prefix = datapath.alias_prefix(request.network)
    failures: list[CniError] = []
    kept = set(valid)
    for name, alias in detach.strays(node.route_socket, prefix, aliases):
        try:
            detach.remove_host_veth(node.route_socket, name)
        except CniError as e:
            failures.append(e)
            kept.add(datapath.attachment_of(alias))  # its link is in use, so are its addresses
    try:
        source.collect(frozenset(kept))
    except CniError as e:
        failures.append(e)
    if failures:
        raise CniError(
            failures[0].code if len(failures) == 1 else Code.GC_INCOMPLETE,
            "; ".join(failure.msg for failure in failures),
            failures[0].details,
        )
    return b""


def _valid_attachments(request: Request) -> frozenset[Attachment] | None:
    """cni.dev/valid-attachments; None when absent or null, and then nothing may be removed."""
    fields = Fields(request.conf)
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if fields.has(key):
            return frozenset(_attachment_of(entry) for entry in fields.children(key))
    return None


def _attachment_of(entry: Fields) -> Attachment:
    container_id, ifname = entry.text("containerID"), entry.text("ifname")
    if not container_id or not ifname:
        raise invalid(entry.path, dict(entry.obj), "expected containerID and ifname")
    return Attachment(container_id, ifname)


def _status(request: Request, node: Node) -> bytes:
    """Succeeds only if an ADD would be served. Never changes anything."""
    conf = netconf.parse(request)
    try:
        privileges.require()
        nodes = _cluster(conf, node)
        source = _leases(request, node, nodes)
        source.status()
        if conf.mode == "bridge":
            gateways = source.gateways() if conf.is_gateway and not conf.force_address else ()
            bridge.refuse_unusable(node.route_socket, conf.bridge, gateways)
        if nodes:
            cluster.refuse_obstructed(nodes, node.route_socket)
    except CniError as e:
        if e.code >= Code.POOL_EXHAUSTED or e.code == Code.IO_FAILURE:
            raise CniError(Code.NOT_AVAILABLE, e.msg, e.details) from e
        raise
    return b""


_COMMANDS: Mapping[str, Callable[[Request, Node], bytes]] = {
    "ADD": _add,
    "DEL": _delete,
    "CHECK": _check,
    "GC": _collect,
    "STATUS": _status,
}
