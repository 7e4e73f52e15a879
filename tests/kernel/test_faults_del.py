"""DEL against everything a runtime or an administrator may have done to the attachment before."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.support import faults
from tests.support.faults import Stage

TIMEOUT_S = 20


def delete(stage: Stage, netns: str | None = None, conf: object = None, **more) -> faults.Ended:
    env = stage.env()
    if netns is not None:
        env = {**env, "CNI_NETNS": netns}
    return stage.run("DEL", env=env, conf=conf, timeout=TIMEOUT_S, **more)


def assert_silent(ended: faults.Ended) -> None:
    assert (ended.rc, ended.stdout) == (0, b""), ended


@pytest.fixture
def strange_paths(tmp_path) -> dict[str, str]:
    """Paths that are no network namespace, by what they are."""
    made = {name: str(tmp_path / name) for name in ("file", "fifo", "folder", "loop", "dangling")}
    (tmp_path / "file").write_text("not a namespace")
    os.mkfifo(made["fifo"])
    os.mkdir(made["folder"])
    os.symlink(made["loop"], made["loop"])
    os.symlink(str(tmp_path / "nothing"), made["dangling"])
    return made | {
        "empty": "",
        "gone": str(tmp_path / "gone"),
        "below a file": f"{made['file']}/net",
        "zero": "/dev/zero",
        "tty": "/dev/tty",
        "mount namespace": "/proc/self/ns/mnt",
        "relative": "../../nowhere",
        "too long": "/" + "x" * 300,
        "much too long": "/x" * 3000,
        "control characters": "/run/a\nb\x01\x1b[2J",
        "not UTF-8": "/run/\udcff\udcfe",
        "a dead process": "/proc/4194399/ns/net",
    }


PATHS = (
    *("file", "fifo", "folder", "loop", "dangling", "empty", "gone", "below a file", "zero"),
    *("tty", "mount namespace", "relative", "too long", "much too long", "control characters"),
    *("not UTF-8", "a dead process"),
)


@pytest.mark.parametrize("name", PATHS)
def test_the_netns_is_no_network_namespace(stage, strange_paths, name):
    """The host's side goes all the same, and the pod's with it."""
    before = stage.world()
    assert stage.run("ADD").rc == 0
    assert_silent(delete(stage, strange_paths[name]))
    assert faults.difference(before, stage.world()) == []
    assert_silent(delete(stage, strange_paths[name]))


def test_the_netns_variable_is_unset(stage):
    before = stage.world()
    assert stage.run("ADD").rc == 0
    assert_silent(stage.run("DEL", env={"CNI_NETNS": None}))
    assert faults.difference(before, stage.world()) == []


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/ns/net",
        "/proc/thread-self/ns/net",
        "/proc/self/task/../ns/net",
        "{node}",
        "{link}",
        "{mount}",
    ],
)
def test_the_hosts_own_namespace(stage, tmp_path, path):
    """Refused, and nothing of the node is touched: not even an eth0 that prevResult names."""
    (tmp_path / "link").symlink_to(stage.node.path)
    mount = tmp_path / "mount"
    mount.touch()
    subprocess.run(["mount", "--bind", stage.node.path, str(mount)], check=True)
    try:
        added = stage.run("ADD")
        before = stage.world()
        path = path.format(node=stage.node.path, link=tmp_path / "link", mount=mount)
        conf = {**stage.conf, "prevResult": added.document()}
        ended = delete(stage, path, conf)
        assert (ended.rc, ended.document()["code"]) == (1, 4), ended
        assert faults.difference(before, stage.world()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    assert_silent(delete(stage))


def test_never_added(stage, tmp_path):
    before = stage.world()
    assert_silent(delete(stage))
    assert faults.difference(before, stage.world()) == []


def test_never_added_on_a_fresh_node(stage):
    """Nothing is made either: no bridge, no directory."""
    stage.start_over()
    before = stage.world()
    assert_silent(delete(stage))
    assert faults.difference(before, stage.world()) == []
    assert not os.path.exists(stage.data)


def test_a_foreign_interface_of_this_name_survives(stage):
    stage.sandbox.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    stage.sandbox.run("ip", "addr", "add", "10.99.0.9/24", "dev", "eth0")
    before = stage.world()
    assert stage.run("ADD").rc == 1
    assert_silent(delete(stage))
    assert faults.difference(before, stage.world()) == []


def test_other_pods_survive(stage):
    other = stage.env("other", sandbox=stage.others[0].path)
    assert stage.run("ADD", env=other).rc == 0
    before = stage.world(stage.others[0])
    assert stage.run("ADD").rc == 0
    assert_silent(delete(stage))
    assert_silent(delete(stage, stage.others[0].path))  # of the wrong sandbox
    assert faults.difference(before, stage.world(stage.others[0])) == []


def _delete_veth(stage: Stage) -> None:
    (name,) = [name for name in stage.node.links() if name.startswith("veth")]
    stage.node.run("ip", "link", "del", name)


def _delete_reservations(stage: Stage) -> None:
    for name in os.listdir(f"{stage.data}/podnet"):
        if name.startswith(("10.", "fd")):
            os.unlink(f"{stage.data}/podnet/{name}")


def _delete_index(stage: Stage) -> None:
    shutil.rmtree(f"{stage.data}/.podwire-podnet")


def _delete_data(stage: Stage) -> None:
    shutil.rmtree(stage.data)


def _down(stage: Stage) -> None:
    stage.node.run("ip", "link", "set", "cni0", "down")
    stage.node.run("ip", "addr", "flush", "dev", "cni0")


def _no_bridge(stage: Stage) -> None:
    stage.node.run("ip", "link", "del", "cni0")


def _renamed(stage: Stage) -> None:
    stage.sandbox.run("ip", "link", "set", "eth0", "down")
    stage.sandbox.run("ip", "link", "set", "eth0", "name", "eth7")


@pytest.mark.parametrize(
    "damage",
    [
        _delete_veth,
        _delete_reservations,
        _delete_index,
        _delete_data,
        _down,
        _no_bridge,
        _renamed,
    ],
)
def test_something_was_removed_by_hand(stage, damage: Callable[[Stage], None]):
    before = stage.world()
    assert stage.run("ADD").rc == 0
    damage(stage)
    assert_silent(delete(stage))
    assert_silent(delete(stage))
    left = [line for line in faults.leftovers(before, stage.world()) if line.startswith("left")]
    assert left == []
    stage.use()


GARBAGE: dict[str, object] = {
    **{key: {"a": [None]} for key in ("mtu", "isGateway", "bridge", "mode", "hairpinMode")},
    **dict.fromkeys(("nodes", "runtimeConfig", "args", "dns", "vlan"), 1e308),
    "ipMasq": "x",
    "prevResult": {"interfaces": "x"},
}


@pytest.mark.parametrize(
    "prev",
    [
        *(None, 17, "x", [], {}, {"ips": 5}, {"ips": [{"address": "10.244.0.300/24"}]}),
        *({"interfaces": [None]}, {"interfaces": [{"name": 5}], "ips": [{"interface": 99}]}),
        {"cniVersion": "9.9.9", "ips": [{"address": "10.244.0.2/24", "interface": -7}]},
    ],
    ids=str,
)
def test_garbage_as_prev_result(stage, prev):
    before = stage.world()
    assert stage.run("ADD").rc == 0
    assert_silent(delete(stage, conf={**stage.conf, "prevResult": prev}))
    assert faults.difference(before, stage.world()) == []


def test_garbage_in_the_configuration(stage):
    """DEL needs the network's name and where its addresses are."""
    before = stage.world()
    assert stage.run("ADD").rc == 0
    ipam = {"type": "host-local", "dataDir": stage.data, "ranges": "x", "routes": 5, "subnet": []}
    conf = {"cniVersion": "1.0.0", "name": "podnet", "type": "podwire", **GARBAGE, "ipam": ipam}
    assert_silent(delete(stage, conf=conf))
    assert faults.difference(before, stage.world()) == []


def test_the_inventory_is_broken(stage, tmp_path):
    (tmp_path / "nodes.json").write_text("{")
    before = stage.world()
    assert stage.run("ADD").rc == 0
    assert_silent(delete(stage, conf={**stage.conf, "nodes": str(tmp_path / "nodes.json")}))
    assert faults.difference(before, stage.world()) == []


@pytest.mark.parametrize("netns", ["", "here"])
def test_the_disk_is_full_and_the_directory_is_anothers(stage, netns):
    """A directory that the Go host-local made has no index, and now there is no room for one."""
    reservation = f"{stage.data}/podnet/10.244.0.5"
    stage.start_over()
    os.makedirs(stage.data)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "tmpfs", stage.data]
    subprocess.run(mount, check=True)
    try:
        os.mkdir(f"{stage.data}/podnet")
        open(f"{stage.data}/podnet/lock", "w").close()
        with open(reservation, "w") as f:
            f.write("pod\r\neth0")
        for number in range(os.statvfs(stage.data).f_ffree):
            open(f"{stage.data}/ballast{number}", "w").close()
        assert_silent(delete(stage, netns and stage.sandbox.path))
        assert not os.path.exists(reservation)
    finally:
        subprocess.run(["umount", stage.data], check=True)
