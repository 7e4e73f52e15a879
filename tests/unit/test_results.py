"""Results: written for each version, and read back.

The forms are the CNI specification's, as libcni's types for each version print them.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni_plugin import results
from cni_plugin.fields import Fields
from cni_plugin.spec import (
    DNS,
    SUPPORTED_VERSIONS,
    CniError,
    Code,
    Interface,
    IPConfig,
    Result,
    Route,
)
from tests.unit import strategies

MODERN = tuple(v for v in SUPPORTED_VERSIONS if v not in ("0.1.0", "0.2.0"))

BRIDGED = Result(
    interfaces=(
        Interface("cni0", "0a:00:00:00:00:01", mtu=1500),
        Interface("veth1", "0a:00:00:00:00:02", mtu=1500),
        Interface("eth0", "0a:00:00:00:00:03", "/run/netns/pod", 1500, "/run/s", "0000:00:1f.6"),
    ),
    ips=(
        IPConfig(IPv4Interface("10.244.0.2/24"), IPv4Address("10.244.0.1"), 2),
        IPConfig(IPv6Interface("fd00:10::2/64"), IPv6Address("fd00:10::1"), 2),
    ),
    routes=(
        Route(ip_network("0.0.0.0/0"), IPv4Address("10.244.0.1")),
        Route(ip_network("::/0"), IPv6Address("fd00:10::1")),
        Route(ip_network("10.9.0.0/16"), None, 1400, 1360, 0, 100, 0),
    ),
)


def encoded(result: Result, version: str) -> dict[str, Any]:
    document = json.loads(results.encode_result(result, version))
    assert document["cniVersion"] == version
    return document


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_legacy_result(version: str) -> None:
    assert encoded(BRIDGED, version) == {
        "cniVersion": version,
        "ip4": {
            "ip": "10.244.0.2/24",
            "gateway": "10.244.0.1",
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}, {"dst": "10.9.0.0/16"}],
        },
        "ip6": {
            "ip": "fd00:10::2/64",
            "gateway": "fd00:10::1",
            "routes": [{"dst": "::/0", "gw": "fd00:10::1"}],
        },
        "dns": {},
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_a_result_with_address_versions(version: str) -> None:
    assert encoded(BRIDGED, version) == {
        "cniVersion": version,
        "interfaces": [
            {"name": "cni0", "mac": "0a:00:00:00:00:01"},
            {"name": "veth1", "mac": "0a:00:00:00:00:02"},
            {"name": "eth0", "mac": "0a:00:00:00:00:03", "sandbox": "/run/netns/pod"},
        ],
        "ips": [
            {
                "version": "4",
                "interface": 2,
                "address": "10.244.0.2/24",
                "gateway": "10.244.0.1",
            },
            {
                "version": "6",
                "interface": 2,
                "address": "fd00:10::2/64",
                "gateway": "fd00:10::1",
            },
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.244.0.1"},
            {"dst": "::/0", "gw": "fd00:10::1"},
            {"dst": "10.9.0.0/16"},
        ],
        "dns": {},
    }


def test_a_result_of_1_0_0_has_neither_address_versions_nor_empty_dns() -> None:
    document = encoded(BRIDGED, "1.0.0")
    assert "dns" not in document
    assert document["interfaces"][2] == {
        "name": "eth0",
        "mac": "0a:00:00:00:00:03",
        "sandbox": "/run/netns/pod",
    }
    assert document["ips"][0] == {
        "interface": 2,
        "address": "10.244.0.2/24",
        "gateway": "10.244.0.1",
    }
    assert document["routes"][2] == {"dst": "10.9.0.0/16"}


def test_a_result_of_1_1_0_has_the_new_fields() -> None:
    document = encoded(BRIDGED, "1.1.0")
    assert "dns" not in document
    assert document["interfaces"][0] == {"name": "cni0", "mac": "0a:00:00:00:00:01", "mtu": 1500}
    assert document["interfaces"][2]["socketPath"] == "/run/s"
    assert document["interfaces"][2]["pciID"] == "0000:00:1f.6"
    assert document["routes"][2] == {
        "dst": "10.9.0.0/16",
        "mtu": 1400,
        "advmss": 1360,
        "priority": 0,
        "table": 100,
        "scope": 0,
    }


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_dns_is_printed_in_every_version(version: str) -> None:
    dns = DNS(("10.0.0.10",), "cluster.local", ("svc.cluster.local",), ("ndots:5",))
    assert encoded(BRIDGED._replace(dns=dns), version)["dns"] == {
        "nameservers": ["10.0.0.10"],
        "domain": "cluster.local",
        "search": ["svc.cluster.local"],
        "options": ["ndots:5"],
    }


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_legacy_version_holds_one_address_for_each_family(version: str) -> None:
    for ips in ((), BRIDGED.ips[:1] * 2, BRIDGED.ips[1:] * 2):
        with pytest.raises(CniError) as caught:
            results.encode_result(Result(ips=ips), version)
        assert caught.value.code == Code.INCOMPATIBLE_VERSION


@pytest.mark.parametrize("version", MODERN)
def test_a_result_without_addresses(version: str) -> None:
    document = encoded(Result(interfaces=BRIDGED.interfaces), version)
    assert not document.get("ips")
    assert len(document["interfaces"]) == 3


def as_version(result: Result, version: str) -> Result:
    """The result without what this version can't say."""
    if version == "1.1.0":
        return result
    return result._replace(
        interfaces=tuple(Interface(i.name, i.mac, i.sandbox) for i in result.interfaces),
        routes=tuple(Route(route.dst, route.gw) for route in result.routes),
    )


