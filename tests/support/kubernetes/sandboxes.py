"""Pods past the kubelet, which asks the API for each of its own: made by CRI on a node.

The kubelet ends pods that it does not know of, at whatever moment it finds them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.support.kubernetes import nodeconfig
from tests.support.kubernetes.node import Node

if TYPE_CHECKING:
    from tests.support.cri import Client

_TRIES = 15
_KILLED = 128  # what shells and runtimes add to a signal's number
# One of them is enough: a packet may get lost on a busy machine.
_PING = 'for i in 1 2 3 4 5; do ping -c1 -W3 "$0" && exit; done; exit 1'


def reach(node: Node, name: str, address: str) -> None:
    """Two pods, one after the other, that reach an address, and go."""
    from tests.support.cri import Client

    socket = node.path(nodeconfig.CONTAINERD_SOCKET)
    client = Client(socket, f"{node.machine.cgroup}/cri", node.machine.path("data"))
    try:
        for number in range(2):
            tries = (_reaches(client, f"{name}-{number}-{n}", address) for n in range(_TRIES))
            assert any(tries), f"the kubelet ended each of {_TRIES} pods before it had called"
    finally:
        client.close()


def _reaches(client: Client, name: str, address: str) -> bool:
    """Whether a pod of its own, which goes again, has reached the address. False when the kubelet
    was faster. Raises AssertionError when it does not reach it."""
    import grpc

    pod = client.run_pod(name)
    try:
        shell = pod.start("shell", "sleep", "1000")
        code, said = shell.run("sh", "-c", _PING, address)
        assert code == 0 or code > _KILLED, said
    except grpc.RpcError:  # of the container's: that the sandbox got a network was told before
        return False
    finally:
        with contextlib.suppress(grpc.RpcError):  # it is gone
            pod.stop()
            pod.remove()
    return code == 0
