"""Host ports: conflicts, DEL, GC and CHECK, what becomes of flows, chained use, bad input."""

from __future__ import annotations

import json
import socket
from contextlib import closing

import pytest

from tests.support.netns import wait_until
from tests.support.throughports import (
    INNER,
    NODE,
    PORT,
    answers,
    ask,
    cabled,
    flows,
    listening,
    mapping,
    pods_of,
    send,
    with_ports,
)


@pytest.fixture
def outside(topology):
    return topology.sandbox("outside")


@pytest.fixture
def node(topology, outside):
    return cabled(topology, topology.node("node"), outside)


@pytest.fixture
def conf(make_conf, dual):
    """A dual-stack network."""
    return make_conf(ipam={"ranges": dual.ranges})


def elements(node):
    """What nft shows of the host ports: family, map, comment of each element."""
    listed = json.loads(node.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    found = set()
    for entry in listed:
        held = entry.get("map") or entry.get("set")
        if not held or held["table"] != "podwire" or "ports" not in held["name"]:
            continue
        for element in held.get("elem", []):
            key = element[0] if isinstance(element, list) else element
            found.add((held["family"], held["name"], key["elem"]["comment"]))
    return found


def ruleset(node):
    return node.run("nft", "-s", "list", "ruleset", check=False).stdout


# --- conflicts ----------------------------------------------------------------------------------


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (mapping(), mapping()),
        (mapping(), mapping(ip="192.168.1.2")),
        (mapping(ip="192.168.1.2"), mapping()),
        (mapping(ip="192.168.1.2"), mapping(ip="192.168.1.2", inner=81)),
        (mapping(ip="0.0.0.0"), mapping()),
        (mapping(ip="::"), mapping(ip="fd00:1::2")),
    ],
    ids=str,
)
def test_a_port_that_another_pod_holds_is_refused(
    plugin, node, topology, conf, untouched, held, wanted
):
    first, second = topology.sandbox("first"), topology.sandbox("second")
    assert plugin.add(with_ports(conf, held), first).ok
    before = ruleset(node)
    with untouched(node, second):
        refused = plugin.add(with_ports(conf, mapping(9090), wanted), second)
    assert refused.code == 103
    for word in ("8080/tcp", "container first", "interface eth0", "network podnet"):
        assert word in refused.error["msg"]
    assert ruleset(node) == before
    assert plugin.delete(with_ports(conf, wanted), second).ok  # of the pod that has none
    assert ruleset(node) == before
    assert plugin.delete(conf, first).ok
    assert plugin.add(with_ports(conf, wanted), second).ok


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("held", "free"),
    [
        (mapping(), mapping(8081)),
        (mapping(), mapping(protocol="udp")),
        (mapping(ip="192.168.1.2"), mapping(ip="192.168.1.3")),
        (mapping(ip="0.0.0.0"), mapping(ip="::")),
        (mapping(ip="192.168.1.2"), mapping(ip="::")),
    ],
    ids=str,
)
def test_what_does_not_conflict(plugin, node, topology, conf, held, free):
    assert plugin.add(with_ports(conf, held), topology.sandbox("first")).ok
    assert plugin.add(with_ports(conf, free), topology.sandbox("second")).ok


def on_second_network(conf):
    """Another network's configuration; both networks of a container get the same host ports."""
    ranges = [[{"subnet": "10.245.0.0/24"}], [{"subnet": "fd00:10:245::/64"}]]
    ipam = {**conf["ipam"], "ranges": ranges}
    return {**conf, "name": "net2", "bridge": "br-net2", "isDefaultGateway": False, "ipam": ipam}


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_two_networks_of_a_container_with_the_same_ports(
    plugin, node, outside, sandbox, conf, kind
):
    """The first has them; when it goes they lead to the second, for running UDP clients too."""
    first = with_ports(conf, mapping(protocol=kind))
    second = on_second_network(first)
    made = plugin.add(first, sandbox).result
    made2 = plugin.add(second, sandbox, ifname="eth1").result
    assert {comment for _, _, comment in elements(node)} == {"pod eth0 podnet"}
    assert plugin.check(first, sandbox, prev=made).ok
    assert plugin.check(second, sandbox, ifname="eth1", prev=made2).ok
    client = closing(caller_at(outside, 4))
    with listening(sandbox, 4, INNER, kind) as server, client as caller:
        assert ask(outside, (NODE[4], PORT), server, kind)
        if kind == "udp":
            assert send(caller, server)
        assert plugin.delete(first, sandbox, prev=made).ok
        assert {comment for _, _, comment in elements(node)} == {"pod eth1 net2"}
        assert plugin.check(second, sandbox, ifname="eth1", prev=made2).ok
        sandbox.run("ip", "route", "add", "default", "via", "10.245.0.1")
        assert ask(outside, (NODE[4], PORT), server, kind)
        if kind == "udp":
            assert send(caller, server, timeout=2)
    assert plugin.delete(second, sandbox, ifname="eth1", prev=made2).ok
    assert elements(node) == set()


