"""The real cnitool drives podwire: what libcni sends, and what it makes of the answers.

cnitool is built on libcni 1.1.2, which knows the specification up to 1.0.0 and neither GC nor
STATUS: those are proved with containerd 2 (test_containerd.py).
"""

from __future__ import annotations

import ipaddress
import json

import pytest

from tests.support import require
from tests.support.cnitool import Cnitool

VERSIONS = ("0.3.1", "0.4.0", "1.0.0")
FAMILIES = {
    "IPv4": ["10.244.0.0/24"],
    "IPv6": ["fd00:10:244::/64"],
    "dual-stack": ["10.244.0.0/24", "fd00:10:244::/64"],
}
CAPABILITIES = {"mac": True, "ips": True, "ipRanges": True}


@pytest.fixture
def cnitool(machine, plugins):
    return Cnitool(machine, plugins)


@pytest.fixture
def ping(machine):
    """ping(sandbox, address) says whether a sandbox gets an echo."""
    busybox = require.program("busybox")

    def send(netns, address):
        family = "-6" if ":" in address else "-4"
        command = ("nsenter", f"--net={netns}", busybox, "ping", family, "-c1", "-W3", address)
        return machine.run(*command, check=False).returncode == 0

    return send


def addresses(result):
    return [ipaddress.ip_interface(item["address"]) for item in result["ips"]]


def ranges(subnets):
    return {"ranges": [[{"subnet": subnet}] for subnet in subnets]}


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_pod_comes_and_goes(cnitool, network, machine, plugins, reservations, version, mode):
    cnitool.configure(network(version, mode=mode))
    pod = cnitool.sandbox("a")
    result = cnitool.add(pod)
    assert result["cniVersion"] == version
    assert {str(item.ip) for item in addresses(result)} == set(reservations())
    if version != "0.3.1":  # CHECK came with 0.4.0
        cnitool.call("check", "podnet", pod)
    for _ in range(2):
        cnitool.call("del", "podnet", pod)
    assert reservations() == {}
    assert machine.pod_links() == []
    commands = [call.command for call in plugins.calls("podwire")]
    assert commands == ["ADD", *(["CHECK"] if version != "0.3.1" else []), "DEL", "DEL"]


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_pods_reach_each_other(cnitool, network, ping, family, mode):
    cnitool.configure(network("1.0.0", mode=mode, ipam=ranges(FAMILIES[family])))
    a, b = cnitool.sandbox("a"), cnitool.sandbox("b")
    of_a, of_b = addresses(cnitool.add(a)), addresses(cnitool.add(b))
    assert len(of_a) == len(FAMILIES[family])
    for mine, other in zip(of_a, of_b, strict=True):
        assert mine.ip != other.ip
        assert ping(a, str(other.ip)), f"{mine} to {other}"
        assert ping(b, str(mine.ip)), f"{other} to {mine}"
    for pod in (a, b):
        cnitool.call("check", "podnet", pod)
        cnitool.call("del", "podnet", pod)


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_a_pod_reaches_its_gateway_and_node(cnitool, network, ping, mode):
    cnitool.configure(network("1.0.0", mode=mode))
    pod = cnitool.sandbox("a")
    gateway = cnitool.add(pod)["ips"][0]["gateway"]
    assert gateway == "10.244.0.1"
    assert ping(pod, gateway)
    cnitool.call("del", "podnet", pod)


def test_check_finds_a_link_that_went_down(cnitool, network, machine):
    cnitool.configure(network("1.0.0"))
    pod = cnitool.sandbox("a")
    cnitool.add(pod)
    machine.run("nsenter", f"--net={pod}", "ip", "addr", "flush", "dev", "eth0")
    refused = cnitool.call("check", "podnet", pod, check=False)
    assert refused.returncode != 0
    assert "10.244.0.2" in refused.stdout + refused.stderr
    cnitool.call("del", "podnet", pod)


def test_runtime_config_mac_and_ips(cnitool, network, machine):
    cnitool.configure(network("1.0.0", capabilities=CAPABILITIES))
    pod = cnitool.sandbox("a")
    asked = {"mac": "02:42:0a:f4:00:09", "ips": ["10.244.0.99/24"]}
    result = cnitool.add(pod, capabilities=asked)
    assert result["ips"][0]["address"] == "10.244.0.99/24"
    links = json.loads(machine.run("nsenter", f"--net={pod}", "ip", "-j", "link").stdout)
    assert {link["ifname"]: link["address"] for link in links}["eth0"] == asked["mac"]
    cnitool.call("check", "podnet", pod, capabilities=asked)
    cnitool.call("del", "podnet", pod, capabilities=asked)


def test_runtime_config_ip_ranges_come_before_the_configured(cnitool, network):
    cnitool.configure(network("1.0.0", capabilities=CAPABILITIES, ipam={"ranges": None}))
    pod = cnitool.sandbox("a")
    asked = {"ipRanges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.50"}]]}
    result = cnitool.add(pod, capabilities=asked)
    assert result["ips"][0]["address"] == "10.99.0.50/24"
    cnitool.call("del", "podnet", pod, capabilities=asked)


def test_cni_args(cnitool, network, machine):
    cnitool.configure(network("1.0.0"))
    pod = cnitool.sandbox("a")
    args = "IgnoreUnknown=1;K8S_POD_NAME=web;SOMETHING=else;IP=10.244.0.77;MAC=02:42:0a:f4:00:4d"
    assert cnitool.add(pod, args=args)["ips"][0]["address"] == "10.244.0.77/24"
    shown = machine.run("nsenter", f"--net={pod}", "ip", "link", "show", "eth0").stdout
    assert "02:42:0a:f4:00:4d" in shown
    cnitool.call("del", "podnet", pod, args=args)


def test_an_unknown_key_of_cni_args_is_refused(cnitool, network, machine, reservations):
    cnitool.configure(network("1.0.0"))
    pod = cnitool.sandbox("a")
    refused = cnitool.call("add", "podnet", pod, args="SOMETHING=else", check=False)
    assert refused.returncode != 0
    assert "SOMETHING" in refused.stdout + refused.stderr
    assert reservations() == {}
    assert machine.pod_links() == []


def test_a_failure_is_told_to_the_user_of_cnitool(cnitool, network, machine, reservations):
    """The message of the error document arrives, and nothing is left."""
    cnitool.configure(network("1.0.0", ipam=ranges(["10.244.0.0/30"])))
    first, second = cnitool.sandbox("a"), cnitool.sandbox("b")
    cnitool.add(first)
    refused = cnitool.call("add", "podnet", second, check=False)
    assert refused.returncode != 0
    assert "10.244.0" in refused.stdout + refused.stderr
    assert list(reservations()) == ["10.244.0.2"]
    assert len(machine.pod_links()) == 1
    cnitool.call("del", "podnet", first)


def test_del_after_the_sandbox_is_gone(cnitool, network, machine, reservations):
    cnitool.configure(network("1.0.0"))
    pod = cnitool.sandbox("a")
    cnitool.add(pod)
    machine.run("ip", "netns", "del", "a")
    cnitool.call("del", "podnet", pod)
    assert reservations() == {}
    assert machine.pod_links() == []
