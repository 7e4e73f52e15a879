"""The plan of a pod's network: names, addresses, routes, result."""

from __future__ import annotations

from ipaddress import (
    IPv4Interface,
    IPv6Interface,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cni_plugin import datapath, names
from cni_plugin.crossnode import CrossNode
from cni_plugin.datapath import Applied
from cni_plugin.hostports import PortOptions
from cni_plugin.names import alias, alias_prefix, host_veth_name
from cni_plugin.netconf import NetConf
from cni_plugin.shaping import Bandwidth
from cni_plugin.spec import (
    DNS,
    Attachment,
    CniError,
    Code,
    Interface,
    IPConfig,
    Result,
    Route,
)
from tests.unit import strategies

POD = Attachment("ctr", "eth0")
NETNS = "/run/netns/pod"
V4 = IPConfig(ip_interface("10.244.0.5/24"), ip_address("10.244.0.1"))
V6 = IPConfig(ip_interface("fd00:10::5/64"), ip_address("fd00:10::1"))
DEFAULT_4 = Route(ip_network("0.0.0.0/0"), ip_address("10.244.0.1"))
DEFAULT_6 = Route(ip_network("::/0"), ip_address("fd00:10::1"))


def conf(**changes: Any) -> NetConf:
    """A bridge that is the default gateway, with changes."""
    base = NetConf(
        network="podnet",
        mode="bridge",
        bridge="cni0",
        is_gateway=True,
        is_default_gateway=True,
        force_address=False,
        hairpin=False,
        promisc=False,
        port_isolation=False,
        enable_dad=False,
        mtu=0,
        mac="",
        dns=None,
        ipam_type="host-local",
        nodes="",
        ip_masq=False,
        non_masquerade=(),
        ingress_policy="open",
        accept_forwarding=True,
        node_name="",
        cross_node=CrossNode(),
        bandwidth=Bandwidth(),
        ports=PortOptions((), True, 13),
        maps_ports=False,
        prev_result=None,
        chained=False,
    )
    return base._replace(**changes)


def plan(*ips: IPConfig, routes: tuple[Route, ...] = (), **changes: Any) -> datapath.PodNetwork:
    return datapath.plan(conf(**changes), POD, Result(ips=ips, routes=routes))


# --- names --------------------------------------------------------------------------------------


@given(network=strategies.networks, attachment=strategies.attachments)
@example(network="n" * 200, attachment=Attachment("c" * 300, "é" * 7))
def test_the_host_veths_name_fits_and_is_the_same_every_time(
    network: str, attachment: Attachment
) -> None:
    name = host_veth_name(network, attachment)
    assert 1 <= len(name.encode()) <= 15
    assert name.isascii()
    assert not set(name) & set("/:% ")
    assert name == host_veth_name(str(network), Attachment(*attachment))


def test_the_host_veths_name_is_a_promise() -> None:
    """It may never change: after an upgrade, DEL has to find what the older version made."""
    assert host_veth_name("podnet", POD) == "veth30d82df861a"


keys = st.tuples(strategies.networks, strategies.attachments)


@given(one=keys, other=keys)
@example(one=("a", Attachment("b", "eth0")), other=("ab", Attachment("b", "eth0")))
@example(one=("a", Attachment("ab", "eth0")), other=("aa", Attachment("b", "eth0")))
@example(one=("a", Attachment("a", "beth0")), other=("a", Attachment("ab", "eth0")))
@example(one=("n" * 97, Attachment("c", "e")), other=("n" * 98, Attachment("c", "e")))
@example(one=("n", Attachment("c" * 299, "e")), other=("n", Attachment("c" * 300, "e")))
def test_distinct_attachments_have_distinct_names(
    one: tuple[str, Attachment], other: tuple[str, Attachment]
) -> None:
    assume(one != other)
    assert host_veth_name(*one) != host_veth_name(*other)
    assert alias(*one) != alias(*other)


@given(network=strategies.networks, ids=st.sets(strategies.container_ids, min_size=2, max_size=8))
def test_long_ids_with_a_common_start_stay_distinct(network: str, ids: set[str]) -> None:
    start = "c" * 250
    names = {alias(network, Attachment(start + container_id, "é" * 7)) for container_id in ids}
    assert len(names) == len(ids)


@given(network=strategies.networks, attachment=strategies.attachments)
@example(network="n" * 200, attachment=Attachment("c" * 300, "é" * 7))
def test_an_alias_fits_and_begins_with_the_networks_prefix(
    network: str, attachment: Attachment
) -> None:
    text = alias(network, attachment)
    assert len(text.encode()) <= 255  # IFALIASZ - 1
    assert text.startswith(alias_prefix(network))
    assert text.endswith(f" {attachment.ifname}")


@given(one=strategies.networks, key=keys)
@example(one="a", key=("ab", POD))
@example(one="a", key=("a.b", POD))
@example(one="n" * 96, key=("n" * 97, POD))
@example(one="n" * 97, key=("n" * 98, POD))
def test_no_networks_prefix_begins_another_networks_alias(
    one: str, key: tuple[str, Attachment]
) -> None:
    assume(one != key[0])
    assert not alias(*key).startswith(alias_prefix(one))


def test_an_alias_is_readable() -> None:
    assert alias("podnet", POD) == "podwire podnet ctr eth0"


@given(
    network=strategies.identifiers(96),
    attachment=st.builds(Attachment, strategies.identifiers(64), strategies.ifnames),
)
def test_the_attachment_is_read_back_from_an_alias(network: str, attachment: Attachment) -> None:
    assert names.attachment_of(alias(network, attachment)) == attachment


# --- MAC addresses ------------------------------------------------------------------------------


def test_the_pods_mac_is_the_one_asked_for() -> None:
    assert plan(V4, mac="02:00:00:00:00:01").pod.mac == "02:00:00:00:00:01"


def test_the_pods_mac_follows_its_ipv4_address() -> None:
    assert plan(V4).pod.mac == plan(V6, V4).pod.mac == "0a:58:0a:f4:00:05"


@given(key=keys, leases=st.sampled_from([(), (V4,), (V6,), (V4, V6)]))
def test_derived_macs_are_local_unicast_and_stay(
    key: tuple[str, Attachment], leases: tuple[IPConfig, ...]
) -> None:
    network, attachment = key
    made = datapath.plan(conf(network=network), attachment, Result(ips=leases))
    again = datapath.plan(conf(network=network), attachment, Result(ips=leases))
    assert made == again
    for mac in (made.pod.mac, made.host.mac):
        first = int(mac[:2], 16)
        assert len(mac) == 17
        assert first & 2
        assert not first & 1
    assert made.pod.mac != made.host.mac


# --- mode bridge --------------------------------------------------------------------------------


def test_a_pod_on_a_bridge() -> None:
    made = plan(V4)
    assert made.bridge == datapath.Bridge(
        name="cni0",
        mtu=0,
        promisc=False,
        gateways=(IPv4Interface("10.244.0.1/24"),),
        siblings=(),
        force_address=False,
    )
    assert made.host.addresses == ()
    assert made.host.routes == ()
    assert made.pod == datapath.PodLink(
        name="eth0",
        mac="0a:58:0a:f4:00:05",
        addresses=(IPv4Interface("10.244.0.5/24"),),
        routes=(DEFAULT_4,),
    )
    assert made.forwarding == (4,)
    assert made.leases == Result(ips=(V4,), routes=(DEFAULT_4,))


def test_dual_stack() -> None:
    made = plan(V4, V6)
    assert made.bridge is not None
    assert made.bridge.gateways == (IPv4Interface("10.244.0.1/24"), IPv6Interface("fd00:10::1/64"))
    assert made.pod.addresses == (V4.address, V6.address)
    assert made.pod.routes == (DEFAULT_4, DEFAULT_6)
    assert made.forwarding == (4, 6)


def test_one_default_route_for_each_family() -> None:
    second = IPConfig(ip_interface("10.9.0.5/24"), ip_address("10.9.0.1"))
    made = plan(V4, second, V6)
    assert made.pod.routes == (DEFAULT_4, DEFAULT_6)
    assert made.bridge is not None
    assert len(made.bridge.gateways) == 3


def test_ipams_default_route_is_not_doubled() -> None:
    own = Route(ip_network("0.0.0.0/0"), ip_address("10.244.0.99"))
    assert plan(V4, V6, routes=(own,)).pod.routes == (own, DEFAULT_6)


def test_without_a_gateway_nothing_is_routed() -> None:
    made = plan(V4, is_gateway=False, is_default_gateway=False)
    assert made.bridge is not None
    assert made.bridge.gateways == ()
    assert made.pod.routes == ()
    assert made.forwarding == ()


def test_a_gateway_without_a_default_route() -> None:
    made = plan(V4, is_default_gateway=False)
    assert made.bridge is not None
    assert made.bridge.gateways == (IPv4Interface("10.244.0.1/24"),)
    assert made.pod.routes == ()


def test_a_gateway_is_the_networks_first_address_where_ipam_names_none() -> None:
    made = plan(V4._replace(gateway=None), V6._replace(gateway=None))
    assert made.bridge is not None
    assert made.bridge.gateways == (IPv4Interface("10.244.0.1/24"), IPv6Interface("fd00:10::1/64"))
    assert [ip.gateway for ip in made.leases.ips] == [V4.gateway, V6.gateway]


@pytest.mark.parametrize(
    "address", ["10.244.0.5/32", "10.244.0.4/31", "fd00::5/128", "fd00::4/127"]
)
def test_no_room_for_a_gateway(address: str) -> None:
    with pytest.raises(CniError) as caught:
        plan(IPConfig(ip_interface(address)))
    assert caught.value.code == Code.INVALID_CONFIG
    assert address in caught.value.msg


def test_a_gateway_of_the_other_family() -> None:
    with pytest.raises(CniError) as caught:
        plan(V4._replace(gateway=V6.gateway))
    assert caught.value.code == Code.INVALID_CONFIG


def test_a_route_without_a_gateway_goes_through_its_familys_first() -> None:
    routes = (Route(ip_network("10.9.0.0/16")), Route(ip_network("fd09::/16"), mtu=1400))
    made = plan(V4, V6, routes=routes, is_default_gateway=False)
    assert made.pod.routes == (
        routes[0]._replace(gw=V4.gateway),
        routes[1]._replace(gw=V6.gateway),
    )
    assert made.leases.routes == routes, "the runtime is told what was configured"


def test_a_route_whose_scope_is_the_link_needs_no_gateway() -> None:
    route = Route(ip_network("10.9.0.0/16"), scope=datapath.SCOPE_LINK)
    assert plan(V4, routes=(route,), is_default_gateway=False).pod.routes == (route,)


def test_the_bridge_knows_the_gateways_of_other_pods() -> None:
    siblings = (IPv4Interface("10.244.9.1/24"),)
    made = datapath.plan(conf(), POD, Result(ips=(V4,)), siblings)
    assert made.bridge is not None
    assert made.bridge.siblings == siblings
    assert made.bridge.gateways == (IPv4Interface("10.244.0.1/24"),)


def test_a_gateway_outside_the_pods_network_is_reached_first() -> None:
    made = plan(IPConfig(ip_interface("10.244.0.5/32"), ip_address("10.244.0.1")))
    assert made.pod.routes == (
        Route(ip_network("10.244.0.1/32"), scope=datapath.SCOPE_LINK),
        DEFAULT_4,
    )


def test_layer_two_only() -> None:
    made = plan(ipam_type="", is_gateway=False, is_default_gateway=False)
    assert made.pod.addresses == made.pod.routes == made.forwarding == ()


@pytest.mark.parametrize("mtu", [68, 1279])
def test_ipv6_needs_1280_bytes(mtu: int) -> None:
    assert plan(V4, mtu=mtu).mtu == mtu
    with pytest.raises(CniError) as caught:
        plan(V4, V6, mtu=mtu)
    assert caught.value.code == Code.INVALID_CONFIG
    assert plan(V4, V6, mtu=1280).mtu == 1280


def test_options_reach_their_link() -> None:
    made = plan(
        V4, hairpin=True, port_isolation=True, enable_dad=True, force_address=True, mtu=1400
    )
    assert (made.host.hairpin, made.host.isolated, made.enable_dad) == (True, True, True)
    assert made.bridge is not None
    assert (made.bridge.force_address, made.bridge.mtu, made.mtu) == (True, 1400, 1400)
    promisc = plan(V4, promisc=True).bridge
    assert promisc is not None
    assert promisc.promisc


# --- mode ptp -----------------------------------------------------------------------------------


def test_a_routed_pod() -> None:
    made = plan(V4, V6, mode="ptp")
    assert made.bridge is None
    assert made.host.addresses == (IPv4Interface("10.244.0.1/32"), IPv6Interface("fd00:10::1/128"))
    assert made.host.routes == (ip_network("10.244.0.5/32"), ip_network("fd00:10::5/128"))
    assert made.pod.addresses == (IPv4Interface("10.244.0.5/32"), IPv6Interface("fd00:10::5/128"))
    assert made.pod.routes == (
        Route(ip_network("10.244.0.1/32"), scope=datapath.SCOPE_LINK),
        Route(ip_network("fd00:10::1/128"), scope=datapath.SCOPE_LINK),
        DEFAULT_4,
        DEFAULT_6,
    )
    assert made.forwarding == (4, 6)


def test_two_addresses_behind_one_gateway() -> None:
    second = V4._replace(address=ip_interface("10.244.0.6/24"))
    made = plan(V4, second, mode="ptp")
    assert made.host.addresses == (IPv4Interface("10.244.0.1/32"),)
    assert len(made.pod.routes) == 2


# --- the result ---------------------------------------------------------------------------------

APPLIED = Applied(bridge_mac="0a:00:00:00:00:01", bridge_mtu=1500, mtu=1400)


def result(made: datapath.PodNetwork, **changes: Any) -> Result:
    return datapath.result(conf(**changes), made, NETNS, APPLIED)


def test_the_result_lists_bridge_host_veth_and_pod_link() -> None:
    made = plan(V4, V6)
    assert result(made) == Result(
        interfaces=(
            Interface("cni0", "0a:00:00:00:00:01", mtu=1500),
            Interface(made.host.name, made.host.mac, mtu=1400),
            Interface("eth0", made.pod.mac, NETNS, mtu=1400),
        ),
        ips=(V4._replace(interface=2), V6._replace(interface=2)),
        routes=(DEFAULT_4, DEFAULT_6),
    )


def test_the_result_of_mode_ptp_has_no_bridge() -> None:
    found = result(plan(V4, mode="ptp"), mode="ptp")
    assert [interface.sandbox for interface in found.interfaces] == ["", NETNS]
    assert [ip.interface for ip in found.ips] == [1]


def test_what_earlier_plugins_reported_is_passed_on() -> None:
    earlier = Result(
        interfaces=(Interface("a"), Interface("net0", sandbox=NETNS)),
        ips=(IPConfig(ip_interface("10.1.0.2/24"), None, 1),),
        routes=(Route(ip_network("10.1.0.0/16")),),
        dns=DNS(domain="earlier"),
    )
    found = result(plan(V4), prev_result=earlier)
    assert found.interfaces[:2] == earlier.interfaces
    assert found.ips == (*earlier.ips, V4._replace(interface=4))
    assert found.interfaces[4].name == "eth0"
    assert found.routes == (*earlier.routes, DEFAULT_4)
    assert found.dns == earlier.dns


def test_precedence_of_dns() -> None:
    """The configuration before IPAM before earlier plugins."""
    configured, leased, earlier = DNS(domain="a"), DNS(domain="b"), DNS(domain="c")
    previous = Result(dns=earlier)
    made = plan(V4)
    with_dns = made._replace(leases=made.leases._replace(dns=leased))
    assert result(with_dns, dns=configured, prev_result=previous).dns == configured
    assert result(with_dns, prev_result=previous).dns == leased
    assert result(made, prev_result=previous).dns == earlier
    assert result(made).dns == DNS()