def test_the_next_add_puts_back_the_ports_of_two_networks(plugin, node, topology, conf, sandbox):
    first = with_ports(conf, mapping())
    assert plugin.add(first, sandbox).ok
    assert plugin.add(on_second_network(first), sandbox, ifname="eth1").ok
    before = elements(node)
    node.run("nft", "flush", "ruleset")
    assert plugin.add(conf, topology.sandbox("next")).ok
    assert elements(node) == before == {(f, "host_ports", "pod eth0 podnet") for f in ("ip", "ip6")}


def test_of_many_at_once_one_gets_the_port(plugin, node, topology, conf):
    pods = [topology.sandbox(f"pod{number}") for number in range(6)]
    started = [
        plugin.start(
            "ADD",
            with_ports(conf, mapping()),
            {"CNI_CONTAINERID": pod.name, "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path},
        )
        for pod in pods
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    codes = [json.loads(text).get("code", 0) for text in outputs]
    assert sorted(codes) == [0, *[103] * 5]
    winner = pods[codes.index(0)]
    assert {comment for _, _, comment in elements(node)} == {f"{winner.name} eth0 podnet"}


# --- DEL and GC -----------------------------------------------------------------------------------


def test_del_needs_neither_namespace_nor_configuration(
    plugin, node, outside, topology, conf, sandbox
):
    ported = {
        **with_ports(conf, mapping(), mapping(8081, protocol="udp", ip=NODE[6])),
        "snat": False,
    }
    assert plugin.add(ported, sandbox).ok
    assert len(elements(node)) == 5
    sandbox.delete()
    for _ in range(2):
        assert plugin.delete(conf, None, cid="pod").ok  # no portMappings, no prevResult
        assert elements(node) == set()
    with listening(node, 4, PORT) as server:  # the port is the node's own again
        assert ask(outside, (NODE[4], PORT), server)


def test_del_of_a_pod_leaves_the_others(plugin, node, outside, topology, conf):
    first, second = topology.sandbox("first"), topology.sandbox("second")
    assert plugin.add(with_ports(conf, mapping()), first).ok
    assert plugin.add(with_ports(conf, mapping(8081)), second).ok
    assert plugin.delete(with_ports(conf, mapping()), first).ok
    with listening(second, 4, INNER) as server:
        assert ask(outside, (NODE[4], 8081), server)
        assert not answers(outside, (NODE[4], PORT), server)


@pytest.mark.parametrize(
    "harm",
    [
        "flush ruleset",
        "delete element ip podwire host_ports { tcp . 8080 }",
        "flush table ip podwire",
    ],
)
def test_del_after_somebody_took_elements_away(plugin, node, topology, conf, sandbox, harm):
    assert plugin.add(with_ports(conf, mapping(), mapping(8081)), sandbox).ok
    node.run("nft", harm)
    assert plugin.delete(conf, sandbox).ok
    assert elements(node) == set()
    assert plugin.add(with_ports(conf, mapping(), mapping(8081)), sandbox).ok


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent repairs it at once
def test_del_leaves_what_somebody_else_put_under_its_port(plugin, node, topology, conf, sandbox):
    assert plugin.add(with_ports(conf, mapping(ip="0.0.0.0")), sandbox).ok
    theirs = '{ tcp . 8080 comment "theirs" : 10.9.9.9 . 99 }'
    node.run("nft", "delete element ip podwire host_ports { tcp . 8080 }")
    node.run("nft", f"add element ip podwire host_ports {theirs}")
    assert plugin.delete(conf, sandbox).ok
    assert elements(node) == {("ip", "host_ports", "theirs")}
    refused = plugin.add(with_ports(conf, mapping()), sandbox)
    assert refused.code == 103
    assert "theirs" in refused.error["msg"]


def test_gc_takes_the_ports_of_attachments_that_are_gone(plugin, node, topology, conf):
    pods = [topology.sandbox(name) for name in ("kept", "gone")]
    for number, pod in enumerate(pods):
        assert plugin.add(with_ports(conf, mapping(8080 + number)), pod).ok
    other = {**with_ports(conf, mapping(9090)), "name": "othernet", "bridge": "br-other"}
    other["ipam"] = {**conf["ipam"], "ranges": [[{"subnet": "10.245.0.0/24"}]]}
    assert plugin.add(other, topology.sandbox("stranger")).ok
    assert plugin.gc({**conf, "cniVersion": "1.1.0"}, [("kept", "eth0")]).ok
    comments = {comment for _, _, comment in elements(node)}
    assert comments == {"kept eth0 podnet", "stranger eth0 othernet"}


def test_the_next_add_puts_back_what_somebody_flushed(plugin, node, outside, topology, conf):
    pod = topology.sandbox("pod")
    assert plugin.add(with_ports(conf, mapping()), pod).ok
    node.run("nft", "flush", "ruleset")
    assert plugin.add(conf, topology.sandbox("next")).ok
    for version in (4, 6):
        with listening(pod, version, INNER) as server:
            assert ask(outside, (NODE[version], PORT), server)


# --- CHECK ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent repairs it at once
@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ("delete element ip podwire host_ports { tcp . 8080 }", "0.0.0.0:8080/tcp"),
        ("delete element ip6 podwire host_ports { tcp . 8080 }", "[::]:8080/tcp"),
        (
            "delete element ip podwire host_ports { tcp . 8080 }; "
            'add element ip podwire host_ports { tcp . 8080 comment "theirs" : 10.9.9.9 . 99 }',
            "10.9.9.9 port 99, of theirs",
        ),
        ("delete element ip podwire unmasked_ports { tcp . 8080 }", "unmasked_ports"),
    ],
)
def test_check_sees_what_is_wrong(plugin, node, conf, sandbox, harm, named):
    ported = {**with_ports(conf, mapping()), "snat": False}
    result = plugin.add(ported, sandbox).result
    assert plugin.check(ported, sandbox, prev=result).ok
    node.run("nft", harm)
    found = plugin.check(ported, sandbox, prev=result)
    assert found.code == 107
    assert named in found.error["msg"]


