"""The node inventory: which node has which addresses and which pod subnets.

A JSON file, the same on every node, for clusters without an API that assigns podCIDRs:

    {"nodes": [{"name": "node-1", "addresses": ["192.168.1.2/24"], "podCIDRs": ["10.244.0.0/24"]}]}

Rules of this module:
- `load` does the only I/O; everything else is a function of its arguments.
- An unknown key is an error, since `podCIDR` for `podCIDRs` would quietly leave a node without
  routes. Keys that begin with "_" are comments.
- It says what is wrong and changes nothing: the routes are made in `ipam.routes`.

The overlap check puts both families on one number line and sweeps it once: of all ranges that begin
before one, those of a kind overlap it if the furthest-reaching does. 5,000 nodes cost a sort.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from json import loads
from operator import attrgetter
from typing import NamedTuple, NoReturn

from cni_plugin.fields import (
    Fields,
    as_address,
    as_interface,
    as_network,
    as_object,
    invalid,
    shown,
)
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork

MAX_INVENTORY_BYTES = 8 * 1024 * 1024  # some 50,000 nodes

_NAME = re.compile(
    r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}"
)  # what Kubernetes allows, and a little more
_NODE_KEYS = ("name", "addresses", "podCIDRs")
_NAMES_LISTED = 8


class Node(NamedTuple):
    """One node: its name, its own addresses, the networks they lie in where the prefix is known,
    and the subnets of its pods."""

    name: str
    addresses: tuple[IPAddress, ...]
    networks: tuple[IPNetwork, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()


class Inventory(NamedTuple):
    """All nodes, in the order of the file; `source` is its path, for messages."""

    source: str
    nodes: tuple[Node, ...]


# --- reading ----------------------------------------------------------------------------------


def load(path: str) -> Inventory:
    """The inventory in the file at `path`, an absolute path.

    Raises CniError: 5 when the file can't be read, 7 for what is in it or for a relative path
    (the runtime chooses a plugin's working directory).
    """
    if not path.startswith("/"):
        raise invalid("nodes", path, "expected the absolute path of the node inventory")
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            data = file.read(MAX_INVENTORY_BYTES + 1) or b""
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise CniError(
            Code.IO_FAILURE,
            f"nodes: can't read the node inventory {shown(path)}: {reason}",
            'write the inventory to that path, or correct "nodes" in the network configuration',
        ) from e
    return parse(data, path)


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO at `path` then reads as empty, where it would make every ADD wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def parse(data: bytes, source: str) -> Inventory:
    """The inventory that `data` holds; `source` names it in messages.

    Raises CniError 7, with `source` and the field's path in front. Addresses and names are unique
    afterwards; whether the subnets are is `refuse_overlaps`'s matter.
    """
    try:
        return Inventory(source, _nodes(_decode(data)))
    except CniError as e:
        raise CniError(e.code, f"{source}: {e.msg}", e.details) from e


def _decode(data: bytes) -> Fields:
    if len(data) > MAX_INVENTORY_BYTES:
        raise CniError(Code.INVALID_CONFIG, f"larger than {MAX_INVENTORY_BYTES} bytes")
    try:
        document = loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        reason = str(e).partition("\n")[0] or type(e).__name__
        raise CniError(
            Code.INVALID_CONFIG,
            f"not valid JSON: {reason}",
            'the inventory is one JSON object such as {"nodes": [...]}; see nodes.schema.json',
        ) from e
    if not isinstance(document, dict):
        raise CniError(
            Code.INVALID_CONFIG,
            f'expected an object such as {{"nodes": [...]}}, got {shown(document)}',
        )
    return Fields(document)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _nodes(document: Fields) -> tuple[Node, ...]:
    _refuse_unknown_keys(document, ("nodes", "$schema"))
    nodes: list[Node] = []
    names: dict[str, str] = {}
    addresses: dict[IPAddress, str] = {}
    for path, value in document.items("nodes"):
        node = _node(as_object(value, path))
        holder = names.setdefault(node.name, path)
        if holder != path:
            raise invalid(f"{path}.name", node.name, f"expected a name other than that of {holder}")
        for index, address in enumerate(node.addresses):
            holder = addresses.setdefault(address, node.name)
            if holder != node.name:
                raise invalid(
                    f"{path}.addresses[{index}]",
                    str(address),
                    f"expected an address other than that of node {holder}",
                )
        nodes.append(node)
    if not nodes:
        raise invalid("nodes", document.obj.get("nodes"), "expected at least one node")
    return tuple(nodes)


def _node(fields: Fields) -> Node:
    _refuse_unknown_keys(fields, _NODE_KEYS)
    name = fields.text("name")
    if not _NAME.fullmatch(name):
        raise invalid(
            fields.at("name"),
            fields.obj.get("name"),
            "expected a name of letters, digits, '-', '_' and '.', a letter or digit first",
        )
    addresses: list[IPAddress] = []
    networks: list[IPNetwork] = []
    for path, value in fields.items("addresses"):
        if isinstance(value, str) and "/" in value:
            interface = as_interface(value, path)
            address: IPAddress = interface.ip
            networks.append(interface.network)
        else:
            address = as_address(value, path)
        _refuse_unreachable(address, path)
        addresses.append(address)
    if not addresses:
        raise invalid(
            fields.at("addresses"),
            fields.obj.get("addresses"),
            "expected at least one address of the node",
        )
    pod_cidrs = tuple(as_network(value, path) for path, value in fields.items("podCIDRs"))
    return Node(name, tuple(addresses), tuple(networks), pod_cidrs)


def _refuse_unknown_keys(fields: Fields, known: Collection[str]) -> None:
    for key in fields.obj:
        if key not in known and not key.startswith("_"):
            raise CniError(
                Code.INVALID_CONFIG,
                f"{f'{fields.path}: ' if fields.path else ''}unknown key {shown(key)}",
                f'known are {", ".join(known)}; begin a key with "_" to make it a comment',
            )


def _refuse_unreachable(address: IPAddress, path: str) -> None:
    """Addresses that no other node can use as a gateway; by bits, since it is done per node."""
    bits = int(address)
    if address.version == 4:
        wrong = bits >> 24 in (0, 127) or bits >> 28 >= 0xE
    else:  # unspecified, loopback, multicast; link-local means nothing without a link
        wrong = bits <= 1 or bits >> 120 == 0xFF or bits >> 118 == 0x3FA
    if wrong:
        raise invalid(path, str(address), "expected an address that the other nodes can reach")


# --- which node is this one -------------------------------------------------------------------


def find_self(
    inventory: Inventory,
    node_name: str,
    hostname: str,
    local_addresses: Callable[[], Collection[IPAddress]],
) -> Node:
    """The node this process runs on: by `node_name` if given, else by address, else by hostname.

    Addresses come before the hostname because network namespaces that stand for nodes share one.
    They decide only if exactly one node has some of ours. `local_addresses` is called when needed.

    Raises CniError 7 when `node_name` is no node, or when none of the three ways leads to one.
    """
    nodes = inventory.nodes
    if node_name:
        for node in nodes:
            if node.name == node_name:
                return node
        raise invalid(
            "nodeName",
            node_name,
            f"expected the name of a node in {inventory.source}",
            f"the nodes there are {_listed(nodes)}",
        )
    ours = frozenset(local_addresses())
    candidates = [node for node in nodes if not ours.isdisjoint(node.addresses)]
    if len(candidates) == 1:
        return candidates[0]
    for node in nodes:
        if node.name in (hostname, hostname.lower()):  # the kubelet lower-cases it too
            return node
    holders = f"nodes {_listed(candidates)} have" if candidates else "no node has"
    raise CniError(
        Code.INVALID_CONFIG,
        f"{inventory.source}: can't tell which node this is: nodeName is not set, {holders} an"
        f" address of this machine, and none has its hostname {shown(hostname)} for a name",
        'set "nodeName" in the network configuration, or give the node this machine\'s address or'
        f" hostname in {inventory.source}",
    )


def _listed(nodes: Sequence[Node]) -> str:
    names = ", ".join(node.name for node in nodes[:_NAMES_LISTED])
    more = len(nodes) - _NAMES_LISTED
    return f"{names} and {more} more" if more > 0 else names


# --- uniqueness -------------------------------------------------------------------------------


class _Claim(NamedTuple):
    """A range of addresses that somebody holds; `first` and `last` are on the line of `_span`."""

    first: int
    last: int
    pod: bool
    mine: bool
    node: str
    label: str  # what a message puts in front of `held`
    held: IPNetwork | IPAddress

    def __str__(self) -> str:
        return f"{self.label}{self.held} of node {self.node}"


def refuse_overlaps(
    inventory: Inventory, own: Node, local_networks: Collection[tuple[str, IPNetwork]] = ()
) -> None:
    """Raise CniError 106, naming both holders, when a pod subnet overlaps what is not its own.

    That is another pod subnet (of any two nodes: two peers that claim one subnet make the routes
    ambiguous here, too), the address of a node, or a node network: one the inventory knows by its
    prefix, or one of `local_networks`, (link, network) pairs connected to this node. The caller
    leaves the pod bridge out of these. Overlaps that involve this node are reported first.
    """
    conflict = _first_conflict(_claims(inventory, own, local_networks))
    if conflict is None:
        return
    subject, rival = conflict
    if not subject.pod or (rival.pod and rival.mine and not subject.mine):
        subject, rival = rival, subject
    itself = " itself" if subject.node == rival.node else ""
    raise CniError(
        Code.SUBNET_OVERLAP,
        f"pod subnet {subject} overlaps {rival}{itself}",
        f"give each node a podCIDR of its own in {inventory.source}"
        if rival.pod
        else f"choose podCIDRs outside the networks of the nodes in {inventory.source}",
    )


def _claims(
    inventory: Inventory, own: Node, local_networks: Collection[tuple[str, IPNetwork]]
) -> Iterator[_Claim]:
    for node in inventory.nodes:
        name, mine = node.name, node.name == own.name
        for cidr in node.pod_cidrs:
            yield _Claim(*_span(cidr), True, mine, name, "", cidr)
        for network in node.networks:
            yield _Claim(*_span(network), False, mine, name, "the node network ", network)
        for address in node.addresses:
            at = int(address) + (address.version << 128)
            yield _Claim(at, at, False, mine, name, "the address ", address)
    for link, network in local_networks:
        yield _Claim(*_span(network), False, True, own.name, f"link {link}'s network ", network)


def _span(network: IPNetwork) -> tuple[int, int]:
    """First and last address on one number line, where IPv4 and IPv6 never meet."""
    first = int(network.network_address) + (network.version << 128)
    return first, first + (1 << (network.max_prefixlen - network.prefixlen)) - 1


def _first_conflict(claims: Iterable[_Claim]) -> tuple[_Claim, _Claim] | None:
    """A pod subnet and what it overlaps, in either order; one that involves this node if any."""
    furthest: dict[tuple[bool, bool], _Claim] = {}
    found: tuple[_Claim, _Claim] | None = None
    for claim in sorted(claims, key=attrgetter("first")):
        for earlier in furthest.values():
            if earlier.last < claim.first or not (earlier.pod or claim.pod):
                continue
            if earlier.mine or claim.mine:
                return claim, earlier
            found = found or (claim, earlier)
        kind = (claim.pod, claim.mine)
        if kind not in furthest or claim.last > furthest[kind].last:
            furthest[kind] = claim
    return found


def refuse_foreign_subnet(inventory: Inventory, own: Node, subnet: IPNetwork) -> None:
    """Check a subnet that the ipam section of this node configures against the inventory.

    Raises CniError: 106 when it overlaps another node's pod subnet, 7 when it is not inside one
    of this node's own, because no other node would have a route to it.
    """
    first, last = _span(subnet)
    for node in inventory.nodes:
        if node.name == own.name:
            continue
        for cidr in node.pod_cidrs:
            start, end = _span(cidr)
            if start <= last and first <= end:
                raise CniError(
                    Code.SUBNET_OVERLAP,
                    f"ipam: subnet {subnet} of node {own.name} overlaps {cidr} of node {node.name}",
                    f"use a podCIDR of node {own.name} in {inventory.source}, or leave the ranges"
                    " out: they are then taken from there",
                )
    spans = [_span(cidr) for cidr in own.pod_cidrs]
    if not any(start <= first and last <= end for start, end in spans):
        raise CniError(
            Code.INVALID_CONFIG,
            f"ipam: subnet {subnet} is not inside a podCIDR of node {own.name}"
            f" ({', '.join(map(str, own.pod_cidrs)) or 'it has none'})",
            f"the other nodes have no route to it: add it to podCIDRs in {inventory.source}",
        )
