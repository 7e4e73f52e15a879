"""nftables expressions: what a rule does with a packet, step by step, through registers.

Attributes stand in the order in which the kernel gives them back, and registers have the numbers
that it gives: so a rule that is still as it was made can be told by its bytes.

Source: include/uapi/linux/netfilter/nf_tables.h, and the `dump` functions of net/netfilter/nft_*.c.
"""

from __future__ import annotations

from cni_plugin.kernel.nftmessages import Attributes, Expression
from cni_plugin.spec import IPNetwork

_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE = {4: (12, 4), 6: (8, 16)}  # offset and bytes in the network header
_DESTINATION = {4: (16, 4), 6: (24, 16)}
_VERDICT_REGISTER = 0
_EQUAL, _DIFFERENT = 0, 1
_DROP, _ACCEPT, _JUMP = 0, 1, -3
_INVERTED = 1  # NFT_LOOKUP_F_INV
_META_MARK, _META_IIF, _META_IIFNAME, _META_OIFNAME = 3, 4, 6, 7
_META_NFPROTO, _META_L4PROTO = 15, 16
_CT_STATUS = 2
_FIB_OIF, _FIB_ADDRTYPE = 1, 3  # NFT_FIB_RESULT_*
_FIB_SADDR, _FIB_DADDR, _FIB_IIF = 0x1, 0x2, 0x8  # NFTA_FIB_F_*
_DNAT = 1
_NAT_PROTO_SPECIFIED, _NAT_RANDOM_FULLY = 0x2 | 0x1, 0x10  # NF_NAT_RANGE_*
_BITWISE_BOOL = 0

_UDP = b"\x11"
_RTN_LOCAL = 2  # include/uapi/linux/rtnetlink.h
_IPS_DST_NAT = 0x20  # include/uapi/linux/netfilter/nf_conntrack_common.h


def register(word: int) -> int:
    """The register that begins at a 32-bit word: those of 16 bytes have numbers of their own."""
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def _data(value: bytes) -> Attributes:
    return (("NFTA_DATA_VALUE", value),)


def _native(number: int) -> bytes:
    from sys import byteorder

    return number.to_bytes(4, byteorder)


# --- loading ----------------------------------------------------------------------------------


def payload(base: int, offset: int, size: int, word: int = 0) -> Expression:
    """Bytes of the packet, into the register at `word`."""
    return "payload", (
        ("NFTA_PAYLOAD_DREG", register(word)),
        ("NFTA_PAYLOAD_BASE", base),
        ("NFTA_PAYLOAD_OFFSET", offset),
        ("NFTA_PAYLOAD_LEN", size),
    )


def source(version: int, word: int = 0) -> Expression:
    return payload(_NETWORK_HEADER, *_SOURCE[version], word)


def destination(version: int, word: int = 0) -> Expression:
    return payload(_NETWORK_HEADER, *_DESTINATION[version], word)


def first_byte(is_source: bool) -> Expression:
    """That of the IPv4 source or destination."""
    return payload(_NETWORK_HEADER, (_SOURCE if is_source else _DESTINATION)[4][0], 1)


def destination_port(word: int = 0) -> Expression:
    """That of TCP, UDP and SCTP."""
    return payload(_TRANSPORT_HEADER, 2, 2, word)


def _meta(key: int, word: int = 0) -> Expression:
    return "meta", (("NFTA_META_KEY", key), ("NFTA_META_DREG", register(word)))


def protocol(word: int = 0) -> Expression:
    """The transport protocol's number."""
    return _meta(_META_L4PROTO, word)


def in_link(word: int = 0) -> Expression:
    """The name of the link that the packet came in by, 16 bytes."""
    return _meta(_META_IIFNAME, word)


def out_link(word: int = 0) -> Expression:
    return _meta(_META_OIFNAME, word)


# --- comparing --------------------------------------------------------------------------------


def compare(value: bytes, equal: bool = True) -> Expression:
    """Go on only when the first register holds (or does not hold) this."""
    return "cmp", (
        ("NFTA_CMP_SREG", register(0)),
        ("NFTA_CMP_OP", _EQUAL if equal else _DIFFERENT),
        ("NFTA_CMP_DATA", _data(value)),
    )


def bits(mask: bytes, flip: bytes) -> Expression:
    """first register = first register AND mask XOR flip"""
    return "bitwise", (
        ("NFTA_BITWISE_SREG", register(0)),
        ("NFTA_BITWISE_DREG", register(0)),
        ("NFTA_BITWISE_LEN", len(mask)),
        ("NFTA_BITWISE_OP", _BITWISE_BOOL),
        ("NFTA_BITWISE_MASK", _data(mask)),
        ("NFTA_BITWISE_XOR", _data(flip)),
    )


def in_set(name: str, inside: bool = True) -> Expression:
    """Go on only when what begins in the first register is (or is not) an element."""
    return "lookup", (
        ("NFTA_LOOKUP_SET", name),
        ("NFTA_LOOKUP_SREG", register(0)),
        ("NFTA_LOOKUP_FLAGS", 0 if inside else _INVERTED),
    )


