"""The options of `podwire agent` that make it follow a cluster, and what they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial, reduce
from importlib.util import find_spec
from ipaddress import ip_network
from logging import Logger
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from cni_plugin import apiserver
from cni_plugin.fields import as_address, invalid
from cni_plugin.sources import INVENTORY, LEASE, SourceError
from cni_plugin.spec import CniError, Code, IPNetwork

if TYPE_CHECKING:
    from cni_plugin.agent.clusterstate import About
    from cni_plugin.agent.coordination import Coordination
    from cni_plugin.fabric import Memory
    from cni_plugin.sources import Source
    from cni_plugin.sources.etcd import EtcdSource

CONF_DIR = "/etc/cni/net.d"
_LEASE = os.path.basename(LEASE)  # beside the inventory
_COMMON = (
    click.option(
        "--node-name",
        envvar="NODE_NAME",
        default="",
        help="This node's name in the cluster; else $NODE_NAME, else the host's name.",
    ),
    click.option(
        "--inventory",
        metavar="PATH",
        default=INVENTORY,
        show_default=True,
        help="Where to keep what the cluster says of its nodes.",
    ),
    click.option(
        "--conf-dir",
        metavar="DIR",
        default=CONF_DIR,
        show_default=True,
        help="Write 05-podwire.conflist there when pods can come.",
    ),
    click.option(
        "--network",
        metavar="FILE",
        default="",
        help="The network configuration of all nodes, without subnets; else podwire's own.",
    ),
)
_KUBERNETES = (
    click.option("--kubernetes", is_flag=True, help="Follow the Nodes of the Kubernetes API."),
    click.option(
        "--kubeconfig",
        metavar="FILE",
        envvar="KUBECONFIG",
        default="",
        help="How to reach the API from outside of a pod.",
    ),
    click.option(
        "--api-server",
        metavar="URL",
        envvar="PODWIRE_API_SERVER",
        default="",
        help="The API server; else the one that the node's kubelet has, as install noted.",
    ),
)
_ETCD = (
    click.option("--etcd", metavar="URL[,URL...]", default="", help="Lease a subnet from etcd."),
    click.option("--etcd-prefix", metavar="KEY", default="", help="Where its keys begin."),
    click.option(
        "--etcd-pool",
        metavar="CIDR[,CIDR]",
        default="",
        help="The pods' addresses of all nodes: IPv4, IPv6, or both.",
    ),
    click.option(
        "--etcd-subnet-length",
        metavar="N[,N]",
        default="",
        help="The prefix length of a node's subnet, of each pool.",
    ),
    click.option(
        "--etcd-format",
        type=click.Choice(("podwire", "flannel")),
        default="podwire",
        show_default=True,
        help="Whose keys to read and write.",
    ),
    click.option("--etcd-ttl", type=int, metavar="SECONDS", help="How long a lease lasts."),
    click.option(
        "--etcd-cacert", metavar="FILE", default="", help="Who signed etcd's certificate."
    ),
    click.option("--etcd-cert", metavar="FILE", default="", help="The client's certificate."),
    click.option("--etcd-key", metavar="FILE", default="", help="Its key."),
    click.option("--etcd-user", metavar="NAME", default="", help="Where etcd asks for one."),
    click.option("--etcd-password-file", metavar="FILE", default="", help="The user's password."),
    click.option(
        "--node-address",
        "addresses",
        metavar="ADDRESS",
        multiple=True,
        help="Where other nodes reach this one; once for IPv4, once for IPv6. Else the addresses"
        " that the default routes use. For --etcd: the Kubernetes API knows them.",
    ),
)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The options as a decorator; the command gets them as keywords, for `following`."""
    return reduce(lambda found, add: add(found), reversed(_KUBERNETES + _ETCD + _COMMON), command)


def following(logger: Logger, given: dict[str, Any]) -> Callable[[Memory], Coordination] | None:
    """What makes the agent follow the cluster that the options name; None when they name none.

    Raises CniError and click.UsageError.
    """
    asked = click.get_current_context().get_parameter_source("etcd")
    if not given["etcd"] and asked == ParameterSource.COMMANDLINE:
        wanted = "expected URLs such as http://192.168.1.10:2379, with commas between"
        raise invalid("--etcd", given["etcd"], wanted)
    if given["kubernetes"] and given["etcd"]:
        raise click.UsageError("--kubernetes and --etcd exclude each other")
    _refuse_useless(given)
    if not given["kubernetes"] and not given["etcd"]:
        return None
    from cni_plugin.agent import clusterlock
    from cni_plugin.agent.clusternode import Place
    from cni_plugin.agent.clusterstate import About
    from cni_plugin.agent.coordination import Coordination
    from cni_plugin.agent.templates import Template

    name = given["node_name"] or os.uname().nodename.lower()
    inventory, conf_dir = os.path.abspath(given["inventory"]), os.path.abspath(given["conf_dir"])
    place = Place(name, inventory, conf_dir, Template(given["network"]))
    about: Callable[[], About]
    if given["kubernetes"]:
        server = _api_server(given)
        about = partial(About, "kubernetes", (_server_in_words(server, given["kubeconfig"]),))
        source: Source = _kubernetes(name, server, given, logger)
        place = place._replace(servers=_servers("the API server", [server]))
    else:
        etcd = _etcd(name, given, logger)
        source = etcd
        about = partial(_about_etcd, etcd, given["etcd"])
        place = place._replace(servers=_servers("etcd", given["etcd"].split(",")))
        adapt = partial(_with_keys, keys=_conf_keys(etcd))
        place = place._replace(template=Template(given["network"], adapt))
    clusterlock.claim(inventory, logger)
    return lambda memory: Coordination(source, place, memory, logger, about=about)


