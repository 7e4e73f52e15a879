"""`podwire install` and `podwire uninstall`: the self-contained executable on a node."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_network

import click

from cni_plugin import (
    apiserver,
    executable,
    installation,
    leftovers,
    madefolders,
    runtimes,
    tool_conf,
)
from cni_plugin.agent import clusterlock
from cni_plugin.client import DEFAULT_SOCKET, SOCKET_VARIABLE
from cni_plugin.kernel import privileges
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.sources import INVENTORY
from cni_plugin.spec import CniError, Code
from cni_plugin.tool_conf import BIN_DIR, FOLDER
from ipam import inventory

_INVENTORY = "/etc/podwire/nodes.json"  # where the templates in conf/ have it

_BIN_DIR = click.option(
    "--bin-dir",
    metavar="DIR",
    type=FOLDER,
    default=BIN_DIR,
    show_default=True,
    help="The runtime's folder of plugins.",
)


@click.command()
@_BIN_DIR
@click.option(
    "--conf-dir",
    metavar="DIR",
    type=FOLDER,
    help=f"Write {installation.CONFLIST} there, of --subnet or --nodes (if neither is given, of"
    f" {_INVENTORY} if that is there): /etc/cni/net.d.",
)
@click.option(
    "--subnet",
    "subnets",
    metavar="CIDR",
    multiple=True,
    help="The pods' addresses of this node; once for IPv4, once for IPv6.",
)
@click.option("--nodes", metavar="FILE", default="", help="The inventory of all nodes.")
@click.option(
    "--note-api-server",
    "kubeconfigs",
    metavar="KUBECONFIG",
    multiple=True,
    help="Note the API server that this file of the node's kubelet names, for the agent; of several"
    " the first one that is there.",
)
def install(
    bin_dir: str,
    conf_dir: str | None,
    subnets: Sequence[str],
    nodes: str,
    kubeconfigs: Sequence[str],
) -> None:
    """Put this executable into a node's folder of plugins, as podwire and podwire-ipam.

    Each file appears at once and whole, in place of an older version as well. Again, it changes
    nothing. The runtime is unpacked when this is run.
    """
    _refuse_mixed(conf_dir, subnets, nodes)
    if conf_dir and not subnets and os.path.exists(_INVENTORY):
        nodes = nodes or _INVENTORY
    if nodes:
        inventory.load(nodes)  # better said now than by the first pod
    text = installation.conflist(_checked(subnets), os.path.abspath(nodes) if nodes else "")
    source = _single_file()
    writes = bool(conf_dir and (subnets or nodes))
    if conf_dir and writes:
        installation.refuse_edited(os.path.join(conf_dir, installation.CONFLIST))
    with _clear_refusal(), madefolders.alone(_given(bin_dir, conf_dir), make=True) as made:
        for folder in made:
            click.echo(f"{folder}: made")
        _place_executable(source, bin_dir)
        if conf_dir:
            _place_conflist(conf_dir, text if writes else "")
        if kubeconfigs:
            _note_api_server(kubeconfigs)
    click.echo(f"{os.path.dirname(sys.executable)}: the runtime, unpacked")


def _refuse_mixed(conf_dir: str | None, subnets: Sequence[str], nodes: str) -> None:
    if (subnets or nodes) and not conf_dir:
        raise click.UsageError("--subnet and --nodes are for the file that --conf-dir asks for")
    if subnets and nodes:
        raise click.UsageError("--subnet and --nodes exclude each other")


def _given(*folders: str | None) -> list[str]:
    return [folder for folder in folders if folder]


def _place_executable(source: str, bin_dir: str) -> None:
    changed = installation.place_executable(source, bin_dir)
    for name in (installation.NAME, installation.IPAM_NAME):
        path = os.path.join(bin_dir, name)
        click.echo(f"{path}: {'installed' if path in changed else 'as it was'}")


def _place_conflist(conf_dir: str, text: str) -> None:
    """`text` is "" where nobody has said which pods the node has."""
    path = os.path.join(conf_dir, installation.CONFLIST)
    if not text:
        click.echo(
            f"{path}: not written: say which pods this node has, by --subnet, --nodes or"
            f" {_INVENTORY}",
            err=True,
        )
        return
    written = installation.place_conflist(conf_dir, text)
    click.echo(f"{path}: {'written' if written else 'as it was'}")


def _note_api_server(kubeconfigs: Sequence[str]) -> None:
    url = apiserver.note(kubeconfigs)
    if url:
        click.echo(f"{apiserver.NOTE}: {url}")
        return
    missing = ", ".join(kubeconfigs)
    click.echo(
        f"{apiserver.NOTE}: not written, there is no {missing}: without --api-server the agent goes"
        " by the Service kubernetes, which has to work before pods have a network",
        err=True,
    )


@click.command()
@_BIN_DIR
@click.option("--conf-dir", metavar="DIR", type=FOLDER, help="Remove the conflist there as well.")
@click.option(
    "--socket",
    metavar="PATH",
    envvar=SOCKET_VARIABLE,
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The agent's socket, which may be left by one that was killed.",
)
@click.option("--force", is_flag=True, help="Cut off the pods that are still attached.")
def uninstall(bin_dir: str, conf_dir: str | None, socket: str, force: bool) -> None:
    """Remove what install made, unpacked runtimes, what agents left, and all in the kernel.

    A running agent has to be stopped first, and the pods have to be gone, which --force is for.
    What is not ours stays: an edited conflist, a bridge that was there before. Addresses of pods
    stay reserved.
    """
    installation.refuse_agent(socket)
    with (
        clusterlock.keep_out(INVENTORY) as held,
        _clear_refusal(),
        madefolders.alone(_given(bin_dir, conf_dir)),
    ):
        _uninstall_datapath(force)
        removed, kept = _uninstall_files(bin_dir, conf_dir, socket, held)
    for path in removed:
        click.echo(f"{path}: removed")
    for path in kept:
        click.echo(f"{path}: kept, it is not podwire's executable")


def _uninstall_files(
    bin_dir: str, conf_dir: str | None, socket: str, held: Collection[str]
) -> tuple[list[str], list[str]]:
    """Executables, a conflist if asked for, and what agents and runtimes left, of whose locks
    these are `held`: what was removed, and what was kept as it is not our executable."""
    if conf_dir:
        _uninstall_conflist(conf_dir)
    elif installation.has_conflist(tool_conf.CONF_DIR):
        path = os.path.join(tool_conf.CONF_DIR, installation.CONFLIST)
        click.echo(f"{path}: kept, runtimes go on using it (--conf-dir {tool_conf.CONF_DIR})")
    removed, kept = installation.remove_executable(bin_dir)
    removed += leftovers.agent_files(socket) + leftovers.node_locks()
    removed += leftovers.cluster_files(held)
    folders = _runtime_folders()
    _release_own_runtime()
    for folder in folders:
        gone, in_use = installation.remove_runtimes(folder)
        removed += gone
        for path in in_use:
            click.echo(f"{path}: kept, a process runs it")
    removed += [f for f in folders if installation.remove_folder(f)]
    for folder in _given(bin_dir, conf_dir):
        removed += madefolders.remove(folder)
    return removed, kept


def _checked(subnets: Sequence[str]) -> list[str]:
    """The subnets as they are written; raises click.UsageError for what is none."""
    try:
        networks = [ip_network(subnet) for subnet in subnets]
    except ValueError as e:
        raise click.UsageError(f"--subnet: {e}") from e
    if len({network.version for network in networks}) != len(networks):
        raise click.UsageError("--subnet: one of each family, IPv4 and IPv6")
    return [str(network) for network in networks]


def _single_file() -> str:
    """The executable to install. Raises CniError 5 when podwire runs from a wheel."""
    path = executable.single_file()
    if not path:
        raise CniError(
            Code.IO_FAILURE,
            "this podwire runs from a Python package: there is no single file to install",
            "run the self-contained executable (make build makes build/podwire), or link the"
            f" scripts: ln -s {executable.path()[0]} {BIN_DIR}/",
        )
    return path


@contextmanager
def _clear_refusal() -> Iterator[None]:
    """A refusal of the system as error 110 or 5 with the path, if the system names it."""
    try:
        yield
    except OSError as e:
        if e.filename is None:
            raise
        raise installation.failure(e, e.filename) from e


def _uninstall_datapath(force: bool) -> None:
    """Rules, links, routes and what the node remembers of them."""
    from cni_plugin import teardown  # loads all that speaks to the kernel

    try:
        privileges.require()
    except CniError as e:
        click.echo(f"rules, links and routes: not looked at ({e.msg})", err=True)
        return
    with RouteSocket() as route_socket:
        if not force:
            teardown.refuse_pods(route_socket)
        removed, kept = teardown.datapath(route_socket)
    for what in removed:
        click.echo(f"{what}: removed")
    for what in kept:
        click.echo(what)


def _uninstall_conflist(conf_dir: str) -> None:
    path = os.path.join(conf_dir, installation.CONFLIST)
    removed = installation.remove_conflist(conf_dir)
    if removed is None:
        click.echo(f"{path}: kept, it is not as install writes it")
    elif removed:
        click.echo(f"{path}: removed")


def _runtime_folders() -> list[str]:
    chosen = os.environ.get("PODWIRE_RUNTIME")
    return (
        [chosen]
        if chosen
        else runtimes.folders(os.geteuid(), os.environ.get("XDG_RUNTIME_DIR", ""))
    )


def _release_own_runtime() -> None:
    """This process may be of a runtime that it removes: nothing is imported from here on."""
    held = sys._xoptions.get("podwire_lock")
    if isinstance(held, str):
        with suppress(OSError):
            os.close(int(held))
