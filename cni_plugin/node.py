"""What the commands share: the process's socket, the sandbox, undoing, the source of leases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from cni_plugin import fabric as fabrics
from cni_plugin import leases
from cni_plugin.fabric import Fabric, Memory
from cni_plugin.kernel import detach
from cni_plugin.kernel.attach import Host, host
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.netns import open_sandbox
from cni_plugin.netconf import NetConf
from cni_plugin.records import NetworkRecord
from cni_plugin.spec import CniError, Code, IPNetwork, Request
from cni_plugin.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cni_plugin.cluster import Cluster

FOLLOWED = "_podwire"  # a key of configurations that an agent writes: conflists.MARK


class Resident(NamedTuple):
    """What an agent lends to a call that it serves; all of it stays the agent's.

    `open_sandbox` opens the network namespace that the runtime named by a path: the caller closes
    it. `host` is the worker's own way to the node's kernel. `remove_links` deletes links by
    name, and returns when it is gone; it raises CniError 104 when the kernel refuses. `fabric` is
    the worker's way to what the node's networks share.
    """

    open_sandbox: Callable[[str], int]
    host: Host
    remove_links: Callable[..., None]
    fabric: Fabric


class Handles:
    """A process's own way to the node's kernel and to what its networks share, each opened when
    first needed; one thread uses them. `resident`: for many calls."""

    def __init__(self, memory: Memory | None = None, resident: bool = False) -> None:
        self._memory = memory
        self._resident = resident
        self._host: Host | None = None
        self._fabric: Fabric | None = None

    def open_host(self) -> Host:
        """For the node's own network namespace. Raises OSError."""
        if self._host is None:
            self._host = host(self._resident)
        return self._host

    @property
    def fabric(self) -> Fabric:
        if self._fabric is None:
            self._fabric = Fabric(self.open_host().route_socket, self._memory)
        return self._fabric

    def close(self) -> None:
        """Close what is open; it may be opened again."""
        if self._fabric is not None:
            self._fabric.close()
            self._fabric = None
        if self._host is not None:
            self._host.close()
            self._host = None


class Node:
    """What a call works with: its environment, a netlink socket, the ways in and out.

    `interrupted` tells whether the call has been given up; `deliver`, if given, hands a result to
    the runtime and raises OSError when nobody takes it. `memory` is what the process knows of the
    node, where it is no agent's worker that asks.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        interrupted: Callable[[], bool] = lambda: False,
        deliver: Callable[[bytes], None] | None = None,
        resident: Resident | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.environ = environ
        self.interrupted = interrupted
        self._deliver = deliver
        self._resident = resident
        self._own = Handles(memory)

    @property
    def host(self) -> Host:
        """The way to the kernel of the node's own network namespace."""
        return self._own.open_host() if self._resident is None else self._resident.host

    @property
    def fabric(self) -> Fabric:
        """What the node's networks share."""
        return self._own.fabric if self._resident is None else self._resident.fabric

    @property
    def route_socket(self) -> RouteSocket:
        return self.host.route_socket

    def hand_over(self, reply: bytes) -> bytes:
        """Deliver the result of an ADD while it can still be undone; what is left to write.

        Raises CniError when the process was asked to end meanwhile, or nobody takes the result.
        """
        if self.interrupted():
            raise CniError(Code.TRY_AGAIN_LATER, "ended by a signal; what was begun was undone")
        if self._deliver is None:
            return reply
        try:
            self._deliver(reply)
        except OSError as e:
            raise CniError(
                Code.IO_FAILURE, f"can't write the result to stdout: {e.strerror}"
            ) from e
        return b""

    def remove_links(self, *names: str) -> None:
        """Delete links, and with a host veth the pod's end; no-op for those that are not there.

        When this returns all are gone. Raises CniError 104 when the kernel refuses.
        """
        if self._resident is None:
            detach.remove_links(self.route_socket, *names)
        else:
            self._resident.remove_links(*names)

    def open_sandbox(self, path: str) -> int:
        """The network namespace at `path`; the caller closes it. Errors: `netns.open_sandbox`."""
        opened = open_sandbox if self._resident is None else self._resident.open_sandbox
        return opened(path)

    def close(self) -> None:
        self._own.close()


@contextmanager
def all_or_nothing() -> Iterator[ExitStack]:
    """A stack of undos that runs when the block fails, and is forgotten when it succeeds.

    The failure that is reported is the block's; an undo that fails as well is told in its details.
    """
    undo = ExitStack()
    try:
        yield undo
    except BaseException as failure:
        try:
            undo.close()
        except (CniError, OSError) as e:
            if not isinstance(failure, CniError):
                raise
            failure.details = f"{failure.details}; undoing failed: {e}".lstrip("; ")
        raise
    undo.pop_all()


@contextmanager
def sandbox(node: Node, path: str) -> Iterator[int]:
    """The pod's network namespace, open for the length of the block."""
    fd = node.open_sandbox(path)
    try:
        yield fd
    finally:
        os.close(fd)


def cluster_of(conf: NetConf, node: Node) -> Cluster | None:
    if not conf.nodes:
        return None
    return fabrics.cluster_of(node.fabric, record_of(conf))


def record_of(conf: NetConf, subnets: tuple[IPNetwork, ...] = ()) -> NetworkRecord:
    """What the node has to keep up for the network, whose pods here have addresses of `subnets`."""
    return NetworkRecord(
        network=conf.network,
        subnets=subnets,
        masquerade=conf.ip_masq,
        direct=conf.non_masquerade,
        bridge=conf.bridge if conf.mode == "bridge" else "",
        ingress_policy=conf.ingress_policy,
        accept_forwarding=conf.accept_forwarding,
        nodes=conf.nodes,
        node_name=conf.node_name,
        host_ports=conf.maps_ports,
        mark_bit=conf.ports.mark_bit,
        cross_node=conf.cross_node,
    )


def leases_of(request: Request, node: Node, nodes: Cluster | None) -> leases.Leases:
    if nodes is None:
        return leases.of(request, node.environ, interrupted=node.interrupted)
    from cni_plugin import cluster  # and with it the overlay: a node without peers needs neither

    refuse_foreign = partial(cluster.refuse_foreign, nodes)
    if FOLLOWED in request.conf:
        refuse_foreign = partial(_refuse_for_now, refuse_foreign)
    return leases.of(request, node.environ, nodes.own.pod_cidrs, refuse_foreign, node.interrupted)


def _refuse_for_now(refuse_foreign: Callable[[IPNetwork], None], subnet: IPNetwork) -> None:
    """Raises CniError 11: an agent made the configuration of the inventory, and where they differ
    it is about to make it anew."""
    try:
        refuse_foreign(subnet)
    except CniError as e:
        remedy = "the agent is about to write the network configuration anew: see that it runs"
        raise CniError(Code.TRY_AGAIN_LATER, e.msg, remedy) from e
