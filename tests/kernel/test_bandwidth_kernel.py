"""Bandwidth limits in the kernel, by what tc and ip show: made, undone, looked at, refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cni_plugin import shaping
from cni_plugin.kernel import codec, device
from cni_plugin.kernel import shaping as in_kernel
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.shaping import Bandwidth, Limit, Shaping
from cni_plugin.spec import Attachment, CniError, Code
from tests.support.netns import Namespace

POD = Attachment("pod", "eth0")
ALIAS = "podwire podnet pod eth0"
IN, OUT = Limit(20_000_000, 800_000), Limit(100_000_000, 1_600_000)
BOTH = Bandwidth(IN, OUT)
FROM_CONTAINERD = 2**32 - 1  # burst
_MTU_DISCOVER, _DO = 10, 2  # IP_MTU_DISCOVER, IP_PMTUDISC_DO


class Veth:
    """The host's end of a pod's link, and what podwire does to it."""

    def __init__(self, node: Namespace, sandbox: Namespace) -> None:
        self.node, self.sandbox = node, sandbox
        node.run(
            *("ip", "link", "add", "veth0", "up", "type", "veth"),
            *("peer", "name", "eth0", "netns", sandbox.path),
        )
        node.run("ip", "addr", "add", "10.9.0.1/24", "dev", "veth0")
        sandbox.run("ip", "link", "set", "eth0", "up")
        sandbox.run("ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")
        with node.entered():
            self.socket = RouteSocket()

    def limit(self, bandwidth: Bandwidth, undo: ExitStack | None = None) -> Shaping:
        plan = shaping.plan(bandwidth, "podnet", POD)
        assert plan is not None
        index = device.index(self.socket, "veth0")
        in_kernel.apply(self.socket, index, plan, ALIAS, undo or ExitStack())
        return plan

    def drift(self, plan: Shaping) -> list[str]:
        return list(shaping.drift(plan, in_kernel.observe(self.socket, "veth0", plan.ifb)))

    def echo(self, payload: int, count: int = 3) -> None:
        """UDP datagrams of this size, never cut, from the pod to the node and back."""
        with (
            self.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
            self.sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        ):
            for one in (far, near):
                one.settimeout(3)
                one.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _DO)
            far.bind(("10.9.0.1", 0))
            for number in range(count):
                near.sendto(bytes([number]) * payload, far.getsockname())
                data, source = far.recvfrom(1 << 16)
                far.sendto(data, source)
                assert near.recv(1 << 16) == bytes([number]) * payload

    def tc(self, *argv: str) -> list[Any]:
        return json.loads(self.node.run("tc", "-j", "-s", *argv).stdout or "[]")

    def bucket(self, link: str) -> Any:
        """Options of the token bucket that is the link's queue; None when it has none."""
        found = [q for q in self.tc("qdisc", "show", "dev", link) if q["kind"] == "tbf"]
        assert all(qdisc["root"] for qdisc in found)
        return found[0]["options"] if found else None

    def filters(self) -> list[Any]:
        shown = self.node.run("tc", "-j", "filter", "show", "dev", "veth0", "parent", "ffff:")
        return [entry["options"] for entry in json.loads(shown.stdout) if "actions" in str(entry)]

    def state(self) -> Any:
        """Links, queues and filters, without what only counts."""
        queues = self.node.run("tc", "qdisc", "show").stdout
        filters = self.node.run("tc", "filter", "show", "dev", "veth0", "parent", "ffff:").stdout
        return sorted(self.node.links()), sorted(queues.splitlines()), filters


@pytest.fixture
def veth(node: Namespace, sandbox: Namespace) -> Iterator[Veth]:
    made = Veth(node, sandbox)
    yield made
    made.socket.close()


# --- what is made -----------------------------------------------------------------------------


def test_both_directions(veth: Veth) -> None:
    plan = veth.limit(BOTH)
    assert veth.bucket("veth0") == {"rate": 2_500_000, "burst": 100_000, "lat": 25_000}
    assert veth.bucket(plan.ifb) == {"rate": 12_500_000, "burst": 200_000, "lat": 25_000}
    [redirect] = veth.filters()
    assert redirect["match"] == {"value": "0", "mask": "0", "offmask": "", "off": 0}
    [action] = redirect["actions"]
    wanted = {"kind": "mirred", "mirred_action": "redirect", "direction": "egress"}
    assert {key: action[key] for key in wanted} == wanted
    assert action["to_dev"] == plan.ifb
    assert veth.drift(plan) == []


