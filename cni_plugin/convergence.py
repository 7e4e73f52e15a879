"""From the paths to the peers that are there to those that should be.

What is new comes first, then the routes move, then what is stale goes. A failure puts back what was
there.
"""

from __future__ import annotations

from collections.abc import Iterable

from cni_plugin.kernel import device as links
from cni_plugin.kernel import overlay, overlayentries
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.overlay import Device
from cni_plugin.kernel.overlayentries import NOTHING, Entries
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.paths import Changes, State, Survey, refuse_unfit
from cni_plugin.spec import CniError
from ipam import routes


def converge(found: Survey, state: State, route_socket: RouteSocket) -> Changes:
    """Make everything as it should be, or leave it as it was and raise CniError.

    Routes that wait for a way are left out.
    """
    refuse_unfit(found, route_socket)
    possible = found.possible
    changes = routes.difference(possible, state.routes)
    KernelRouteTable(route_socket).refuse_obstructed([*changes.add, *changes.replace])
    try:
        return _converge(found.device, found.entries, possible, state, route_socket)
    except CniError as failure:
        try:
            _put_back(found, state, route_socket)
        except CniError as e:
            failure.details = f"{failure.details}; undoing failed: {e.msg}".lstrip("; ")
        raise


def _converge(
    device: Device | None,
    entries: Entries,
    wanted: tuple[routes.NodeRoute, ...],
    state: State,
    route_socket: RouteSocket,
) -> Changes:
    words: list[str] = []
    index = 0
    present, before = state.entries, state.routes
    if device is not None:
        index, done = _make_device(device, state.device, route_socket, state.strays)
        words += done
        if state.strays if state.device is None else index != state.device.ifindex:
            present = NOTHING  # they went with the device that was replaced
            before = KernelRouteTable(route_socket, index).owned()
        elif state.device is not None and state.device.vxlan.mac != device.vxlan.mac:
            present = present._replace(neighbours={})  # the kernel forgets them with the address
        if added := overlayentries.add(route_socket, index, entries, present):
            words.append(f"set {added} neighbours and forwarding entries of {device.vxlan.name}")
    changes = routes.difference(wanted, before)
    if changes:
        KernelRouteTable(route_socket, index).work(changes, before)
    if device is not None and (
        removed := overlayentries.remove(route_socket, index, entries, present)
    ):
        words.append(f"removed {removed} neighbours and forwarding entries of {device.vxlan.name}")
    for name in state.strays:
        overlay.remove(route_socket, name)
        words.append(f"removed the overlay's device {name}")
    return Changes(changes, tuple(words))


def _make_device(
    wanted: Device, present: Device | None, route_socket: RouteSocket, strays: Iterable[str] = ()
) -> tuple[int, list[str]]:
    """The device as it should be: its interface index, and what was done. Those of `strays` that
    have its VNI and port give way."""
    name = wanted.vxlan.name
    if present is not None and overlay.fits(wanted, present):
        if overlay.same(wanted, present):
            return present.ifindex, []
        overlay.adjust(route_socket, wanted, present)
        return present.ifindex, [f"set the overlay's device {name} right"]
    if present is not None:
        overlay.remove(route_socket, name)
    overlay.make_room(route_socket, strays, wanted)
    index = overlay.make(route_socket, wanted)
    verb = "made" if present is None else "replaced"
    return index, [f"{verb} the overlay's device {name}"]


def _put_back(found: Survey, state: State, route_socket: RouteSocket) -> None:
    """After a failure: the device, its entries and the routes as they were."""
    index = 0
    if found.device is not None:
        name, mac = found.device.vxlan.name, found.device.vxlan.mac
        now = overlay.look(route_socket, name, mac)
        if state.device is None:
            if now is not None:
                overlay.remove(route_socket, name)
        else:
            index, _ = _make_device(state.device, now, route_socket)
            there = overlayentries.present_on(route_socket, index)
            overlayentries.add(route_socket, index, state.entries, there)
            overlayentries.remove(route_socket, index, state.entries, there)
    elif state.strays:  # the device that was to go
        index = links.index(route_socket, state.strays[0])
    KernelRouteTable(route_socket, index).restore(state.routes)
