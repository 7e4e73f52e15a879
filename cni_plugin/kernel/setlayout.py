"""The sets and maps of podwire's tables, made from a `FamilyRules`. Pure; see `nftlayout`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from sys import byteorder

from cni_plugin import ruleset
from cni_plugin.kernel.nftsets import Element
from cni_plugin.ruleset import FamilyRules, Range
from cni_plugin.typed import Any, NamedTuple

# nft's numbers of types, which the kernel stores for it (nftables, include/datatype.h).
_ADDRESS = {4: 7, 6: 8}
ADDRESS_BYTES = {4: 4, 6: 16}
_INET_PROTO, _INET_SERVICE, _IFNAME = 12, 13, 41
IFNAME_BYTES = 16
# NFTNL_UDATA_SET_KEYBYTEORDER (libnftnl): without it nft shows a link's name as an empty one.
_NATIVE = b"\0\4" + (1).to_bytes(4, byteorder)
_INTERVAL, _MAP = 0x4, 0x8  # NFT_SET_*


class SetLayout(NamedTuple):
    """A set or map with nft_set_msg's attributes; `elements` None: they are not static."""

    name: str
    attributes: dict[str, Any]
    elements: tuple[Element, ...] | None


def sets(family: FamilyRules) -> Iterator[SetLayout]:
    """Those that the rules of a family look into."""
    version = family.version
    if family.masquerade:
        yield _addresses(version, ruleset.MASQUERADE, family.masquerade)
        yield _addresses(version, ruleset.DIRECT, family.direct)
    if family.host_ports:
        yield _addresses(version, ruleset.PODS, family.pods)
        port = _type(_INET_PROTO, _INET_SERVICE), 8
        own_port = _type(_ADDRESS[version], *(_INET_PROTO, _INET_SERVICE))
        target = _type(_ADDRESS[version], _INET_SERVICE), ADDRESS_BYTES[version] + 4
        yield SetLayout(ruleset.UNMASKED_PORTS, _set(*port), None)
        yield SetLayout(ruleset.HOST_PORTS, _map(*port, *target), None)
        key = own_port, ADDRESS_BYTES[version] + 8
        yield SetLayout(ruleset.HOST_PORTS_IP, _map(*key, *target), None)
    if family.closed:
        once = tuple(Element(link_bytes(name)) for name in family.closed)
        twice = tuple(Element(link_bytes(name) * 2) for name in family.within)
        yield SetLayout(ruleset.CLOSED, _LINKS, once)
        yield SetLayout(ruleset.WITHIN, _set(_type(_IFNAME, _IFNAME), 2 * IFNAME_BYTES), twice)
    if family.nodes:
        yield from _overlay_sets(family)


def _overlay_sets(family: FamilyRules) -> Iterator[SetLayout]:
    """A rule names what is there once: a look into a set costs each packet more."""
    size = ADDRESS_BYTES[family.version]
    nodes = tuple(Element(number.to_bytes(size, "big")) for number in family.nodes)
    yield SetLayout(ruleset.NODES, _set(_ADDRESS[family.version], size), nodes)
    if len(family.overlay_ports) > 1:
        ports = tuple(Element(port_bytes(port)) for port in family.overlay_ports)
        yield SetLayout(ruleset.OVERLAY_PORTS, _set(_INET_SERVICE, 2), ports)
    if len(family.pod_links) > 1:
        links = tuple(Element(link_bytes(name)) for name in family.pod_links)
        yield SetLayout(ruleset.POD_LINKS, _LINKS, links)


def _type(*parts: int) -> int:
    """nft's number of a concatenation: six bits for each part."""
    number = 0
    for part in parts:
        number = number << 6 | part
    return number


def _set(key_type: int, key_bytes: int, flags: int = 0) -> dict[str, Any]:
    return {
        "NFTA_SET_FLAGS": flags,
        "NFTA_SET_KEY_TYPE": key_type,
        "NFTA_SET_KEY_LEN": key_bytes,
    }


_LINKS = {**_set(_IFNAME, IFNAME_BYTES), "NFTA_SET_USERDATA": _NATIVE}


def _map(key_type: int, key_bytes: int, data_type: int, data_bytes: int) -> dict[str, Any]:
    data = {"NFTA_SET_DATA_TYPE": data_type, "NFTA_SET_DATA_LEN": data_bytes}
    return {**_set(key_type, key_bytes, _MAP), **data}


def _addresses(version: int, name: str, ranges: tuple[Range, ...]) -> SetLayout:
    attributes = _set(_ADDRESS[version], ADDRESS_BYTES[version], _INTERVAL)
    return SetLayout(name, attributes, tuple(intervals(version, ranges)))


def intervals(version: int, ranges: Iterable[Range]) -> Iterator[Element]:
    """The elements of a set of addresses: where each range begins, and what comes behind it."""
    size = ADDRESS_BYTES[version]
    for first, last in ranges:
        yield Element(first.to_bytes(size, "big"))
        if (last + 1) >> 8 * size == 0:  # else it is open: to the last address
            yield Element((last + 1).to_bytes(size, "big"), end=True)


def port_bytes(number: int) -> bytes:
    """A port as the packet filter compares it."""
    return number.to_bytes(2, "big")


def link_bytes(name: str) -> bytes:
    """A link's name as the packet filter compares it."""
    return name.encode().ljust(IFNAME_BYTES, b"\0")
