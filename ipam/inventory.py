"""The node inventory: which node has which addresses and which pod subnets.

A JSON file, the same on every node, for clusters without an API that assigns podCIDRs:

    {"nodes": [{"name": "node-1", "addresses": ["192.168.1.2/24"], "podCIDRs": ["10.244.0.0/24"]}]}

Rules of this module:
- `load` and `write` do the only I/O; everything else is a function of its arguments.
- An unknown key is an error, since `podCIDR` for `podCIDRs` would quietly leave a node without
  routes. Keys that begin with "_" are comments.
- It says what is wrong and changes nothing: the routes are made in `ipam.routes`.
- What an entry says of its node is read by `ipam.nodes`.
- Whether pod subnets overlap is the matter of `ipam.overlaps`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from errno import EACCES, EPERM

from cni_plugin.alike import same_ends
from cni_plugin.fields import Fields, as_object, decode, invalid, shown
from cni_plugin.spec import CniError, Code, IPAddress
from cni_plugin.typed import NamedTuple
from ipam import nodes as entries
from ipam.nodes import Node as Node

MAX_INVENTORY_BYTES = 8 * 1024 * 1024  # some 50,000 nodes

_NAMES_LISTED = 8


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
        document = decode(data)
    except ValueError as e:
        raise CniError(
            Code.INVALID_CONFIG,
            f"not valid JSON: {e}",
            'the inventory is one JSON object such as {"nodes": [...]}; see nodes.schema.json',
        ) from e
    if not isinstance(document, dict):
        raise CniError(
            Code.INVALID_CONFIG,
            f'expected an object such as {{"nodes": [...]}}, got {shown(document)}',
        )
    return Fields(document)


def _nodes(document: Fields) -> tuple[Node, ...]:
    entries.refuse_unknown_keys(document, ("nodes", "$schema"))
    nodes: list[Node] = []
    names: dict[str, str] = {}
    addresses: dict[int, str] = {}
    macs: dict[str, str] = {}
    for path, value in document.items("nodes"):
        node = entries.read_plain(value) or entries.read(as_object(value, path))
        holder = names.setdefault(node.name, path)
        if holder != path:
            raise invalid(f"{path}.name", node.name, f"expected a name other than that of {holder}")
        for index, address in enumerate(node.addresses):
            holder = addresses.setdefault((address.version << 128) + int(address), node.name)
            if holder != node.name:
                raise invalid(
                    f"{path}.addresses[{index}]",
                    str(address),
                    f"expected an address other than that of node {holder}",
                )
        if node.vtep_mac and (holder := macs.setdefault(node.vtep_mac, node.name)) != node.name:
            wanted = f"expected an address other than that of node {holder}"
            raise invalid(f"{path}.vtepMAC", node.vtep_mac, wanted)
        nodes.append(node)
    if not nodes:
        raise invalid("nodes", document.obj.get("nodes"), "expected at least one node")
    return tuple(nodes)


# --- writing ----------------------------------------------------------------------------------


Lines = dict[str, tuple[tuple[Node, ...], list[bytes]]]
"""By the paths of files: the nodes that were written last, and the line of each."""


def encode(nodes: Sequence[Node]) -> bytes:
    """The file that says the same; a line for each node, so that changes can be seen."""
    return b"".join(_parts(list(map(_line, nodes))))


def _parts(lines: Sequence[bytes]) -> tuple[bytes, ...]:
    """The content of the file; put together once, as it may be a megabyte."""
    return b'{"nodes": [\n', b",\n".join(lines), b"\n]}\n"


def _line(node: Node) -> bytes:
    return entries.line(node).encode()


def _lines(nodes: tuple[Node, ...], former: tuple[Node, ...], lines: list[bytes]) -> list[bytes]:
    """The line of each node; `lines` are those of the former ones, and most are the same."""
    begin, end = same_ends(former, nodes)
    stop, former_stop = len(nodes) - end, len(former) - end
    known = {node.name: index for index, node in enumerate(former[begin:former_stop], begin)}
    made = []
    for node in nodes[begin:stop]:
        index = known.get(node.name)
        same = index is not None and former[index] is node
        made.append(lines[index] if index is not None and same else _line(node))
    return [*lines[:begin], *made, *lines[former_stop:]]


def write(path: str, nodes: Sequence[Node], known: Lines | None = None) -> bool:
    """Make the file say this, at once and whole; whether it had to be written.

    Its folder is made when it is missing. `known` is what earlier calls have put there: the file is
    compared with only where it may say the same. Raises CniError 5 and 110.
    """
    from cni_plugin import wholefiles  # an ADD reads only

    nodes, known = tuple(nodes), {} if known is None else known
    former, before = known.get(path, ((), []))
    lines = _lines(nodes, former, before)
    known[path] = nodes, lines
    parts = _parts(lines)
    try:
        if (lines == before or not before) and wholefiles.read(path) == b"".join(parts):
            return False
        if not os.path.isdir(folder := os.path.dirname(path)):
            os.makedirs(folder)
            os.chmod(folder, 0o755)  # noqa: S103 - the plugin and people read the file
        wholefiles.write(path, 0o644, parts)
    except OSError as e:
        code = Code.PERMISSION_DENIED if e.errno in (EACCES, EPERM) else Code.IO_FAILURE
        raise CniError(
            code,
            f"{path}: can't write the node inventory: {e.strerror}",
            "see that its folder is there and can be written, and the disk is not full",
        ) from e
    return True


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
