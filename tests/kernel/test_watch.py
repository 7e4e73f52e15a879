"""What the upkeep's sockets are woken by: cni_plugin/kernel/watch.py."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from cni_plugin.kernel.watch import RouteWatch
from tests.support.netns import Namespace
from tests.support.topology import Topology

_ENTRIES = "the overlay's entries changed"
_POD, _IFB = "vethabcdef01234", "pwi0123456789ab"


@pytest.fixture
def node(topology: Topology) -> Namespace:
    """Without links that nobody here has made."""
    return topology.node("watched")


@pytest.fixture
def watch(node: Namespace) -> Iterator[RouteWatch]:
    bridge = "link add cni0 up address 02:00:00:00:00:01 type bridge"  # as ours have one
    node.batch(bridge, "link add eth7 up type bridge")
    with node.entered(), closing(RouteWatch()) as made:
        _settle(made)
        yield made


def _settle(watch: RouteWatch) -> None:
    """The kernel may tell of a carrier a moment later."""
    time.sleep(0.1)
    watch.changes()


def wakes(watch: RouteWatch) -> bool:
    return bool(select.select([watch.fileno()], [], [], 0)[0])


def vxlan(name: str = "pwvx1", vni: int = 1) -> str:
    return f"link add {name} up type vxlan id {vni} dstport {4789 + vni}"


def test_pods_that_come_and_go_wake_nobody(
    node: Namespace, sandbox: Namespace, watch: RouteWatch
) -> None:
    def add(pod: str) -> tuple[str, ...]:
        """As an ADD does."""
        return (
            f"link add {pod} master cni0 type veth peer name eth0 netns {sandbox.path}",
            f"link set {pod} addrgenmode none",
            f"link set {pod} up",
        )

    node.batch(*add(_POD))
    sandbox.batch("link set eth0 up")
    _settle(watch)  # of the bridge, which has a carrier now
    other = _POD.replace("0", "9")
    node.batch(
        f"link set {_POD} alias pod type bridge_slave isolated on",
        "neigh add 10.1.0.6 lladdr 02:00:00:00:00:06 dev cni0",
        f"link add {_IFB} up type ifb",
        f"link del {_IFB}",
    )
    node.run("bridge", "fdb", "add", "02:00:00:00:00:07", "dev", _POD, "master", "static")
    sandbox.batch("link set eth0 name eth1")
    node.batch(*add(other), f"link del {other}")
    assert not wakes(watch)


@pytest.mark.parametrize(
    "change",
    [
        "link set eth7 mtu 1400",
        "link set eth7 down",
        "link del eth7",
        "addr add 10.9.0.1/24 dev eth7",
        "route add 10.8.0.0/24 dev eth7",
    ],
)
def test_what_matters_is_heard(node: Namespace, watch: RouteWatch, change: str) -> None:
    node.batch(change)
    assert wakes(watch)
    assert watch.changes()


def _entry(node: Namespace, device: str, last: int) -> None:
    mac = f"02:00:00:00:00:{last:02x}"
    node.run("bridge", "fdb", "append", mac, "dev", device, "dst", "192.168.1.9")


def test_an_overlay_that_comes_is_heard_from_then_on(node: Namespace, watch: RouteWatch) -> None:
    node.batch(vxlan())
    _entry(node, "pwvx1", 1)  # by somebody, before anyone has listened
    assert _ENTRIES in watch.changes()
    for last in (2, 3):
        _entry(node, "pwvx1", last)
        assert wakes(watch)
        assert _ENTRIES in watch.changes()
    node.batch("neigh add 10.244.1.0 lladdr 02:00:00:00:00:09 dev pwvx1")
    assert _ENTRIES in watch.changes()


def test_overlays_that_follow_one_another(node: Namespace, watch: RouteWatch) -> None:
    node.batch(vxlan())
    watch.changes()
    node.batch("link del pwvx1", vxlan(), vxlan("pwvx2", 2))
    assert _ENTRIES in watch.changes()
    for device in ("pwvx1", "pwvx2"):
        _entry(node, device, 1)
        assert _ENTRIES in watch.changes()


def test_one_that_is_there_at_the_start(node: Namespace) -> None:
    node.batch(vxlan())
    with node.entered(), closing(RouteWatch()) as watch:
        watch.changes()
        _entry(node, "pwvx1", 1)
        assert _ENTRIES in watch.changes()


def test_without_the_kernels_help_it_is_as_good(
    node: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    hear: Callable[..., None] = refuse
    monkeypatch.setattr("cni_plugin.kernel.watchfilter.attach", hear)
    with node.entered(), closing(RouteWatch()) as watch:
        watch.changes()
        node.batch(vxlan(), f"link add {_POD} up type veth peer name x0")
        _settle(watch)
        node.batch(f"link set {_POD} mtu 1400")
        assert wakes(watch)
        assert watch.changes() == set()
        _entry(node, "pwvx1", 1)
        assert _ENTRIES in watch.changes()
