"""podwire and other plugins: delegates of its own, delegation to it, and taking over from the Go
plugins on a node that is in use."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from tests.support import probe, require
from tests.support.plugin import Plugin

RESULT = json.dumps(
    {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.9.0.7/24", "gateway": "10.9.0.1"}],
        "dns": {"nameservers": ["10.9.0.53"]},
    }
)


# --- delegates that podwire executes --------------------------------------------------------------


def test_a_delegate_gets_the_whole_configuration(
    plugin_there, sandbox, make_conf, fake_ipam, bin_folder
):
    fake = fake_ipam(f"""[ "$CNI_COMMAND" != ADD ] || echo '{RESULT}'
        echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS $CNI_PATH" >> "$0.env"
    """)
    conf = make_conf(ipam={"type": fake.name, "whatever": {"deep": [1]}}, anything="else")
    added = plugin_there.add(conf, sandbox, args="IgnoreUnknown=1;A=b")
    assert added.addresses() == ["10.9.0.7/24"]
    assert added.result["dns"]["nameservers"] == ["10.9.0.53"]
    prev = added.result
    assert plugin_there.check(conf, sandbox, args="IgnoreUnknown=1;A=b", prev=prev).ok
    assert plugin_there.delete(conf, sandbox, args="IgnoreUnknown=1;A=b", prev=prev).ok
    assert fake.calls() == ["ADD", "CHECK", "DEL"]
    for command in fake.calls():
        given = fake.stdin(command)
        assert {key: given[key] for key in conf} == conf
        assert given.get("prevResult") == (None if command == "ADD" else prev)
    environment = (bin_folder / "fake-ipam.env").read_text().splitlines()
    rest = f"pod eth0 {sandbox.path} IgnoreUnknown=1;A=b {bin_folder}"
    assert environment == [f"{command} {rest}" for command in ("ADD", "CHECK", "DEL")]


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("script", "code", "word"),
    [
        ("echo garbage", 105, "garbage"),
        ("true", 105, "fake-ipam"),
        ("echo '[]'", 105, "fake-ipam"),
        ("echo '{}'", 105, "fake-ipam"),
        ('echo \'{"cniVersion":"1.0.0","ips":[{"address":"nonsense"}]}\'', None, "nonsense"),
        ('echo \'{"cniVersion":"1.0.0","ips":7}\'', None, "ips"),
        ('echo \'{"cniVersion":"1.0.0","code":11,"msg":"try later"}\'; exit 1', 11, "try later"),
        ("echo oh no; exit 3", 105, "3"),
        ("kill -9 $$", 105, "fake-ipam"),
        ("head -c 3000000 /dev/zero | tr '\\0' x", 105, "fake-ipam"),
    ],
    ids=[
        "garbage",
        "nothing",
        "a list",
        "empty",
        "address",
        "ips",
        "error",
        "exit",
        "signal",
        "long",
    ],
)
def test_a_delegate_that_fails(
    plugin_there, node, sandbox, make_conf, fake_ipam, untouched, script, code, word
):
    """It is sent a DEL; nothing is made; its own error comes through, of readable length."""
    fake = fake_ipam(f'[ "$CNI_COMMAND" = ADD ] || exit 0\n{script}')
    with untouched(node, sandbox):
        refused = plugin_there.add(make_conf(ipam={"type": fake.name}), sandbox)
        assert refused.error["code"] == code or code is None
    assert word in refused.error["msg"]
    assert len(refused.stdout) < 2000
    assert fake.calls() == ["ADD", "DEL"]


def test_what_the_delegate_gave_is_freed_when_add_fails_later(
    plugin_there, node, sandbox, make_conf, fake_ipam, untouched
):
    fake = fake_ipam(
        '[ "$CNI_COMMAND" != ADD ] || echo \'{"cniVersion":"1.0.0",'
        '"ips":[{"address":"10.9.0.7/24"}],"routes":[{"dst":"10.8.0.0/16","gw":"172.31.0.1"}]}\''
    )
    with untouched(node, sandbox):
        assert not plugin_there.add(make_conf(ipam={"type": fake.name}), sandbox).ok
    assert fake.calls() == ["ADD", "DEL"]


def test_del_fails_with_the_delegate_and_takes_the_link_all_the_same(
    plugin_there, sandbox, make_conf, fake_ipam
):
    """Else the runtime would not call DEL again, and the address would be lost."""
    fake = fake_ipam(
        f"""case "$CNI_COMMAND" in ADD) echo '{RESULT}';;
        DEL) echo '{{"cniVersion":"1.0.0","code":11,"msg":"later"}}'; exit 1;; esac"""
    )
    conf = make_conf(ipam={"type": fake.name})
    assert plugin_there.add(conf, sandbox).ok
    refused = plugin_there.delete(conf, sandbox)
    assert refused.code == 11
    assert set(sandbox.links()) == {"lo"}


def test_a_delegate_without_a_gateway_in_its_answer(
    plugin_there, node, sandbox, make_conf, fake_ipam
):
    """isGateway then takes the first address of the subnet, as the reference does."""
    fake = fake_ipam(
        '[ "$CNI_COMMAND" != ADD ] || echo \'{"cniVersion":"1.0.0",'
        '"ips":[{"address":"10.9.0.7/24"},{"address":"fd00:9::7/64"}]}\''
    )
    added = plugin_there.add(make_conf(ipam={"type": fake.name}), sandbox)
    assert [ip["gateway"] for ip in added.result["ips"]] == ["10.9.0.1", "fd00:9::1"]
    assert sorted(node.addresses("cni0")) == ["10.9.0.1/24", "fd00:9::1/64"]


@pytest.mark.parametrize(
    ("cni_path", "code", "word"),
    [(None, 4, "CNI_PATH"), ("/proc/nowhere:/else", 105, "/proc/nowhere")],
)
def test_where_delegates_are_looked_for(
    plugin_there, node, sandbox, make_conf, fake_ipam, untouched, cni_path, code, word
):
    fake = fake_ipam(f"echo '{RESULT}'")
    env = {
        "CNI_CONTAINERID": "pod",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": sandbox.path,
        "CNI_PATH": cni_path,
    }
    with untouched(node, sandbox):
        refused = plugin_there.call("ADD", make_conf(ipam={"type": fake.name}), env)
        assert refused.code == code
    assert word in refused.error["msg"]
    assert fake.calls() == []


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("kind", ["../bin/fake-ipam", "{folder}/fake-ipam", "./fake-ipam", ".."])
def test_a_type_that_is_a_path_runs_nothing(
    plugin_there, node, sandbox, make_conf, fake_ipam, bin_folder, untouched, kind
):
    """CVE-2021-20206; by no command."""
    fake = fake_ipam(f"echo '{RESULT}'")
    kind = kind.format(folder=bin_folder)
    conf = make_conf(cniVersion="1.1.0", ipam={"type": kind})
    conf["prevResult"] = {**json.loads(RESULT), "cniVersion": "1.1.0"}
    conf["cni.dev/valid-attachments"] = []
    env = {"CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0", "CNI_NETNS": sandbox.path}
    with untouched(node, sandbox):
        for command in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
            refused = plugin_there.call(command, conf, env)
            assert refused.code == 7, command
            assert kind in refused.error["msg"], command
    assert fake.calls() == []


# --- the Go plugins: taking over ------------------------------------------------------------------


@pytest.fixture
def theirs(node, bin_folder):
    """The Go bridge on the node, with the Go host-local in its CNI_PATH."""
    folder = require.go_plugins("bridge", "host-local")
    shutil.copy(os.path.join(folder, "host-local"), bin_folder / "host-local")
    return Plugin(os.path.join(folder, "bridge"), node, str(bin_folder))


@pytest.fixture
def confs(make_conf, dual):
    """The same network for the Go bridge and for podwire: nothing but the type differs."""

    def make(version="1.0.0", **keys):
        conf = make_conf(cniVersion=version, ipam={"ranges": dual.ranges}, **keys)
        return {**conf, "type": "bridge"}, conf

    return make


def ports(node):
    return {name for name, link in node.links().items() if link.get("master") == "cni0"}


@pytest.mark.parametrize("prev", [True, False], ids=["prevResult", "no prevResult"])
@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
@pytest.mark.parametrize("way", ["theirs, then ours", "ours, then theirs"])
def test_each_deletes_what_the_other_added(
    plugin_there, theirs, node, sandbox, confs, reservations, way, version, prev
):
    before = ports(node)
    of_theirs, of_ours = confs(version)
    first, second = (theirs, of_theirs), (plugin_there, of_ours)
    if way == "ours, then theirs":
        first, second = second, first
    added = first[0].add(first[1], sandbox)
    assert len(added.addresses()) == 2
    for _ in range(2):
        assert second[0].delete(second[1], sandbox, prev=added.result if prev else None).ok
        assert set(sandbox.links()) == {"lo"}
        assert ports(node) == before
        assert reservations() == {}


@pytest.mark.parametrize("way", ["theirs, then ours", "ours, then theirs"])
def test_without_the_sandbox(plugin_there, theirs, node, topology, confs, reservations, way):
    before, sandbox = ports(node), topology.sandbox("pod")
    of_theirs, of_ours = confs()
    first, second = (theirs, of_theirs), (plugin_there, of_ours)
    if way == "ours, then theirs":
        first, second = second, first
    result = first[0].add(first[1], sandbox).result
    sandbox.delete()
    assert second[0].delete(second[1], sandbox, prev=result).ok
    assert reservations() == {}
    deadline = time.monotonic() + 10  # the kernel takes a namespace apart in the background
    while ports(node) != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ports(node) == before


def test_a_node_changes_plugins_with_its_pods_running(
    plugin_there, theirs, node, topology, confs, dual, reservations
):
    """Pods of both on one bridge and one directory: no address twice, all reach all."""
    of_theirs, of_ours = confs()
    makers = {"a": theirs, "b": plugin_there, "c": theirs, "d": plugin_there}
    pods = {name: topology.sandbox(name) for name in makers}
    given = {}
    for name, maker in makers.items():
        conf = of_ours if maker is plugin_there else of_theirs
        given[name] = maker.add(conf, pods[name]).addresses()
    assert [given[name] for name in "abcd"] == [dual.interfaces(number) for number in (2, 3, 4, 5)]
    for one, other in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "a")):
        for mine, target in zip(given[one], given[other], strict=True):
            seen = probe.tcp(pods[one], pods[other], target.split("/")[0])
            assert seen.source == mine.split("/")[0]
    assert probe.tcp(node, pods["a"], "10.244.0.2").source == "10.244.0.1"
    assert sorted(node.addresses("cni0")) == sorted(dual.interfaces(1))
    for pod in ("b", "a"):
        assert plugin_there.delete(of_ours, pods[pod]).ok
    for pod in ("c", "d"):
        assert theirs.delete(of_theirs, pods[pod]).ok
    assert reservations() == {}
    assert all(set(sandbox.links()) == {"lo"} for sandbox in pods.values())


def test_both_at_the_same_time(plugin_there, theirs, node, topology, confs, reservations):
    """Twelve ADDs and then twelve DELs at once on a fresh bridge, half of them theirs."""
    of_theirs, of_ours = confs()
    pods = [topology.sandbox(f"pod{number}") for number in range(12)]

    def at_once(command, ours_of_two):
        processes = []
        for number, pod in enumerate(pods):
            plugin, conf = (theirs, of_theirs)
            if number % 2 == ours_of_two:
                plugin, conf = (plugin_there, of_ours)
            env = {"CNI_CONTAINERID": pod.name, "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path}
            processes.append(plugin.start(command, conf, env))
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [p.returncode for p in processes] == [0] * len(pods), outputs
        return outputs

    addresses = [
        ip["address"] for out, _ in at_once("ADD", 0) for ip in json.loads(out)["ips"]
    ]  # fmt: skip
    assert len(set(addresses)) == len(addresses) == 24
    assert len(reservations()) == 24
    assert set(reservations().values()) == {f"{pod.name}\r\neth0" for pod in pods}
    at_once("DEL", 1)  # each takes away what the other made
    assert reservations() == {}
    assert ports(node) == set()


def test_gc_after_the_change(plugin_there, theirs, node, topology, confs, reservations):
    """Pods of the Go plugin that are gone without DEL cost no addresses."""
    of_theirs, of_ours = confs("1.0.0")
    a, b = topology.sandbox("a"), topology.sandbox("b")
    theirs.add(of_theirs, a), theirs.add(of_theirs, b)
    a.delete()
    assert plugin_there.gc({**of_ours, "cniVersion": "1.1.0"}, [("b", "eth0")]).ok
    assert set(reservations().values()) == {"b\r\neth0"}
    assert probe.tcp(node, b, "10.244.0.3").data == b"ping"


# --- podwire-ipam below the Go bridge -------------------------------------------------------------


def test_podwire_ipam_for_the_go_bridge(go_plugin, node, topology, confs, dual, reservations):
    """Dual-stack, with a MAC address asked for and an address asked for."""
    bridge = go_plugin("bridge")
    conf = confs()[0]
    conf["ipam"]["type"] = "podwire-ipam"
    a, b = topology.sandbox("a"), topology.sandbox("b")
    first = bridge.add(conf, a)
    assert first.addresses() == dual.interfaces(2)
    assert [ip["gateway"] for ip in first.result["ips"]] == dual.hosts(1)
    asked = {**conf, "runtimeConfig": {"ips": ["10.244.0.77", "fd00:10:244::77"]}}
    second = bridge.add(asked, b)
    assert second.addresses() == ["10.244.0.77/24", "fd00:10:244::77/64"]
    assert probe.tcp(a, b, "10.244.0.77").source == "10.244.0.2"
    assert bridge.check(conf, a, prev=first.result).ok
    for pod in (a, b, a):
        assert bridge.delete(conf, pod).ok
    assert reservations() == {}


def test_podwire_with_two_go_delegates(
    plugin_there, go_plugin, node, sandbox, confs, bin_folder, dual
):
    """host-local under another name is executed, with dual-stack ranges; CHECK goes to it too."""
    go_plugin("bridge", "host-local")
    (bin_folder / "host-local").rename(bin_folder / "their-ipam")
    conf = confs()[1]
    conf["ipam"]["type"] = "their-ipam"
    added = plugin_there.add(conf, sandbox)
    assert added.addresses() == dual.interfaces(2)
    assert plugin_there.check(conf, sandbox, prev=added.result).ok
    folder = conf["ipam"]["dataDir"]
    os.unlink(os.path.join(folder, "podnet", "10.244.0.2"))
    os.unlink(os.path.join(folder, "podnet", "fd00:10:244::2"))
    refused = plugin_there.check(conf, sandbox, prev=added.result)
    assert not refused.ok
    assert "their-ipam" in refused.error["msg"]
    assert plugin_there.delete(conf, sandbox, prev=added.result).ok
    assert set(sandbox.links()) == {"lo"}
