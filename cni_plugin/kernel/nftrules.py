"""What a rule of others asks of a packet, as far as podwire has to know it.

Rules written by `nft` and by iptables-nft compare the same fields by the same expressions; only
iptables' extensions (`match`) keep what they want to themselves.

Source: include/uapi/linux/netfilter/nf_tables.h, xt_multiport.h; `nft --debug=netlink`.
"""

from __future__ import annotations

import struct

from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel.codec import Entry
from cni_plugin.typed import Any, NamedTuple

_NETWORK, _TRANSPORT = 1, 2
_L4PROTO = 16  # NFT_META_L4PROTO
_EQUAL = 0
_ACCEPT, _JUMP, _GOTO = 1, -3, -4
_MULTIPORT = struct.Struct("=BB15H15BB")  # struct xt_multiport_v1
_TO_PORTS = 1  # XT_MULTIPORT_DESTINATION

# What stands at (base, offset), when this many bytes of it are compared or fewer.
_FIELDS = {
    4: {(_NETWORK, 12): "source", (_NETWORK, 16): "destination", (_NETWORK, 9): "protocol"},
    6: {(_NETWORK, 8): "source", (_NETWORK, 24): "destination", (_NETWORK, 6): "protocol"},
}


class Terms(NamedTuple):
    """`source` and `destination` are what an address has to be, or its beginning, for a prefix;
    b"" when any will do. `protocol` 0 and no `ports`: the same. `kinds` are all expressions'
    names, `matches` those of iptables' extensions, without the comment in both."""

    kinds: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()
    source: bytes = b""
    destination: bytes = b""
    protocol: int = 0
    ports: tuple[int, ...] = ()
    jump: str = ""
    accepts: bool = False


def terms(rule: Entry) -> Terms:
    """Read a rule of family ip or ip6."""
    version = nft.version_of(rule["nfgen_family"])
    found: dict[str, Any] = {}
    kinds: list[str] = []
    matches: list[str] = []
    loaded = ""
    for expression in nft.expressions_of(rule):
        kind, data = expression.get_attr("NFTA_EXPR_NAME"), expression.get_attr("NFTA_EXPR_DATA")
        if kind == "match":
            name = data.get_attr("NFTA_MATCH_NAME")
            if name == "comment":
                continue
            matches.append(name)
            if name == "multiport":
                found["ports"] = _multiport(data.get_attr("NFTA_MATCH_INFO"))
        elif kind in ("payload", "meta"):
            loaded = _field(version, kind, data)
        elif kind == "cmp":
            _compare(found, loaded, data)
            loaded = ""
        elif kind == "immediate":
            _decide(found, data)
        else:
            loaded = "" if kind == "bitwise" else loaded
        kinds.append(kind)
    return Terms(kinds=tuple(kinds), matches=tuple(matches), **found)


def _field(version: int, kind: str, data: Entry) -> str:
    if kind == "meta":
        return "protocol" if data.get_attr("NFTA_META_KEY") == _L4PROTO else ""
    where = data.get_attr("NFTA_PAYLOAD_BASE"), data.get_attr("NFTA_PAYLOAD_OFFSET")
    if where == (_TRANSPORT, 2) and data.get_attr("NFTA_PAYLOAD_LEN") == 2:
        return "ports"
    return _FIELDS[version].get(where, "")


def _compare(found: dict[str, Any], field: str, data: Entry) -> None:
    if not field or (data.get_attr("NFTA_CMP_OP") or 0) != _EQUAL:
        return
    value = data.get_attr("NFTA_CMP_DATA").get_attr("NFTA_DATA_VALUE")
    if field == "protocol":
        found[field] = value[0]
    elif field == "ports":
        found[field] = (int.from_bytes(value[:2], "big"),)
    else:
        found[field] = value


def _decide(found: dict[str, Any], data: Entry) -> None:
    verdict = data.get_attr("NFTA_IMMEDIATE_DATA").get_attr("NFTA_DATA_VERDICT")
    if verdict is None:
        return
    code = verdict.get_attr("NFTA_VERDICT_CODE")
    if code in (_JUMP, _GOTO):
        found["jump"] = verdict.get_attr("NFTA_VERDICT_CHAIN")
    found["accepts"] = code == _ACCEPT


def _multiport(info: Any) -> tuple[int, ...]:
    """The destination ports that it lists; none for ranges and for all but the listed."""
    raw = bytes.fromhex(info.replace(":", "")) if isinstance(info, str) else bytes(info)
    flags, count, *rest = _MULTIPORT.unpack_from(raw)
    ports, ranges, inverted = rest[:15], rest[15:30], rest[30]
    if flags != _TO_PORTS or inverted or any(ranges[:count]):
        return ()
    return tuple(ports[:count])


def about_port(port: int) -> tuple[bytes, bytes]:
    """One of these stands in each rule that names the port: `nft` and iptables' extensions write
    it in different orders."""
    return struct.pack(">H", port), struct.pack("=H", port)
