"""How pods of other nodes are reached, as the configuration says: `backend`, `vxlan`, `underlay`.

Pure. Unknown keys inside `vxlan` and `underlay` are errors: `VNI` for `vni` would quietly put a
node into another overlay than its peers.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from cni_plugin.fields import Fields, invalid, shown
from cni_plugin.spec import CniError, Code, IPNetwork
from cni_plugin.typed import NamedTuple

BACKENDS = ("auto", "host-gw", "vxlan")
OFFLOADS = ("auto", "on", "off")
DEFAULT_VNI = 1
DEFAULT_PORT = 8472  # the kernel's; IANA's 4789 is what some hypervisors take for their own
_MTU_LOW, _MTU_HIGH = 68, 65485  # RFC 791; an IPv4 packet less the overlay's bytes
_VXLAN_KEYS = ("vni", "port", "mtu", "checksumOffload")
_UNDERLAY_KEYS = ("interface", "interfaceRegex", "cidr")
_MOST_REPEATS = 6
_REPEAT = re.compile(r"[*+{?]")
_REPEATED_REPEAT = re.compile(r"[*+}?]\)+[*+{]")
_IFNAME_BYTES = 15  # IFNAMSIZ less the terminating zero


class CrossNode(NamedTuple):
    """`mtu` 0 means that it follows the underlay. At most one of `interface`,
    `interface_regex` and `cidr` is set; with none the route to the peers decides."""

    backend: str = "auto"
    vni: int = DEFAULT_VNI
    port: int = DEFAULT_PORT
    mtu: int = 0
    checksum_offload: str = "auto"
    interface: str = ""
    interface_regex: str = ""
    cidr: IPNetwork | None = None


def parse(fields: Fields) -> CrossNode:
    """What a network configuration says. Raises CniError 7 that names the field."""
    backend = _choice(fields, "backend", BACKENDS)
    vxlan, underlay = fields.child("vxlan"), fields.child("underlay")
    _refuse_unknown(vxlan, _VXLAN_KEYS)
    _refuse_unknown(underlay, _UNDERLAY_KEYS)
    _refuse_without_nodes(fields)
    given = [key for key in _UNDERLAY_KEYS if underlay.has(key)]
    if len(given) > 1:
        keys = " and ".join(given)
        raise invalid("underlay", dict(underlay.obj), f"expected one way to choose, not {keys}")
    vni, port = vxlan.integer("vni", 1, 2**24 - 1), vxlan.integer("port", 1, 65535)
    return CrossNode(
        backend,
        DEFAULT_VNI if vni is None else vni,
        DEFAULT_PORT if port is None else port,
        _mtu(vxlan),
        _choice(vxlan, "checksumOffload", OFFLOADS),
        _interface(underlay),
        _regex(underlay),
        underlay.network("cidr"),
    )


def _choice(fields: Fields, key: str, choices: tuple[str, ...]) -> str:
    """One of some words, the first when the key is absent."""
    chosen = fields.text(key, choices[0])
    if chosen not in choices:
        words = ", ".join(f'"{choice}"' for choice in choices)
        raise invalid(fields.at(key), chosen, f"expected one of {words}")
    return chosen


def _refuse_unknown(fields: Fields, known: Collection[str]) -> None:
    for key in fields.obj:
        if key not in known:
            raise CniError(
                Code.INVALID_CONFIG,
                f"{fields.path}: unknown key {shown(key)}",
                f"known are {', '.join(known)}",
            )


def _refuse_without_nodes(fields: Fields) -> None:
    """Without peers these keys would do nothing, and somebody relies on them."""
    if fields.has("nodes"):
        return
    for key in ("backend", "vxlan", "underlay"):
        if fields.has(key):
            raise invalid(
                key,
                fields.obj[key],
                'expected "nodes" beside it',
                "it says how the other nodes' pods are reached, and nodes names the inventory",
            )


def _mtu(vxlan: Fields) -> int:
    mtu = vxlan.integer("mtu", 0, _MTU_HIGH) or 0
    if mtu and mtu < _MTU_LOW:
        wanted = f"expected 0 or a number from {_MTU_LOW} to {_MTU_HIGH}"
        raise invalid(vxlan.at("mtu"), mtu, wanted)
    return mtu


def _interface(underlay: Fields) -> str:
    name = underlay.text("interface")
    path = underlay.at("interface")
    if underlay.has("interface") and not name:
        raise invalid(path, name, "expected the name of a link")
    if any(letter in "/:" or letter.isspace() or letter == "\0" for letter in name):
        raise invalid(path, name, "a link's name has no spaces, slashes and colons")
    try:
        too_long = len(name.encode()) > _IFNAME_BYTES
    except UnicodeError:  # JSON can write halves of characters
        raise invalid(path, name, "expected the name of a link") from None
    if too_long or name in (".", ".."):
        raise invalid(path, name, f"expected the name of a link, of at most {_IFNAME_BYTES} bytes")
    return name


def _regex(underlay: Fields) -> str:
    pattern = underlay.text("interfaceRegex")
    path = underlay.at("interfaceRegex")
    if underlay.has("interfaceRegex") and not pattern:
        raise invalid(path, pattern, "expected a regular expression such as ^en")
    if len(_REPEAT.findall(pattern)) > _MOST_REPEATS or _REPEATED_REPEAT.search(pattern):
        wanted = f"expected at most {_MOST_REPEATS} repetitions, none of something repeated"
        raise invalid(path, pattern, wanted, "others may take for ever, and hold the agent up")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as e:
        raise invalid(path, pattern, f"expected a regular expression ({e})") from e
    return pattern
