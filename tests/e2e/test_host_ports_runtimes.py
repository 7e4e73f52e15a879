"""Host ports, limits and DNS as real runtimes ask for them, with podwire alone in the chain."""

from __future__ import annotations

import contextlib
import json
import os

import pytest

from tests.support import require
from tests.support.outside import PAGE, Outside
from tests.support.podman import Podman

PORTS = {"portMappings": True}
LIMITS = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "4M"}
CONF = os.path.join(os.path.dirname(__file__), "..", "..", "conf", "87-podwire-podman.conflist")


@pytest.fixture
def outside(machine):
    return Outside(machine)


@pytest.fixture
def left(machine):
    """left() is what the machine still has of pods: elements, records, links."""

    def look():
        listed = machine.run("nft", "-j", "list", "ruleset").stdout
        sets = [entry.get("map") or entry.get("set") for entry in json.loads(listed)["nftables"]]
        records = "cd /run/podwire && find . -path '*/ports/*' ! -name '.*'"
        return {
            "elements": [found["name"] for found in filter(None, sets) if _has_ports(found)],
            "records": machine.run("sh", "-c", records).stdout.split(),
            "links": [*set(machine.pod_links()) - {"eth0"}, *_ifbs(machine)],
        }

    return look


NOTHING = {"elements": [], "records": [], "links": []}


def _has_ports(found):
    return "ports" in found["name"] and bool(found.get("elem"))


def _ifbs(machine):
    shown = machine.run("ip", "-j", "link", "show", "type", "ifb").stdout
    return [link["ifname"] for link in json.loads(shown or "[]") if link]


# --- containerd ---------------------------------------------------------------------------------


@pytest.fixture(params=["containerd", "containerd 2"])
def containerd(request, machine, go_plugins):
    """A running containerd with podwire, and the Go loopback that containerd calls by itself."""
    require.programs("containerd", "ctr", "runc", "busybox")
    require.modules("grpc", "google.protobuf")
    from tests.support.containerd import Containerd

    programs = "" if request.param == "containerd" else require.newer() + "/usr/bin"
    with contextlib.closing(Containerd(machine, go_plugins("loopback"), programs)) as daemon:
        yield daemon


def test_a_host_port_of_a_pod(containerd, network, machine, outside, left):
    containerd.configure(network("1.0.0", ipMasq=True, capabilities=PORTS))
    pod = containerd.cri.run_pod("web", host_ports={18080: 80})
    shell = pod.start("web", "sleep", "1000")
    assert outside.asks(18080) == ""
    assert shell.run(*PAGE)[0] == 0
    outside.wait_for_answers(18080)
    assert left()["elements"] == ["host_ports"]
    # Who holds the port, the port's own, and the link that carries packets of 127.0.0.1.
    assert len(left()["records"]) == 3
    pod.stop()
    assert outside.asks(18080) == ""
    pod.remove()
    assert left() == NOTHING


def test_a_port_of_another_pod_is_refused(containerd, network, left):
    """With podwire's own words, which `kubectl describe` shows."""
    import grpc

    containerd.configure(network("1.0.0", capabilities=PORTS))
    pod = containerd.cri.run_pod("web", host_ports={18080: 80})
    with pytest.raises(grpc.RpcError) as refused:
        containerd.cri.run_pod("other", host_ports={18080: 80})
    assert "host port 0.0.0.0:18080/tcp is held by container" in refused.value.details()
    assert pod.id in refused.value.details()
    pod.stop()
    pod.remove()
    assert left() == NOTHING


def test_limits_of_a_pod(containerd, network, machine, left):
    """The kubelet hands annotations on: 8 Mbit/s to the pod, 4 Mbit/s from it."""
    containerd.configure(network("1.0.0", capabilities={**PORTS, "bandwidth": True}))
    free = containerd.cri.run_pod("free")
    (free_link,) = machine.pod_links()
    pod = containerd.cri.run_pod("slow", host_ports={18080: 80}, annotations=LIMITS)
    (link,) = set(machine.pod_links()) - {free_link}
    (ifb,) = _ifbs(machine)
    assert {name: _rate(machine, name) for name in (link, ifb, free_link)} == {
        link: 8_000_000,
        ifb: 4_000_000,
        free_link: None,
    }
    for each in (free, pod):
        each.stop()
        each.remove()
    assert left() == NOTHING


def _rate(machine, link):
    """The rate of the link's token bucket in bits/s; None when it has none."""
    shown = json.loads(machine.run("tc", "-j", "qdisc", "show", "dev", link).stdout)
    rates = [qdisc["options"]["rate"] * 8 for qdisc in shown if qdisc["kind"] == "tbf"]
    return rates[0] if rates else None


