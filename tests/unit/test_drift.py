"""CHECK without a kernel: what was planned against what is there.

A faithful `Observed` is built from each plan; it has no drift, and every single thing taken away
from it is found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import datapath, results
from cni_plugin.datapath import SCOPE_LINK, Applied, PodNetwork
from cni_plugin.drift import MAIN_TABLE, LinkState, Observed, RouteState, drift
from cni_plugin.fields import Fields
from cni_plugin.netconf import NetConf
from cni_plugin.spec import Attachment, IPConfig, IPInterface, Result, Route

POD = Attachment("ctr", "eth0")
V4 = IPConfig(ip_interface("10.244.0.5/24"), ip_address("10.244.0.1"))
V4_B = IPConfig(ip_interface("10.245.0.5/24"), ip_address("10.245.0.1"))
V6 = IPConfig(ip_interface("fd00:10::5/64"), ip_address("fd00:10::1"))
ROUTES = (
    Route(ip_network("10.9.0.0/16")),
    Route(ip_network("10.8.0.0/16"), ip_address("10.244.0.7")),
    Route(ip_network("10.7.0.0/16"), mtu=1400, priority=5),
    Route(ip_network("10.6.0.0/16"), ip_address("10.244.0.7"), table=100),
    Route(ip_network("10.5.0.0/16"), scope=SCOPE_LINK),
)

confs = st.builds(
    NetConf,
    network=st.just("podnet"),
    mode=st.sampled_from(["bridge", "ptp"]),
    bridge=st.just("cni0"),
    is_gateway=st.booleans(),
    is_default_gateway=st.booleans(),
    force_address=st.just(False),
    hairpin=st.booleans(),
    promisc=st.booleans(),
    port_isolation=st.booleans(),
    enable_dad=st.booleans(),
    mtu=st.sampled_from([0, 1400]),
    mac=st.sampled_from(["", "02:00:00:00:00:01"]),
    dns=st.none(),
    ipam_type=st.just("host-local"),
    nodes=st.just(""),
    node_name=st.just(""),
    prev_result=st.none(),
).map(lambda conf: conf._replace(is_gateway=conf.is_gateway or conf.is_default_gateway))
leases = st.builds(
    Result,
    ips=st.sampled_from([(V4,), (V6,), (V4, V6), (V4, V4_B, V6)]),
    routes=st.sampled_from([(), ROUTES[:1], ROUTES[:2], ROUTES]),
).map(lambda r: r if V4 in r.ips else r._replace(routes=()))
plans = st.builds(datapath.plan, confs, st.just(POD), leases)


def link(name: str, kind: str, ifindex: int, mac: str = "", **changes: Any) -> LinkState:
    base = LinkState(
        ifindex=ifindex,
        name=name,
        kind=kind,
        mac=mac,
        mtu=1500,
        up=True,
        promisc=False,
        forwarding=True,
        master=0,
        peer=0,
        alias="",
        hairpin=False,
        isolated=False,
    )
    return base._replace(**changes)


def route_state(route: Route) -> RouteState:
    """A route as the kernel shows it."""
    scope = route.scope
    if scope is None:
        scope = 0 if route.gw is not None or route.dst.version == 6 else SCOPE_LINK
    elif route.dst.version == 6:
        scope = 0  # IPv6 has no scopes: the kernel shows all routes as universe
    return RouteState(route.dst, route.gw, route.table or MAIN_TABLE, scope)


def faithful(network: PodNetwork) -> Observed:
    """What the kernel shows when everything of the plan is there."""
    bridge = network.bridge
    return Observed(
        pod=link(network.pod.name, "veth", 2, network.pod.mac, peer=7),
        pod_addresses=network.pod.addresses,
        pod_routes=tuple(route_state(route) for route in network.pod.routes),
        host=link(
            network.host.name,
            "veth",
            7,
            network.host.mac,
            master=5 if bridge else 0,
            hairpin=network.host.hairpin,
            isolated=network.host.isolated,
        ),
        host_addresses=network.host.addresses,
        host_routes=tuple(RouteState(dst, None, MAIN_TABLE, 253) for dst in network.host.routes),
        bridge=link(bridge.name, "bridge", 5, promisc=bridge.promisc) if bridge else None,
        bridge_addresses=bridge.gateways if bridge else (),
        forwarding=network.forwarding,
    )


def losses(network: PodNetwork, seen: Observed) -> Iterator[tuple[str, Observed]]:
    """Every way to lose one thing, with a word that the drift has to name."""
    for field in ("pod_addresses", "host_addresses", "bridge_addresses"):
        items = getattr(seen, field)
        for index, item in enumerate(items):
            yield str(item), seen._replace(**{field: items[:index] + items[index + 1 :]})
    for field in ("pod_routes", "host_routes"):
        items = getattr(seen, field)
        for index, item in enumerate(items):
            yield str(item.dst), seen._replace(**{field: items[:index] + items[index + 1 :]})
    for version in seen.forwarding:
        rest = tuple(v for v in seen.forwarding if v != version)
        yield f"IPv{version}", seen._replace(forwarding=rest)
    for field in ("pod", "host", "bridge"):
        state = getattr(seen, field)
        if state is not None:
            yield state.name, seen._replace(**{field: None})
            yield state.name, seen._replace(**{field: state._replace(up=False)})
    assert seen.pod is not None
    assert seen.host is not None
    yield "eth0", seen._replace(pod=seen.pod._replace(kind="dummy"))
    yield "eth0", seen._replace(pod=seen.pod._replace(peer=8))
    yield "eth0", seen._replace(pod=seen.pod._replace(mac="02:ff:ff:ff:ff:ff"))
    if network.bridge is not None and seen.bridge is not None:
        host, bridge = seen.host, seen.bridge
        yield host.name, seen._replace(host=host._replace(master=0))
        yield host.name, seen._replace(host=host._replace(master=6))
        yield "hairpin", seen._replace(host=host._replace(hairpin=not host.hairpin))
        yield "isolation", seen._replace(host=host._replace(isolated=not host.isolated))
        yield "cni0", seen._replace(bridge=bridge._replace(kind="dummy"))
        if network.bridge.promisc:
            yield "promiscuous", seen._replace(bridge=bridge._replace(promisc=False))


@given(network=plans)
def test_what_was_applied_has_no_drift(network: PodNetwork) -> None:
    assert drift(network, network.pod.mac, faithful(network)) == []
    assert drift(network, "", faithful(network)) == []


@given(network=plans)
def test_every_single_loss_is_found_and_named(network: PodNetwork) -> None:
    for word, seen in losses(network, faithful(network)):
        found = drift(network, network.pod.mac, seen)
        assert any(word in sentence for sentence in found), (word, found)


@given(network=plans)
def test_what_others_add_or_change_is_no_drift(network: PodNetwork) -> None:
    """CNI specification, CHECK: chained plugins may add, and the host side's MAC may change."""
    seen = faithful(network)
    assert seen.pod is not None
    assert seen.host is not None
    address: tuple[IPInterface, ...] = (ip_interface("192.0.2.9/32"),)
    route = (RouteState(ip_network("192.0.2.0/24"), None, 100, 253),)
    seen = seen._replace(
        pod=seen.pod._replace(mtu=1300, mac="02:ff:ff:ff:ff:ff", promisc=True),
        host=seen.host._replace(mac="02:ff:ff:ff:ff:fe", mtu=1300, alias="another", promisc=True),
        pod_addresses=seen.pod_addresses + address,
        host_addresses=seen.host_addresses + address,
        bridge_addresses=seen.bridge_addresses + address,
        pod_routes=seen.pod_routes + route,
        host_routes=seen.host_routes + route,
        forwarding=(4, 6),
    )
    if seen.bridge is not None:
        seen = seen._replace(bridge=seen.bridge._replace(mac="02:ff:ff:ff:ff:fd", promisc=True))
    assert drift(network, "02:ff:ff:ff:ff:ff", seen) == []


