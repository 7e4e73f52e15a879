"""`podwire ipam`: the reservations of a network, looked at and freed; `tool_import` takes over.

The directory is host-local's, so all of this serves the reference plugin's networks as well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import click
from click.shell_completion import CompletionItem

from cni_plugin import names, tool_conf, tool_output
from cni_plugin.drift import LinkState
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.spec import Attachment, CniError, Code
from cni_plugin.tool_conf import PLUGIN, Target
from cni_plugin.tool_import import import_
from ipam import host_local, store
from ipam.allocator import who
from ipam.config import Place
from ipam.index import Reservation
from ipam.ranges import canonical

_MARK = "podwire "  # how the alias of every link begins that podwire made
_NAMED = 3  # strangers that a message names


@click.group()
def ipam() -> None:
    """List, free and take over reserved addresses."""


ipam.add_command(import_)


@ipam.command(name="list", cls=tool_output.JsonCommand)
@tool_conf.place_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which `import` reads.")
def list_(
    config: str | None, conf_dir: str, data_dir: str | None, network: str | None, as_json: bool
) -> None:
    """List the reserved addresses and who holds them."""
    place = tool_conf.target(config, conf_dir, data_dir, network).place
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


# --- free -------------------------------------------------------------------------------------


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    options = (ctx.params.get(key) for key in ("config", "conf_dir", "data_dir", "network"))
    config, conf_dir, data_dir, network = options
    try:
        target = tool_conf.target(config, conf_dir or tool_conf.CONF_DIR, data_dir, network)
        found = host_local.reservations(target.place)
    except (CniError, click.UsageError, OSError):
        return []
    return [
        CompletionItem(str(entry.address), help=who(entry.attachment))
        for entry in found
        if str(entry.address).startswith(incomplete)
    ]


@ipam.command()
@click.argument(
    "addresses", metavar="ADDRESS...", nargs=-1, required=True, shell_complete=_complete
)
@tool_conf.place_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--force", is_flag=True, help="Don't look whether the pods are gone.")
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

    An address of a running pod must not be freed: it would be handed out a second time. podwire
    knows the links of its own pods, so an address is refused while its pod's link is on this node.
    It can't tell of pods that another plugin made. Therefore --force is needed as well when the
    network is another plugin's, when --data-dir names the directory, and when this node has veth
    links that podwire did not make. See first that the pods are gone.

    Nothing is freed unless everything named can be.
    """
    target = tool_conf.target(config, conf_dir, data_dir, network)
    held = list(_held(target.place, addresses))
    if not force:
        _refuse_alive(target, held)
    if not yes and not _confirmed(held):
        tool_output.say("nothing was freed")
        return 1
    with store.existing(target.place.data_dir, target.place.network) as opened:
        for entry in held:
            freed = opened is not None and opened.release(entry.address, entry.attachment)
            outcome = "freed" if freed else "has changed hands meanwhile, not freed"
            tool_output.say(f"{entry.address} {outcome}")
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


def _confirmed(held: Sequence[Reservation]) -> bool:
    for entry in held:
        tool_output.say(f"{entry.address} of {who(entry.attachment)}")
    try:
        return click.confirm("Free these addresses?")
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo()
        raise click.UsageError("there is no terminal to ask on: use --yes") from None


def _refuse_alive(target: Target, held: Sequence[Reservation]) -> None:
    """Raises CniError 101 for a pod that is alive, and where podwire can't tell."""
    with RouteSocket() as route_socket:
        veths = observe.veths(route_socket)
        for entry in held:
            for link in veths:
                if _belongs(link, target.place.network, entry.attachment):
                    raise CniError(
                        Code.ADDRESS_UNAVAILABLE,
                        f"{entry.address} is in use: {link.name}, the link of"
                        f" {who(entry.attachment)}, exists",
                        "delete the pod, which frees the address; or insist with --force",
                    )
        doubt = _doubt(target, veths, route_socket)
    if doubt:
        raise CniError(
            Code.ADDRESS_UNAVAILABLE,
            f"can't tell whether {who(held[0].attachment)} is gone, which holds"
            f" {held[0].address}: {doubt}",
            "see that the pod is gone (crictl pods), then insist with --force",
        )


def _belongs(link: LinkState, network: str, attachment: Attachment) -> bool:
    """Whether podwire made the link for the attachment; without an ifname, for the container."""
    if attachment.ifname:
        return link.name == names.host_veth_name(network, attachment)
    ours = link.alias.startswith(names.alias_prefix(network))
    return ours and names.attachment_of(link.alias).container_id == attachment.container_id


def _doubt(target: Target, veths: Sequence[LinkState], route_socket: RouteSocket) -> str:
    """Why a pod may be alive that has no link of podwire's making; "" when it can't be."""
    if target.plugin is None:
        return "a directory does not say whose pods it serves"
    if target.plugin.type != PLUGIN:
        return f"the pods of network {target.place.network} are plugin {target.plugin.type}'s"
    # A link that has an address in a network is the node's own way out, as in nodes that are
    # containers themselves. A pod's has none, or one without a network.
    uplinks = {
        name
        for name, address in observe.local_addresses(route_socket)
        if address.network.prefixlen < address.max_prefixlen and not address.ip.is_link_local
    }
    strangers = [
        link.name for link in veths if not link.alias.startswith(_MARK) and link.name not in uplinks
    ]
    if not strangers:
        return ""
    more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
    return f"podwire did not make the links {', '.join(strangers[:_NAMED])}{more} of this node"