def test_the_dns_of_a_pod(containerd, network, machine, left):
    """The sandbox's DNS, with the capability, is the result's; without it the network's own."""
    asked = {
        "servers": ["10.96.0.10"],
        "searches": ["default.svc.cluster.local", "svc.cluster.local"],
        "options": ["ndots:5"],
    }
    own = {"nameservers": ["192.0.2.53"]}
    found = {}
    for capable in (True, False):
        containerd.configure(network("1.0.0", dns=own, capabilities={"dns": capable}))
        pod = containerd.cri.run_pod("web", dns_config=asked)
        found[capable] = _result(machine, pod.id)["dns"]
        pod.stop()
        pod.remove()
    assert found[True] == {
        "nameservers": asked["servers"],
        "search": asked["searches"],
        "options": asked["options"],
    }
    assert found[False] == own
    assert left() == NOTHING


def _result(machine, container_id):
    """The result that libcni remembers of the container's ADD."""
    command = f"cat /var/lib/cni/results/podnet-{container_id}-eth0"
    return json.loads(machine.run("sh", "-c", command).stdout)["result"]


# --- podman -------------------------------------------------------------------------------------


def test_a_host_port_of_podman(machine, plugins, network, outside, left):
    podman = Podman(machine, plugins, network("1.0.0", ipMasq=True, capabilities=PORTS))
    podman.start("web", "-p", "8080:80")
    podman.call("exec", "web", *PAGE)
    outside.wait_for_answers(8080)
    podman.call("rm", "--force", "--time", "0", "web")
    assert outside.asks(8080) == ""
    assert left() == NOTHING


def second_network(network):
    """net2, which has a bridge and addresses of its own, and no default route."""
    ipam = {"ranges": [[{"subnet": "10.245.0.0/24"}]]}
    keys = {"bridge": "cni1", "ipMasq": True, "capabilities": PORTS, "ipam": ipam}
    conflist = network("1.0.0", isDefaultGateway=None, isGateway=True, **keys)
    return {**conflist, "name": "net2"}


def test_a_container_on_two_networks_with_a_host_port(machine, plugins, network, outside, left):
    """podman gives each network all ports, and attaches them in an order of its own.

    Disconnected from the first, the ports lead to the second.
    """
    first = network("1.0.0", ipMasq=True, capabilities=PORTS)
    podman = Podman(machine, plugins, first, second_network(network))
    podman.start("web", "--network", "podnet,net2", "-p", "8080:80")
    addresses = {name: podman.address("web", name) for name in ("podnet", "net2")}
    assert addresses == {"podnet": "10.244.0.2", "net2": "10.245.0.2"}
    podman.call("exec", "web", *PAGE)
    outside.wait_for_answers(8080)
    (led_to,) = _pods(machine)
    (leads_to,) = set(addresses.values()) - {led_to}
    (gone,) = (name for name, address in addresses.items() if address == led_to)
    podman.call("network", "disconnect", gone, "web")
    assert _pods(machine) == {leads_to}
    way_out = ("ip", "route", "replace", "default", "via", leads_to.removesuffix("2") + "1")
    podman.call("exec", "--privileged", "web", *way_out)
    outside.wait_for_answers(8080)
    podman.call("rm", "--force", "--time", "0", "web")
    assert left() == NOTHING


def _pods(machine):
    """The addresses that host ports lead to."""
    shown = machine.run("nft", "-j", "list", "map", "ip", "podwire", "host_ports").stdout
    maps = [entry["map"] for entry in json.loads(shown)["nftables"] if "map" in entry]
    return {target["concat"][0] for found in maps for _, target in found.get("elem", [])}


@pytest.fixture
def shipped(machine):
    """The conflist for podman that is delivered, under the name of podman's default network here,
    with its reservations on the machine."""
    with open(CONF) as f:
        conflist = json.load(f)
    conflist["plugins"][0]["ipam"]["dataDir"] = machine.path("networks")
    return {**conflist, "name": "podnet"}


@pytest.mark.parametrize("address", ["", "10.87.0.77"])
def test_the_conflist_for_podman(machine, plugins, shipped, outside, left, address):
    """podman takes the first plugin's capabilities away when an address is asked for."""
    podman = Podman(machine, plugins, shipped)
    podman.start("web", "-p", "8080:80", *(("--ip", address) if address else ()))
    assert podman.address("web") == (address or "10.87.0.2")
    podman.call("exec", "web", *PAGE)
    outside.wait_for_answers(8080)
    assert len(plugins.calls("podwire", "ADD")) == 2
    podman.call("rm", "--force", "--time", "0", "web")
    assert left() == NOTHING


def test_two_containers_by_the_conflist_for_podman(machine, plugins, shipped, outside, left):
    """They reach each other, each other's host ports, and the world with the machine's address."""
    podman = Podman(machine, plugins, shipped)
    podman.start("web", "-p", "8080:80")
    podman.start("client", "--ip", "10.87.0.99")
    podman.call("exec", "web", *PAGE)
    outside.wait_for_answers(8080)
    for target in (f"{podman.address('web')} 80", "192.168.1.2 8080"):
        ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {target}"
        for name in ("client", "web"):
            assert "hello" in podman.call("exec", name, "sh", "-c", ask)
    podman.call("exec", "client", "ping", "-c1", "-W3", "192.168.1.9")
    podman.call("rm", "--force", "--time", "0", "web", "client")
    assert left() == NOTHING
