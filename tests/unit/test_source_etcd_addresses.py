"""The node's own addresses, as they come and go under a running agent."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from cni_plugin.sources.etcd_addresses import kept

HERE, GONE = ip_address("127.0.0.1"), ip_address("192.0.2.77")
GATEWAY, PODS = ip_address("10.244.1.1"), ip_network("10.244.0.0/16")


def test_an_address_that_is_gone_has_a_successor() -> None:
    assert kept([GONE], lambda: [HERE]) == (HERE,)
    assert kept([GONE], list) == (GONE,), "the link may be down for a moment"
    assert kept([HERE], lambda: [GATEWAY]) == (HERE,)


def test_the_pods_gateway_is_no_successor() -> None:
    assert kept([GONE], lambda: [GATEWAY], [PODS, ip_network("fd00:10::/48")]) == (GONE,)
    assert kept([GONE], lambda: [GATEWAY, HERE], [PODS]) == (HERE,)
