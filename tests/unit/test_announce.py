"""The announcements, taken apart by a reader of the RFCs that shares no code with the writer."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given

from cni_plugin.announce import frame
from tests.unit import strategies

MAC = "0a:58:0a:f4:00:05"


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071, section 4.1, byte by byte."""
    total = 0
    for position, byte in enumerate(data):
        total += byte << 8 if position % 2 == 0 else byte
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


@given(mac=strategies.macs, address=strategies.v4_addresses)
@example(mac=MAC, address=IPv4Address("10.244.0.5"))
def test_gratuitous_arp(mac: str, address: IPv4Address) -> None:
    """RFC 5227, section 3: a broadcast request with sender and target address equal."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    sent = frame(mac, address)
    assert len(sent) == 14 + 28
    assert sent[:6] == b"\xff" * 6
    assert sent[6:12] == hardware
    assert sent[12:14] == b"\x08\x06"
    arp = sent[14:]
    assert arp[:8] == bytes.fromhex("0001 0800 06 04 0001")  # Ethernet, IPv4, request
    assert arp[8:14] == hardware
    assert arp[14:18] == address.packed
    assert arp[18:24] == b"\0" * 6
    assert arp[24:28] == address.packed


@given(mac=strategies.macs, address=strategies.v6_addresses)
@example(mac=MAC, address=IPv6Address("fd00:10:244::5"))
@example(mac="ff:ff:ff:ff:ff:ff", address=IPv6Address(2**128 - 1))
@example(mac="00:00:00:00:00:00", address=IPv6Address(0))
def test_unsolicited_neighbour_advertisement(mac: str, address: IPv6Address) -> None:
    """RFC 4861, sections 4.4 and 7.2.6."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    sent = frame(mac, address)
    assert len(sent) == 14 + 40 + 32
    assert sent[:6] == bytes.fromhex("333300000001")  # RFC 2464, section 7, of ff02::1
    assert sent[6:12] == hardware
    assert sent[12:14] == b"\x86\xdd"
    ip, icmp = sent[14:54], sent[54:]
    assert ip[0] >> 4 == 6
    assert int.from_bytes(ip[4:6]) == len(icmp) == 32
    assert ip[6] == 58
    assert ip[7] == 255  # section 7.1.2: else it is dropped
    assert ip[8:24] == address.packed
    assert ip[24:40] == IPv6Address("ff02::1").packed
    assert icmp[:2] == bytes((136, 0))
    flags = icmp[4]
    assert not flags & 0x80, "a pod is no router"
    assert not flags & 0x40, "solicited must be clear when sent to all nodes"
    assert flags & 0x20, "override"
    assert icmp[5:8] == b"\0\0\0"
    assert icmp[8:24] == address.packed
    assert icmp[24:26] == bytes((2, 1))  # target link-layer address, 8 bytes
    assert icmp[26:32] == hardware
    pseudo_header = ip[8:40] + len(icmp).to_bytes(4) + bytes((0, 0, 0, 58))
    assert ones_complement_sum(pseudo_header + icmp) == 0xFFFF
