"""Runtimes take the network configuration that an agent writes, and pass over its mark."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from typing import Any

import pytest

from cni_plugin import conflists
from ipam.inventory import Node, encode
from tests.support import require
from tests.support.cnitool import Cnitool

SUBNETS = tuple(map(ipaddress.ip_network, ("10.244.1.0/24", "fd00:10:244:1::/64")))


@pytest.fixture
def text(machine) -> str:
    """The text for a node of an inventory of one."""
    address = ipaddress.ip_address("192.168.1.2")
    nodes = machine.write("nodes.json", encode([Node("n1", (address,), (), SUBNETS)]).decode())
    template = conflists.default_template()
    template["plugins"][0]["ipam"]["dataDir"] = machine.path("networks")
    return conflists.render(template, SUBNETS, nodes, "n1", 1400)


def addresses(found: list[str]) -> list[int]:
    """Of which subnets the addresses are, by number."""
    return sorted(
        number
        for number, subnet in enumerate(SUBNETS)
        for address in found
        if ipaddress.ip_address(address) in subnet
    )


def test_by_cnitool(machine, plugins, cnitool, text):
    document: dict[str, Any] = json.loads(text)
    assert conflists.MARK in document
    cnitool.configure(document)
    pod = cnitool.sandbox("a")
    result = cnitool.add(pod, network="podwire")
    assert addresses([item["address"].partition("/")[0] for item in result["ips"]]) == [0, 1]
    assert {each.get("mtu") for each in result["interfaces"]} <= {None, 1400}
    for command in ("check", "del"):
        cnitool.call(command, "podwire", pod)


@pytest.fixture
def cnitool(machine, plugins):
    return Cnitool(machine, plugins)


@pytest.mark.parametrize("release", ["containerd", "containerd 2"])
def test_by_containerd(machine, go_plugins, plugins, text, release):
    require.modules("grpc", "google.protobuf")
    require.programs("runc", "busybox")
    from tests.support.containerd import Containerd

    programs = require.newer() + "/usr/bin" if release == "containerd 2" else ""
    with contextlib.ExitStack() as stack:
        daemon = Containerd(machine, go_plugins("loopback"), programs)
        stack.callback(daemon.close)
        daemon.configure(json.loads(text))
        pod = daemon.cri.run_pod("a")
        assert addresses(pod.addresses()) == [0, 1]
        pod.stop()
        pod.remove()
        commands = [call.command for call in plugins.calls("podwire", container_id=pod.id)]
        assert commands[0] == "ADD"
        assert set(commands[1:]) == {"DEL"}