def test_the_ifb(veth: Veth) -> None:
    veth.node.run("ip", "link", "set", "veth0", "mtu", "1400")
    plan = veth.limit(Bandwidth(egress=OUT))
    link = veth.node.links()[plan.ifb]
    assert link["linkinfo"]["info_kind"] == "ifb"
    assert (link["ifalias"], link["mtu"]) == (ALIAS, 1400)
    assert (link["num_tx_queues"], link["num_rx_queues"]) == (1, 1)
    assert "UP" in link["flags"]
    assert veth.node.ip("addr", "show", "dev", plan.ifb)[0]["addr_info"] == []
    assert veth.bucket("veth0") is None
    assert veth.drift(plan) == []


def test_traffic_to_the_pod_alone_needs_no_ifb(veth: Veth) -> None:
    before = sorted(veth.node.links())
    plan = veth.limit(Bandwidth(ingress=IN))
    assert sorted(veth.node.links()) == before
    assert [queue["kind"] for queue in veth.tc("qdisc", "show", "dev", "veth0")] == ["tbf"]
    assert veth.drift(plan) == []


def test_a_veth_that_is_still_down(veth: Veth) -> None:
    veth.node.run("ip", "link", "set", "veth0", "down")
    plan = veth.limit(BOTH)
    veth.node.run("ip", "link", "set", "veth0", "up")
    assert veth.bucket("veth0")["rate"] == 2_500_000
    assert veth.drift(plan) == []
    veth.echo(100)


@pytest.mark.parametrize(
    "limit",
    [
        Limit(1_000_000, FROM_CONTAINERD),
        Limit(10_000_000_000, FROM_CONTAINERD),
        Limit(8, 8),
        Limit(8, 2**35 - 9),
        Limit(2**35 + 8, 800_000),
        Limit(2**64 - 1, 2**35 - 9),
    ],
)
def test_numbers_at_the_edges(veth: Veth, limit: Limit) -> None:
    plan = veth.limit(Bandwidth(limit, limit))
    assert veth.bucket("veth0")["rate"] == veth.bucket(plan.ifb)["rate"] == limit.rate // 8
    assert veth.drift(plan) == []


def test_a_burst_below_a_packet_lets_packets_pass(veth: Veth) -> None:
    veth.limit(Bandwidth(Limit(1_000_000, 80), Limit(1_000_000, 80)))
    veth.echo(1472)


def test_an_mtu_that_grows(veth: Veth) -> None:
    plan = veth.limit(BOTH)
    veth.node.run("ip", "link", "set", "veth0", "mtu", "9000")
    veth.sandbox.run("ip", "link", "set", "eth0", "mtu", "9000")
    veth.echo(8972)
    assert veth.bucket(plan.ifb) is not None
    [queue] = [q for q in veth.tc("qdisc", "show", "dev", plan.ifb) if q["kind"] == "tbf"]
    assert queue["bytes"] > 3 * 8972
    assert queue["drops"] == 0


# --- undone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [BOTH, Bandwidth(IN), Bandwidth(egress=OUT)])
def test_undone_it_was_never_there(veth: Veth, bandwidth: Bandwidth) -> None:
    before = veth.state()
    with ExitStack() as undo:
        veth.limit(bandwidth, undo)
        assert veth.state() != before
    assert veth.state() == before


def test_undoing_takes_nobody_elses_queue(veth: Veth) -> None:
    veth.node.run("tc", "qdisc", "add", "dev", "veth0", "ingress")
    before = veth.state()
    with ExitStack() as undo:
        veth.limit(Bandwidth(ingress=IN), undo)
    assert veth.state() == before


def test_undone_when_the_veth_has_gone(veth: Veth) -> None:
    with ExitStack() as undo:
        plan = veth.limit(BOTH, undo)
        veth.node.run("ip", "link", "del", "veth0")
    assert plan.ifb not in veth.node.links()


