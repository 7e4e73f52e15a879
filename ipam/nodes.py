"""One node of an inventory: what is known of it, from its entry in the file and back to one.

Pure. `read` says what is wrong by the field's path. `read_plain` takes entries in which nothing is,
all of them but for mistakes, in a third of the time: an ADD after a change of the inventory reads
all of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from json import dumps

from cni_plugin.fields import Fields, as_address, as_interface, as_network, invalid, shown
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam import ranges, texts

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}")  # Kubernetes' rule, a little wider
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")  # of one station, not of a group
_NODE_KEYS = ("name", "addresses", "podCIDRs", "overlayAddress", "vtepMAC")
_PLAIN_KEYS = frozenset(_NODE_KEYS)


class Node(NamedTuple):
    """One node: its name, its own addresses, the networks they lie in where the prefix is known,
    and the subnets of its pods.

    `overlay_address` is where the others send the overlay to, and `vtep_mac` the link-layer address
    of its end; None and "" where that follows from the rest.
    """

    name: str
    addresses: tuple[IPAddress, ...]
    networks: tuple[IPNetwork, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    overlay_address: IPAddress | None = None
    vtep_mac: str = ""


# --- reading ----------------------------------------------------------------------------------


def read_plain(value: object) -> Node | None:
    """The node of an entry with nothing wrong or unusual in it; None for `read` to read it."""
    if not isinstance(value, dict) or not _PLAIN_KEYS.issuperset(value):
        return None
    name, mac = value.get("name"), value.get("vtepMAC", "")
    hosts = texts.hosts(value.get("addresses"))
    subnets = texts.networks(value.get("podCIDRs", []))
    if not hosts or subnets is None or not isinstance(name, str) or not isinstance(mac, str):
        return None
    if not is_name(name) or (mac and not is_mac(mac)):
        return None
    addresses, networks = hosts
    overlay = None
    if "overlayAddress" in value:
        overlay = texts.address(value["overlayAddress"])
        if overlay is None or is_unreachable(overlay):
            return None
    if any(map(is_unreachable, addresses)) or not all(map(is_plain_cidr, subnets)):
        return None
    return Node(name, addresses, networks, subnets, overlay, mac)


def is_plain_cidr(subnet: IPNetwork) -> bool:
    """Whether the subnet is far from everything special, as all but mistakes are; by bits."""
    if subnet.prefixlen < 10:
        return False
    bits = int(subnet.network_address)
    if subnet.version == 4:
        return 0 < bits >> 24 < 224 and bits >> 24 != 127
    return bits > 1 and bits >> 120 != 0xFF and bits >> 118 != 0x3FA


def read(fields: Fields) -> Node:
    """The node of an entry. Raises CniError 7."""
    refuse_unknown_keys(fields, _NODE_KEYS)
    name = fields.text("name")
    if not is_name(name):
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
    pod_cidrs = tuple(_pod_cidr(value, path) for path, value in fields.items("podCIDRs"))
    overlay = fields.address("overlayAddress")
    if overlay is not None:
        _refuse_unreachable(overlay, fields.at("overlayAddress"))
    return Node(name, tuple(addresses), tuple(networks), pod_cidrs, overlay, _mac(fields))


def _mac(fields: Fields) -> str:
    mac = fields.text("vtepMAC").lower()
    if mac and not is_mac(mac):
        wanted = "expected the link-layer address of one station, such as 0a:58:0a:f4:00:01"
        raise invalid(fields.at("vtepMAC"), fields.obj.get("vtepMAC"), wanted)
    return mac


def is_name(text: str) -> bool:
    """Whether a node can be called that."""
    return _NAME.fullmatch(text) is not None


def is_mac(text: str) -> bool:
    """Whether this is a link-layer address, in lower case, that a VTEP can have."""
    return _MAC.fullmatch(text) is not None and text != "00:00:00:00:00:00"


def _pod_cidr(value: object, path: str) -> IPNetwork:
    subnet = as_network(value, path)
    if special := ranges.reserved(subnet):
        raise invalid(path, str(subnet), f"expected a subnet outside of {special}")
    return subnet


def refuse_unknown_keys(fields: Fields, known: Collection[str]) -> None:
    """Raises CniError 7 for a key that is neither known nor a comment."""
    for key in fields.obj:
        if key not in known and not key.startswith("_"):
            raise CniError(
                Code.INVALID_CONFIG,
                f"{f'{fields.path}: ' if fields.path else ''}unknown key {shown(key)}",
                f'known are {", ".join(known)}; begin a key with "_" to make it a comment',
            )


def _refuse_unreachable(address: IPAddress, path: str) -> None:
    if is_unreachable(address):
        raise invalid(path, str(address), "expected an address that the other nodes can reach")


def is_unreachable(address: IPAddress) -> bool:
    """Whether no other node can use it as a gateway; by bits, since it is asked per node."""
    bits = int(address)
    if address.version == 4:
        return bits >> 24 in (0, 127) or bits >> 28 >= 0xE
    # unspecified, loopback, multicast; link-local means nothing without a link
    return bits <= 1 or bits >> 120 == 0xFF or bits >> 118 == 0x3FA


# --- writing ----------------------------------------------------------------------------------


def line(node: Node) -> str:
    """The entry of a node, which `read_plain` takes, on one line."""
    networks = list(node.networks)
    addresses = []
    for address in node.addresses:
        prefix = f"/{networks.pop(0).prefixlen}" if networks and address in networks[0] else ""
        addresses.append(f"{address}{prefix}")
    entry: dict[str, object] = {"name": node.name, "addresses": addresses}
    if node.pod_cidrs:
        entry["podCIDRs"] = list(map(str, node.pod_cidrs))
    if node.overlay_address is not None:
        entry["overlayAddress"] = str(node.overlay_address)
    if node.vtep_mac:
        entry["vtepMAC"] = node.vtep_mac
    return dumps(entry)
