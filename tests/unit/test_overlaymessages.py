"""The messages that are packed from templates against pyroute2's own encoding, byte for byte."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.kernel import codec, overlaymessages
from cni_plugin.kernel.bare import ifinfmsg, ndmsg, rtmsg
from cni_plugin.kernel.overlaymessages import Vxlan

MAC = "02:11:22:33:44:55"
RAW = bytes.fromhex(MAC.replace(":", ""))
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
INDEX = st.integers(1, 2**31 - 1)


def entry(family: int, index: int, flags: int, dst: str) -> bytes:
    value = {
        "family": family,
        "ifindex": index,
        "state": 0x80,
        "flags": flags,
        "attrs": [("NDA_DST", dst), ("NDA_LLADDR", MAC)],
    }
    return codec.encode_by_pyroute2(ndmsg, value)


@given(ADDRESSES, INDEX)
def test_neighbours(address: Any, index: int) -> None:
    wanted = entry(2 if address.version == 4 else 10, index, 0, str(address))
    for build in (overlaymessages.add_neighbour, overlaymessages.delete_neighbour):
        assert build(index, address.packed, RAW).body == wanted


@given(ADDRESSES, INDEX)
def test_forwarding_entries(address: Any, index: int) -> None:
    wanted = entry(7, index, 2, str(address))
    for build in (overlaymessages.add_tunnel, overlaymessages.delete_tunnel):
        assert build(index, RAW, address.packed).body == wanted


@pytest.mark.parametrize("overlay", [0, 7])
@pytest.mark.parametrize(
    ("dst", "via"),
    [("10.244.1.0/24", "10.244.1.0"), ("fd00:10::/64", "fd00::1"), ("0.0.0.0/0", "1.1.1.1")],
)
def test_routes(dst: str, via: str, overlay: int) -> None:
    network = ip_network(dst)
    attrs: list[tuple[str, Any]] = [("RTA_GATEWAY", via)]
    if network.prefixlen:
        attrs.insert(0, ("RTA_DST", str(network.network_address)))
    if overlay:
        attrs.append(("RTA_OIF", overlay))
    value = {
        "family": 2 if network.version == 4 else 10,
        "dst_len": network.prefixlen,
        "table": 254,
        "proto": 112,
        "scope": 0,
        "type": 1,
        "flags": 4 if overlay else 0,  # RTNH_F_ONLINK
        "attrs": attrs,
    }
    wanted = codec.encode_by_pyroute2(rtmsg, value)
    for build in (overlaymessages.add_peer_route, overlaymessages.delete_peer_route):
        assert build(network, ip_address(via), overlay).body == wanted


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("text", ["192.168.1.2", "fd00::2"])
def test_the_way_to_an_address(text: str, configured: bool) -> None:
    address = ip_address(text)
    value = {
        "family": 2 if address.version == 4 else 10,
        "dst_len": address.max_prefixlen,
        "flags": 0x2000 if configured else 0,  # RTM_F_FIB_MATCH
        "attrs": [("RTA_DST", text)],
    }
    wanted = codec.encode_by_pyroute2(rtmsg, value)
    assert overlaymessages.get_way(address, configured).body == wanted


@pytest.mark.parametrize("local", ["192.168.1.2", "fd00::2"])
@pytest.mark.parametrize("link", [0, 3])
def test_a_device(local: str, link: int) -> None:
    message = overlaymessages.create_vxlan(
        Vxlan("pwvx9", 9, 4789, MAC, ip_address(local), link, 1400)
    )
    read = codec.decode(ifinfmsg, message.body)
    assert read.get_attr("IFLA_IFNAME") == "pwvx9"
    assert (read.get_attr("IFLA_ADDRESS"), read.get_attr("IFLA_MTU")) == (MAC, 1400)
    info = read.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "vxlan"
    data = info.get_attr("IFLA_INFO_DATA")
    assert (data.get_attr("IFLA_VXLAN_ID"), data.get_attr("IFLA_VXLAN_PORT")) == (9, 4789)
    assert data.get_attr("IFLA_VXLAN_LEARNING") == 0
    assert data.get_attr("IFLA_VXLAN_LINK") == (link or None)
    six = ":" in local
    assert data.get_attr("IFLA_VXLAN_LOCAL6" if six else "IFLA_VXLAN_LOCAL") == local
    assert data.get_attr("IFLA_VXLAN_LOCAL" if six else "IFLA_VXLAN_LOCAL6") is None


def test_an_entry_is_read_as_the_wire_has_it() -> None:
    body = entry(2, 5, 0, "10.244.1.0")
    read = codec.decode(overlaymessages.neighbourmsg, body)
    assert (read["ifindex"], read["state"]) == (5, 0x80)
    assert read.get_attr("NDA_DST") == ip_address("10.244.1.0").packed
    assert read.get_attr("NDA_LLADDR") == RAW
    assert len(body) % 4 == 0
    assert struct.unpack_from("=B", body) == (2,)
