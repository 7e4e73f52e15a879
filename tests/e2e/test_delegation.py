"""podwire among the Go reference plugins: as their IPAM, and with theirs as its own."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.support import probe, require
from tests.support.plugin import Plugin

VERSIONS = ("0.3.1", "0.4.0", "1.0.0")


@pytest.fixture
def folder(tmp_path, podwire_executable, podwire_ipam_executable):
    """A folder for CNI_PATH with podwire and podwire-ipam; tests copy Go plugins into it."""
    path = tmp_path / "bin"
    path.mkdir()
    (path / "podwire").symlink_to(podwire_executable)
    (path / "podwire-ipam").symlink_to(podwire_ipam_executable)
    return path


@pytest.fixture
def podwire_here(folder, node):
    """podwire on the node, with the folder as its CNI_PATH."""
    return Plugin(str(folder / "podwire"), node)


def copy_of(name, folder, new_name):
    shutil.copy(os.path.join(require.go_plugins(name), name), folder / new_name)


def files(tmp_path):
    """The reservations of the network, without the lock and the pointers."""
    folder = tmp_path / "networks" / "podnet"
    names = os.listdir(folder) if folder.exists() else []
    return {name for name in names if name[0].isdigit()}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_go_bridge_with_podwire_ipam(folder, node, topology, make_conf, tmp_path, version):
    """Two pods of the Go bridge plugin, their addresses from podwire-ipam."""
    go_bridge = Plugin(os.path.join(require.go_plugins("bridge"), "bridge"), node, str(folder))
    conf = make_conf(cniVersion=version, type="bridge", ipam={"type": "podwire-ipam"})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    first, second = go_bridge.add(conf, a), go_bridge.add(conf, b)
    assert first.addresses() == ["10.244.0.2/24"]
    assert second.addresses() == ["10.244.0.3/24"]
    assert first.result["ips"][0]["gateway"] == "10.244.0.1"
    assert probe.tcp(a, b, "10.244.0.3").source == "10.244.0.2"
    assert files(tmp_path) == {"10.244.0.2", "10.244.0.3"}
    if version != "0.3.1":
        assert go_bridge.check(conf, a, prev=first.result).ok
    for pod in (a, b, a):
        assert go_bridge.delete(conf, pod).ok
    assert files(tmp_path) == set()


def test_podwire_ipam_and_host_local_take_turns(folder, node, topology, make_conf, tmp_path):
    """One directory, read and written by both: a node may change plugins and keep its pods."""
    copy_of("host-local", folder, "host-local")
    go_bridge = Plugin(os.path.join(require.go_plugins("bridge"), "bridge"), node, str(folder))
    theirs = make_conf(type="bridge", ipam={"type": "host-local"})
    ours = make_conf(type="bridge", ipam={"type": "podwire-ipam"})
    pods = [topology.sandbox(name) for name in "abcd"]
    given = [
        go_bridge.add(conf, pod).addresses()[0]
        for conf, pod in zip((theirs, ours, theirs, ours), pods, strict=True)
    ]
    assert given == [f"10.244.0.{number}/24" for number in (2, 3, 4, 5)]
    # Each one frees what the other one reserved.
    for conf, pod in zip((ours, theirs, ours, theirs), pods, strict=True):
        assert go_bridge.delete(conf, pod).ok
    assert files(tmp_path) == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_podwire_with_host_local_under_another_name(
    folder, podwire_here, topology, make_conf, tmp_path, version
):
    """Another name, so that it is executed and not served in process."""
    copy_of("host-local", folder, "my-host-local")
    conf = make_conf(cniVersion=version, ipam={"type": "my-host-local"})
    a, b = topology.sandbox("a"), topology.sandbox("b")
    before = podwire_here.node.state()
    first, second = podwire_here.add(conf, a), podwire_here.add(conf, b)
    assert first.addresses() == ["10.244.0.2/24"]
    assert second.addresses() == ["10.244.0.3/24"]
    assert files(tmp_path) == {"10.244.0.2", "10.244.0.3"}
    assert probe.tcp(a, b, "10.244.0.3").source == "10.244.0.2"
    if version != "0.3.1":
        assert podwire_here.check(conf, a, prev=first.result).ok
    for pod in (a, b, a):
        assert podwire_here.delete(conf, pod).ok
    assert files(tmp_path) == set()
    assert set(podwire_here.node.state()["links"]) == {*before["links"], "cni0"}


def test_a_delegate_that_fails_is_sent_a_del(folder, podwire_here, sandbox, make_conf, tmp_path):
    """An address that the delegate gave before it failed is not lost."""
    copy_of("host-local", folder, "my-host-local")
    log = tmp_path / "log"
    script = folder / "broken"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$CNI_COMMAND" >> {log}\n'
        f'"{folder}/my-host-local" "$@"\n'
        '[ "$CNI_COMMAND" != ADD ] || exit 1\n'
    )
    script.chmod(0o755)
    before = podwire_here.node.state()
    refused = podwire_here.add(make_conf(ipam={"type": "broken"}), sandbox)
    assert refused.error["msg"]
    assert log.read_text().split() == ["ADD", "DEL"]
    assert files(tmp_path) == set()
    assert podwire_here.node.state()["links"] == before["links"]
    assert sandbox.state()["links"] == ["lo"]


def test_a_delegate_that_is_not_there(podwire_here, sandbox, make_conf):
    before = podwire_here.node.state()
    refused = podwire_here.add(make_conf(ipam={"type": "no-such-ipam"}), sandbox)
    assert "no-such-ipam" in refused.error["msg"]
    assert podwire_here.node.state()["links"] == before["links"]


def test_podwire_with_static(folder, podwire_here, sandbox, make_conf):
    copy_of("static", folder, "static")
    ipam = {
        "type": "static",
        "addresses": [
            {"address": "10.9.0.7/24", "gateway": "10.9.0.1"},
            {"address": "fd00:9::7/64", "gateway": "fd00:9::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.9.0.53"]},
        "ranges": None,
        "dataDir": None,
    }
    conf = make_conf(isDefaultGateway=None, ipam=ipam)
    added = podwire_here.add(conf, sandbox)
    assert added.addresses() == ["10.9.0.7/24", "fd00:9::7/64"]
    assert added.result["dns"]["nameservers"] == ["10.9.0.53"]
    assert sorted(sandbox.addresses("eth0")) == ["10.9.0.7/24", "fd00:9::7/64"]
    assert any(
        route["dst"] == "default" and route["gateway"] == "10.9.0.1" for route in sandbox.routes()
    )
    assert podwire_here.check(conf, sandbox, prev=added.result).ok
    assert podwire_here.delete(conf, sandbox, prev=added.result).ok
    assert sandbox.state()["links"] == ["lo"]
