"""What the commands share: the process's socket, the sandbox, undoing, the source of leases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from cni_plugin import cluster, leases
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.netns import open_sandbox
from cni_plugin.netconf import NetConf
from cni_plugin.spec import CniError, Code, Request


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


@contextmanager
def all_or_nothing(node: Node) -> Iterator[ExitStack]:
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
def sandbox(path: str) -> Iterator[int]:
    fd = open_sandbox(path)
    try:
        yield fd
    finally:
        os.close(fd)


def cluster_of(conf: NetConf, node: Node) -> cluster.Cluster | None:
    if not conf.nodes:
        return None
    return cluster.join(conf.nodes, conf.node_name, node.route_socket)


def leases_of(request: Request, node: Node, nodes: cluster.Cluster | None) -> leases.Leases:
    if nodes is None:
        return leases.of(request, node.environ)
    refuse_foreign = partial(cluster.refuse_foreign, nodes)
    return leases.of(request, node.environ, nodes.own.pod_cidrs, refuse_foreign)
