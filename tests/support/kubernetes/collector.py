"""Removes what kubelets leave of pods that have ended, a few seconds after that.

A kubelet of 1.20 lets the API forget a pod only when the runtime has no sandbox of it any more, and
removes most of these once a minute (its container garbage collection). Each deletion of a pod would
take up to that minute; later kubelets don't wait for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.support.kubernetes import nodeconfig
from tests.support.kubernetes.node import Node

if TYPE_CHECKING:
    from tests.support.cri import Client

_PAUSE_S = 1.0
_NOT_READY = 1  # PodSandboxState of the CRI


class Collector:
    """From its constructor to `close`, in a thread of its own."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        from tests.support.cri import Client

        self._clients = [
            Client(node.path(nodeconfig.CONTAINERD_SOCKET), node.machine.cgroup, "", timeout=20)
            for node in nodes
        ]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def _run(self) -> None:
        import grpc

        ended: set[str] = set()
        while not self._closed.wait(_PAUSE_S):
            seen: set[str] = set()
            for client in self._clients:
                with contextlib.suppress(grpc.RpcError):  # containerd may be away
                    seen |= _collect(client, ended)
            ended = seen


def _collect(client: Client, ended: set[str]) -> set[str]:
    """Remove the sandboxes of `ended`, which the kubelet is through with: those that have ended
    since."""
    import grpc

    found = set()
    for sandbox in client.call("ListPodSandbox").items:
        if sandbox.state != _NOT_READY:
            continue
        if sandbox.id in ended:
            with contextlib.suppress(grpc.RpcError):  # the kubelet has just removed it
                client.call("RemovePodSandbox", pod_sandbox_id=sandbox.id)
        else:
            found.add(sandbox.id)
    return found
