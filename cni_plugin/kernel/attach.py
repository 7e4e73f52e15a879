"""ADD in the kernel: a `PodNetwork` becomes links, addresses and routes.

Order, and why:
1. The bridge, under the node's lock, until the pod's link is a port of it.
2. The veth pair in one message, the pod's end born in the sandbox, both ends down.
3. Sysctls of each end while it is down, so that no router advertisement is ever heard.
4. The host's end up, forwarding on, then everything of the pod in one batch.
5. What the node remembers of earlier owners of the addresses is dropped: from now on, who asks
   for one hears the pod.
6. The announcement (`announce`), once the bridge forwards for the port.

Each step that made something registers its undo on the caller's stack. Deleting the host's end
undoes all of 2 to 4.
"""

from __future__ import annotations

import errno as errnos
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cni_plugin import waiting
from cni_plugin.datapath import Applied, PodNetwork
from cni_plugin.drift import LinkState
from cni_plugin.kernel import bridge, device, messages, observe
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.netns import inside
from cni_plugin.kernel.nodelock import NodeLock
from cni_plugin.kernel.sysctl import Sysctls
from cni_plugin.spec import CniError, Code, IPInterface
from cni_plugin.typed import NamedTuple

_DAD_TIMEOUT_S = 10.0  # as the reference waits for addresses to settle
_FORWARD_TIMEOUT_S = 1.0
_BRIDGE_TRIES = 5


class Host(NamedTuple):
    """What leads to the node's kernel, all of one network namespace; one thread uses it."""

    route_socket: RouteSocket
    sysctls: Sysctls
    lock: NodeLock

    def close(self) -> None:
        self.route_socket.close()
        self.sysctls.close()
        self.lock.close()


class Sandbox(NamedTuple):
    """The fd of a pod's network namespace, and a socket of that."""

    fd: int
    route_socket: RouteSocket


def host(resident: bool = False) -> Host:
    """For the current network namespace; the caller closes it. `resident`: for many calls."""
    return Host(RouteSocket(), Sysctls(resident), NodeLock(resident))


@contextmanager
def entered(fd: int) -> Iterator[Sandbox]:
    """The sandbox with this fd, for the block."""
    with inside(fd):
        pod_socket = RouteSocket()
    with pod_socket:
        yield Sandbox(fd, pod_socket)


def refuse_existing(sandbox: Sandbox, ifname: str) -> None:
    """Raises CniError 102 when the sandbox has a link of this name (specification, ADD)."""
    if device.exists(sandbox.route_socket, ifname):
        raise _interface_exists(ifname)


def _interface_exists(ifname: str) -> CniError:
    return CniError(
        Code.INTERFACE_EXISTS,
        f"CNI_IFNAME: the sandbox already has an interface {ifname}",
        "the attachment exists already (DEL it first), or another network uses this name",
    )


def attach(node: Host, sandbox: Sandbox, network: PodNetwork, undo: ExitStack) -> Applied:
    """Apply the plan."""
    route_socket, sysctls, lock = node
    name = network.host.name
    master = _create_links(route_socket, lock, network, sandbox.fd, undo)
    index = _index(route_socket, name)
    _prepare(sysctls, name, network, network.host.addresses)
    _bring_up(route_socket, network, index, port=master is not None)
    for version in network.forwarding:
        sysctls.forward(version)
    with inside(sandbox.fd):
        pod_index = _configure_pod(sandbox.route_socket, sysctls, network)
    _settle(sandbox.route_socket, network, pod_index)
    _forget_neighbours(route_socket, network, master.ifindex if master else index)
    link = _connected(route_socket, network)
    return Applied(
        bridge_mac=master.mac if master else "",
        bridge_mtu=device.mtu(route_socket, master.name) if master else 0,
        mtu=link.mtu,
    )


def _index(route_socket: RouteSocket, name: str) -> int:
    index = device.index(route_socket, name)
    if not index:
        raise _vanished(name)
    return index


def _vanished(name: str) -> KernelError:
    return KernelError(errnos.ENODEV, f"find link {name} that was just made")


def _create_links(
    route_socket: RouteSocket, lock: NodeLock, network: PodNetwork, sandbox: int, undo: ExitStack
) -> LinkState | None:
    """The bridge, if the plan has one, and the veth pair; the bridge is returned.

    A failed ADD may remove a bridge that this one has just looked up: then it is made again.
    """
    if network.bridge is None:
        _create_veth(route_socket, network, sandbox, 0, undo)
        return None
    for attempt in range(1, _BRIDGE_TRIES + 1):
        ready = bridge.ready(route_socket, network.bridge)
        with lock.held(exclusive=ready is None):
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
        if observe.link(route_socket, host.name) is None:
            raise _interface_exists(network.pod.name) from e
        raise CniError(
            Code.INTERFACE_EXISTS,
            f"the host already has the link {host.name} of this attachment",
            "an earlier ADD was not followed by DEL: call DEL, then ADD again",
        ) from e
    undo.callback(_remove, route_socket, host.name)


def _remove(route_socket: RouteSocket, name: str) -> None:
    route_socket.batch([messages.delete_link(name)], ignore=(errnos.ENODEV,))


