"""`podwire ipam`: the reservations of a network, looked at, freed, taken over.

The directory is host-local's, so all of this serves the reference plugin's networks as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from json import loads
from typing import Any

import click

from cni_plugin import names, tool_conf, tool_output
from cni_plugin.fields import Fields, as_object, invalid
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.skel import ifname_problem
from cni_plugin.spec import Attachment, CniError, Code, IPAddress
from ipam import config as ipam_config
from ipam import host_local, store
from ipam.config import Place
from ipam.index import Reservation
from ipam.ranges import canonical

_USUAL_IFNAME = "eth0"  # of a reservation that names no interface: an old version's
_MAX_BYTES = 64 * 1024 * 1024


def _place_options(command: Any) -> Any:
    for option in (
        click.option("--network", metavar="NAME", help="The network's name, with --data-dir."),
        click.option(
            "--data-dir",
            metavar="DIR",
            help=f"Folder of address directories, such as {ipam_config.DEFAULT_DATA_DIR}.",
        ),
        tool_conf.config_options,
    ):
        command = option(command)
    return command


@click.group()
def ipam() -> None:
    """List, free and take over reserved addresses."""


@ipam.command(name="list")
@_place_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which `import` reads.")
def list_(
    config: str | None, conf_dir: str, data_dir: str | None, network: str | None, as_json: bool
) -> None:
    """List the reserved addresses and who holds them."""
    place = _place(config, conf_dir, data_dir, network)
    found = host_local.reservations(place)
    now = time.time()
    if as_json:
        tool_output.show_json([_document(entry, now) for entry in found])
        return
    tool_output.show_table(
        ("ADDRESS", "CONTAINER", "INTERFACE", "AGE"),
        [
            (
                entry.address,
                entry.attachment.container_id,
                entry.attachment.ifname or "- (legacy)",
                tool_output.age(now - entry.since),
            )
            for entry in found
        ],
        f"no address is reserved in {store.location(*place)}",
    )


def _document(entry: Reservation, now: float) -> dict[str, Any]:
    return {
        "address": str(entry.address),
        "containerID": entry.attachment.container_id,
        "ifname": entry.attachment.ifname,
        "legacy": not entry.attachment.ifname,
        "ageSeconds": max(0, int(now - entry.since)),
    }


def _place(config: str | None, conf_dir: str, data_dir: str | None, network: str | None) -> Place:
    """The address directory that the options name."""
    if data_dir or network:
        if config:
            raise click.UsageError("--config excludes --data-dir and --network")
        if not network:
            raise click.UsageError("--data-dir needs --network")
        folder = os.path.abspath(data_dir or ipam_config.DEFAULT_DATA_DIR)
        if network in (".", "..") or "/" in network:
            raise click.UsageError(f"--network: {network} is no network's name")
        return Place(folder, network)
    plugin = tool_conf.addressed(tool_conf.find(config, conf_dir))
    return ipam_config.locate(plugin.request())


# --- free -------------------------------------------------------------------------------------


@ipam.command()
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
@_place_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--force", is_flag=True, help="Free addresses of pods that are still attached, too.")
def free(
    addresses: Sequence[str],
    config: str | None,
    conf_dir: str,
    data_dir: str | None,
    network: str | None,
    yes: bool,
    force: bool,
) -> int:
    """Give back addresses whose pods are gone.

    An address of a pod whose link is still on this node is refused: free, it would be handed out a
    second time. Nothing is freed unless everything named can be.
    """
    place = _place(config, conf_dir, data_dir, network)
    held = list(_held(place, addresses))
    if not force:
        _refuse_attached(place, held)
    if not yes:
        for entry in held:
            click.echo(f"{entry.address} of {_who(entry.attachment)}")
        if not click.confirm("Free these addresses?"):
            click.echo("nothing was freed")
            return 1
    with store.existing(place.data_dir, place.network) as opened:
        for entry in held:
            freed = opened is not None and opened.release(entry.address, entry.attachment)
            outcome = "freed" if freed else "has changed hands meanwhile, not freed"
            click.echo(f"{entry.address} {outcome}")
    return 0


def _held(place: Place, addresses: Sequence[str]) -> Iterator[Reservation]:
    for text in dict.fromkeys(addresses):
        try:
            address = canonical(ip_address(text))
        except ValueError:
            raise click.BadParameter(f"{text!r} is no IP address", param_hint="ADDRESS") from None
        holder = host_local.holder_of(place, address)
        if holder is None:
            raise CniError(
                Code.ADDRESS_UNAVAILABLE,
                f"{address} is not reserved in {store.location(*place)}",
                "`podwire ipam list` shows what is",
            )
        yield Reservation(address, holder)


def _refuse_attached(place: Place, held: Sequence[Reservation]) -> None:
    with RouteSocket() as route_socket:
        for entry in held:
            attachment = entry.attachment
            if not attachment.ifname:
                attachment = attachment._replace(ifname=_USUAL_IFNAME)
            name = names.host_veth_name(place.network, attachment)
            if observe.link(route_socket, name) is not None:
                raise CniError(
                    Code.ADDRESS_UNAVAILABLE,
                    f"{entry.address} is in use: {name}, the link of {_who(attachment)}, exists",
                    "delete the pod, which frees the address; or insist with --force",
                )


def _who(attachment: Attachment) -> str:
    return f"container {attachment.container_id} {attachment.ifname}".rstrip()


# --- import -----------------------------------------------------------------------------------


@ipam.command(name="import")
@click.argument("source", metavar="SOURCE")
@_place_options
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def import_(
    source: str,
    config: str | None,
    conf_dir: str,
    data_dir: str | None,
    network: str | None,
    dry_run: bool,
) -> None:
    """Take over the reservations of another network's directory.

    SOURCE is a host-local directory, such as /var/lib/cni/networks/NAME, or a file with the output
    of `podwire ipam list --json`. All of them are taken over, or none when one is in conflict.
    SOURCE itself stays as it is.
    """
    place = _place(config, conf_dir, data_dir, network)
    given = _given(source)
    present = {entry.address: entry.attachment for entry in host_local.reservations(place)}
    new = _new(given, present)
    if not dry_run:
        _reserve(place, new)
    verb = "would be taken over" if dry_run else "taken over"
    for entry in new:
        click.echo(f"{entry.address} of {_who(entry.attachment)} {verb}")
    known = len(given) - len(new)
    click.echo(f"{len(new)} {verb}, {known} already there, in {store.location(*place)}")


def _given(source: str) -> list[Reservation]:
    """The reservations of SOURCE. Raises CniError 5 to 7 when it holds none that can be read."""
    path = os.path.abspath(source)
    if os.path.isdir(path):
        return host_local.reservations(Place(os.path.dirname(path), os.path.basename(path)))
    try:
        with open(path, "rb") as file:
            document = loads(file.read(_MAX_BYTES).decode("utf-8"))
    except OSError as e:
        raise CniError(Code.IO_FAILURE, f"{source}: {e.strerror}") from e
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


def _new(given: Sequence[Reservation], present: dict[IPAddress, Attachment]) -> list[Reservation]:
    """What is not reserved yet. Raises CniError 101 that names every conflict."""
    conflicts, new = [], []
    seen = dict(present)
    for entry in given:
        holder = seen.setdefault(entry.address, entry.attachment)
        if holder != entry.attachment:
            conflicts.append(
                f"{entry.address} of {_who(entry.attachment)} is reserved for {_who(holder)}"
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