@pytest.mark.parametrize("way", ["process"], indirect=True)  # an agent repairs it at once
def test_check_sees_a_link_that_no_longer_carries_127_0_0_1(plugin, node, conf, sandbox):
    ported = with_ports(conf, mapping())
    result = plugin.add(ported, sandbox).result
    node.run("sysctl", "-qw", "net/ipv4/conf/cni0/route_localnet=0")
    found = plugin.check(ported, sandbox, prev=result)
    assert found.code == 107
    assert "route_localnet of cni0" in found.error["msg"]


# --- flows ----------------------------------------------------------------------------------------


def caller_at(client, version, port=40000):
    """A UDP socket that goes on from one port, as a resolver's client may."""
    sock = client.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("", port))
    sock.connect((NODE[version], PORT))
    return sock


def track_all(node):
    """Let the node track connections before podwire has rules, as others' rules make it do."""
    for family in ("ip", "ip6"):
        chain = "{ type filter hook prerouting priority 0; }"
        node.run("nft", f"add table {family} track; add chain {family} track seen {chain}")
        node.run("nft", f"add rule {family} track seen ct state new counter")


@pytest.mark.parametrize("ip", [False, True], ids=["any address", "hostIP"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_client_reaches_the_new_pod_at_once(
    plugin, node, outside, topology, conf, version, ip
):
    """It never pauses, so that its flow never ends by itself: before, between and after pods."""
    ported = with_ports(conf, mapping(protocol="udp", ip=NODE[version] if ip else ""))
    track_all(node)
    with closing(caller_at(outside, version)) as caller:
        for name in ("first", "second"):
            caller.send(b"to nobody")
            assert len(flows(node, dport=PORT)) == 1
            pod = topology.sandbox(name)
            address = pods_of(plugin.add(ported, pod))[version]
            with listening(pod, version, INNER, "udp") as server:
                assert send(caller, server, timeout=2)
            assert len(flows(node, dport=PORT)) == 1
            assert plugin.delete(ported, pod).ok
            assert flows(node, dport=PORT) == [], f"a flow to {address} is left"


def tuples(node):
    """The node's UDP flows, without their timers."""
    return {line.split("src=", 1)[1].split(" [")[0].split(" mark=")[0] for line in flows(node)}


@pytest.mark.parametrize("version", [4, 6])
def test_other_flows_go_on(plugin, node, outside, topology, conf, version):
    """The same port of other hosts, other ports of the node, another pod's: all are left alone."""
    ported = with_ports(conf, mapping(protocol="udp"))
    track_all(node)
    other = topology.sandbox("other")
    second = with_ports(conf, mapping(8081, PORT, protocol="udp"))
    addresses = pods_of(plugin.add(second, other))
    away = {4: "192.168.1.100", 6: "fd00:1::100"}[version]
    af = socket.AF_INET if version == 4 else socket.AF_INET6
    sent = [(other, away, PORT), (node, away, PORT), (outside, NODE[version], 53)]
    sent += [(node, addresses[version], INNER), (outside, NODE[version], 8081)]
    for client, address, port in sent:
        with closing(client.socket(af, socket.SOCK_DGRAM)) as sock:
            sock.sendto(b"ping", (address, port))
    wait_until(lambda: len(tuples(node)) >= len(sent), what="all are on their way")
    before = tuples(node)
    pod = topology.sandbox("pod")
    assert plugin.add(ported, pod).ok
    assert plugin.delete(ported, pod).ok
    assert before <= tuples(node)


# --- chained --------------------------------------------------------------------------------------


def test_behind_another_main_plugin(plugin_there, go_plugin, node, outside, topology, conf):
    """podwire in the place of portmap: prevResult in, rules out, and the same prevResult on."""
    bridge = go_plugin("bridge", "host-local")
    first = {**conf, "type": "bridge", "hairpinMode": True}
    ported = {"cniVersion": conf["cniVersion"], "name": conf["name"], "type": "podwire"}
    ported = with_ports(ported, mapping(), mapping(8081, 81, "udp"))
    pod, neighbour = topology.sandbox("pod"), topology.sandbox("neighbour")
    made = bridge.add(first, pod).result
    passed_on = plugin_there.add(ported, pod, prev=made).result
    assert {key: passed_on[key] for key in ("interfaces", "ips")} == {
        key: made[key] for key in ("interfaces", "ips")
    }
    assert bridge.add(first, neighbour).ok
    for version in (4, 6):
        with listening(pod, version, INNER) as server:
            assert ask(outside, (NODE[version], PORT), server)
            for client in (node, neighbour, pod):
                assert ask(client, (NODE[version], PORT), server)
            if version == 4:
                assert ask(node, ("127.0.0.1", PORT), server)
        with listening(pod, version, 81, "udp") as server:
            assert ask(outside, (NODE[version], 8081), server, "udp")
    assert plugin_there.check(ported, pod, prev=made).ok
    assert plugin_there.delete(ported, None, cid="pod").ok
    assert elements(node) == set()
    assert bridge.delete(first, pod).ok


def test_behind_a_plugin_that_tells_addresses_alone(plugin, go_plugin, node, topology, conf):
    """Host ports take no more of prevResult; CHECK and DEL know it by that as well."""
    bridge = go_plugin("bridge", "host-local")
    first = {**conf, "type": "bridge"}
    ported = {"cniVersion": conf["cniVersion"], "name": conf["name"], "type": "podwire"}
    pod = topology.sandbox("pod")
    made = bridge.add(first, pod).result
    ips = [{key: ip[key] for key in ip if key != "interface"} for ip in made["ips"]]
    told = {"cniVersion": conf["cniVersion"], "ips": ips, "dns": {}}
    refused = plugin.add({**ported, "ingressPolicy": "isolated"}, pod, prev=told).error
    assert refused["msg"].startswith("prevResult.interfaces: names no bridge")
    ported = with_ports(
        {**ported, "bandwidth": {"IngressRate": 10**6, "ingressburst": 10**6}}, mapping()
    )
    added = plugin.add(ported, pod, prev=told).result
    assert added["ips"] == ips
    assert "interfaces" not in added
    assert {family for family, *_ in elements(node)} == {"ip", "ip6"}
    assert "7077:" in node.run("tc", "qdisc", "show", "dev", made["interfaces"][1]["name"]).stdout
    assert plugin.check(ported, pod, prev=added).ok
    assert plugin.delete(ported, pod, prev=added).ok
    assert elements(node) == set()
    assert "eth0" in pod.links()  # the other plugin's
    assert bridge.delete(first, pod).ok


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (mapping(0), "hostPort"),
        (mapping(70000), "hostPort"),
        (mapping(inner=0), "containerPort"),
        (mapping(protocol="icmp"), "protocol"),
        (mapping(ip="node-1"), "hostIP"),
        (mapping(ip="fd00:1::2"), "hostIP"),  # the pod below has no IPv6
    ],
    ids=str,
)
def test_bad_input_changes_nothing(plugin, node, sandbox, make_conf, untouched, entry, field):
    before = ruleset(node)
    with untouched(node, sandbox):
        refused = plugin.add(with_ports(make_conf(), mapping(9090), entry), sandbox)
    assert refused.code == 7
    assert f"runtimeConfig.portMappings[1].{field}" in refused.error["msg"]
    assert ruleset(node) == before