def _bring_up(route_socket: RouteSocket, network: PodNetwork, index: int, port: bool) -> None:
    """The host's end, with addresses and routes.

    As a port of the bridge it needs no link-local address, which nobody could reach; and among
    those of a thousand ports it takes the kernel half a millisecond to add one.
    """
    host = network.host
    batch = [messages.no_link_local(index, host.name)] if port else []
    batch.append(messages.set_host_veth(index, host, port))
    batch += [
        messages.add_address(address, index, host.name, network.enable_dad)
        for address in host.addresses
    ]
    batch += [messages.add_device_route(dst, index) for dst in host.routes]
    # A kernel without IPv6, or a link with an MTU too small for it.
    route_socket.batch(batch, ignore=(errnos.EAFNOSUPPORT,) if port else ())


def _prepare(
    sysctls: Sysctls, link: str, network: PodNetwork, addresses: Sequence[IPInterface]
) -> None:
    """The sysctls of one end, before it comes up."""
    ipv6 = any(address.version == 6 for address in addresses)
    sysctls.quieten(link, network.enable_dad, ipv6)


def _configure_pod(pod_socket: RouteSocket, sysctls: Sysctls, network: PodNetwork) -> int:
    """Sysctls, then in one batch loopback, link, addresses and routes; the link's index."""
    pod = network.pod
    _prepare(sysctls, pod.name, network, pod.addresses)
    index = _index(pod_socket, pod.name)
    late = _link_local_is_late(network)
    batch = [messages.no_link_local(index, pod.name)] if late else []
    batch += [messages.link_up(1, "lo"), messages.link_up(index, pod.name)]
    batch += [
        messages.add_address(address, index, pod.name, network.enable_dad)
        for address in pod.addresses
    ]
    # Beside what is there, as the reference does: two gateways to one network, and a second
    # attachment with a default route of its own, are allowed.
    batch += [messages.add_route(r, index, flags=messages.ADD) for r in pod.routes]
    pod_socket.batch(batch, ignore=(errnos.EAFNOSUPPORT,) if late else ())
    return index


def _link_local_is_late(network: PodNetwork) -> bool:
    """Whether the pod's IPv6 link-local address comes with the announcement.

    The kernel tells all ports of the bridge which multicast groups come with it: with a thousand
    pods that takes longer than the rest of an ADD. A pod with an IPv6 address needs it at once.
    """
    addresses = network.pod.addresses
    only_ipv4 = bool(addresses) and all(address.version == 4 for address in addresses)
    return only_ipv4 and network.bridge is not None and not network.enable_dad


def _settle(pod_socket: RouteSocket, network: PodNetwork, index: int) -> None:
    """With duplicate address detection on, wait for its verdict; without, there is none."""
    wanted = [address for address in network.pod.addresses if address.version == 6]
    if not network.enable_dad or not wanted:
        return
    deadline = time.monotonic() + _DAD_TIMEOUT_S
    while busy := _busy(pod_socket, index, wanted):
        if time.monotonic() > deadline:
            raise CniError(
                Code.ADDRESS_UNAVAILABLE,
                f"duplicate address detection of {busy[0]} was not over in {_DAD_TIMEOUT_S:g} s",
            )
        waiting.begins()
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


def _forget_neighbours(route_socket: RouteSocket, network: PodNetwork, index: int) -> None:
    """What the node remembers of an earlier owner of the addresses may be wrong now."""
    route_socket.batch(
        [messages.forget_neighbour(a.ip, index) for a in network.pod.addresses],
        ignore=(errnos.ENOENT,),
    )


def _connected(route_socket: RouteSocket, network: PodNetwork) -> LinkState:
    """The host's end, when the bridge forwards for the port: it may begin to in the background.

    Since Linux 6.8 the first look makes the kernel catch up.
    """
    deadline = time.monotonic() + _FORWARD_TIMEOUT_S
    while True:
        link = observe.link(route_socket, network.host.name)
        if link is None:
            raise _vanished(network.host.name)
        if network.bridge is None or link.forwarding or time.monotonic() > deadline:
            return link
        waiting.begins()
        time.sleep(0.0005)


def announce(node: Host, sandbox: Sandbox, network: PodNetwork) -> None:
    """Let the kernel tell the neighbours where the pod's addresses live, from within the sandbox.

    With arp_notify and ndisc_notify on, a change of the link's MAC address, be it to itself, makes
    it send a gratuitous ARP and an unsolicited neighbour advertisement for each address. A packet
    socket of ours could send the same, but closing one takes the kernel 10 to 20 ms.

    All ports of the bridge get them, which takes the kernel 2 µs for each.
    """
    pod = network.pod
    if not pod.addresses:
        return
    index = _index(sandbox.route_socket, pod.name)
    with inside(sandbox.fd), ExitStack() as settings:
        for version in {address.version for address in pod.addresses}:
            settings.enter_context(node.sysctls.announcing(pod.name, version))
        sandbox.route_socket.batch([messages.set_mac(index, pod.name, pod.mac)])
        if _link_local_is_late(network):
            node.sysctls.generate_link_local(pod.name)