def map_to(name: str) -> Expression:
    """Put what the map has for the key into the registers; go on only when it has something."""
    return "lookup", (
        ("NFTA_LOOKUP_SET", name),
        ("NFTA_LOOKUP_SREG", register(0)),
        ("NFTA_LOOKUP_DREG", register(0)),
        ("NFTA_LOOKUP_FLAGS", 0),
    )


def of_family(version: int) -> list[Expression]:
    """IPv4 or IPv6 alone, in a chain that sees both."""
    return [_meta(_META_NFPROTO), compare(bytes((2 if version == 4 else 10,)))]


def in_network(network: IPNetwork, is_source: bool) -> list[Expression]:
    """The packet's source or destination lies in the network, said as iptables-nft says it."""
    offset, size = (_SOURCE if is_source else _DESTINATION)[network.version]
    address = network.network_address.packed
    whole, rest = divmod(network.prefixlen, 8)
    if not rest and whole:
        return [payload(_NETWORK_HEADER, offset, whole), compare(address[:whole])]
    load = payload(_NETWORK_HEADER, offset, size)
    return [load, bits(network.netmask.packed, bytes(size)), compare(address)]


def to_udp_port_in(name: str) -> list[Expression]:
    """UDP, to a port in the set."""
    return [protocol(), compare(_UDP), destination_port(), in_set(name)]


def not_from_loopback() -> list[Expression]:
    """lo is each namespace's first link."""
    return [_meta(_META_IIF), compare(_native(1), equal=False)]


def _fib(result: int, flags: int) -> Expression:
    return "fib", (
        ("NFTA_FIB_DREG", register(0)),
        ("NFTA_FIB_RESULT", result),
        ("NFTA_FIB_FLAGS", flags),
    )


def to_this_node() -> list[Expression]:
    """The destination is an address of the node."""
    return [_fib(_FIB_ADDRTYPE, _FIB_DADDR), compare(_native(_RTN_LOCAL))]


def has_no_way_back() -> list[Expression]:
    """No route to the source leads through the link that the packet came in by, as for a source
    that is the node's own. In chains at prerouting alone: elsewhere it takes Linux 5.17."""
    return [_fib(_FIB_OIF, _FIB_SADDR | _FIB_IIF), compare(bytes(4))]


def is_marked(mark: int) -> list[Expression]:
    return [_meta(_META_MARK), bits(_native(mark), bytes(4)), compare(_native(mark))]


def is_redirected() -> list[Expression]:
    """The connection's destination was changed."""
    status = ("ct", (("NFTA_CT_DREG", register(0)), ("NFTA_CT_KEY", _CT_STATUS)))
    return [status, bits(_native(_IPS_DST_NAT), bytes(4)), compare(bytes(4), equal=False)]


# --- doing ------------------------------------------------------------------------------------


def mark(bit: int, on: bool) -> list[Expression]:
    """Set or clear one bit of the packet's mark."""
    others = _native(bit ^ 0xFFFF_FFFF)
    write = ("meta", (("NFTA_META_KEY", _META_MARK), ("NFTA_META_SREG", register(0))))
    return [_meta(_META_MARK), bits(others, _native(bit if on else 0)), write]


def _verdict(code: int, chain: str = "") -> Expression:
    verdict: Attributes = (("NFTA_VERDICT_CODE", code),)
    if chain:
        verdict += (("NFTA_VERDICT_CHAIN", chain),)
    return "immediate", (
        ("NFTA_IMMEDIATE_DREG", _VERDICT_REGISTER),
        ("NFTA_IMMEDIATE_DATA", (("NFTA_DATA_VERDICT", verdict),)),
    )


def drop() -> Expression:
    return _verdict(_DROP)


def accept() -> Expression:
    return _verdict(_ACCEPT)


def jump(chain: str) -> Expression:
    return _verdict(_JUMP, chain)


def counter() -> Expression:
    """Counts packets and bytes; iptables has one in each rule."""
    return "counter", (("NFTA_COUNTER_BYTES", 0), ("NFTA_COUNTER_PACKETS", 0))


def redirect(version: int) -> Expression:
    """DNAT to the address in the first register and the port in the word behind it."""
    port = register(1 if version == 4 else 4)
    return "nat", (
        ("NFTA_NAT_TYPE", _DNAT),
        ("NFTA_NAT_FAMILY", 2 if version == 4 else 10),
        ("NFTA_NAT_REG_ADDR_MIN", register(0)),
        ("NFTA_NAT_REG_ADDR_MAX", register(0)),
        ("NFTA_NAT_REG_PROTO_MIN", port),
        ("NFTA_NAT_REG_PROTO_MAX", port),
        ("NFTA_NAT_FLAGS", _NAT_PROTO_SPECIFIED),
    )


def masquerade() -> Expression:
    """SNAT to the address of the link that the packet leaves by, with any free port: what guesses
    no port can't insert itself, and two flows don't take the same one."""
    return "masq", (("NFTA_MASQ_FLAGS", _NAT_RANDOM_FULLY),)
