"""The ipam section: what is taken, what is refused, and that every refusal names its field."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.spec import Attachment, CniError, Code, Request, Route
from ipam.config import DEFAULT_DATA_DIR, HostLocalConf, Place, locate, parse

NODE = (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64"))


def request(ipam: Any, version: str = "1.0.0", asked: str = "", **keys: Any) -> Request:
    conf = {"cniVersion": version, "name": "podnet", "ipam": ipam} | keys
    return Request(
        "ADD", Attachment("c1", "eth0"), "", {"IP": asked}, (), b"", conf, version, "podnet"
    )


def shape(conf: HostLocalConf) -> list[list[str]]:
    return [[f"{r.start}-{r.end} gw {r.gateway}" for r in s] for s in conf.range_sets]


def refusal(*args: Any, **keys: Any) -> CniError:
    subnets = keys.pop("subnets", None)
    with pytest.raises(CniError) as caught:
        parse(request(*args, **keys), subnets)
    return caught.value


# --- ranges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"subnet": "10.1.2.0/24"}, "10.1.2.1-10.1.2.254 gw 10.1.2.1"),
        ({"subnet": "10.1.2.0/30"}, "10.1.2.1-10.1.2.2 gw 10.1.2.1"),
        ({"subnet": "fd00::/64"}, "fd00::1-fd00::ffff:ffff:ffff:ffff gw fd00::1"),
        ({"subnet": "fd00::/126"}, "fd00::1-fd00::3 gw fd00::1"),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20"},
            "10.1.2.9-10.1.2.20 gw 10.1.2.1",
        ),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.0", "rangeEnd": "10.1.2.255"},
            "10.1.2.0-10.1.2.255 gw 10.1.2.1",
        ),
        ({"subnet": "10.1.2.0/24", "gateway": "10.9.9.9"}, "10.1.2.1-10.1.2.254 gw 10.9.9.9"),
        ({"subnet": "FD00:0::/64", "gateway": "fd00::00FE"}, None),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "::ffff:10.1.2.7"},
            "10.1.2.7-10.1.2.254 gw 10.1.2.1",
        ),
    ],
)
def test_defaults_are_the_references(entry: dict[str, str], expected: str | None) -> None:
    expected = expected or "fd00::1-fd00::ffff:ffff:ffff:ffff gw fd00::fe"
    assert shape(parse(request({"ranges": [[entry]]}))) == [[expected]]
    assert shape(parse(request(entry))) == [[expected]]


def test_order_is_runtime_then_single_range_then_list() -> None:
    conf = parse(
        request(
            {
                "subnet": "10.2.0.0/24",
                "ranges": [[{"subnet": "10.3.0.0/24"}, {"subnet": "10.4.0.0/24"}]],
            },
            runtimeConfig={"ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]},
        )
    )
    assert [[str(r.subnet) for r in s] for s in conf.range_sets] == [
        ["10.1.0.0/24"],
        ["fd00::/64"],
        ["10.2.0.0/24"],
        ["10.3.0.0/24", "10.4.0.0/24"],
    ]


@pytest.mark.parametrize(
    ("ipam", "parts"),
    [
        ({}, ["ipam.ranges"]),
        ({"ranges": []}, ["ipam.ranges"]),
        ({"ranges": {}}, ["ipam.ranges:", "list"]),
        ({"ranges": [[]]}, ["ipam.ranges[0]:", "at least one"]),
        ({"ranges": [{"subnet": "10.1.0.0/24"}]}, ["ipam.ranges[0]:", "[[{"]),
        ({"ranges": [["10.1.0.0/24"]]}, ["ipam.ranges[0][0]:", "object"]),
        ({"ranges": [[{}]]}, ["ipam.ranges[0][0].subnet:"]),
        ({"ranges": [[{"subnet": 5}]]}, ["ipam.ranges[0][0].subnet:", "5"]),
        ({"ranges": [[{"subnet": "10.1.0.0/33"}]]}, ["ipam.ranges[0][0].subnet:", "10.1.0.0/33"]),
        ({"ranges": [[{"subnet": "10.1.0.1/24"}]]}, ["ipam.ranges[0][0].subnet:", "10.1.0.0/24"]),
        ({"ranges": [[{"subnet": "10.1.0.0/31"}]]}, ["ipam.ranges[0][0].subnet:", "/30"]),
        ({"ranges": [[{"subnet": "fd00::/127"}]]}, ["ipam.ranges[0][0].subnet:", "/126"]),
        ({"ranges": [[{"subnet": "::ffff:a00:0/104"}]]}, ["ipam.ranges[0][0].subnet:", "IPv4"]),
        ({"ranges": [[{"subnet": "::/0"}]]}, ["ipam.ranges[0][0].subnet:"]),
        ({"subnet": "10.1.0.0/31"}, ["ipam.subnet:", "/30"]),
        ({"rangeStart": "10.1.0.4"}, ["ipam.subnet:", "ipam.rangeStart"]),
        ({"gateway": "10.1.0"}, ["ipam.gateway:", "10.1.0"]),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]},
            ["ipam.ranges[0][1].subnet:", "fd00::/64", "IPv4", "ipam.ranges[0][0]"],
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.4"}]]},
            ["ipam.ranges[0][0].rangeStart:", "10.2.0.4", "10.1.0.0/24"],
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "fd00::1"}]]},
            ["ipam.ranges[0][0].rangeEnd:", "fd00::1", "10.1.0.0/24"],
        ),
        (
            {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"},
            ["ipam.rangeEnd:", "10.1.0.9", "10.1.0.8"],
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24", "gateway": "fd00::1"}]]},
            ["ipam.ranges[0][0].gateway:", "IPv4"],
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]},
            ["ipam.ranges[0][0]", "ipam.ranges[1][0]", "overlaps"],
        ),
        (
            {"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.1.0.0/24"}]]},
            ["ipam (", "ipam.ranges[0][0]", "overlaps"],
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.128/25"}]]},
            ["ipam.ranges[0][0]", "ipam.ranges[0][1]", "overlaps"],
        ),
        ({"subnet": "10.1.0.0/24", "dataDir": "rel"}, ["ipam.dataDir:", "absolute", "rel"]),
        ({"subnet": "10.1.0.0/24", "dataDir": "/a\0b"}, ["ipam.dataDir:"]),
        ({"subnet": "10.1.0.0/24", "dataDir": "/a\ud800"}, ["ipam.dataDir:"]),
        ({"subnet": "10.1.0.0/24", "dataDir": 1}, ["ipam.dataDir:"]),
        ({"subnet": "10.1.0.0/24", "resolvConf": "x"}, ["ipam.resolvConf:"]),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "x"}]}, ["ipam.routes[0].dst:"]),
        ("x", ["ipam:"]),
    ],
)
def test_refusals_name_the_field(ipam: Any, parts: list[str]) -> None:
    error = refusal(ipam)
    assert error.code == Code.INVALID_CONFIG
    for part in parts:
        assert part in f"{error.msg} {error.details}"


def test_ranges_of_one_subnet_that_do_not_overlap_are_taken() -> None:
    halves = [
        {"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.99"},
        {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100"},
    ]
    assert len(parse(request({"ranges": [halves]})).range_sets) == 1
    assert len(parse(request({"ranges": [[half] for half in halves]})).range_sets) == 2


def test_bounds_beside_ranges_are_left_aside_as_in_the_reference() -> None:
    conf = parse(request({"gateway": "10.9.9.9", "ranges": [[{"subnet": "10.1.0.0/24"}]]}))
    assert shape(conf) == [["10.1.0.1-10.1.0.254 gw 10.1.0.1"]]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_know_one_address_per_family(version: str) -> None:
    two = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}
    error = refusal(two, version)
    assert error.code == Code.INVALID_CONFIG
    assert "ipam.ranges[1][0]" in error.msg
    assert len(parse(request(two, "0.3.0")).range_sets) == 2
    dual = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
    assert len(parse(request(dual, version)).range_sets) == 2


# --- the node's subnets -----------------------------------------------------------------------


def test_without_ranges_the_nodes_subnets_are_one_set_each() -> None:
    conf = parse(request({"type": "host-local"}), NODE)
    assert shape(conf) == [
        ["10.244.1.1-10.244.1.254 gw 10.244.1.1"],
        ["fd00:244:1::1-fd00:244:1:0:ffff:ffff:ffff:ffff gw fd00:244:1::1"],
    ]


def test_ranges_must_lie_in_the_nodes_subnets() -> None:
    inside = {"subnet": "10.244.1.128/25"}
    assert shape(parse(request(inside), NODE)) == [["10.244.1.129-10.244.1.254 gw 10.244.1.129"]]
    error = refusal({"subnet": "10.244.0.0/24"}, subnets=NODE)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("ipam.subnet:")
    assert "10.244.0.0/24" in error.msg
    assert "10.244.1.0/24, fd00:244:1::/64" in error.msg
    error = refusal({}, runtimeConfig={"ipRanges": [[{"subnet": "10.0.0.0/8"}]]}, subnets=NODE)
    assert error.msg.startswith("runtimeConfig.ipRanges[0][0].subnet:")


# --- requested addresses ----------------------------------------------------------------------


def test_requested_addresses_of_the_configuration_win_over_cni_args() -> None:
    conf = parse(
        request(
            {"subnet": "10.1.0.0/24"},
            runtimeConfig={"ips": ["::ffff:10.1.0.7", "10.1.0.6"]},
            asked="10.1.0.5",
            args={"cni": {"ips": ["10.1.0.6/24", "fd00:0::1"]}},
        )
    )
    wanted = ("10.1.0.6", "fd00::1", "10.1.0.7")
    assert conf.requested == tuple(ip_address(text) for text in wanted)
    conf = parse(request({"subnet": "10.1.0.0/24"}, asked="10.1.0.5"))
    assert conf.requested == (ip_address("10.1.0.5"),)


@pytest.mark.parametrize(
    "text", ["", "x", "10.1.0.5/33", "10.1.0.5/", "10.1.0.5/255.0.0.0", "fe80::1%e"]
)
def test_bad_requested_addresses_are_refused(text: str) -> None:
    error = refusal({"subnet": "10.1.0.0/24"}, runtimeConfig={"ips": ["10.1.0.5", text]})
    assert (error.code, error.msg.partition(":")[0]) == (7, "runtimeConfig.ips[1]")
    if text:
        error = refusal({"subnet": "10.1.0.0/24"}, asked=text)
        assert (error.code, error.msg[:12]) == (Code.INVALID_ENVIRONMENT, "CNI_ARGS: IP")


# --- the rest ---------------------------------------------------------------------------------


def test_other_options() -> None:
    ipam = {
        "subnet": "10.1.0.0/24",
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.0.9"}],
        "resolvConf": "/etc/resolv.conf",
    }
    conf = parse(request(ipam))
    assert conf.routes == (
        Route(ip_network("0.0.0.0/0")),
        Route(ip_network("10.0.0.0/8"), ip_address("10.1.0.9")),
    )
    assert conf.resolv_conf == "/etc/resolv.conf"
    assert conf.place == Place(DEFAULT_DATA_DIR, "podnet")
    assert parse(request(ipam | {"dataDir": ""})).data_dir == DEFAULT_DATA_DIR


@pytest.mark.parametrize("ipam", [None, 5, [], {}, {"ranges": 5, "subnet": "nonsense"}])
def test_locate_is_lenient(ipam: Any) -> None:
    assert locate(request(ipam)) == Place("/var/lib/cni/networks", "podnet")


def test_locate_finds_the_data_dir_or_says_why_not() -> None:
    assert locate(request({"ranges": "?", "dataDir": "/run/x"})) == Place("/run/x", "podnet")
    for value in (7, "x", "/a\0"):
        with pytest.raises(CniError) as caught:
            locate(request({"dataDir": value}))
        assert (caught.value.code, caught.value.msg[:12]) == (7, "ipam.dataDir")


# --- any JSON ---------------------------------------------------------------------------------

_texts = st.sampled_from(
    [
        "10.1.0.0/24",
        "10.1.0.9",
        "fd00::/64",
        "fd00::7",
        "/x",
        "",
        "::ffff:1.2.3.4",
        "10.1.0.0/3",
        "%",
    ]
) | st.text(max_size=8)
_leaves = st.none() | st.booleans() | st.integers() | st.floats() | _texts
_keys = st.sampled_from(
    ["subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "dst", "gw", "dataDir",
     "resolvConf", "ips", "ipRanges", "cni"]
)  # fmt: skip
_json = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    ipam=st.dictionaries(_keys, _json, max_size=6) | _json,
    runtime=_json,
    args=_json,
    asked=_texts,
    version=st.sampled_from(["0.1.0", "1.1.0"]),
    subnets=st.sampled_from([None, (), NODE]),
)
def test_any_json_is_taken_or_refused(
    ipam: Any, runtime: Any, args: Any, asked: str, version: str, subnets: Any
) -> None:
    """Nothing but a CniError comes out, and what is taken is fit for use."""
    asking = request(ipam, version, asked)._replace(
        conf={"name": "n", "ipam": ipam, "runtimeConfig": runtime, "args": args}
    )
    try:
        conf = parse(asking, subnets)
    except CniError as e:
        assert e.code in (Code.INVALID_CONFIG, Code.INVALID_ENVIRONMENT)
        json.dumps(e.msg).encode()
    else:
        assert conf.range_sets
        assert all(int(r.start) <= int(r.end) for s in conf.range_sets for r in s)


def test_a_node_without_subnets_in_the_inventory_has_no_ranges_of_its_own() -> None:
    """An empty inventory entry is not the same as no inventory."""
    error = refusal({"subnet": "10.244.0.0/24"}, subnets=())
    assert error.code == Code.INVALID_CONFIG
    error = refusal({}, subnets=())
    assert error.code == Code.INVALID_CONFIG
    assert "inventory" in error.msg
