"""Requests about flows: by our own packing as by pyroute2's objects, and which flows are meant."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from cni_plugin.kernel import codec, conntrack
from cni_plugin.kernel.conntrack import Flow, _Wanted

V4, V6 = ip_address("10.244.0.5"), ip_address("fd00::5")

WANTED = {
    "port": _Wanted(4, None, 53),
    "port, IPv6": _Wanted(6, None, 53),
    "port of an address": _Wanted(4, V4, 53),
    "port of an address, IPv6": _Wanted(6, V6, 53),
    "pod": _Wanted(4, answerer=(V4, 53)),
    "pod, IPv6": _Wanted(6, answerer=(V6, 53)),
    "all": _Wanted(4),
    "all, IPv6": _Wanted(6),
}
FLOWS = {
    4: Flow("192.168.1.9", "10.244.0.5", 40000, 53, "10.244.0.5", 53, 1 << 31 | 7),
    6: Flow("fd00:1::9", "fd00::5", 40000, 53, "fd00::5", 53, 7),
}


def built() -> list[Any]:
    requests = [
        conntrack._request(wanted, kind, flags, "forget")
        for wanted in WANTED.values()
        for kind, flags in ((conntrack._DELETE, conntrack.CHANGE), (conntrack._GET, conntrack.DUMP))
    ]
    return requests + [conntrack._delete_flow(version, flow) for version, flow in FLOWS.items()]


def test_requests_are_those_of_pyroute2(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = built()
    monkeypatch.setattr(codec, "encode", codec.encode_by_pyroute2)
    assert ours == built()


def test_a_reply_is_read_as_it_was_written() -> None:
    for version, flow in FLOWS.items():
        body = conntrack._delete_flow(version, flow).body
        orig, reply = f"CTA_IP_V{version}_SRC", f"CTA_IP_V{version}_DST"
        ip = {"attrs": [(orig, flow.from_address), (reply, flow.src)]}
        port = {"attrs": [("CTA_PROTO_NUM", 17), ("CTA_PROTO_SRC_PORT", flow.from_port)]}
        answer = {"attrs": [("CTA_TUPLE_IP", ip), ("CTA_TUPLE_PROTO", port)]}
        body += codec.encode(conntrack._CT, {"attrs": [("CTA_TUPLE_REPLY", answer)]})[4:]
        entry = codec.decode(conntrack._CT, body)
        assert conntrack._is_udp(entry)
        assert conntrack._flow(entry, version) == flow


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("port", True),
        ("port of an address", True),
        ("pod", True),
        (_Wanted(4, None, 54), False),
        (_Wanted(4, ip_address("10.244.0.6"), 53), False),
        (_Wanted(4, answerer=(V4, 54)), False),
        (_Wanted(4, answerer=(ip_address("10.244.0.6"), 53)), False),
    ],
)
def test_which_flows_are_meant(wanted: str | _Wanted, meant: bool) -> None:
    chosen = WANTED[wanted] if isinstance(wanted, str) else wanted
    assert chosen.matches(FLOWS[4]) is meant


def test_the_kernel_is_not_asked_to_compare_ipv6_addresses() -> None:
    """It takes those flows whose address is another."""
    assert {name for name, wanted in WANTED.items() if wanted.certain} == {
        "port of an address",
        "pod",
    }
    for name in ("port of an address, IPv6", "pod, IPv6"):
        assert V6.packed not in conntrack._request(WANTED[name], 0, 0, "list").body
