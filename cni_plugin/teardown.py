"""Taking all that podwire has made in the kernel off a node, for `podwire uninstall`.

Rules:
- Pods come first: while one is attached nothing is taken away, unless that is forced, and then
  its link goes as well.
- What is ours can be told from itself: by its table, its alias, its protocol number, its name and
  kind. What was there before podwire stays, the bridge that it took over included.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT
from typing import NamedTuple

from cni_plugin import cluster, names
from cni_plugin.drift import LinkState
from cni_plugin.fabric import PORTS, Fabric
from cni_plugin.kernel import bridge, messages, observe
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel.hostports import HostPorts
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.nodelock import FOLDER
from cni_plugin.kernel.portrecords import PortRecords
from cni_plugin.kernel.statefolder import StateFolder, node_key
from cni_plugin.kernel.sysctl import Sysctls
from cni_plugin.ruleset import TABLE, NodeRules
from cni_plugin.spec import CniError, Code

_IFB = re.compile(r"pwi[0-9a-f]{12}")
_LISTED = 5
_NO_NFTABLES = (EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT)


class Outcome(NamedTuple):
    """What was removed, and what was kept with the reason, in words."""

    removed: list[str]
    kept: list[str]


def refuse_pods(route_socket: RouteSocket) -> None:
    """Raises CniError 11 while pods are attached, or have host ports or a bandwidth of ours."""
    links = [*_pods(route_socket), *_shapers(route_socket)]
    records = PortRecords(StateFolder(node_key(), PORTS)).everything().values()
    attachments = [names.attachment_of(link.alias) for link in links if link.alias]
    attachments += [record.attachment for record in records]
    found = [f"{held.container_id} ({held.ifname})" for held in dict.fromkeys(attachments)]
    if not found:
        return
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise CniError(
        Code.TRY_AGAIN_LATER,
        f"{len(found)} {'pod is' if len(found) == 1 else 'pods are'} attached to podwire's networks"
        f" here: {', '.join(found[:_LISTED])}{more}",
        "drain the node first, so that the runtime calls DEL for each pod; --force cuts them off",
    )


def datapath(route_socket: RouteSocket) -> Outcome:
    """Remove everything of podwire's in this network namespace, the pods' links included."""
    removed: list[str] = []
    kept: list[str] = []
    fabric = Fabric(route_socket)
    try:
        removed += _host_ports(fabric)
        removed += _rules(fabric)
    finally:
        fabric.close()
    for link in (*_pods(route_socket), *_shapers(route_socket)):
        route_socket.batch([messages.delete_link(link.name)], ignore=(ENODEV,))
        removed.append(f"link {link.name}")
    removed += cluster.remove_overlay(route_socket)
    for link in _bridges(route_socket):
        if reason := _in_use(route_socket, link):
            kept.append(f"link {link.name}: kept, {reason}")
        else:
            route_socket.batch([messages.delete_link(link.name)], ignore=(ENODEV,))
            removed.append(f"link {link.name}")
    removed += _state(fabric.key)
    return Outcome(removed, kept)


def _pods(route_socket: RouteSocket) -> list[LinkState]:
    return [link for link in observe.veths(route_socket) if link.alias.startswith("podwire ")]


def _shapers(route_socket: RouteSocket) -> Iterator[LinkState]:
    return (link for link in _links(route_socket, "ifb") if _IFB.fullmatch(link.name))


def _bridges(route_socket: RouteSocket) -> Iterator[LinkState]:
    ours = (bridge.ALIAS_MADE, bridge.ALIAS_ADOPTED)
    return (link for link in _links(route_socket, "bridge") if link.alias in ours)


def _links(route_socket: RouteSocket, kind: str) -> list[LinkState]:
    return [observe.state(entry) for entry in route_socket.dump(messages.dump_links(kind=kind))]


def _in_use(route_socket: RouteSocket, link: LinkState) -> str:
    """Why a bridge stays; "" when it goes."""
    if link.alias == bridge.ALIAS_ADOPTED:
        return "it was there before podwire"
    ports = observe.ports(route_socket, link.ifindex)
    return f"{ports[0].name} is a port of it, and not podwire's" if ports else ""


def _host_ports(fabric: Fabric) -> list[str]:
    folder = StateFolder(fabric.key, PORTS)
    held = PortRecords(folder).everything()
    if not held:
        return []
    sysctls = Sysctls()
    try:
        HostPorts(fabric.netfilter, fabric.route_socket, folder, sysctls).remove_all()
    finally:
        sysctls.close()
    return [f"the host ports of {len(held)} {'pod' if len(held) == 1 else 'pods'}"]


def _rules(fabric: Fabric) -> list[str]:
    """Our tables, and our rules in the chains of others."""
    try:
        fabric.netfilter.generation()
    except (KernelError, OSError) as e:
        if e.errno in _NO_NFTABLES:
            return []  # a kernel without nftables has no rules of ours
        raise
    tables = [
        f"nftables table {'ip' if version == 4 else 'ip6'} {TABLE}"
        for version in (4, 6)
        for entry in fabric.netfilter.dump(nft.dump_tables(version))
        if entry.get_attr("NFTA_TABLE_NAME") == TABLE
        and entry["nfgen_family"] == nft.protocol(version)
    ]
    others = len(fabric.firewall.differences(NodeRules((), ()))) - len(tables)
    fabric.firewall.remove()
    return tables + (["podwire's rules in the forward chains of others"] if others > 0 else [])


def _state(key: str) -> list[str]:
    """What the node remembers; the folder above goes when nobody else uses it."""
    folder = os.path.dirname(StateFolder(key, PORTS).path)
    if not os.path.isdir(folder):
        return []
    shutil.rmtree(folder)
    removed = [folder]
    try:
        os.rmdir(FOLDER)
        removed.append(FOLDER)
    except OSError:
        pass  # other nodes' state, or runtimes
    return removed
