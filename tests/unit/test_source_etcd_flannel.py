"""flannel's layout in etcd: its documentation's examples, and what is refused."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.sources import Announcement, Member
from cni_plugin.sources.etcd_flannel import FlannelLayout
from cni_plugin.sources.etcd_layout import Layout, Network, Own, Said
from cni_plugin.sources.etcd_messages import KeyValue
from cni_plugin.spec import CniError

LAYOUT: Layout = FlannelLayout("/coreos.com/network")
KEY = "/coreos.com/network/subnets/10.5.52.0-24"
VALUE = (
    b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
)
OWN = Own("node-1", (ip_address("fd00::1"), ip_address("192.168.64.3")))


def config(**keys: object) -> Network:
    document = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}} | keys
    return LAYOUT.network(json.dumps(document).encode())


def test_what_is_left_out_is_flannels() -> None:
    (pool,) = config().pools
    assert (str(pool.network), pool.length) == ("10.5.0.0/16", 24)
    assert (str(pool.subnet(pool.first)), str(pool.subnet(pool.last))) == (
        "10.5.1.0/24",
        "10.5.255.0/24",
    )
    assert config()[1:] == ("vxlan", 1, 8472, 0)
    assert config(Network="10.5.0.0/23").pools[0].length == 25
    assert config(SubnetLen=0, SubnetMin="0.0.0.0") == config()


def test_what_is_given_is_kept() -> None:
    network = config(
        Network="10.0.0.0/8",
        SubnetLen=20,
        SubnetMin="10.10.0.0",
        SubnetMax="10.99.0.0",
        Backend={"type": "VXLAN", "vni": 7, "Port": 4789, "MTU": 1400, "DirectRouting": True},
    )
    (pool,) = network.pools
    assert (str(pool.subnet(pool.first)), str(pool.subnet(pool.last))) == (
        "10.10.0.0/20",
        "10.99.0.0/20",
    )
    assert network[1:] == ("auto", 7, 4789, 1350)
    assert network.conf_keys() == {
        "backend": "auto",
        "vxlan": {"vni": 7, "port": 4789, "mtu": 1350},
    }
    assert config(Backend={"Type": "host-gw"})[1:] == ("host-gw", 0, 0, 0)
    assert config(Backend={"Type": "host-gw"}).conf_keys() == {"backend": "host-gw"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"Network": None}, ".Network: expected a CIDR"),
        ({"Network": "fd00::/48"}, ".Network: expected a CIDR"),
        ({"Network": "10.5.0.0/29"}, ".Network: expected a network of at most /28"),
        ({"SubnetLen": 17}, ".SubnetLen: expected a number from 18 to 30"),
        ({"SubnetLen": 31}, ".SubnetLen: expected a number from 18 to 30"),
        ({"SubnetMin": "10.6.0.0"}, ".SubnetMin: expected the first address of a /24"),
        ({"SubnetMax": "10.5.9.1"}, ".SubnetMax: expected the first address of a /24"),
        ({"SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"}, ".SubnetMax: expected an address aft"),
        ({"EnableIPv6": True}, ".EnableIPv6: podwire joins IPv4 networks only"),
        ({"EnableIPv4": False}, ".EnableIPv4: podwire joins IPv4 networks only"),
        ({"Backend": None}, '.Backend.Type: expected "vxlan" or "host-gw"'),
        ({"Backend": {"Type": "udp"}}, '.Backend.Type: expected "vxlan" or "host-gw"'),
        ({"Backend": {"Type": "vxlan", "GBP": True}}, ".Backend.GBP: podwire has no group"),
        ({"Backend": {"Type": "vxlan", "VNI": 0}}, ".Backend.VNI: expected a number"),
        ({"Backend": "vxlan"}, ".Backend: expected an object"),
    ],
)
def test_what_podwire_can_not_join(keys: dict[str, object], words: str) -> None:
    with pytest.raises(CniError) as e:
        config(**keys)
    assert e.value.msg.startswith("/coreos.com/network/config" + words)


def test_a_host_of_flannels() -> None:
    assert LAYOUT.member(KeyValue(KEY, VALUE, create_revision=9), config()) == Member(
        "192.168.64.3",
        (ip_address("192.168.64.3"),),
        (ip_network("10.5.52.0/24"),),
        since="00000000000000000009",
        overlay_address=ip_address("192.168.64.3"),
        vtep_mac="c6:d2:32:6f:8f:44",
        backend="vxlan vni=1 port=8472",
    )


def test_we_write_as_flannel_does() -> None:
    said = Said(Announcement(vtep_mac="c6:d2:32:6f:8f:44"))
    assert LAYOUT.value(OWN, [ip_network("10.5.52.0/24")], said, config()) == VALUE
    assert LAYOUT.subnet_keys([ip_network("10.5.52.0/24")]) == (KEY,)
    assert LAYOUT.said(KeyValue(KEY, VALUE)) == Said()


def test_host_gw_has_no_data() -> None:
    network = config(Backend={"Type": "host-gw"})
    value = LAYOUT.value(OWN, [ip_network("10.5.52.0/24")], Said(), network)
    assert value == b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}'
    member = LAYOUT.member(KeyValue(KEY, value), network)
    assert (member.backend, member.vtep_mac, member.problem) == ("host-gw", "", "")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (KEY, VALUE.replace(b"vxlan", b"udp"), f'{KEY}.BackendType: expected "vxlan"'),
        (KEY, VALUE.replace(b'"VNI":1', b'"VNI":2'), f"{KEY}.BackendData.VNI: expected 1"),
        (KEY, VALUE.replace(b"c6:", b""), f"{KEY}.BackendData.VtepMAC: expected a MAC"),
        (KEY, VALUE.replace(b"192.168.64.3", b"fd00::1"), f"{KEY}.PublicIP: expected"),
        (KEY, b"{}", f"{KEY}.PublicIP: expected"),
        (KEY, b"", f"{KEY}: not valid JSON"),
        (f"{KEY}9", VALUE, f"{KEY}9: expected a key"),
    ],
)
def test_what_is_wrong_is_a_problem(key: str, value: bytes, words: str) -> None:
    member = LAYOUT.member(KeyValue(key, value), config())
    assert member.problem.startswith(words)
    assert member.pod_cidrs == ()


@given(st.binary())
def test_no_value_raises(value: bytes) -> None:
    assert LAYOUT.member(KeyValue(KEY, value), config()).problem
    assert LAYOUT.said(KeyValue(KEY, value)) == Said()


def test_a_host_with_both_families_is_taken_by_its_ipv4_one() -> None:
    key = f"{KEY}&fd00:5:34::-64"
    assert LAYOUT.subnet(key) == ip_network("10.5.52.0/24")
    assert LAYOUT.member(KeyValue(key, VALUE), config()).pod_cidrs == (ip_network("10.5.52.0/24"),)
