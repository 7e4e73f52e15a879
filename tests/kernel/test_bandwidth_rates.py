"""Bandwidth limits as traffic feels them: iperf3's rates over five seconds, and the Go plugin's
numbers for the same configuration."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from cni_plugin import names
from cni_plugin.spec import Attachment
from tests.support import netns, require
from tests.support.netns import Namespace

SECONDS = 5
_FRAME = 1514  # bytes
MBIT = 1_000_000
BURST = 400_000  # bits, 50 kB: of no weight over five seconds


class Pod(NamedTuple):
    """A pod and its addresses and gateways, IPv4 before IPv6."""

    sandbox: Namespace
    addresses: list[str]
    gateways: list[str]


@pytest.fixture
def pod(plugin, topology, make_conf, dual) -> Callable[..., Pod]:
    """pod("a", ingressRate=..., ...) is a dual-stack pod with these limits; bursts are BURST."""

    def make(name: str, **rates: int) -> Pod:
        sandbox = topology.sandbox(name)
        limits = {key.replace("Rate", "Burst"): BURST for key in rates} | rates
        conf = make_conf(ipam={"ranges": dual.ranges}, runtimeConfig={"bandwidth": limits})
        ips = plugin.add(conf, sandbox).result["ips"]
        addresses = [ip["address"].split("/")[0] for ip in ips]
        return Pod(sandbox, addresses, [ip["gateway"] for ip in ips])

    return make


class Flow:
    """TCP from one namespace to an address that another has, for five seconds."""

    def __init__(
        self, source: Namespace, target: Namespace, address: str, port: int = 5201
    ) -> None:
        iperf3 = require.program("iperf3")
        self._server = target.popen(
            *(iperf3, "--server", "--one-off", "--bind", address, "--port", str(port)),
            "--forceflush",
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout is not None
        for line in self._server.stdout:
            if "listening" in line:
                break
        self._client = source.popen(
            *(iperf3, "--client", address, "--port", str(port), "--time", str(SECONDS), "--json"),
            stdout=subprocess.PIPE,
        )

        self._frame = _FRAME / (_FRAME - (66 if "." in address else 86))

    def rate(self) -> float:
        """What arrived, in bits per second, with the headers that the limit counts as well: of
        Ethernet, IP and TCP, in full frames."""
        out, _ = self._client.communicate(timeout=60)
        netns.end(self._server)
        assert self._client.returncode == 0, out
        return json.loads(out)["end"]["sum_received"]["bits_per_second"] * self._frame


def within(rate: float, wanted: int) -> bool:
    return 0.9 * wanted <= rate <= 1.1 * wanted


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_rates_to_a_pod(pod, node, family) -> None:
    """Two pods at a time: one's traffic does not count for the other."""
    slow, fast = pod("slow", ingressRate=20 * MBIT), pod("fast", ingressRate=100 * MBIT)
    flows = [Flow(node, p.sandbox, p.addresses[family]) for p in (slow, fast)]
    rates = [flow.rate() for flow in flows]
    assert within(rates[0], 20 * MBIT), rates
    assert within(rates[1], 100 * MBIT), rates


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_rates_from_a_pod(pod, node, family) -> None:
    slow, fast = pod("slow", egressRate=20 * MBIT), pod("fast", egressRate=100 * MBIT)
    gateway = slow.gateways[family]
    flows = [Flow(p.sandbox, node, gateway, port) for p, port in ((slow, 5201), (fast, 5202))]
    rates = [flow.rate() for flow in flows]
    assert within(rates[0], 20 * MBIT), rates
    assert within(rates[1], 100 * MBIT), rates


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_between_two_pods_the_smaller_limit_counts(pod, family) -> None:
    a = pod("a", egressRate=100 * MBIT, ingressRate=20 * MBIT)
    b = pod("b", egressRate=50 * MBIT, ingressRate=60 * MBIT)
    there = Flow(a.sandbox, b.sandbox, b.addresses[family]).rate()
    back = Flow(b.sandbox, a.sandbox, a.addresses[family]).rate()
    assert within(there, 60 * MBIT), (there, back)
    assert within(back, 20 * MBIT), (there, back)


def test_one_direction_alone(pod, node) -> None:
    """The other one is as fast as without."""
    limited = pod("limited", egressRate=20 * MBIT)
    free = Flow(node, limited.sandbox, limited.addresses[0]).rate()
    slow = Flow(limited.sandbox, node, limited.gateways[0]).rate()
    assert within(slow, 20 * MBIT), slow
    assert free > 10 * slow


# --- against the reference ----------------------------------------------------------------------


@pytest.fixture
def go_bandwidth(go_plugin) -> Iterator[Any]:
    yield go_plugin("bandwidth")


def _buckets(node: Namespace, link: str) -> list[Any]:
    shown = json.loads(node.run("tc", "-j", "-s", "qdisc", "show", "dev", link).stdout)
    return [queue["options"] for queue in shown if queue["kind"] == "tbf"]


@pytest.mark.parametrize(
    ("rate", "burst"),
    [
        (1 * MBIT, 800_000),
        (20 * MBIT, 400_000),
        (100 * MBIT, 1_600_001),
        (1000 * MBIT + 7, 2**32 - 1),
        (40_000 * MBIT, 8_000_000),
    ],
)
def test_the_same_numbers_as_the_go_plugin(
    go_bandwidth, plugin, node, topology, make_conf, rate, burst
) -> None:
    limits = {
        "ingressRate": rate,
        "ingressBurst": burst,
        "egressRate": rate // 2,
        "egressBurst": burst,
    }
    ours, theirs = topology.sandbox("ours"), topology.sandbox("theirs")
    plugin.add(make_conf(bandwidth=limits), ours)
    result = plugin.add(make_conf(), theirs).result
    chained = {"cniVersion": "1.0.0", "name": "podnet", "type": "bandwidth"}
    conf = {**chained, "capabilities": {"bandwidth": True}, "runtimeConfig": {"bandwidth": limits}}
    interfaces = go_bandwidth.add(conf, theirs, prev=result).result["interfaces"]
    attachment = Attachment("ours", "eth0")
    try:
        pairs = (
            (names.host_veth_name("podnet", attachment), result["interfaces"][1]["name"]),
            (names.ifb_name("podnet", attachment), interfaces[-1]["name"]),
        )
        for mine, reference in pairs:
            [bucket], [wanted] = _buckets(node, mine), _buckets(node, reference)
            assert bucket["rate"] == wanted["rate"]
            # Both as tc derives them from times, which the Go plugin hands over in microseconds.
            step = max(wanted["rate"] // 10**6, 1)
            assert abs(bucket["burst"] - wanted["burst"]) <= step + wanted["burst"] // 10**6
            assert abs(bucket["lat"] - wanted["lat"]) <= 2
    finally:
        go_bandwidth.delete(conf, theirs)