@pytest.mark.parametrize(
    ("kind", "other", "module"),
    [
        (b"ifb\0", b"ifx\0", "ifb"),
        (b"ingress\0", b"ingresx\0", "sch_ingress"),
        (b"tbf\0", b"tbx\0", "sch_tbf"),
        (b"u32\0", b"u3x\0", "cls_u32"),
        (b"mirred\0", b"mirrex\0", "act_mirred"),
    ],
)
def test_a_kernel_without_the_module(
    veth: Veth, monkeypatch: pytest.MonkeyPatch, kind: bytes, other: bytes, module: str
) -> None:
    """The kernel is asked for a kind that it can't know."""
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda *of: encode(*of).replace(kind, other))
    before = veth.state()
    with pytest.raises(CniError) as refused, ExitStack() as undo:
        veth.limit(BOTH, undo)
    assert refused.value.code == Code.KERNEL_REFUSED
    assert f"the kernel lacks {module}:" in refused.value.details
    assert veth.state() == before


@pytest.mark.parametrize("queue", [("ingress",), ("clsact",), ("root", "handle", "1:", "pfifo")])
def test_anothers_queue_is_left_alone(veth: Veth, queue: tuple[str, ...]) -> None:
    veth.node.run("tc", "qdisc", "add", "dev", "veth0", *queue)
    before = veth.state()
    with pytest.raises(CniError) as refused, ExitStack() as undo:
        veth.limit(BOTH, undo)
    assert refused.value.code == Code.KERNEL_REFUSED
    assert "veth0" in refused.value.msg
    assert veth.state() == before


def test_an_ifb_that_is_there_is_left_alone(veth: Veth) -> None:
    ifb = veth.limit(Bandwidth(egress=OUT)).ifb
    before = veth.state()
    with pytest.raises(CniError) as refused, ExitStack() as undo:
        veth.limit(BOTH, undo)
    assert refused.value.code == Code.INTERFACE_EXISTS
    assert ifb in refused.value.msg
    assert veth.state() == before


def test_a_veth_that_is_not_there(veth: Veth) -> None:
    plan = shaping.plan(BOTH, "podnet", POD)
    with pytest.raises(CniError) as refused:
        in_kernel.apply(veth.socket, 99999, plan, ALIAS, ExitStack())
    assert refused.value.code == Code.KERNEL_REFUSED


# --- CHECK ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("tc qdisc del dev veth0 root", ["the bandwidth limit on veth0 is missing"]),
        (
            "tc qdisc change dev veth0 root tbf rate 8mbit burst 100kb latency 25ms",
            ["the bandwidth limit on veth0 is 8000000 bit/s, expected 20000000"],
        ),
        (
            "tc qdisc change dev IFB root tbf rate 100mbit burst 100kb latency 25ms",
            ["the burst or the queue on IFB is not that of 1600000 bits"],
        ),
        (
            "tc qdisc change dev IFB root tbf rate 100mbit burst 200000b limit 100000b",
            ["the burst or the queue on IFB is not that of 1600000 bits"],
        ),
        (
            "ip link del IFB",
            ["the device IFB that limits traffic from the pod does not exist"],
        ),
        ("ip link set IFB down", ["the device IFB that limits traffic from the pod is down"]),
        (
            "tc filter del dev veth0 parent ffff:",
            ["traffic from the pod is not led from veth0 to IFB"],
        ),
        ("tc qdisc del dev veth0 ingress", ["traffic from the pod is not led from veth0 to IFB"]),
        (
            "tc qdisc replace dev IFB root handle 9: pfifo",
            ["the bandwidth limit on IFB is missing"],
        ),
    ],
)
def test_what_others_changed_is_told(veth: Veth, change: str, words: list[str]) -> None:
    plan = veth.limit(BOTH)
    veth.node.run(*change.replace("IFB", plan.ifb).split())
    assert veth.drift(plan) == [text.replace("IFB", plan.ifb) for text in words]


def test_what_others_added_is_none(veth: Veth) -> None:
    plan = veth.limit(BOTH)
    match = ("match", "ip", "dst", "192.0.2.0/24", "flowid", "1:1")
    rule = ("prio", "7", "protocol", "ip", "u32", *match)
    veth.node.run("tc", "filter", "add", "dev", "veth0", "parent", "ffff:", *rule)
    assert veth.drift(plan) == []


def test_nothing_there_at_all(veth: Veth) -> None:
    plan = shaping.plan(BOTH, "podnet", POD)
    assert plan is not None
    assert len(veth.drift(plan)) == 2
    veth.node.run("ip", "link", "del", "veth0")
    assert veth.drift(plan) == []
