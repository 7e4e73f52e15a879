"""Every step of an ADD fails in turn; afterwards everything is as it was before."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support import faults, netns
from tests.support.faults import Stage
from tests.support.topology import Topology


@pytest.fixture
def make_stage(topology: Topology, podwire_executable: str, tmp_path) -> Callable[..., Stage]:
    def make(name: str = "a", **keys) -> Stage:
        return Stage(topology, podwire_executable, str(tmp_path), name, **keys)

    return make


@pytest.fixture
def stage(make_stage) -> Stage:
    """A node that has served a pod before; the bridge is gone again."""
    made = make_stage()
    made.use()
    made.remove_bridge()
    return made


def refused(stage: Stage, code: int | None = None, **more) -> faults.Ended:
    """An ADD that has to fail, with one error document and without any change."""
    before = stage.world()
    ended = stage.run("ADD", **more)
    assert ended.rc == 1, ended
    document = ended.document()
    assert document["code"] and document["msg"], document
    if code is not None:
        assert document["code"] == code, document
    assert document["code"] != 999 and "internal error" not in document["msg"], ended
    changed = faults.difference(before, stage.world())
    assert not changed, f"after {document['msg']}\n" + "\n".join(changed)
    return ended


# --- any system call ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "fresh"),
    [
        ("bridge", True),
        pytest.param("bridge", False, marks=pytest.mark.unmeasured),
        pytest.param("ptp", False, marks=pytest.mark.unmeasured),
    ],
    ids=str,
)
def test_each_system_call_fails(make_stage, mode, fresh):
    """With EIO, once: the ADD is refused and undone, or it did without that call."""
    both = [make_stage(name, mode=mode) for name in "ab"]
    for stage in both:
        stage.use()
    if fresh:
        both[0].remove_bridge()
    names = both[0].points("ADD")
    assert both[0].run("DEL").rc == 0

    def body(stage: Stage, fault: str) -> list[str]:
        if fresh:
            stage.remove_bridge()
        before = stage.world()
        ended = stage.run("ADD", fault)
        found = []
        if ended.rc == 0:
            conf = {**stage.conf, "prevResult": ended.document()}
            checked = stage.run("CHECK", conf=conf)
            if checked.rc != 0:
                found = [f"succeeded with {checked}"]
        else:
            found = faults.difference(before, stage.world())
            if ended.rc != 1 or not ended.document().get("code"):
                found.append(f"{ended}")
            if b"Traceback" in ended.stderr:
                found.append(f"a bug: {ended}")
        deleted = stage.run("DEL")
        return found if deleted.rc == 0 else [*found, f"DEL: {deleted}"]

    step = 1 if fresh else 4  # the IPAM part is the same in all three
    picked = [n for n, name in enumerate(names, 1) if not name.startswith(("recv", "write 1"))]
    faults.sweep(both, [f"fail:{n}" for n in picked[::step]], body)
    for stage in both:
        stage.assert_pool_is_whole()


@pytest.mark.unmeasured
def test_each_reply_of_the_kernel_is_lost(make_stage):
    """The kernel did it, and the acknowledgement could not be read."""
    both = [make_stage(name) for name in "ab"]
    for stage in both:
        stage.use()
        stage.remove_bridge()
    names = both[0].points("ADD")
    assert both[0].run("DEL").rc == 0

    def body(stage: Stage, fault: str) -> list[str]:
        stage.remove_bridge()
        before = stage.world()
        ended = stage.run("ADD", fault)
        found = faults.difference(before, stage.world()) if ended.rc else []
        deleted = stage.run("DEL")
        return found if deleted.rc == 0 else [*found, f"DEL: {deleted}"]

    picked = [n for n, name in enumerate(names, 1) if name.startswith("recv")]
    faults.sweep(both, [f"lost:{n}" for n in picked], body)


# --- real causes: links ---------------------------------------------------------------------------


def test_interface_exists_in_the_sandbox(stage):
    stage.sandbox.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    stage.sandbox.run("ip", "addr", "add", "10.99.0.1/24", "dev", "eth0")
    refused(stage, 102)


def test_the_bridge_name_is_taken(stage):
    stage.node.run("ip", "link", "add", "cni0", "type", "veth", "peer", "name", "other")
    refused(stage, 103)


def test_the_host_veth_name_is_taken_by_hand(stage):
    before = set(stage.node.links())
    assert stage.run("ADD").rc == 0
    (name,) = {name for name in stage.node.links() if name.startswith("veth")} - before
    assert stage.run("DEL").rc == 0
    stage.node.run("ip", "link", "add", name, "type", "bridge")
    refused(stage, 102)


def test_added_twice(stage):
    assert stage.run("ADD").rc == 0
    refused(stage)
    assert stage.run("DEL").rc == 0


def test_the_bridge_carries_another_network(stage):
    stage.node.run("ip", "link", "add", "cni0", "type", "bridge")
    stage.node.run("ip", "addr", "add", "10.99.0.1/24", "dev", "cni0")
    stage.node.run("ip", "link", "set", "cni0", "up")
    before = stage.world()
    assert stage.run("ADD").document()["code"] == 103
    changed = [
        line
        for line in faults.difference(before, stage.world())
        if not line.startswith("node-a link cni0")  # its MAC address is held, it is marked
    ]
    assert not changed


@pytest.mark.parametrize("force", [False, True])
def test_a_route_cannot_be_set_in_the_pod(make_stage, force):
    """The last batch fails; with forceAddress the bridge's old address comes back."""
    routes = [{"dst": "10.9.0.0/16", "gw": "172.31.0.1"}]
    stage = make_stage(ipam={"routes": routes}, forceAddress=force)
    if force:
        assert stage.run("ADD", conf=_without_routes(stage)).rc == 0
        assert stage.run("DEL").rc == 0
        stage.node.run("ip", "addr", "flush", "dev", "cni0", "scope", "global")
        stage.node.run("ip", "addr", "add", "10.99.0.1/24", "brd", "+", "dev", "cni0")
    else:
        other = stage.env("other", sandbox=stage.others[0].path)
        assert stage.run("ADD", conf=_without_routes(stage), env=other).rc == 0
    refused(stage, 104)


