"""Option bandwidth through the plugin: ADD, CHECK, DEL, GC, and what is refused."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import Any

import pytest

from cni_plugin import names
from cni_plugin.spec import Attachment
from tests.support import netns
from tests.support.netns import Namespace

pytestmark = pytest.mark.parametrize("way", ["process", "agent"], indirect=True)

LIMITS = {
    "ingressRate": 20_000_000,
    "ingressBurst": 800_000,
    "egressRate": 100_000_000,
    "egressBurst": 2**32 - 1,  # what containerd sends
}
VETH = names.host_veth_name("podnet", Attachment("pod", "eth0"))
IFB = names.ifb_name("podnet", Attachment("pod", "eth0"))


def queues(node: Namespace) -> dict[str, Any]:
    """The rate of each link that has a token bucket, in bits per second."""
    shown = json.loads(node.run("tc", "-j", "qdisc", "show").stdout)
    return {q["dev"]: q["options"]["rate"] * 8 for q in shown if q["kind"] == "tbf"}


def ifbs(node: Namespace) -> list[str]:
    return [name for name in node.links() if name.startswith("pwi")]


@contextmanager
def all_as_before(node: Namespace, untouched: Any) -> Any:
    with untouched(node):
        yield
    assert queues(node) == {}


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
@pytest.mark.parametrize("runtime", [True, False], ids=["runtimeConfig", "config"])
def test_the_life_of_a_limited_pod(
    plugin, node, sandbox, make_conf, untouched, mode, runtime
) -> None:
    extra = {"runtimeConfig": {"bandwidth": LIMITS}} if runtime else {"bandwidth": LIMITS}
    conf = make_conf(mode=mode, bridge="cni0", **extra)
    other = make_conf(mode=mode)
    plugin.add(other, sandbox, cid="first", ifname="net1")  # makes the bridge
    with all_as_before(node, untouched):
        added = plugin.add(conf, sandbox).result
        assert queues(node) == {VETH: 20_000_000, IFB: 100_000_000}
        assert node.links()[IFB]["ifalias"] == node.links()[VETH]["ifalias"]
        assert plugin.check(conf, sandbox, prev=added).ok
        assert plugin.delete(conf, sandbox, prev=added).ok
        assert plugin.delete(conf, sandbox, prev=added).ok


def test_the_references_own_keys(plugin, node, sandbox, make_conf) -> None:
    plugin.add(make_conf(**LIMITS), sandbox)
    assert queues(node) == {VETH: 20_000_000, IFB: 100_000_000}


def test_a_limit_of_zero_is_none(plugin, node, sandbox, make_conf) -> None:
    conf = make_conf(bandwidth=LIMITS, runtimeConfig={"bandwidth": dict.fromkeys(LIMITS, 0)})
    added = plugin.add(conf, sandbox).result
    assert (queues(node), ifbs(node)) == ({}, [])
    assert plugin.check(conf, sandbox, prev=added).ok


def test_del_without_the_sandbox_and_without_the_limits(
    plugin, node, topology, make_conf, untouched
) -> None:
    plugin.add(make_conf(), topology.sandbox("first"))
    with all_as_before(node, untouched):
        gone = topology.sandbox("pod")
        plugin.add(make_conf(bandwidth=LIMITS), gone)
        gone.delete()
        assert ifbs(node) == [IFB]  # the veth went with the sandbox
        assert plugin.delete(make_conf(), None, cid="pod").ok


def test_del_in_spite_of_limits_that_became_nonsense(plugin, node, sandbox, make_conf) -> None:
    plugin.add(make_conf(bandwidth=LIMITS), sandbox)
    assert plugin.delete(make_conf(bandwidth={"egressRate": "fast"}), sandbox).ok
    assert (queues(node), ifbs(node)) == ({}, [])


def test_check_tells_what_has_changed(plugin, node, sandbox, make_conf) -> None:
    conf = make_conf(bandwidth=LIMITS)
    added = plugin.add(conf, sandbox).result
    node.run("tc", "qdisc", "del", "dev", VETH, "root")
    node.run("ip", "link", "del", IFB)
    error = plugin.check(conf, sandbox, prev=added).error
    assert error["code"] == 107
    assert f"the bandwidth limit on {VETH} is missing" in error["msg"]
    assert f"the device {IFB} that limits traffic from the pod does not exist" in error["msg"]


def test_gc_removes_strays_and_keeps_the_rest(plugin, node, topology, make_conf) -> None:
    conf = make_conf(cniVersion="1.1.0", bandwidth=LIMITS)
    for name in ("pod", "kept", "bare"):
        plugin.add(conf, topology.sandbox(name))
    lost = names.ifb_name("podnet", Attachment("bare", "eth0"))
    node.run("ip", "link", "set", lost, "alias", "")  # as an ADD that was killed may leave it
    other = names.ifb_name("elsewhere", Attachment("pod", "eth0"))
    plugin.add({**conf, "name": "elsewhere"}, topology.sandbox("pod2"), cid="pod")
    assert plugin.gc(conf, [("kept", "eth0")]).ok
    assert sorted(ifbs(node)) == sorted(
        [names.ifb_name("podnet", Attachment("kept", "eth0")), other]
    )
    assert len(queues(node)) == 4


def test_gc_removes_an_ifb_whose_veth_has_gone(plugin, node, topology, make_conf) -> None:
    conf = make_conf(cniVersion="1.1.0", bandwidth=LIMITS)
    sandbox = topology.sandbox("pod")
    plugin.add(conf, sandbox)
    sandbox.delete()
    assert ifbs(node) == [IFB]
    assert plugin.gc(conf, []).ok
    assert ifbs(node) == []


# --- chained ----------------------------------------------------------------------------------


@pytest.fixture
def bridged(go_plugin, node, sandbox, tmp_path) -> Any:
    """A pod of the Go bridge plugin: its result, and how it is deleted."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.3.0.0/24"}]]}
    ipam["dataDir"] = str(tmp_path / "go")
    conf = {"cniVersion": "1.0.0", "name": "podnet", "type": "bridge", "isGateway": True}
    bridge = go_plugin("bridge", "host-local")
    added = bridge.add({**conf, "ipam": ipam}, sandbox).result
    return added, lambda: bridge.delete({**conf, "ipam": ipam}, sandbox)