def _refuse_useless(given: dict[str, Any]) -> None:
    """Options of an engine that is not asked for: somebody expects something of them.

    Variables are there for others, too, and what is empty asks for nothing."""
    context = click.get_current_context()
    for key, value in given.items():
        source = context.get_parameter_source(key)
        if source == ParameterSource.COMMANDLINE and value not in ("", ()):
            engines = _engines(key)
            if not any(given[engine] for engine in engines):
                name = "node-address" if key == "addresses" else key.replace("_", "-")
                needed = " or ".join(f"--{engine}" for engine in engines)
                raise click.UsageError(f"--{name} is of no use without {needed}")


def _engines(key: str) -> tuple[str, ...]:
    """Those that heed the option."""
    if key in ("kubernetes", "kubeconfig", "api_server"):
        return ("kubernetes",)
    if key == "addresses" or key.startswith("etcd"):
        return ("etcd",)
    return "kubernetes", "etcd"


def _api_server(given: dict[str, Any]) -> str:
    """Its URL, "" for the one of the kubeconfig or of the Service. Raises CniError 7."""
    server: str = given["api_server"]
    if server:
        return apiserver.refuse_wrong(server, "--api-server")
    return "" if given["kubeconfig"] else apiserver.noted()


def _server_in_words(server: str, kubeconfig: str) -> str:
    """The API server's URL, as people look for it; the kubeconfig where that does not tell it."""
    if server or not kubeconfig:
        from cni_plugin.sources.kubernetes import Options, access

        return access(Options("", server)).server
    try:
        return apiserver.in_kubeconfig(kubeconfig)
    except CniError:
        return f"by {kubeconfig}"


def _about_etcd(source: EtcdSource, urls: str) -> About:
    from cni_plugin.agent.clusterstate import About

    return About("etcd", tuple(map(str.strip, urls.split(","))), int(source.lease_until))


def _servers(name: str, urls: Iterable[str]) -> tuple[tuple[str, IPNetwork], ...]:
    """Those that are named by their addresses."""
    found = []
    for url in urls:
        with suppress(ValueError):
            found.append((name, ip_network(urlsplit(url.strip()).hostname or "")))
    return tuple(found)


def _kubernetes(name: str, server: str, given: dict[str, Any], logger: Logger) -> Source:
    """Raises CniError 7 for a kubeconfig that can't be used: one that was named is there. What a
    pod's account lacks may come yet, and is waited for."""
    from cni_plugin.sources.kubernetes import KubernetesSource, Options

    if find_spec("lightkube") is None:
        remedy = "install podwire[kubernetes], or run the self-contained executable, which has it"
        raise CniError(Code.INVALID_CONFIG, "--kubernetes: lightkube is not installed", remedy)
    if given["kubeconfig"]:
        from cni_plugin.sources import kubeconnect

        kubeconnect.refuse_wrong(given["kubeconfig"], "--kubeconfig")
    return KubernetesSource(Options(name, server, given["kubeconfig"]), logger=logger)


def _etcd(name: str, given: dict[str, Any], logger: Logger) -> EtcdSource:
    from cni_plugin.sources.etcd import EtcdSource
    from cni_plugin.sources.etcd_addresses import of_default_routes
    from cni_plugin.sources.etcd_options import DEFAULT_TTL, EtcdOptions

    given_addresses = [as_address(each, "--node-address") for each in given["addresses"]]
    addresses = given_addresses or of_default_routes()
    if not addresses:
        remedy = "give it by --node-address"
        raise CniError(Code.INVALID_CONFIG, "no default route tells this node's address", remedy)
    options = EtcdOptions.checked(
        given["etcd"],
        name,
        addresses,
        prefix=given["etcd_prefix"],
        pool=given["etcd_pool"],
        subnet_length=given["etcd_subnet_length"],
        ttl=DEFAULT_TTL if given["etcd_ttl"] is None else given["etcd_ttl"],
        form=given["etcd_format"],
        cacert=given["etcd_cacert"],
        cert=given["etcd_cert"],
        key=given["etcd_key"],
        user=given["etcd_user"],
        password_file=given["etcd_password_file"],
        state_file=os.path.join(os.path.dirname(os.path.abspath(given["inventory"])), _LEASE),
    )
    return EtcdSource(options, logger, None if given_addresses else of_default_routes)


def _conf_keys(source: EtcdSource) -> Mapping[str, Any]:
    """What etcd wants of the network configuration. Raises CniError 7 for another pool than the
    cluster's, 11 where etcd has to be asked and can't be."""
    try:
        return source.conf_keys()
    except SourceError as e:
        remedy = "start the agent again when etcd answers"
        raise CniError(Code.TRY_AGAIN_LATER, f"--etcd: {e}", remedy) from e


def _with_keys(shared: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The network configuration with what the cluster wants of podwire's part of it."""
    from cni_plugin import conflists

    plugins = shared.get("plugins")
    if plugins is None:
        return {**shared, **keys}
    if not isinstance(plugins, list):
        return dict(shared)  # it is refused where it is used
    ours = [isinstance(plugin, dict) and plugin.get("type") == conflists.TYPE for plugin in plugins]
    merged = [
        {**plugin, **keys} if is_ours else plugin
        for plugin, is_ours in zip(plugins, ours, strict=True)
    ]
    return {**shared, "plugins": merged}
