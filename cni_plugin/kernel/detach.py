"""DEL and GC in the kernel: taking links away, by what the attachment alone tells."""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable

from cni_plugin.kernel import device, messages, observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.netns import inside


def remove_links(route_socket: RouteSocket, *names: str) -> None:
    """Delete links, and with a host veth the pod's end, addresses and routes; no-op when gone.

    The acknowledgement says that they are gone.
    """
    route_socket.batch([messages.delete_link(name) for name in names], ignore=(errnos.ENODEV,))


def remove_pod_link(sandbox: int, ifname: str, ours: Callable[[], bool]) -> None:
    """Delete a veth of the sandbox: one that another plugin made for an attachment we took over.

    `ours` is asked when there is a link of this name: whether it is the attachment's.
    """
    with inside(sandbox):
        pod_socket = RouteSocket()
    with pod_socket:
        if not device.exists(pod_socket, ifname):
            return
        link = observe.link(pod_socket, ifname)
        if link is not None and link.kind == "veth" and ours():
            pod_socket.batch([messages.delete_link(ifname)], ignore=(errnos.ENODEV,))


def strays(route_socket: RouteSocket, prefix: str, valid: frozenset[str]) -> list[tuple[str, str]]:
    """Name and alias of each link whose alias begins with `prefix` and is not in `valid`: host
    veths, and the devices that limit pods' traffic."""
    return [
        (link.name, link.alias)
        for kind in ("veth", "ifb")
        for link in observe.links(route_socket, kind)
        if link.alias.startswith(prefix) and link.alias not in valid
    ]
