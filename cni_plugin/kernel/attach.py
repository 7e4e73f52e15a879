"""ADD in the kernel: a `PodNetwork` becomes links, addresses and routes.

Order, and why:
1. The bridge, under the node's lock, until the pod's link is a port of it.
2. The veth pair in one message, the pod's end born in the sandbox, both ends down.
3. Sysctls of both ends while they are down, so that no router advertisement is ever heard.
4. The host's end up, forwarding on, then everything of the pod in one batch.
5. The announcement, once the bridge forwards for the port.

Each step that made something registers its undo on the caller's stack. Deleting the host's end
undoes all of 2 to 4.
"""

from __future__ import annotations

import errno as errnos
import time
from collections.abc import Sequence
from contextlib import ExitStack

from cni_plugin.datapath import Applied, PodNetwork
from cni_plugin.drift import LinkState
from cni_plugin.kernel import bridge, messages, observe, sysctl
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.netns import inside
from cni_plugin.kernel.nodelock import node_lock
from cni_plugin.spec import CniError, Code, IPInterface

_DAD_TIMEOUT_S = 10.0  # as the reference waits for addresses to settle
_FORWARD_TIMEOUT_S = 1.0
_BRIDGE_TRIES = 5


def refuse_existing(sandbox: int, ifname: str) -> None:
    """Raises CniError 102 when the sandbox has a link of this name (specification, ADD)."""
    with inside(sandbox), RouteSocket() as pod_socket:
        if observe.link(pod_socket, ifname) is not None:
            raise _interface_exists(ifname)


def _interface_exists(ifname: str) -> CniError:
    return CniError(
        Code.INTERFACE_EXISTS,
        f"CNI_IFNAME: the sandbox already has an interface {ifname}",
        "the attachment exists already (DEL it first), or another network uses this name",
    )


def attach(
    route_socket: RouteSocket, network: PodNetwork, sandbox: int, undo: ExitStack
) -> Applied:
    """Apply the plan; `sandbox` is the fd of the pod's network namespace."""
    master = _create_links(route_socket, network, sandbox, undo)
    host = _found(route_socket, network.host.name)
    _prepare(host.name, network, network.host.addresses)
    route_socket.batch(_host_messages(network, host, master))
    for version in network.forwarding:
        sysctl.forward(version)
    with inside(sandbox), RouteSocket() as pod_socket:
        _configure_pod(pod_socket, network)
        _settle(pod_socket, network)
        if master is not None:
            _await_forwarding(route_socket, host.name)
        _announce(pod_socket, network)
    _forget_neighbours(route_socket, network, master or host)
    return Applied(
        bridge_mac=master.mac if master else "",
        bridge_mtu=_found(route_socket, master.name).mtu if master else 0,
        mtu=host.mtu,
    )


def _found(route_socket: RouteSocket, name: str) -> LinkState:
    link = observe.link(route_socket, name)
    if link is None:
        raise KernelError(errnos.ENODEV, f"find link {name} that was just made")
    return link


def _create_links(
    route_socket: RouteSocket, network: PodNetwork, sandbox: int, undo: ExitStack
) -> LinkState | None:
    """The bridge, if the plan has one, and the veth pair; the bridge is returned.

    A failed ADD may remove a bridge that this one has just looked up: then it is made again.
    """
    if network.bridge is None:
        _create_veth(route_socket, network, sandbox, 0, undo)
        return None
    for attempt in range(1, _BRIDGE_TRIES + 1):
        ready = bridge.ready(route_socket, network.bridge)
        with node_lock(exclusive=ready is None):
            link = ready or bridge.ensure(route_socket, network.bridge, network.enable_dad, undo)
            try:
                bridge.ensure_gateways(route_socket, network.bridge, link, network.enable_dad, undo)
                _create_veth(route_socket, network, sandbox, link.ifindex, undo)
            except KernelError:
                if attempt == _BRIDGE_TRIES or _still_there(route_socket, link):
                    raise
            else:
                return link
    raise KernelError(errnos.ENODEV, f"keep bridge {network.bridge.name}")


def _still_there(route_socket: RouteSocket, link: LinkState) -> bool:
    present = observe.link(route_socket, link.name)
    return present is not None and present.ifindex == link.ifindex


def _create_veth(
    route_socket: RouteSocket, network: PodNetwork, sandbox: int, master: int, undo: ExitStack
) -> None:
    host = network.host
    create = messages.create_veth(host, network.pod, sandbox, network.mtu, master)
    try:
        route_socket.batch([create])
    except KernelError as e:
        if e.errno != errnos.EEXIST:
            undo.callback(_remove, route_socket, host.name)  # its reply may be all that was lost
            raise
        left = observe.link(route_socket, host.name)
        if left is None:
            raise _interface_exists(network.pod.name) from e
        raise CniError(
            Code.INTERFACE_EXISTS,
            f"the host already has the link {host.name} of this attachment",
            "an earlier ADD was not followed by DEL: call DEL, then ADD again",
        ) from e
    undo.callback(_remove, route_socket, host.name)


