"""What a node remembers of its networks: cni_plugin/records.py."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from cni_plugin import records
from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel import nodelock, statefolder
from cni_plugin.records import NetworkRecord, Records, counts_against
from cni_plugin.spec import CniError, Code

_V4, _V6 = ip_network("10.244.0.0/24"), ip_network("fd00:10:244::/64")
_FULL = NetworkRecord(
    "podnet",
    (_V4, _V6),
    masquerade=True,
    direct=(ip_network("192.168.0.0/16"),),
    bridge="cni0",
    ingress_policy="isolated",
    accept_forwarding=False,
    host_ports=False,
    mark_bit=5,
    nodes="/etc/podwire/nodes.json",
    node_name="node-1",
    cross_node=CrossNode("vxlan", 7, 4789, 1400, "off", "eth1", "", None),
)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Records:
    monkeypatch.setattr(statefolder, "FOLDER", str(tmp_path))
    monkeypatch.setattr(nodelock, "FOLDER", str(tmp_path))
    return Records("1f")


@pytest.mark.parametrize(
    "record",
    [
        _FULL,
        NetworkRecord("a"),
        NetworkRecord("b", cross_node=CrossNode(cidr=ip_network("fd00::/64"))),
        NetworkRecord("c", cross_node=CrossNode(interface_regex="^en")),
    ],
)
def test_what_is_written_is_read(record: NetworkRecord) -> None:
    assert records.decode(records.encode(record), "file") == record


def test_the_file_is_for_people_as_well() -> None:
    document = json.loads(records.encode(_FULL))
    assert document["format"] == records.FORMAT
    assert document["subnets"] == ["10.244.0.0/24", "fd00:10:244::/64"]
    assert document["cross_node"]["backend"] == "vxlan"


def test_keys_that_are_missing_have_their_defaults_and_others_are_passed_over() -> None:
    text = b'{"format": 1, "network": "podnet", "of a later podwire": [1]}'
    assert records.decode(text, "file") == NetworkRecord("podnet")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[1]", "expected an object"),
        (b'{"network": "podnet"}', "format null of another podwire"),
        (b'{"format": 2, "network": "podnet"}', "format 2 of another podwire"),
        (b'{"format": 1}', "network: missing"),
        (b'{"format": 1, "network": "a", "subnets": ["10.0.0.1/24"]}', "subnets[0]"),
        (b'{"format": 1, "network": "a", "masquerade": "yes"}', "masquerade"),
        (b'{"format": 1, "network": "a", "cross_node": {"vni": 0}}', "cross_node.vni"),
        (b'{"format": 1, "network": "a", "mark_bit": 32}', "mark_bit"),
    ],
)
def test_a_file_that_is_no_record_is_named(text: bytes, says: str) -> None:
    with pytest.raises(CniError) as caught:
        records.decode(text, "/run/x")
    assert caught.value.code == Code.DECODE_FAILURE
    assert caught.value.msg.startswith("/run/x: ")
    assert says in caught.value.msg
    assert "remove the file" in caught.value.details


def test_a_record_is_written_once(known: Records) -> None:
    assert known.all() == ()
    assert known.stamp() == 0
    assert known.remember(_FULL)
    before = known.stamp()
    assert before
    assert not known.remember(_FULL)
    assert known.stamp() == before
    assert known.all() == (_FULL,)
    assert Records("1f").all() == (_FULL,)
    assert Records("20").all() == ()


def test_subnets_that_were_known_stay(known: Records) -> None:
    more = ip_network("10.245.0.0/24")
    assert known.remember(_FULL)
    assert known.remember(_FULL._replace(subnets=(more,)))
    assert known.all() == (_FULL._replace(subnets=(_V4, _V6, more)),)
    for subset in ((), (_V6,), (ip_network("10.245.0.128/25"), _V4)):
        assert known.holds(_FULL._replace(subnets=subset))
        assert not known.remember(_FULL._replace(subnets=subset))
    assert not known.holds(_FULL._replace(subnets=(ip_network("10.246.0.0/24"),)))
    assert known.remember(_FULL._replace(masquerade=False, subnets=(_V4,)))
    assert known.all()[0].subnets == (_V4, _V6, more)


def test_another_process_s_record_is_seen(known: Records) -> None:
    known.remember(_FULL)
    assert known.all() == (_FULL,)
    other = NetworkRecord("another")
    Records("1f").remember(other)
    assert known.all() == (other, _FULL)
    assert Records("1f").forget("podnet")
    assert not Records("1f").forget("podnet")
    assert known.all() == (other,)


def test_a_change_in_the_same_tick_is_seen(known: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    known.remember(_FULL)
    known.all()
    assert known.settled() == 0  # it was written a moment ago
    later = known.stamp() + records._SETTLED_NS + 1
    monkeypatch.setattr(records, "time_ns", lambda: later)
    known.all()
    assert known.settled() == known.stamp()


def test_one_that_is_broken_does_not_hide_the_others(known: Records, tmp_path: Path) -> None:
    known.remember(_FULL)
    (tmp_path / "node-1f" / "networks" / "broken").write_text("{")
    assert known.all() == (_FULL,)
    [error] = known.broken
    assert error.msg.startswith(f"{tmp_path}/node-1f/networks/broken: not valid JSON")


def test_the_newest_is_known(known: Records) -> None:
    first, second = NetworkRecord("b"), NetworkRecord("a")
    known.remember(first)
    known.remember(second)
    known.forget("b")
    known.remember(first)
    assert max(known.all(), key=known.age_key) == first
    assert known.age_key(NetworkRecord("gone")) == (0, "gone")


_PLAIN = NetworkRecord("podnet", (_V4, _V6), bridge="cni0", accept_forwarding=False)
_BESIDE = _PLAIN._replace(network="other")
_AWAY = (ip_network("10.250.0.0/24"),)


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        (_BESIDE, False),
        (_BESIDE._replace(masquerade=True), True),
        (_BESIDE._replace(masquerade=True, subnets=_AWAY), False),
        (_BESIDE._replace(accept_forwarding=True, subnets=(_V6,)), True),
        (_BESIDE._replace(ingress_policy="same-bridge"), True),
        (_BESIDE._replace(ingress_policy="isolated", subnets=_AWAY), True),
        (_BESIDE._replace(ingress_policy="isolated", bridge="br1"), False),
        (_BESIDE._replace(network="podnet+chained", ingress_policy="isolated"), False),
        (_BESIDE._replace(direct=(_V4,)), False),
    ],
)
def test_whose_options_count_for_others(other: NetworkRecord, counts: bool) -> None:
    assert counts_against(other, _PLAIN) is counts


def test_the_looser_of_two_networks_does_not_count() -> None:
    strict = _PLAIN._replace(ingress_policy="isolated", accept_forwarding=True, masquerade=True)
    assert not counts_against(_BESIDE._replace(bridge=strict.bridge), strict)
    assert counts_against(_BESIDE._replace(direct=(_V4,)), strict)
    assert not counts_against(_PLAIN._replace(network="ptp", bridge=""), _PLAIN)
    isolated = _PLAIN._replace(network="ptp", bridge="", ingress_policy="isolated")
    assert not counts_against(isolated, _PLAIN._replace(bridge=""))
