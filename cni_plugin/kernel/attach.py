"""ADD in the kernel: a `PodNetwork` becomes links, addresses and routes.

Order, and why:
1. The bridge, under the node's lock, until the pod's link is a port of it.
2. The veth pair in one message, the pod's end born in the sandbox, both ends down.
3. Sysctls of each end while it is down, so that no router advertisement is ever heard.
4. The host's end up, then everything of the pod in one batch.
5. What the node remembers of earlier owners of the addresses is dropped: from now on, who asks
   for one hears the pod.
6. Forwarding on (`forward`), when nothing else can fail but the delivery: other pods may need it by
   then, so it can't be undone.
7. The announcement (`announce`), once the bridge forwards for the port.

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
    with inside(sandbox.fd):
        pod_index = _configure_pod(sandbox.route_socket, sysctls, network)
    _settle(sandbox.route_socket, network, pod_index)
    deadline = time.monotonic() + _FORWARD_TIMEOUT_S
    mtu = _connected(route_socket, network, master.ifindex if master else index, deadline)
    if master is not None:
        _await_bridge(route_socket, master.name, deadline)
    return Applied(
        bridge_mac=master.mac if master else "",
        bridge_mtu=device.mtu(route_socket, master.name) if master else 0,
        mtu=mtu,
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
    if network.enable_dad and wanted:
        from cni_plugin.kernel import dad  # few ask for it

        dad.settle(pod_socket, index, wanted)


def _connected(route_socket: RouteSocket, network: PodNetwork, index: int, deadline: float) -> int:
    """The MTU of the host's end, when the bridge forwards for it, as it may begin to late.

    Since Linux 6.8 the first look makes the kernel catch up. Before it, what the node remembers of
    an earlier owner of the addresses goes: it may be wrong now. `index` is of the link that the
    node reaches the pod by.
    """
    look = messages.get_link(network.host.name)
    batch = [messages.forget_neighbour(a.ip, index) for a in network.pod.addresses]
    while True:
        entry = route_socket.batch([*batch, look], ignore=(errnos.ENOENT,))[-1]
        if entry is None:
            raise _vanished(network.host.name)
        over = network.bridge is None or time.monotonic() > deadline
        if over or observe.is_forwarding(entry):
            return int(entry.get_attr("IFLA_MTU") or 0)
        batch = []
        waiting.begins()
        time.sleep(0.0005)


def forward(node: Host, network: PodNetwork) -> None:
    """Let the node forward what the plan's families need."""
    for version in network.forwarding:
        node.sysctls.forward(version)


def _await_bridge(route_socket: RouteSocket, name: str, deadline: float) -> None:
    """Until the node sends by the bridge: with its first port that begins in the background, and
    what is sent before is dropped, a question for the pod's MAC address among it.

    As with the port, a look makes the kernel catch up (net/core/link_watch.c).
    """
    while not device.runs(route_socket, name) and time.monotonic() < deadline:
        observe.link(route_socket, name)
        if device.runs(route_socket, name):
            return
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
