"""Messages by our own packing against pyroute2's objects: every request byte for byte, and what is
read from replies."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.datapath import HostVeth, PodLink
from cni_plugin.kernel import codec, messages
from cni_plugin.kernel.bare import ifaddrmsg, ifinfmsg, rtmsg
from cni_plugin.spec import Route

V4, V6 = ip_interface("10.244.0.5/24"), ip_interface("fd00::5/64")
MAC = "0a:58:0a:f4:00:05"


def host(hairpin: bool = False, isolated: bool = False, alias: str = "podwire net c eth0") -> Any:
    return HostVeth("veth0123456789a", "02:11:22:33:44:55", alias, hairpin, isolated, (), ())


def pod(name: str = "eth0") -> PodLink:
    return PodLink(name, MAC, (V4, V6), ())


def route(dst: str, gw: str = "", **more: int) -> Route:
    return Route(ip_network(dst), ip_address(gw) if gw else None, **more)


REQUESTS = {
    "get_link": lambda: messages.get_link("eth0"),
    "get_link, a name of two bytes a letter": lambda: messages.get_link("ééé"),
    "dump_links": messages.dump_links,
    "dump_links of a kind": lambda: messages.dump_links(kind="veth"),
    "dump_links of a bridge": lambda: messages.dump_links(master=7),
    "create_bridge": lambda: messages.create_bridge("cni0", MAC, 0),
    "create_bridge, filtered": lambda: messages.create_bridge("cni0", MAC, 0, filtered=True),
    "create_bridge with an MTU": lambda: messages.create_bridge("cni0", MAC, 9000),
    "set_bridge": lambda: messages.set_bridge(3, "cni0", False, "", ""),
    "set_bridge with all": lambda: messages.set_bridge(3, "cni0", True, MAC, "podwire bridge"),
    "create_veth": lambda: messages.create_veth(host(), pod(), 9, 0, 0),
    "create_veth with all": lambda: messages.create_veth(host(), pod("net-1234567890"), 9, 1400, 7),
    "set_host_veth": lambda: messages.set_host_veth(4, host(), port=False),
    "set_host_veth, a port": lambda: messages.set_host_veth(4, host(), port=True),
    "set_host_veth, options": lambda: messages.set_host_veth(4, host(True, True), port=True),
    "set_host_veth, long alias": lambda: messages.set_host_veth(4, host(alias="ü" * 127), True),
    "no_link_local": lambda: messages.no_link_local(4, "veth0"),
    "isolate_port": lambda: messages.isolate_port(4, "veth0"),
    "link_up": lambda: messages.link_up(1, "lo"),
    "set_mac": lambda: messages.set_mac(2, "eth0", MAC),
    "delete_link": lambda: messages.delete_link("veth0"),
    "dump_addresses": messages.dump_addresses,
    "dump_addresses of a link": lambda: messages.dump_addresses(3),
    "dump_routes": lambda: messages.dump_routes(4),
    "dump_routes, filtered": lambda: messages.dump_routes(6, protocol=112, index=3, table=254),
    "get_route": lambda: messages.get_route(V4.ip),
    "get_route IPv6": lambda: messages.get_route(V6.ip),
    "forget_neighbour": lambda: messages.forget_neighbour(V4.ip, 3),
    "forget_neighbour IPv6": lambda: messages.forget_neighbour(V6.ip, 3),
} | {
    f"{builder.__name__} {text}": lambda builder=builder, text=text, more=more: builder(
        ip_interface(text), 3, "eth0", *more
    )
    for builder, more in ((messages.add_address, (False,)), (messages.delete_address, ()))
    for text in ("10.1.2.3/24", "10.1.2.3/31", "10.1.2.3/32", "fd00::1/64", "fd00::1/128")
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, codec.Value, bytes]]:
    """Each encoded message, with its class and value."""
    for builder in vars(messages).values():
        if hasattr(builder, "cache_clear"):  # what was encoded before is not encoded again
            builder.cache_clear()
    found: list[tuple[Any, codec.Value, bytes]] = []
    encode = codec.encode

    def recorded(cls: Any, value: codec.Value) -> bytes:
        found.append((cls, value, encode(cls, value)))
        return found[-1][2]

    monkeypatch.setattr(codec, "encode", recorded)
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_pyroute2s_byte_for_byte(name: str, sent: Any) -> None:
    message = REQUESTS[name]()
    [(cls, value, data)] = sent
    assert message.body == data == codec.encode_by_pyroute2(cls, value)
    assert codec.layout(cls).encode(value) == data  # and it was our own packing


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
NUMBERS = st.one_of(st.none(), st.integers(0, 2**32 - 1))


@st.composite
def routes(draw: st.DrawFn) -> Route:
    gw = draw(st.one_of(st.none(), ADDRESSES))
    version = gw.version if gw is not None else draw(st.sampled_from((4, 6)))
    bits = draw(st.integers(0, 32 if version == 4 else 128))
    base = draw(st.ip_addresses(v=version))
    network = IPv4Network if version == 4 else IPv6Network
    return Route(
        network((int(base), bits), strict=False),
        gw,
        mtu=draw(st.integers(0, 65535)),
        advmss=draw(st.integers(0, 65535)),
        priority=draw(NUMBERS),
        table=draw(NUMBERS),
        scope=draw(st.one_of(st.none(), st.integers(0, 255))),
    )


@given(route=routes(), index=st.integers(0, 2**31 - 1), protocol=st.integers(0, 255))
def test_every_route_is_pyroute2s_byte_for_byte(route: Route, index: int, protocol: int) -> None:
    value = messages._route(route, index, protocol)
    assert codec.layout(rtmsg).encode(value) == codec.encode_by_pyroute2(rtmsg, value)


def test_what_has_no_packing_here_is_encoded_by_pyroute2() -> None:
    hops = [{"hops": 0, "oif": index, "attrs": [("RTA_GATEWAY", "10.0.0.9")]} for index in (2, 3)]
    value = {"family": 2, "attrs": [("RTA_DST", "10.1.0.0"), ("RTA_MULTIPATH", hops)]}
    with pytest.raises(codec.UncoveredError):
        codec.layout(rtmsg).encode(value)
    entry = codec.decode(rtmsg, codec.encode(rtmsg, value))
    read = [(hop["oif"], hop.get_attr("RTA_GATEWAY")) for hop in entry.get_attr("RTA_MULTIPATH")]
    assert read == [(2, "10.0.0.9"), (3, "10.0.0.9")]


def test_an_attribute_that_no_table_has_is_a_mistake() -> None:
    with pytest.raises(codec.UncoveredError):
        codec.layout(ifinfmsg).encode({"attrs": [("IFLA_NO_SUCH", 1)]})


# --- replies ----------------------------------------------------------------------------------

LINK = {
    "family": 0,
    "ifi_type": 1,
    "index": 12,
    "flags": 0x1003,
    "change": 0,
    "attrs": [
        ("IFLA_IFNAME", "veth0"),
        ("IFLA_MTU", 1500),
        ("IFLA_ADDRESS", MAC),
        ("IFLA_MASTER", 7),
        ("IFLA_LINK", 2),
        ("IFLA_LINK_NETNSID", 0),
        ("IFLA_IFALIAS", "podwire net c eth0"),
        (
            "IFLA_LINKINFO",
            {
                "attrs": [
                    ("IFLA_INFO_KIND", "veth"),
                    ("IFLA_INFO_SLAVE_KIND", "bridge"),
                    (
                        "IFLA_INFO_SLAVE_DATA",
                        {"attrs": [("IFLA_BRPORT_STATE", 3), ("IFLA_BRPORT_MODE", 1)]},
                    ),
                ]
            },
        ),
    ],
}


def read(entry: Any) -> list[Any]:
    info = entry.get_attr("IFLA_LINKINFO")
    port = info.get_attr("IFLA_INFO_SLAVE_DATA")
    return [
        *(entry[field] for field in ("index", "flags", "ifi_type")),
        *(entry.get_attr(name) for name, value in LINK["attrs"] if not isinstance(value, dict)),
        *(entry.get_attr(name) for name in ("IFLA_GROUP", "IFLA_PHYS_PORT_NAME")),  # not there
        *(info.get_attr(name) for name in ("IFLA_INFO_KIND", "IFLA_INFO_SLAVE_KIND")),
        *(port.get_attr(f"IFLA_BRPORT_{name}") for name in ("STATE", "MODE", "ISOLATED")),
    ]


def test_a_link_reads_as_with_pyroute2() -> None:
    data = codec.encode_by_pyroute2(ifinfmsg, LINK)
    theirs = ifinfmsg((16 + len(data)).to_bytes(4, "little") + b"\0" * 12 + data)
    theirs.decode()
    assert read(codec.decode(ifinfmsg, data)) == read(theirs)


@pytest.mark.parametrize("text", ["10.1.2.3", "fd00::1"])
def test_addresses_read_as_text(text: str) -> None:
    family = 10 if ":" in text else 2
    value = {"family": family, "prefixlen": 24, "index": 3, "attrs": [("IFA_ADDRESS", text)]}
    entry = codec.decode(ifaddrmsg, codec.encode(ifaddrmsg, value))
    assert (entry["prefixlen"], entry["index"]) == (24, 3)
    assert entry.get_attr("IFA_ADDRESS") == text
    assert entry.get_attr("IFA_LOCAL") is None


def test_of_two_attributes_with_one_name_the_first_counts() -> None:
    value = {"attrs": [("IFLA_MTU", 1500), ("IFLA_MTU", 9000)]}
    entry = codec.decode(ifinfmsg, codec.encode(ifinfmsg, value))
    assert entry.get_attr("IFLA_MTU") == 1500


def test_a_name_that_is_no_utf8_stays_bytes() -> None:
    data = codec.encode(ifinfmsg, {"attrs": [("IFLA_IFNAME", "abcd")]}).replace(
        b"abcd", b"\xff\xfe\xfd\xfc"
    )
    assert codec.decode(ifinfmsg, data).get_attr("IFLA_IFNAME") == b"\xff\xfe\xfd\xfc"


@given(cut=st.integers(16, 200), junk=st.binary(max_size=40))
def test_a_reply_that_is_cut_or_damaged_reads_as_far_as_it_goes(cut: int, junk: bytes) -> None:
    data = codec.encode_by_pyroute2(ifinfmsg, LINK)[:cut] + junk
    codec.decode(ifinfmsg, data).get_attr("IFLA_PHYS_PORT_NAME")  # no attribute of this number
