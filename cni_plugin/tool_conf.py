"""The network configuration as the tool finds it: which file a runtime would use, and what of it
is podwire's.

A runtime takes the first file of its folder by name that ends in .conf, .conflist or .json (libcni,
`ConfFiles`). A conflist's plugins get its name and version injected, as a runtime does it before it
calls them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from json import dumps
from typing import Any, NamedTuple

import click

from cni_plugin import confdir, skel
from cni_plugin.fields import Fields
from cni_plugin.leases import IN_PROCESS
from cni_plugin.spec import CURRENT_VERSION, SUPPORTED_VERSIONS, CniError, Code, Request
from ipam import config as ipam_config
from ipam.config import Place

CONF_DIR = "/etc/cni/net.d"
BIN_DIR = "/opt/cni/bin"
PLUGIN = "podwire"

FILE = click.Path(readable=False)  # that it can't be read is said with code and remedy
FOLDER = click.Path(readable=False, file_okay=False)


# --- options ----------------------------------------------------------------------------------


def config_options(command: Any) -> Any:
    """The options --conf-dir and --config, for a command's parameters `conf_dir` and `config`."""
    for option in (
        click.option(
            "--config",
            metavar="FILE",
            type=FILE,
            help="Take this conflist or plugin configuration instead of a folder.",
        ),
        click.option(
            "--conf-dir",
            metavar="DIR",
            type=FOLDER,
            default=CONF_DIR,
            show_default=True,
            help="The runtime's configuration folder; it uses the first file by name.",
        ),
    ):
        command = option(command)
    return command


def place_options(command: Any) -> Any:
    """Those and --data-dir and --network, for the parameters `data_dir` and `network`."""
    for option in (
        click.option("--network", metavar="NAME", help="The network's name, with --data-dir."),
        click.option(
            "--data-dir",
            metavar="DIR",
            type=FOLDER,
            help=f"A folder of address directories, such as {ipam_config.DEFAULT_DATA_DIR}.",
        ),
        config_options,
    ):
        command = option(command)
    return command


# --- configurations ---------------------------------------------------------------------------


class Plugin(NamedTuple):
    """One plugin of a network; `conf` is what its stdin would hold."""

    type: str
    conf: Mapping[str, Any]

    def request(self, cni_path: str = BIN_DIR) -> Request:
        """A STATUS request for this plugin, in the newest version whatever the file says.

        Raises CniError as a call of the plugin would.
        """
        environ = {"CNI_COMMAND": "STATUS", "CNI_PATH": cni_path}
        conf = {**self.conf, "cniVersion": CURRENT_VERSION}
        return skel.parse_request(environ, dumps(conf).encode())


class NetworkFile(NamedTuple):
    """A configuration file; `version` is the newest of those it offers that podwire speaks,
    `declared` what its cniVersion says."""

    path: str
    name: str
    version: str
    plugins: tuple[Plugin, ...]
    declared: str

    def podwires(self) -> tuple[Plugin, ...]:
        return tuple(plugin for plugin in self.plugins if plugin.type == PLUGIN)


class Choice(NamedTuple):
    """The file a runtime would use, None for none; the broken ones before it, each with the
    reason; and the names of those behind it, which are never read."""

    chosen: NetworkFile | None
    broken: tuple[tuple[str, str], ...] = ()
    behind: tuple[str, ...] = ()


def choose(folder: str) -> Choice:
    """What a runtime would use of `folder`. Raises CniError 5 when the folder can't be read."""
    try:
        names = confdir.names(folder)
    except OSError as e:
        raise CniError(
            Code.IO_FAILURE,
            f"{folder}: {e.strerror}",
            "name the runtime's folder with --conf-dir, or one file with --config",
        ) from e
    broken: list[tuple[str, str]] = []
    for index, name in enumerate(names):
        path = os.path.join(folder, name)
        if problem := confdir.examined(path).problem:
            broken.append((path, problem))
            continue
        try:
            return Choice(load(path), tuple(broken), tuple(names[index + 1 :]))
        except CniError as e:
            broken.append((path, e.msg.removeprefix(f"{path}: ")))
    return Choice(None, tuple(broken))


def load(path: str) -> NetworkFile:
    """The network in a conflist, or in a file with one plugin's configuration.

    Raises CniError: 5 when it can't be read, 6 and 7 for what is in it; the path stands in front.
    """
    data = read(path, skel.MAX_CONFIG_BYTES, "a conflist")
    try:
        document = skel.decode_config(data)
    except CniError as e:
        reason = e.msg.replace(" on stdin", "")
        raise CniError(e.code, f"{path}: {reason}", "expected a conflist, a JSON object") from e
    try:
        return _network(path, Fields(document))
    except CniError as e:
        raise CniError(e.code, f"{path}: {e.msg}", e.details) from e


