"""Services between pods of one bridge: what kube-proxy translates is translated back."""

from __future__ import annotations

import pytest

from tests.support import packetfilter
from tests.support.throughports import INNER, ask, listening

SERVICES = {4: "10.96.0.10", 6: "fd00:96::10"}


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_an_endpoint_beside_the_caller(plugin, node, topology, make_conf, dual, kind):
    """Also where the node's default is that what bridges forward passes no packet filter."""
    packetfilter.bridge_netfilter(node, False)
    client, server = topology.sandbox("client"), topology.sandbox("server")
    conf = make_conf(ipam={"ranges": dual.ranges})
    for pod in (client, server):
        assert plugin.add(conf, pod).ok
    for version, caller, endpoint in zip((4, 6), dual.hosts(2), dual.hosts(3), strict=True):
        _lead(node, SERVICES[version], endpoint)
        with listening(server, version, INNER, kind) as listener:
            assert ask(client, (SERVICES[version], INNER), listener, kind).source == caller


def _lead(node, service, endpoint):
    """As kube-proxy leads callers of a Service's address to its only endpoint."""
    family = "ip6" if ":" in service else "ip"
    packetfilter.nft(
        node,
        f"table {family} services {{ chain prerouting {{",
        "type nat hook prerouting priority dstnat",
        f"{family} daddr {service} dnat to {endpoint}",
        "}; }",
    )
