"""`backend`, `vxlan` and `underlay`: what they mean, and one clear error for each wrong value."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.crossnode import CrossNode, parse
from cni_plugin.fields import Fields
from cni_plugin.spec import CniError, Code

NODES = {"nodes": "/etc/podwire/nodes.json"}


def parsed(**keys: Any) -> CrossNode:
    return parse(Fields({**NODES, **keys}))


def test_what_is_not_said_has_a_default() -> None:
    assert parsed() == CrossNode("auto", 1, 8472, 0, "auto", "", "", None)
    assert parsed(backend=None, vxlan=None, underlay={}) == CrossNode()
    assert parse(Fields({})) == CrossNode()


def test_everything_said() -> None:
    vxlan = {"vni": 4096, "port": 4789, "mtu": 1400, "checksumOffload": "off"}
    assert parsed(backend="vxlan", vxlan=vxlan, underlay={"interface": "eth1"}) == CrossNode(
        "vxlan", 4096, 4789, 1400, "off", "eth1"
    )
    assert parsed(underlay={"interfaceRegex": "^en"}).interface_regex == "^en"
    assert parsed(underlay={"cidr": "fd00::/64"}).cidr == ip_network("fd00::/64")


@pytest.mark.parametrize("vni", [1, 2**24 - 1])
@pytest.mark.parametrize("port", [1, 65535])
def test_the_limits_themselves_are_allowed(vni: int, port: int) -> None:
    found = parsed(vxlan={"vni": vni, "port": port, "mtu": 68})
    assert (found.vni, found.port, found.mtu) == (vni, port, 68)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"backend": "ipip"}, "backend: "),
    ({"backend": "VXLAN"}, "backend: "),
    ({"backend": ""}, "backend: "),
    ({"backend": 7}, "backend: "),
    ({"vxlan": True}, "vxlan: "),
    ({"vxlan": []}, "vxlan: "),
    *(({"vxlan": {"vni": v}}, "vxlan.vni: ") for v in (0, -1, 2**24, "1", 1.5, True, [])),
    *(({"vxlan": {"port": p}}, "vxlan.port: ") for p in (0, 65536, 70000, "8472", False)),
    *(({"vxlan": {"mtu": m}}, "vxlan.mtu: ") for m in (-1, 67, 65486, "1450", True)),
    ({"vxlan": {"checksumOffload": True}}, "vxlan.checksumOffload: "),
    ({"vxlan": {"checksumOffload": "yes"}}, "vxlan.checksumOffload: "),
    ({"vxlan": {"VNI": 1}}, 'vxlan: unknown key "VNI"'),
    ({"vxlan": {"learning": False}}, 'vxlan: unknown key "learning"'),
    ({"underlay": "eth0"}, "underlay: "),
    ({"underlay": {"iface": "eth0"}}, 'underlay: unknown key "iface"'),
    *(
        ({"underlay": {"interface": name}}, "underlay.interface: ")
        for name in ("", "a/b", "a b", "a:1", "..", "x" * 16, "é" * 8, "\ud800", 3)
    ),
    *(
        ({"underlay": {"interfaceRegex": r}}, "underlay.interfaceRegex: ")
        for r in ("", "(", "*", 1)
    ),
    *(
        ({"underlay": {"cidr": c}}, "underlay.cidr: ")
        for c in ("10.0.0.1/24", "10.0.0.0", "eth0", 4, "10.0.0.0/33")
    ),
    ({"underlay": {"interface": "eth0", "cidr": "10.0.0.0/8"}}, "underlay: "),
    ({"underlay": {"interface": "eth0", "interfaceRegex": "e"}}, "underlay: "),
]


@pytest.mark.parametrize(("keys", "begins"), WRONG, ids=repr)
def test_a_wrong_value_is_named(keys: dict[str, Any], begins: str) -> None:
    with pytest.raises(CniError) as caught:
        parsed(**keys)
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith(begins)


@pytest.mark.parametrize("key", ["backend", "vxlan", "underlay"])
def test_without_an_inventory_they_would_do_nothing(key: str) -> None:
    value: Any = "auto" if key == "backend" else {}
    with pytest.raises(CniError) as caught:
        parse(Fields({key: value}))
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith(f"{key}: ")
    assert '"nodes"' in caught.value.msg


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
SECTION = st.dictionaries(
    st.sampled_from(
        ["vni", "port", "mtu", "checksumOffload", "interface", "interfaceRegex", "cidr", "x"]
    ),
    JSON,
)


@given(st.fixed_dictionaries({}, optional={"backend": JSON, "vxlan": SECTION, "underlay": SECTION}))
def test_whatever_it_holds_the_error_is_a_cni_error(keys: dict[str, Any]) -> None:
    try:
        found = parsed(**keys)
    except CniError as e:
        assert e.code == Code.INVALID_CONFIG
        assert e.msg.startswith(("backend: ", "vxlan", "underlay"))
    else:
        assert found.backend in ("auto", "host-gw", "vxlan")
        assert 1 <= found.vni < 2**24
        assert 1 <= found.port < 2**16


@pytest.mark.parametrize("pattern", ["(.*)*" * 10 + "Z", "(a+)+b", "((x{2})?)*", ".*" * 7])
def test_an_expression_that_may_take_for_ever(pattern: str) -> None:
    with pytest.raises(CniError) as caught:
        parse(Fields({"nodes": "/n.json", "underlay": {"interfaceRegex": pattern}}))
    assert caught.value.msg.startswith("underlay.interfaceRegex:")
    assert "repetitions" in caught.value.msg


@pytest.mark.parametrize(
    "pattern", ["^en", "^(eth|ens|enp).*", "^bond[0-9]+(\\.[0-9]+)?$", "eth[01]"]
)
def test_expressions_that_people_use(pattern: str) -> None:
    conf = parse(Fields({"nodes": "/n.json", "underlay": {"interfaceRegex": pattern}}))
    assert conf.interface_regex == pattern