def read(path: str, limit: int, wanted: str) -> bytes:
    """The file, one byte more than `limit` at most. Raises CniError 5 with a remedy."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            return file.read(limit + 1) or b""
    except FileNotFoundError as e:
        hint = f"name the file of {wanted}, as it is on this node"
        raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", hint) from e
    except IsADirectoryError as e:
        hint = f"name a file, that of {wanted}; a runtime's folder is for --conf-dir"
        raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", hint) from e
    except PermissionError as e:
        raise CniError(Code.PERMISSION_DENIED, f"{path}: {e.strerror}", "run this as root") from e
    except OSError as e:
        raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}") from e


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO at `path` then reads as empty, where the tool would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _network(path: str, fields: Fields) -> NetworkFile:
    if fields.has("nodes") and not (fields.has("plugins") or fields.has("type")):
        raise CniError(
            Code.INVALID_CONFIG,
            "this is a node inventory, not a network configuration",
            'name the configuration whose "nodes" is this path; the commands of `podwire routes`'
            " take the inventory itself, with --inventory",
        )
    name, version = fields.text("name"), _version(fields)
    if not name:
        raise CniError(Code.INVALID_CONFIG, "name: the network has none")
    entries = fields.children("plugins") if fields.has("plugins") else [fields]
    plugins = []
    for entry in entries:
        kind = entry.text("type")
        if not kind:
            raise CniError(Code.INVALID_CONFIG, f"{entry.at('type')}: the plugin's name is missing")
        conf = {**entry.obj, "name": name, "cniVersion": version}
        plugins.append(Plugin(kind, conf))
    if not plugins:
        raise CniError(Code.INVALID_CONFIG, "plugins: the list is empty")
    declared = fields.text("cniVersion") or SUPPORTED_VERSIONS[0]
    return NetworkFile(path, name, version, tuple(plugins), declared)


def _version(fields: Fields) -> str:
    """The newest version offered: runtimes choose so between cniVersion and cniVersions."""
    offered = [fields.text("cniVersion") or SUPPORTED_VERSIONS[0], *fields.texts("cniVersions")]
    known = [version for version in SUPPORTED_VERSIONS if version in offered]
    if not known:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion: {', '.join(offered)} is not supported",
            f"podwire speaks {', '.join(SUPPORTED_VERSIONS)}",
        )
    return known[-1]


def find(config: str | None, folder: str) -> NetworkFile:
    """The file named by --config, else the one a runtime would use of --conf-dir."""
    if config:
        return load(config)
    choice = choose(folder)
    if choice.chosen is None:
        raise nothing_usable(folder, choice)
    return choice.chosen


def nothing_usable(folder: str, choice: Choice) -> CniError:
    """The error for a folder without a usable network."""
    if choice.broken:
        path, reason = choice.broken[0]
        return CniError(Code.INVALID_CONFIG, f"{path}: {reason}", "correct or remove this file")
    return CniError(
        Code.INVALID_CONFIG,
        f"{folder}: holds no network configuration",
        "copy one of podwire's conflists there, or name a file with --config",
    )


def podwire_of(file: NetworkFile) -> Plugin:
    """podwire's part of a network. Raises CniError 7 when it has none."""
    for plugin in file.podwires():
        return plugin
    raise CniError(
        Code.INVALID_CONFIG,
        f"{file.path}: network {file.name} does not use podwire but"
        f" {', '.join(plugin.type for plugin in file.plugins)}",
        "put podwire's conflist first by name, or name it with --config",
    )


def addressed(file: NetworkFile) -> Plugin:
    """The plugin whose addresses are in a host-local directory: podwire, or another with such."""
    for plugin in file.podwires() + file.plugins:
        ipam = plugin.conf.get("ipam")
        if isinstance(ipam, dict) and ipam.get("type") in IN_PROCESS:
            return plugin
    raise CniError(
        Code.INVALID_CONFIG,
        f"{file.path}: no plugin of network {file.name} keeps its addresses in a directory",
        f"this needs ipam.type {' or '.join(IN_PROCESS)}; or name a directory with --data-dir and"
        " --network",
    )


# --- address directories ----------------------------------------------------------------------


class Target(NamedTuple):
    """An address directory, and the plugin whose it is: None when only the directory was named."""

    place: Place
    plugin: Plugin | None


def target(config: str | None, conf_dir: str, data_dir: str | None, network: str | None) -> Target:
    """What the options of `place_options` name."""
    if not data_dir and not network:
        plugin = addressed(find(config, conf_dir))
        return Target(ipam_config.locate(plugin.request()), plugin)
    if config:
        raise click.UsageError("--config excludes --data-dir and --network")
    if not network:
        raise click.UsageError("--data-dir needs --network")
    if network in (".", "..") or "/" in network:
        raise click.UsageError(f"--network: {network} is no network's name")
    return Target(Place(os.path.abspath(data_dir or ipam_config.DEFAULT_DATA_DIR), network), None)
