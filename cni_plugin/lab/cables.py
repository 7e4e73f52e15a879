"""The links between the nodes of a lab: a bridge as the switch, and a cable to each node."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from cni_plugin.datapath import HostVeth, PodLink
from cni_plugin.kernel import messages, observe, sysctl
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.lab import spaces
from cni_plugin.spec import CniError, Code, IPInterface

IFNAME = "eth0"
_SWITCH = "br0"
_SWITCH_MAC = "02:00:00:00:00:01"
_FORWARD_TIMEOUT_S = 2.0


def make_switch(netns: str) -> None:
    """The bridge in the switch's namespace."""
    with spaces.entered(netns), RouteSocket() as switch:
        sysctl.write("ipv6/conf/default/disable_ipv6", "1", required=False)
        switch.batch([messages.create_bridge(_SWITCH, _SWITCH_MAC, 0)])
        switch.batch([messages.link_up(_index(switch, _SWITCH), _SWITCH)])


def plug_in(switch_netns: str, netns: str, number: int, addresses: Sequence[IPInterface]) -> None:
    """Node `number` gets eth0, with these addresses and a cable to the switch that forwards."""
    host, end = _cable(number)
    fd = os.open(spaces.path_of(netns), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with spaces.entered(switch_netns), RouteSocket() as switch:
            switch.batch([messages.create_veth(host, end, fd, 0, _index(switch, _SWITCH))])
            index = _index(switch, host.name)
            switch.batch([messages.set_host_veth(index, host, port=True)])
            with spaces.entered(netns), RouteSocket() as inner:
                _configure(inner, addresses)
            _await_forwarding(switch, host.name)
    finally:
        os.close(fd)


def addresses_in(netns: str) -> tuple[tuple[str, IPInterface], ...]:
    """The addresses in a namespace with their links: what is neither loopback nor link-local."""
    with spaces.entered(netns), RouteSocket() as route_socket:
        return tuple(
            (link, address)
            for link, address in observe.local_addresses(route_socket)
            if not address.ip.is_loopback and not address.ip.is_link_local
        )


def _index(route_socket: RouteSocket, name: str) -> int:
    link = observe.link(route_socket, name)
    if link is None:
        raise CniError(Code.KERNEL_REFUSED, f"the lab's link {name} has gone")
    return link.ifindex


def _cable(number: int) -> tuple[HostVeth, PodLink]:
    """The two ends between the switch and node `number`."""
    tail = f"{number >> 8:02x}:{number & 255:02x}"
    host = HostVeth(f"to-node-{number}", f"02:00:00:01:{tail}", "podwire lab", False, False, (), ())
    return host, PodLink(IFNAME, f"02:00:00:02:{tail}", (), ())


def _configure(route_socket: RouteSocket, addresses: Sequence[IPInterface]) -> None:
    sysctl.Sysctls().quieten(IFNAME, dad=False, ipv6=False)
    index = _index(route_socket, IFNAME)
    batch = [messages.link_up(index, IFNAME)]
    batch += [messages.add_address(address, index, IFNAME, False) for address in addresses]
    route_socket.batch(batch)


def _await_forwarding(switch: RouteSocket, port: str) -> None:
    deadline = time.monotonic() + _FORWARD_TIMEOUT_S
    while time.monotonic() < deadline:
        link = observe.link(switch, port)
        if link is not None and link.forwarding:
            return
        time.sleep(0.001)