def _without_routes(stage: Stage) -> dict:
    return {**stage.conf, "ipam": {**stage.conf["ipam"], "routes": []}}


def test_an_mtu_below_what_ipv6_needs(stage):
    refused(stage, 7, conf={**stage.conf, "mtu": 1000})


def test_proc_sys_is_read_only(stage):
    """As in a container that is not privileged: a procfs of podwire's own is written to."""
    script = "mount -o bind,ro /proc/sys /proc/sys 2>/dev/null || mount -B /proc/sys /proc/sys; "
    script += 'mount -o remount,bind,ro /proc/sys && exec "$0"'
    stage.node.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
    ended = stage.run("ADD", wrap=["unshare", "--mount", "sh", "-c", script])
    assert ended.rc == 0, ended
    assert stage.node.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"


# --- real causes: addresses -----------------------------------------------------------------------


def test_the_requested_address_is_taken(stage):
    """The first family is reserved already when the second is refused."""
    other = stage.env("other", sandbox=stage.others[0].path)
    conf = {**stage.conf, "runtimeConfig": {"ips": ["fd00:2::5"]}}
    assert stage.run("ADD", conf=conf, env=other).rc == 0
    refused(stage, 101, conf=conf)


def test_the_second_range_set_is_exhausted(make_stage):
    sets = [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:2::/64", "rangeEnd": "fd00:2::2"}]]
    stage = make_stage(ipam={"ranges": sets})
    other = stage.env("other", sandbox=stage.others[0].path)
    assert stage.run("ADD", env=other).rc == 0
    refused(stage, 100)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[..., str]]:
    """small_disk(options) mounts a tmpfs where the stage "a" keeps its addresses."""
    folder = str(tmp_path / "networks-a")

    def mount(options: str) -> str:
        os.makedirs(folder, exist_ok=True)
        netns.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder])
        return folder

    yield mount
    netns.run(["umount", folder])


def test_the_address_directory_is_read_only(make_stage, small_disk):
    stage = make_stage()
    folder = small_disk("size=1m")
    stage.use()
    stage.remove_bridge()
    netns.run(["mount", "-o", "remount,ro", folder])
    refused(stage, 5)


@pytest.mark.unmeasured
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "in-use"])
def test_the_address_directory_is_full(make_stage, small_disk, fresh):
    """Inodes run out at every step in turn; directories, lock and boot mark may be made."""
    stage = make_stage()
    folder = small_disk("size=64k,nr_inodes=100")
    failed = 0
    for spare in range(12):
        stage.start_over()
        for name in os.listdir(folder):
            shutil.rmtree(os.path.join(folder, name))
        if not fresh:
            stage.use()
            stage.remove_bridge()
        free = os.statvfs(folder).f_ffree
        os.mkdir(os.path.join(folder, "ballast"))
        for number in range(free - 1 - spare):
            open(os.path.join(folder, "ballast", str(number)), "x").close()
        before = stage.world()
        ended = stage.run("ADD")
        left = faults.leftovers(before, stage.world())
        if ended.rc == 0:
            assert stage.run("DEL").rc == 0
            continue
        failed += 1
        assert ended.document()["code"] == 5, ended
        assert not left, f"{spare} inodes: " + "\n".join(left)
        deleted = stage.run("DEL")
        assert deleted.rc == 0, f"{spare} inodes: DEL has nothing to do, and fails: {deleted}"
    assert failed >= 3
    shutil.rmtree(os.path.join(folder, "ballast"))
    assert stage.run("DEL").rc == 0
    stage.assert_pool_is_whole()


def test_the_result_cannot_be_expressed(stage):
    """0.2.0 needs an address, and layer 2 only has none: seen when everything is made."""
    refused(stage, conf={**stage.conf, "cniVersion": "0.2.0", "ipam": {}})


# --- real causes: other nodes ---------------------------------------------------------------------


