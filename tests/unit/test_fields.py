"""Typed reading of JSON: defaults, and errors that name path and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni_plugin.fields import Fields, as_address, as_interface, as_network, invalid, shown
from cni_plugin.spec import CniError, Code
from tests.unit import strategies

READERS: dict[str, Callable[[Fields], Any]] = {
    "flag": lambda f: f.flag("k"),
    "text": lambda f: f.text("k"),
    "integer": lambda f: f.integer("k", 0, 10),
    "child": lambda f: f.child("k"),
    "children": lambda f: f.children("k"),
    "texts": lambda f: f.texts("k"),
    "items": lambda f: list(f.items("k")),
    "address": lambda f: f.address("k"),
    "network": lambda f: f.network("k"),
}
DEFAULTS: dict[str, Any] = {
    "flag": False,
    "text": "",
    "integer": None,
    "children": [],
    "texts": (),
    "items": [],
    "address": None,
    "network": None,
}
WRONG: dict[str, list[Any]] = {
    "flag": [0, 1, "true", "", [], {}],
    "text": [0, True, [], {}, 1.5],
    "integer": [True, False, "5", 5.0, -1, 11, [], float("inf"), 10**400],
    "child": [0, "", [], True],
    "children": [0, "", {}, [[]], ["x"], [None]],
    "texts": [0, "x", {}, [1], [None]],
    "items": [0, "x", {}],
    "address": ["", "x", "10.0.0.1/24", "10.0.0", "010.0.0.1", "fe80::1%eth0", 5, [], "1.2.3.4 "],
    "network": [
        *("", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "::/x", "/", 5),
        *(
            "fe80::%eth0/64",
            "10.0.0.0/-1",
            "10.0.0.0/24/24",
            "10.0.0.0/٢",
            "10.0.0.0/" + "1" * 5000,
        ),
    ],
}
RIGHT: list[tuple[str, Any, Any]] = [
    ("flag", True, True),
    ("text", "x", "x"),
    ("integer", 0, 0),
    ("integer", 10, 10),
    ("texts", ["a", "b"], ("a", "b")),
    ("items", [1, None], [("a.k[0]", 1), ("a.k[1]", None)]),
    ("address", "10.0.0.1", ip_address("10.0.0.1")),
    ("address", "FD00::1", ip_address("fd00::1")),
    ("network", "10.0.0.0/24", ip_network("10.0.0.0/24")),
    ("network", "::/0", ip_network("::/0")),
]


@pytest.mark.parametrize("reader", DEFAULTS)
@pytest.mark.parametrize("obj", [{}, {"k": None}], ids=["absent", "null"])
def test_absent_and_null_have_the_default(reader: str, obj: dict[str, Any]) -> None:
    assert READERS[reader](Fields(obj)) == DEFAULTS[reader]


def test_defaults_can_be_given() -> None:
    assert Fields({}).flag("k", True) is True
    assert Fields({"k": False}).flag("k", True) is False
    assert Fields({}).text("k", "x") == "x"


@pytest.mark.parametrize(("reader", "value", "read"), RIGHT)
def test_right_values(reader: str, value: Any, read: Any) -> None:
    assert READERS[reader](Fields({"k": value}, "a")) == read


@pytest.mark.parametrize(
    ("reader", "value"), [(reader, value) for reader in WRONG for value in WRONG[reader]]
)
def test_wrong_values_are_named_with_their_path(reader: str, value: Any) -> None:
    with pytest.raises(CniError) as caught:
        READERS[reader](Fields({"k": value}, "a.b[1]"))
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith("a.b[1].k")


def test_paths_lead_through_objects_and_lists() -> None:
    fields = Fields({"a": {"b": [{"c": 5}]}})
    assert fields.at("a") == "a"
    with pytest.raises(CniError, match=r"^a\.b\[0\]\.c: expected a string, got 5$"):
        fields.child("a").children("b")[0].text("c")


def test_a_network_with_host_bits_is_told_the_network() -> None:
    with pytest.raises(CniError) as caught:
        as_network("10.244.0.7/24", "dst")
    assert "10.244.0.0/24" in caught.value.details


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "::1%lo/64", "x/8", 8])
def test_an_address_needs_its_prefix(text: Any) -> None:
    with pytest.raises(CniError):
        as_interface(text, "address")


def test_has_is_false_for_null() -> None:
    assert not Fields({"k": None}).has("k")
    assert Fields({"k": False}).has("k")


def test_a_deeply_nested_value_is_shown() -> None:
    value: object = 1
    for _ in range(1100):
        value = [value]
        assert len(shown(value)) <= 80


@given(value=strategies.json_values)
@example(value="\ud800")
@example(value="é" * 200)
@example(value=float("nan"))
@example(value=10**4200)  # the parser takes up to 4,300 digits
def test_a_value_is_shown_short_and_printable(value: Any) -> None:
    error = invalid("k", value, "expected x")
    assert len(shown(value)) <= 80
    error.msg.encode()  # has to be what JSON and stderr can carry


@given(address=strategies.addresses)
def test_addresses_round_trip(address: Any) -> None:
    assert as_address(str(address), "k") == address
    assert as_interface(f"{address}/20", "k") == ip_interface(f"{address}/20")


@given(value=strategies.json_values, reader=st.sampled_from(sorted(READERS)))
def test_nothing_but_cni_errors(value: Any, reader: str) -> None:
    obj = value if isinstance(value, dict) else {"k": value}
    try:
        READERS[reader](Fields(obj, "a"))
    except CniError as e:
        assert e.code == Code.INVALID_CONFIG
        json.dumps({"msg": e.msg, "details": e.details}).encode()


# --- what Go's runtimes write -------------------------------------------------------------------


def test_keys_below_runtime_config_are_found_in_any_case() -> None:
    """As go-cni writes them, which containerd is built on."""
    fields = Fields(
        {
            "RuntimeConfig": {"PortMappings": "not this"},
            "runtimeConfig": {
                "portMappings": [{"HostPort": 8080, "containerport": 80, "Protocol": "tcp"}],
                "bandwidth": {"IngressRate": 10, "ingressRate": 7},
                "dns": {"Servers": ["10.0.0.10"], "Options": None},
            },
        }
    )
    runtime = fields.child("runtimeConfig")
    (mapping,) = runtime.children("portMappings")
    assert mapping.integer("hostPort", 1, 65535) == 8080
    assert mapping.integer("containerPort", 1, 65535) == 80
    assert mapping.text("protocol") == "tcp"
    assert not mapping.has("hostIP")
    assert runtime.child("bandwidth").integer("ingressRate", 0, 100) == 7
    assert runtime.child("dns").texts("servers") == ("10.0.0.10",)
    assert runtime.child("dns").texts("options") == ()


def test_other_keys_are_found_as_they_are_documented() -> None:
    assert Fields({"IPMasq": True, "mtu": 1400}).flag("ipMasq") is False
    assert Fields({"ipam": {"Subnet": "10.0.0.0/8"}}).child("ipam").network("subnet") is None
