"""A host with podwire in a flannel network.

There is no flannel here: what its hosts write is, byte for byte, as its documentation has it
(configuration.md, reservations.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cni_plugin.sources import Announcement, Away, Gone, Listed, Put, Readiness, SourceError
from cni_plugin.sources.etcd import EtcdSource
from cni_plugin.sources.etcd_messages import Write
from ipam.peers import vtep_mac
from tests.support.etcd import Bench, Follower

CONFIG = b'{ "Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'
HOST_KEY = "/coreos.com/network/subnets/10.5.52.0-24"
HOST = (
    b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.put("/coreos.com/network/config", CONFIG)
    yield made
    made.close()


def join(bench: Bench, number: int = 1) -> Follower:
    return bench.follow(number, pool="", form="flannel", address=f"192.168.64.{number}")


def flannel_lease(bench: Bench, key: str = HOST_KEY, value: bytes = HOST) -> int:
    """What a flannel host does: a key with a lease of a day."""
    lease, _ = bench.look.grant(86400)
    bench.look.swap({key: 0}, [Write(key, value, lease)])
    return lease


def test_both_ways(bench: Bench) -> None:
    lease = flannel_lease(bench)
    first = join(bench)
    own = first.listed()
    (cidr,) = own.pod_cidrs
    assert own.name == "node-1"
    assert cidr.subnet_of(ip_network("10.5.0.0/16"))
    assert cidr != ip_network("10.5.0.0/24")  # flannel leaves it out
    peer = first.known["192.168.64.3"]
    assert peer._replace(since="") == peer._replace(
        since="",
        addresses=(ip_address("192.168.64.3"),),
        pod_cidrs=(ip_network("10.5.52.0/24"),),
        overlay_address=ip_address("192.168.64.3"),
        vtep_mac="c6:d2:32:6f:8f:44",
        backend="vxlan vni=1 port=8472",
        problem="",
    )
    key = f"/coreos.com/network/subnets/{cidr.network_address}-24"
    mac = vtep_mac(1, "node-1")
    wanted = HOST.replace(b"64.3", b"64.1").replace(b"c6:d2:32:6f:8f:44", mac.encode())
    assert bench.at(key).value == wanted
    assert bench.look.keep(bench.at(key).lease) == 86400
    first.source.announce(Announcement("02:00:00:00:00:01", cidr.network_address, "vxlan"))
    assert json.loads(bench.at(key).value)["BackendData"]["VtepMAC"] == "02:00:00:00:00:01"
    first.source.say_ready(Readiness(True, "PodwireReady", ""))
    assert {kv.key for kv in bench.look.range("/coreos.com/").kvs} == {
        "/coreos.com/network/config",
        HOST_KEY,
        key,
    }
    assert bench.keys("/podwire") == {}
    bench.look.revoke(lease)
    first.wait_for(Gone, name="192.168.64.3")


def test_a_flannel_host_that_renews_or_moves(bench: Bench) -> None:
    first = join(bench)
    first.listed()
    flannel_lease(bench)
    peer = first.wait_for(Put).member
    lease, _ = bench.look.grant(86400)  # it renews by writing the same with a new lease
    bench.look.swap({}, [Write(HOST_KEY, HOST, lease)])
    assert first.pending(0.5) == []
    flannel_lease(bench, "/coreos.com/network/subnets/10.5.77.0-24")
    moved = first.wait_for(Put).member
    assert (moved.name, moved.pod_cidrs) == (peer.name, (ip_network("10.5.77.0/24"),))
    bench.look.revoke(lease)  # the old one ends: the host is still there
    assert first.pending(0.5) == []


def test_our_own_lease_is_known_by_the_address(bench: Bench) -> None:
    """As flannel does: also one that flannel had on this host before."""
    key = "/coreos.com/network/subnets/10.5.34.0-24"
    lease = flannel_lease(bench, key, HOST.replace(b"64.3", b"64.1"))
    own = join(bench).listed()
    assert own.pod_cidrs == (ip_network("10.5.34.0/24"),)
    assert bench.at(key).lease == lease
    assert own.vtep_mac == vtep_mac(1, "node-1")  # flannel's device goes with flannel


def test_a_reservation(bench: Bench) -> None:
    key = "/coreos.com/network/subnets/10.5.1.0-24"
    bench.put(key, HOST.replace(b"64.3", b"64.1"))
    first = join(bench)
    assert first.listed().pod_cidrs == (ip_network("10.5.1.0/24"),)
    first.source.announce(Announcement("02:00:00:00:00:01"))
    assert bench.at(key).lease == 0
    assert b"02:00:00:00:00:01" in bench.at(key).value


def test_bounds_are_kept(bench: Bench) -> None:
    config = {
        "Network": "10.0.0.0/8",
        "SubnetLen": 20,
        "SubnetMin": "10.10.0.0",
        "SubnetMax": "10.10.16.0",
        "Backend": {"Type": "host-gw"},
    }
    bench.put("/coreos.com/network/config", json.dumps(config).encode())
    first, second = join(bench, 1), join(bench, 2)
    assert {first.listed().pod_cidrs, second.listed().pod_cidrs} == {
        (ip_network("10.10.0.0/20"),),
        (ip_network("10.10.16.0/20"),),
    }
    peer = first.member("192.168.64.2")
    assert (peer.backend, peer.vtep_mac, peer.overlay_address) == ("host-gw", "", None)
    third = join(bench, 3)
    third.wait_for(Listed)
    assert "other nodes have all of 10.0.0.0/8" in third.known["node-3"].problem


def test_the_network_is_told(bench: Bench) -> None:
    config = {
        "Network": "10.5.0.0/16",
        "Backend": {"type": "vxlan", "vni": 7, "DirectRouting": True},
    }
    bench.put("/coreos.com/network/config", json.dumps(config).encode())
    keys = {"backend": "auto", "vxlan": {"vni": 7, "port": 8472, "mtu": 0}}
    source = EtcdSource(bench.options(1, pool="", form="flannel"))
    assert source.conf_keys() == keys
    source.stop()
    join(bench).listed()
    bench.etcd.kill()
    source = EtcdSource(bench.options(1, pool="", form="flannel"))
    assert source.conf_keys() == keys  # as in an earlier life
    source.stop()
    source = EtcdSource(bench.options(2, pool="", form="flannel"))
    with pytest.raises(SourceError):
        source.conf_keys()
    source.stop()
    source = EtcdSource(bench.options(2))
    assert source.conf_keys() == {}
    source.stop()


def test_a_backend_that_we_have_not(bench: Bench) -> None:
    bench.put(
        "/coreos.com/network/config",
        b'{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}',
    )
    reason = join(bench).wait_for(Away).reason
    assert 'Backend.Type: expected "vxlan" or "host-gw"' in reason