def _remove(route_socket: RouteSocket, name: str) -> None:
    route_socket.batch([messages.delete_link(name)], ignore=(errnos.ENODEV,))


def _host_messages(network: PodNetwork, host: LinkState, master: LinkState | None) -> list[Message]:
    plan = network.host
    batch = [messages.set_host_veth(host.ifindex, plan, port=master is not None)]
    batch += [
        messages.add_address(address, host.ifindex, host.name, network.enable_dad)
        for address in plan.addresses
    ]
    batch += [messages.add_device_route(dst, host.ifindex) for dst in plan.routes]
    return batch


def _prepare(link: str, network: PodNetwork, addresses: Sequence[IPInterface]) -> None:
    """The sysctls of one end, before it comes up."""
    sysctl.quieten(link)
    if any(address.version == 6 for address in addresses):
        sysctl.enable_ipv6(link)
    if not network.enable_dad:
        sysctl.skip_dad(link)


def _configure_pod(pod_socket: RouteSocket, network: PodNetwork) -> None:
    """Sysctls, then in one batch loopback, link, addresses and routes."""
    pod = network.pod
    _prepare(pod.name, network, pod.addresses)
    link = _found(pod_socket, pod.name)
    batch = [messages.link_up(1, "lo"), messages.link_up(link.ifindex, pod.name)]
    batch += [
        messages.add_address(address, link.ifindex, pod.name, network.enable_dad)
        for address in pod.addresses
    ]
    # Beside what is there, as the reference does: two gateways to one network, and a second
    # attachment with a default route of its own, are allowed.
    batch += [messages.add_route(r, link.ifindex, flags=messages.ADD) for r in pod.routes]
    pod_socket.batch(batch)


def _settle(pod_socket: RouteSocket, network: PodNetwork) -> None:
    """With duplicate address detection on, wait for its verdict; without, there is none."""
    wanted = [address for address in network.pod.addresses if address.version == 6]
    if not network.enable_dad or not wanted:
        return
    index = _found(pod_socket, network.pod.name).ifindex
    deadline = time.monotonic() + _DAD_TIMEOUT_S
    while busy := _busy(pod_socket, index, wanted):
        if time.monotonic() > deadline:
            raise CniError(
                Code.ADDRESS_UNAVAILABLE,
                f"duplicate address detection of {busy[0]} was not over in {_DAD_TIMEOUT_S:g} s",
            )
        time.sleep(0.02)


def _busy(pod_socket: RouteSocket, index: int, wanted: Sequence[IPInterface]) -> list[IPInterface]:
    unsettled = observe.unsettled(pod_socket, index)
    for address in wanted:
        if unsettled.get(address):
            raise CniError(
                Code.ADDRESS_UNAVAILABLE,
                f"duplicate address detection: {address} is in use on this link",
                "another host answers for this address: check the ranges in ipam",
            )
    return [address for address in wanted if address in unsettled]


def _await_forwarding(route_socket: RouteSocket, host: str) -> None:
    """Until the bridge forwards for the port. The kernel does this in the background."""
    deadline = time.monotonic() + _FORWARD_TIMEOUT_S
    while not _found(route_socket, host).forwarding and time.monotonic() < deadline:
        time.sleep(0.0005)


def _announce(pod_socket: RouteSocket, network: PodNetwork) -> None:
    """Let the kernel tell the neighbours where the pod's addresses live, from within the sandbox.

    With arp_notify and ndisc_notify on, a change of the link's MAC address, be it to itself, makes
    it send a gratuitous ARP and an unsolicited neighbour advertisement for each address. A packet
    socket of ours could send the same, but closing one takes the kernel 10 to 20 ms.
    """
    if not network.pod.addresses:
        return
    link = _found(pod_socket, network.pod.name)
    with ExitStack() as back:
        for name in sysctl.announcing(link.name):
            before = sysctl.read(name)
            if before is not None and before != "1":
                sysctl.write(name, "1")
                back.callback(sysctl.write, name, before)
        pod_socket.batch([messages.set_mac(link.ifindex, link.name, link.mac)])


def _forget_neighbours(route_socket: RouteSocket, network: PodNetwork, link: LinkState) -> None:
    """What the node remembers of an earlier owner of the addresses may be wrong now."""
    route_socket.batch(
        [messages.forget_neighbour(a.ip, link.ifindex) for a in network.pod.addresses],
        ignore=(errnos.ENOENT,),
    )