def _inventory(folder, *cidrs: str) -> str:
    nodes = [
        {"name": f"n{i}", "addresses": [f"192.168.1.{i + 2}/24"], "podCIDRs": [cidr]}
        for i, cidr in enumerate(cidrs)
    ]
    path = os.path.join(folder, "nodes.json")
    with open(path, "w") as f:
        json.dump({"nodes": nodes}, f)
    return path


def test_a_route_to_another_node_is_in_the_way(make_stage, tmp_path):
    """The last step of all; the routes that were added before it go too."""
    cidrs = ("10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24")
    nodes = _inventory(tmp_path, *cidrs)
    stage = make_stage(ipam={"ranges": None}, nodes=nodes)
    stage.node.run("ip", "route", "add", "10.244.3.0/24", "via", "192.168.1.77")
    assert stage.run("ADD").rc == 1
    refused(stage, 103)


def test_another_nodes_subnet_overlaps(make_stage, tmp_path):
    stage = make_stage(ipam={"ranges": None}, nodes=_inventory(tmp_path, *["10.244.0.0/24"] * 2))
    refused(stage, 106)


# --- real causes: delegates -----------------------------------------------------------------------

SETTABLE = {"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.5/24", "gateway": "10.244.0.1"}]}


@pytest.fixture
def delegating(make_stage, tmp_path) -> Callable[[str], Stage]:
    """delegating(shell lines for ADD) is a stage whose IPAM is that script; it logs its calls."""

    def make(on_add: str) -> Stage:
        script = tmp_path / "fake-ipam"
        script.write_text(
            f'#!/bin/sh\necho "$CNI_COMMAND" >>{tmp_path}/calls\ncat >/dev/null\n'
            f'[ "$CNI_COMMAND" = ADD ] || exit 0\n{on_add}\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        stage = make_stage(ipam={"type": "fake-ipam", "ranges": None})
        stage.plugin.cni_path = f"{tmp_path}/nothing:{tmp_path}"
        return stage

    return make


def says(document: object) -> str:
    return f"echo '{json.dumps(document)}'"


@pytest.mark.parametrize(
    "on_add",
    [
        "exit 3",
        "kill -9 $$",
        "echo nonsense",
        "echo nonsense; exit 1",
        'echo \'{"code": 5, "msg": "no"}\'; exit 1',
        "echo '[]'",
        says({"cniVersion": "1.0.0"}),
        says({"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.5"}]}),
        says({"cniVersion": "1.0.0", "ips": [{"address": "ff02::5/64"}]}),
        says({"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.5/24", "gateway": "fd00::1"}]}),
        says({**SETTABLE, "routes": [{"dst": "10.9.0.0/16", "gw": "172.31.0.1"}]}),
        says({**SETTABLE, "ips": SETTABLE["ips"] * 2}),
    ],
)
def test_the_delegate_fails_or_answers_what_cannot_be_set(delegating, tmp_path, on_add):
    refused(delegating(on_add))
    calls = (tmp_path / "calls").read_text().split()
    assert calls == ["ADD", "DEL"], "a delegate whose ADD was of no use gets its DEL"


def test_the_delegate_is_missing(make_stage):
    refused(make_stage(ipam={"type": "not-there", "ranges": None}))


def test_the_sandbox_goes_while_the_delegate_works(delegating):
    """Whatever ADD says then, after its DEL nothing is left."""
    stage = delegating('umount -l "$CNI_NETNS"; ' + says(SETTABLE))
    before = faults.look(stage.node)
    ended = stage.run("ADD")
    assert ended.rc in (0, 1)
    assert ended.document()
    assert stage.run("DEL").rc == 0
    now = netns.wait_until(lambda: _settled(stage, before), what="the veth goes with its sandbox")
    assert now is not None


def _settled(stage: Stage, before: faults.World) -> faults.World | None:
    now = faults.look(stage.node)
    return now if not faults.leftovers(before, now) else None


# --- nobody hears the result ----------------------------------------------------------------------


def test_stdout_is_full(stage):
    before = stage.world()
    with open("/dev/full", "wb") as full:
        ended = stage.run("ADD", stdout=full)
    assert ended.rc != 0
    changed = faults.difference(before, stage.world())
    assert stage.run("DEL").rc == 0
    assert not changed, changed


def test_the_reader_of_stdout_is_gone(stage):
    before = stage.world()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = stage.run("ADD", stdout=writer)
    finally:
        os.close(writer)
    assert ended.rc != 0
    changed = faults.difference(before, stage.world())
    assert stage.run("DEL").rc == 0
    assert not changed, changed


def test_stdout_is_closed(stage):
    """The runtime can't hear the result: for it the ADD has failed."""
    before = stage.world()
    ended = stage.run("ADD", wrap=["sh", "-c", 'exec "$0" >&-'], stdout=subprocess.DEVNULL)
    changed = faults.difference(before, stage.world())
    assert stage.run("DEL").rc == 0
    assert ended.rc != 0
    assert not changed, changed
