"""`podwire ipam import`: the reservations of one directory, taken over into another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from json import loads

import click

from cni_plugin import netconf, tool_conf, tool_output, tool_routes
from cni_plugin.fields import Fields, as_object, invalid
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.skel import ifname_problem
from cni_plugin.spec import Attachment, CniError, Code, IPAddress, IPNetwork
from cni_plugin.tool_conf import PLUGIN, Plugin
from ipam import config as ipam_config
from ipam import host_local, store
from ipam.allocator import who
from ipam.config import Place
from ipam.index import Reservation
from ipam.ranges import canonical, describe, find

_MAX_BYTES = 64 * 1024 * 1024
_NAMED = 3  # addresses outside the ranges that a message names


@click.command(name="import")
@click.argument("source", metavar="SOURCE", type=tool_conf.FILE)
@tool_conf.place_options
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--force", is_flag=True, help="Also take over addresses outside the ranges.")
def import_(
    source: str,
    config: str | None,
    conf_dir: str,
    data_dir: str | None,
    network: str | None,
    dry_run: bool,
    force: bool,
) -> None:
    """Take over the reservations of another network's directory.

    SOURCE is a host-local directory, such as /var/lib/cni/networks/NAME, or a file with the output
    of `podwire ipam list --json`. All of them are taken over, or none when one is in conflict or
    outside the target's ranges. With --data-dir the ranges are not known. SOURCE itself stays as
    it is.

    Not needed when the network keeps its name and its dataDir: podwire goes on with the directory
    of the Go plugin host-local.
    """
    target = tool_conf.target(config, conf_dir, data_dir, network)
    place = target.place
    given = _given(source)
    if target.plugin and not force:
        _refuse_outside(target.plugin, given)
    present = {entry.address: entry.attachment for entry in host_local.reservations(place)}
    new = _new(given, present)
    if not dry_run:
        _reserve(place, new)
    verb = "would be taken over" if dry_run else "taken over"
    for entry in new:
        tool_output.say(f"{entry.address} of {who(entry.attachment)} {verb}")
    known = len(given) - len(new)
    tool_output.say(f"{len(new)} {verb}, {known} already there, in {store.location(*place)}")


# --- what is given ----------------------------------------------------------------------------


def _given(source: str) -> list[Reservation]:
    """The reservations of SOURCE. Raises CniError 5 to 7 when it holds none that can be read."""
    path = os.path.abspath(source)
    if os.path.isdir(path):
        found = host_local.reservations(Place(os.path.dirname(path), os.path.basename(path)))
    else:
        found = _listed(source)
    if not found:
        raise CniError(
            Code.INVALID_CONFIG,
            f"{source}: holds no reservation",
            "name the directory of one network, such as /var/lib/cni/networks/NAME, or the output"
            " of `podwire ipam list --json`",
        )
    return found


def _listed(source: str) -> list[Reservation]:
    data = tool_conf.read(source, _MAX_BYTES, "a listing")
    if len(data) > _MAX_BYTES:
        raise CniError(Code.DECODE_FAILURE, f"{source}: larger than {_MAX_BYTES} bytes")
    try:
        document = loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise CniError(
            Code.DECODE_FAILURE,
            f"{source}: not valid JSON",
            "expected a directory, or the output of `podwire ipam list --json`",
        ) from e
    if not isinstance(document, list):
        raise invalid(source, document, "expected a list of reservations")
    return [_read(as_object(v, f"{source}[{i}]")) for i, v in enumerate(document)]


def _read(entry: Fields) -> Reservation:
    address = entry.address("address")
    container_id, ifname = entry.text("containerID"), entry.text("ifname")
    if address is None:
        raise invalid(entry.at("address"), None, "expected an IP address")
    if not container_id or any(c.isspace() or not c.isprintable() for c in container_id):
        raise invalid(entry.at("containerID"), container_id, "expected a container ID")
    if ifname and ifname_problem(ifname):
        raise invalid(entry.at("ifname"), ifname, "expected an interface's name")
    return Reservation(canonical(address), Attachment(container_id, ifname))


# --- what may be taken over -------------------------------------------------------------------


def _refuse_outside(plugin: Plugin, given: Sequence[Reservation]) -> None:
    """Raises CniError 101 for addresses that the target's network never hands out.

    They would do no harm there, but they show that SOURCE is another network's.
    """
    ranges = ipam_config.parse(plugin.request(), _subnets(plugin)).range_sets
    outside = [
        str(entry.address)
        for entry in given
        if not any(find(range_set, entry.address) for range_set in ranges)
    ]
    if outside:
        more = f" and {len(outside) - _NAMED} more" if len(outside) > _NAMED else ""
        raise CniError(
            Code.ADDRESS_UNAVAILABLE,
            f"{', '.join(outside[:_NAMED])}{more}: outside the ranges of the network"
            f" ({'; '.join(describe(range_set) for range_set in ranges)})",
            "nothing was taken over: name the directory of the right network, or insist with"
            " --force",
        )


def _subnets(plugin: Plugin) -> tuple[IPNetwork, ...] | None:
    """This node's podCIDRs; None without an inventory."""
    if plugin.type != PLUGIN:
        return None
    conf = netconf.parse(plugin.request())
    if not conf.nodes:
        return None
    with RouteSocket() as route_socket:
        return tool_routes.find_node(conf.nodes, conf.node_name, route_socket).own.pod_cidrs


def _new(given: Sequence[Reservation], present: dict[IPAddress, Attachment]) -> list[Reservation]:
    """What is not reserved yet. Raises CniError 101 that names every conflict."""
    conflicts, new = [], []
    seen = dict(present)
    for entry in given:
        holder = seen.setdefault(entry.address, entry.attachment)
        if holder != entry.attachment:
            conflicts.append(
                f"{entry.address} of {who(entry.attachment)} is reserved for {who(holder)}"
            )
        elif entry.address not in present:
            new.append(entry)
    if conflicts:
        raise CniError(
            Code.ADDRESS_UNAVAILABLE,
            "; ".join(conflicts),
            "nothing was taken over: free one side of each conflict first",
        )
    return list({entry.address: entry for entry in new}.values())


def _reserve(place: Place, new: Sequence[Reservation]) -> None:
    """All or none, under the directory's lock."""
    if not new:
        return
    with store.opened(place.data_dir, place.network) as opened, ExitStack() as undo:
        for entry in new:
            if not opened.reserve(entry.address, entry.attachment, None):
                raise CniError(
                    Code.ADDRESS_UNAVAILABLE,
                    f"{entry.address} was reserved by somebody else just now",
                    "nothing was taken over: try again",
                )
            undo.callback(opened.release, entry.address, entry.attachment)
        undo.pop_all()