@pytest.mark.parametrize("version", MODERN)
@given(result=strategies.results())
@example(result=BRIDGED)
@example(result=Result())
def test_results_round_trip(version: str, result: Result) -> None:
    # A gateway is of its address's family; the reader holds prevResult to that for routes.
    document = encoded(result, version)
    assert results.decode_result(Fields(document), version) == as_version(result, version)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
@given(result=strategies.legacy_results())
def test_legacy_results_round_trip(version: str, result: Result) -> None:
    document = encoded(result, version)
    assert results.decode_result(Fields(document), version) == result


@pytest.mark.parametrize(
    ("result", "where"),
    [
        ({"interfaces": {}}, "interfaces"),
        ({"interfaces": [5]}, "interfaces[0]"),
        ({"interfaces": [{"name": 5}]}, "interfaces[0].name"),
        ({"interfaces": [{"name": "a", "mtu": "1500"}]}, "interfaces[0].mtu"),
        ({"ips": "x"}, "ips"),
        ({"ips": [{}]}, "ips[0].address"),
        ({"ips": [{"address": "10.0.0.1"}]}, "ips[0].address"),
        ({"ips": [{"address": "10.0.0.1/33"}]}, "ips[0].address"),
        ({"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]}, "ips[0].gateway"),
        ({"ips": [{"address": "10.0.0.1/24", "interface": "0"}]}, "ips[0].interface"),
        (
            {"interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.1/24", "interface": 1}]},
            "ips[0].interface",
        ),
        ({"routes": [{}]}, "routes[0].dst"),
        ({"routes": [{"dst": "10.0.0.1/24"}]}, "routes[0].dst"),
        ({"routes": [{"dst": "10.0.0.0/24", "gw": "::1"}]}, "routes[0].gw"),
        ({"routes": [{"dst": "10.0.0.0/24", "scope": 256}]}, "routes[0].scope"),
        ({"dns": []}, "dns"),
        ({"dns": {"nameservers": "x"}}, "dns.nameservers"),
        ({"dns": {"search": [5]}}, "dns.search[0]"),
    ],
)
def test_a_bad_result_is_refused_with_its_field(result: dict[str, Any], where: str) -> None:
    with pytest.raises(CniError) as caught:
        results.decode_result(Fields(result, "prevResult"), "1.1.0")
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith(f"prevResult.{where}:")


@pytest.mark.parametrize(
    ("result", "where"),
    [
        ({"ip4": 5}, "ip4"),
        ({"ip4": {}}, "ip4.ip"),
        ({"ip6": {"ip": "x"}}, "ip6.ip"),
        ({"ip4": {"ip": "10.0.0.1/24", "routes": [{"dst": 5}]}}, "ip4.routes[0].dst"),
    ],
)
def test_a_bad_legacy_result(result: dict[str, Any], where: str) -> None:
    with pytest.raises(CniError) as caught:
        results.decode_result(Fields(result), "0.2.0")
    assert caught.value.msg.startswith(f"{where}:")


@given(value=strategies.json_values, version=st.sampled_from(SUPPORTED_VERSIONS))
def test_decode_result_raises_nothing_but_cni_errors(value: Any, version: str) -> None:
    result = value if isinstance(value, dict) else {"interfaces": value, "ips": value, "ip4": value}
    try:
        results.decode_result(Fields(result, "prevResult"), version)
    except CniError as e:
        assert e.code == Code.INVALID_CONFIG