@given(network=plans)
def test_nothing_there_at_all(network: PodNetwork) -> None:
    found = drift(network, network.pod.mac, Observed(pod=None))
    names = [network.pod.name, network.host.name]
    if network.bridge is not None:
        names.append(network.bridge.name)
    for name in names:
        assert any(name in sentence for sentence in found)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@given(conf=confs, leased=leases)
def test_check_with_the_result_of_the_add_finds_no_drift(
    version: str, conf: NetConf, leased: Result
) -> None:
    """A pod that nobody touched passes CHECK with what its ADD answered.

    Before 1.1.0 a result can't name a route's table or scope; `commands` fills them in, and the
    protocol tests hold it to that.
    """
    if version != "1.1.0":
        leased = leased._replace(routes=tuple(r for r in leased.routes if r[5:] == (None, None)))
    added = datapath.plan(conf, POD, leased)
    applied = Applied("0a:00:00:00:00:01", 1500, 1500)
    reply = results.encode_result(datapath.result(conf, added, "/run/netns/pod", applied), version)
    previous = results.decode_result(Fields(json.loads(reply)), version)
    checked = datapath.plan(conf._replace(prev_result=previous), POD, previous)
    assert drift(checked, previous.interfaces[-1].mac, faithful(added)) == []
    assert checked.host == added.host
    assert checked.bridge == added.bridge
    assert checked.pod.addresses == added.pod.addresses
