"""The frames with which a new pod tells its neighbours where its addresses live now.

Pure: addresses in, Ethernet frames out; `kernel` sends them from inside the sandbox. A gratuitous
ARP request (RFC 5227, section 3) for IPv4, an unsolicited neighbour advertisement (RFC 4861,
section 7.2.6) for IPv6.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from cni_plugin.spec import IPAddress

_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_NODES = IPv6Address("ff02::1").packed
_ETH_ARP = 0x0806
_ETH_IPV6 = 0x86DD
_ICMPV6 = 58
_NEIGHBOUR_ADVERTISEMENT = 136
_OVERRIDE = 0x20000000


def frame(mac: str, address: IPAddress) -> bytes:
    """The announcement that `address` lives at `mac` ("0a:58:0a:f4:00:05")."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    if isinstance(address, IPv4Address):
        return _gratuitous_arp(hardware, address.packed)
    return _neighbour_advertisement(hardware, address.packed)


def _gratuitous_arp(mac: bytes, address: bytes) -> bytes:
    ethernet = _BROADCAST + mac + struct.pack("!H", _ETH_ARP)
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return ethernet + arp + mac + address + b"\0" * 6 + address


def _neighbour_advertisement(mac: bytes, address: bytes) -> bytes:
    option = struct.pack("!BB", 2, 1) + mac  # target link-layer address
    body = struct.pack("!I", _OVERRIDE) + address + option
    head = struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, 0)
    checksum = _checksum(address, _ALL_NODES, head + body)
    icmp = struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, checksum) + body
    header = struct.pack("!IHBB", 6 << 28, len(icmp), _ICMPV6, 255) + address + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack("!H", _ETH_IPV6) + header + icmp


def _checksum(source: bytes, destination: bytes, icmp: bytes) -> int:
    """The Internet checksum over the IPv6 pseudo-header and the message (RFC 4443, section 2.3)."""
    data = source + destination + struct.pack("!II", len(icmp), _ICMPV6) + icmp
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