def test_a_pod_of_another_plugin(plugin, node, sandbox, bridged) -> None:
    made, delete = bridged
    host = made["interfaces"][1]["name"]
    limits = {"runtimeConfig": {"bandwidth": LIMITS}}
    conf = {"cniVersion": "1.0.0", "name": "podnet", "type": "podwire", **limits}
    added = plugin.add(conf, sandbox, prev=made).result
    assert all(added[key] == made[key] for key in ("cniVersion", "interfaces", "ips"))
    assert queues(node) == {host: 20_000_000, IFB: 100_000_000}
    assert plugin.check(conf, sandbox, prev=added).ok
    node.run("tc", "qdisc", "del", "dev", host, "root")
    error = plugin.check(conf, sandbox, prev=added).error
    assert f"the bandwidth limit on {host} is missing" in error["msg"]
    assert plugin.delete(conf, sandbox, prev=added).ok
    assert ifbs(node) == []
    assert host in node.links()  # the other plugin's to delete, and as it was until then
    assert queues(node) == {}
    assert "ingress" not in node.run("tc", "qdisc", "show", "dev", host).stdout
    assert plugin.add(conf, sandbox, prev=made).ok
    assert plugin.delete(conf, "").ok
    assert delete().ok


def test_gc_takes_the_limits_off_another_plugins_link(plugin, node, sandbox, bridged) -> None:
    made, delete = bridged
    conf = {"cniVersion": "1.1.0", "name": "podnet", "type": "podwire", "bandwidth": LIMITS}
    assert plugin.add(conf, sandbox, prev=made).ok
    assert plugin.gc(conf, []).ok
    assert (queues(node), ifbs(node)) == ({}, [])
    assert delete().ok


def test_what_fails_leaves_the_other_plugins_pod_alone(plugin, node, sandbox, bridged) -> None:
    made, _ = bridged
    host = made["interfaces"][1]["name"]
    node.run("tc", "qdisc", "add", "dev", host, "root", "handle", "9:", "pfifo")
    conf = {"cniVersion": "1.0.0", "name": "podnet", "type": "podwire", "bandwidth": LIMITS}
    before = sorted(node.links()), node.run("tc", "qdisc", "show").stdout
    error = plugin.add(conf, sandbox, prev=made).error
    assert error["code"] == 104
    assert host in error["msg"]
    assert (sorted(node.links()), node.run("tc", "qdisc", "show").stdout) == before


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_two_entries_of_a_list_that_limit_the_pod(plugin, sandbox, make_conf, direction) -> None:
    limits = {key: LIMITS[key] for key in (f"{direction}Rate", f"{direction}Burst")}
    conf = make_conf(bandwidth=limits)
    made = plugin.add(conf, sandbox).result
    second = {key: conf[key] for key in conf if key != "ipam"}
    error = plugin.add(second, sandbox, prev=made).error
    assert "leave bandwidth to one of them" in error["details"]
    assert plugin.delete(conf, sandbox).ok


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"ingressRate": 8000}, "bandwidth.ingressBurst"),
        ({"egressBurst": 8000}, "bandwidth.egressRate"),
        ({**LIMITS, "egressRate": -1}, "bandwidth.egressRate"),
        ({**LIMITS, "ingressBurst": 2**35}, "bandwidth.ingressBurst"),
        ({**LIMITS, "ingressRate": "20M"}, "bandwidth.ingressRate"),
        ([LIMITS], "bandwidth"),
        ({**LIMITS, "unshapedSubnets": ["10.0.0.0/8"]}, "bandwidth.unshapedSubnets"),
    ],
)
def test_bad_input_changes_nothing(
    plugin, node, sandbox, make_conf, untouched, limits, field
) -> None:
    with untouched(node, sandbox):
        for conf, path in (
            (make_conf(cniVersion="1.1.0", bandwidth=limits), field),
            (
                make_conf(cniVersion="1.1.0", runtimeConfig={"bandwidth": limits}),
                f"runtimeConfig.{field}",
            ),
        ):
            error = plugin.add(conf, sandbox).error
            assert error["code"] == (2 if "Subnets" in field else 7)
            assert re.match(rf"{re.escape(path)}: ", error["msg"])
            assert plugin.status(conf).error["code"] == error["code"]


def test_many_at_once(plugin, node, topology, make_conf) -> None:
    """Ten pods come and go beside each other; nothing of their limits stays."""
    conf = make_conf(cniVersion="1.1.0", bandwidth=LIMITS)
    sandboxes = [topology.sandbox(f"pod{number}") for number in range(10)]

    def env(sandbox: Namespace) -> dict[str, str | None]:
        return {
            "CNI_CONTAINERID": sandbox.name,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": sandbox.path,
        }

    def all_do(command: str) -> None:
        calls = [plugin.start(command, conf, env(sandbox)) for sandbox in sandboxes]
        for call in calls:
            out, err = call.communicate(timeout=60)
            assert call.returncode == 0, (out, err)

    all_do("ADD")
    assert len(queues(node)) == 20
    all_do("DEL")
    assert (queues(node), ifbs(node)) == ({}, [])
    netns.run([*node.prefix(), "ip", "link", "show", "cni0"])
