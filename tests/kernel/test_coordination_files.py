"""Nodes that follow a cluster, and the files that they write or go by: full disks, what somebody
removes, and a shared configuration that changes."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from time import monotonic, sleep

import pytest

from cni_plugin import conflists, wholefiles
from cni_plugin.agent.clusternode import ClusterNode
from cni_plugin.agent.upkeep import Upkeep
from cni_plugin.node import FOLLOWED
from cni_plugin.sources import Gone, Listed, Put
from cni_plugin.spec import Code
from tests.support.fakesource import member
from tests.support.follower import MEMBERS, Follower, subnets_of

SOON_S = 15.0  # a look a second, and a machine that is slow; `never` comes none but these


@pytest.fixture
def full(monkeypatch) -> Callable[..., None]:
    """full(path) has no more files written there; full() has all written again."""
    without: list[str] = []
    write = wholefiles.write

    def fails(path, mode, parts):
        if path in without:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, mode, parts)

    monkeypatch.setattr("cni_plugin.wholefiles.write", fails)

    def full(*paths: object) -> None:
        without[:] = map(str, paths)

    return full


@pytest.fixture
def never(monkeypatch) -> None:
    """Nothing is looked at just because time has passed."""
    monkeypatch.setattr("cni_plugin.agent.coordination._WHOLE_S", 1000)


def ready(node: Follower, members=MEMBERS) -> Follower:
    node.source.tell(Listed(members))
    node.wait_for_state("PodwireReady")
    return node


def message(node: Follower) -> str:
    return node.source.states[-1].message


def request(node: Follower) -> dict[str, object]:
    return {**node.plugin(), "name": node.conflist()["name"], "cniVersion": "1.1.0"}


# --- a full disk ----------------------------------------------------------------------------------


def test_a_peer_that_comes_while_the_disk_is_full(follow, full, topology, podwire):
    """The kernel knows it at once, pods come and go, and the file says so as soon as it can."""
    node = ready(follow(0), MEMBERS[:2])
    full(node.inventory)
    node.source.tell(Put(MEMBERS[2]))
    node.wait(lambda: "10.244.2.0/24" in node.owned(), "the route to a new peer")
    node.wait(lambda: "No space left" in message(node), "a word of it")
    assert all(state.ready for state in node.source.states)
    assert "node-2" not in node.inventory.read_text()
    sandbox = topology.sandbox("pod")
    plugin = podwire.on(node.node)
    assert plugin.status(request(node)).ok
    assert plugin.add(request(node), sandbox).ok
    plugin.delete(request(node), sandbox)
    node.source.tell(Gone("node-1"))
    node.wait(lambda: "10.244.1.0/24" not in node.owned(), "the end of a peer")
    full()
    node.wait(lambda: "node-2" in node.inventory.read_text(), "the file")
    node.wait(lambda: "No space left" not in message(node), "the end of it")
    assert node.owned() == {"10.244.2.0/24"}


def test_what_is_remembered_is_not_the_file_s(follow, full):
    """An agent trusts what it knows as long as the file is the same one."""
    node = ready(follow(0), MEMBERS[:2])
    upkeep = Upkeep(node.memory, logging.getLogger("test.upkeep"), lambda: None)
    with node.node.entered():
        upkeep.start()
    try:
        node.source.tell(Listed(MEMBERS[:2]))
        node.wait(lambda: node.memory.kept, "what is trusted")
        full(node.inventory)
        for members, routes in (
            (MEMBERS, {"10.244.1.0/24", "10.244.2.0/24"}),
            (MEMBERS[::2], {"10.244.2.0/24"}),
        ):
            node.source.tell(Listed(members))
            node.wait(lambda routes=routes: node.owned() == routes, "routes")
    finally:
        upkeep.stop()


def test_no_inventory_and_no_room_for_one(follow, full):
    node = follow(0)
    full(node.inventory)
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("NetworkNotReady")
    assert "No space left" in message(node)
    assert not node.has_conflist()
    full()
    node.wait_for_state("PodwireReady")
    assert node.has_conflist()


def test_another_subnet_while_the_disk_is_full(follow, full):
    """Calls that no agent serves go by the file, which gives this node the former one."""
    node = ready(follow(0))
    full(node.inventory)
    before = node.conflist()
    node.source.tell(Put(member("node-0", "192.168.1.2 fd00:1::2", "10.244.9.0/24")))
    node.wait_for_state("NetworkNotReady")
    assert "No space left" in message(node)
    assert node.conflist() == before
    full()
    node.wait_for_state("PodwireReady")
    assert subnets_of(node.plugin()) == ["10.244.9.0/24"]


def test_a_configuration_that_cannot_be_written(follow, full, split):
    """The one in place serves as before."""
    node = ready(follow(0))
    full(node.conf_dir / conflists.NAME)
    split.nodes[0].run("ip", "link", "set", "eth0", "mtu", "1400")
    node.memory.happened()
    node.wait(lambda: "No space left" in message(node), "a word of it")
    assert node.source.states[-1].ready
    assert node.plugin()["mtu"] == 1450
    full()
    node.wait(lambda: node.plugin()["mtu"] == 1350, "the configuration")


def test_between_inventory_and_configuration_is_try_again_later(follow, topology, podwire):
    """An agent wrote both, and will write both; of a person's configuration it is a mistake."""
    node = ready(follow(0))
    conf, sandbox = request(node), topology.sandbox("pod")
    node.stop()
    entries = json.loads(node.inventory.read_text())
    plugin = podwire.on(node.node)
    other = "10.244.0.0/24"
    for subnet, holder in (("10.244.9.0/24", "10.244.1.0/24"), ("10.244.9.0/24", other)):
        entries["nodes"][0]["podCIDRs"] = [subnet]
        entries["nodes"][1]["podCIDRs"] = [holder]
        node.inventory.write_text(json.dumps(entries))
        refused = plugin.add(conf, sandbox)
        assert refused.error["code"] == Code.TRY_AGAIN_LATER
        assert "10.244.0.0/24" in refused.error["msg"]
        persons = {key: conf[key] for key in conf if key != conflists.MARK}
        code = Code.SUBNET_OVERLAP if holder == other else Code.INVALID_CONFIG
        assert plugin.add(persons, sandbox).error["code"] == code
    assert FOLLOWED == conflists.MARK


# --- what somebody else does with the files -------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "edited", "emptied", "cut off", "replaced"])
def test_a_configuration_that_somebody_changes_is_back_soon(follow, never, how):
    node = ready(follow(0))
    path = node.conf_dir / conflists.NAME
    before = path.read_text()
    sleep(1.5)  # the look after its own writing is over
    begun = monotonic()
    if how == "removed":
        path.unlink()
    elif how == "edited":
        path.write_text(before.replace("cni0", "cni9"))
    elif how in ("emptied", "cut off"):
        path.write_text(before[: 200 if how == "cut off" else 0])
    else:
        path.write_text(json.dumps({"name": "other", "plugins": [{"type": "ptp"}]}))
        node.wait_for_state("NetworkNotReady")
        assert monotonic() - begun < SOON_S
        begun = monotonic()
        path.unlink()
    node.wait(lambda: path.exists() and path.read_text() == before, "the configuration")
    assert monotonic() - begun < SOON_S
    node.wait_for_state("PodwireReady")


def test_a_configuration_that_is_removed_again_at_once_is_back_soon(follow, never):
    """Before anybody has seen that it was there."""
    node = ready(follow(0))
    path = node.conf_dir / conflists.NAME
    sleep(1.5)  # the look after its own writing is over
    for _ in range(3):
        path.unlink()
        begun = monotonic()
        while not path.exists():
            assert monotonic() - begun < SOON_S
            sleep(0.002)
    sleep(3)
    assert path.exists()


def test_what_is_removed_while_it_is_written_is_back_soon(follow, never, monkeypatch):
    """By a program that waits for it: the folder is then as it was."""
    path = (node := ready(follow(0))).conf_dir / conflists.NAME
    sleep(1.5)  # the look after its own writing is over
    write, times = wholefiles.write, []

    def undone(where, mode, parts):
        write(where, mode, parts)
        if where == str(path) and not times:
            times.append(monotonic())
            path.unlink()

    monkeypatch.setattr("cni_plugin.wholefiles.write", undone)
    path.unlink()
    node.wait(lambda: times and path.exists(), "the configuration")
    assert monotonic() - times[0] < SOON_S


def test_its_own_writing_is_looked_at_once(follow, never, monkeypatch):
    looks: list[float] = []
    bring_about = ClusterNode.bring_about

    def counted(self, members):
        looks.append(monotonic())
        return bring_about(self, members)

    monkeypatch.setattr(ClusterNode, "bring_about", counted)
    ready(follow(0))
    sleep(2.5)
    settled = len(looks)
    sleep(3)
    assert len(looks) == settled
    assert settled < 6


def test_a_foreign_configuration_that_comes_first_is_named_soon(follow, never):
    node = ready(follow(0))
    other = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "ptp"}]}
    begun = monotonic()
    (node.conf_dir / "05-other.conflist").write_text(json.dumps(other))
    node.wait(lambda: "sorts before" in message(node), "its name")
    assert monotonic() - begun < SOON_S
    (node.conf_dir / "05-other.conflist").unlink()
    node.wait(lambda: "sorts before" not in message(node), "its end")


def test_a_file_that_containerd_stops_at_is_named_soon(follow, never):
    """Other runtimes pass it over, so the node stays as it is."""
    node = ready(follow(0))
    (node.conf_dir / "00-broken.conflist").write_text("{")
    node.wait(lambda: "containerd stops there" in message(node), "its name")
    assert str(node.conf_dir / "00-broken.conflist") in message(node)
    assert node.source.states[-1].ready
    (node.conf_dir / "00-broken.conflist").unlink()
    node.wait(lambda: "containerd stops there" not in message(node), "its end")


# --- plugins that are not there -------------------------------------------------------------------


def test_plugins_that_are_missing_are_named(follow, split, tmp_path):
    """As far as the folder can be seen; pods may come all the same, from another folder."""
    node = Follower(split.nodes[0], 0, tmp_path)
    node.template["plugins"].append({"type": "tunning"})
    node.bin_dir.mkdir()
    node.start()
    ready(node)
    assert "no plugin" not in message(node)
    (node.bin_dir / "podwire").touch()
    node.source.tell(Listed(MEMBERS))
    node.wait(lambda: f"no plugin tunning in {node.bin_dir}" in message(node), "what is missing")
    (node.bin_dir / "tunning").symlink_to("/proc/nowhere")
    (node.bin_dir / "podwire").unlink()
    node.source.tell(Listed(MEMBERS))
    node.wait(lambda: f"no plugin podwire in {node.bin_dir}" in message(node), "what is missing")
    assert all(state.ready for state in node.source.states)
    node.stop()


# --- what all nodes share -------------------------------------------------------------------------


WRONG = {
    "no JSON": "{",
    "no object": "[]",
    "of the wrong type": '{"type": "podwire", "mtu": "1500"}',
    "without podwire": '{"cniVersion": "1.0.0", "name": "podwire", "plugins": [{"type": "x"}]}',
    "with subnets": '{"type": "podwire", "ipam": {"type": "host-local", "subnet": "10.0.0.0/8"}}',
    "with a small MTU": '{"type": "podwire", "mtu": 1000}',
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_at_the_start(follow, case):
    """The one in place serves, and peers are followed."""
    first = ready(follow(0), MEMBERS[:2])
    path = first.conf_dir / conflists.NAME
    before = path.read_text()
    first.stop()
    first.node.run("ip", "route", "flush", "proto", "112")
    second = Follower(first.node, 0, first.conf_dir.parents[1])
    second.share(WRONG[case])
    second.start()
    second.wait(lambda: second.owned() == {"10.244.1.0/24"}, "the routes of before")
    ready(second)
    assert "the network configuration before stays in force" in message(second)
    assert str(second.shared) in message(second)
    assert second.owned() == {"10.244.1.0/24", "10.244.2.0/24"}
    assert path.read_text() == before
    second.share()
    second.wait(lambda: "stays in force" not in message(second), "what is shared")
    second.stop()


def test_a_wrong_configuration_and_none_before(follow, split, tmp_path, never):
    """Until somebody mends it; nobody has to start the agent again."""
    node = Follower(split.nodes[0], 0, tmp_path)
    node.share("{")
    node.start()
    node.source.tell(Listed(MEMBERS))
    node.wait_for_state("NetworkNotReady")
    assert "not valid JSON" in message(node)
    assert not node.has_conflist()
    node.share()
    node.wait_for_state("PodwireReady")
    node.stop()


def test_peers_are_followed_without_any_configuration(follow, topology, podwire, never):
    """For the pods that run: what the kernel is to have is remembered."""
    first = ready(follow(0), MEMBERS[:2])
    sandbox, conf = topology.sandbox("pod"), request(first)
    plugin = podwire.on(first.node)
    assert plugin.add(conf, sandbox).ok
    first.stop()
    (first.conf_dir / conflists.NAME).unlink()
    second = Follower(first.node, 0, first.conf_dir.parents[1])
    second.share("{")
    second.start()
    second.source.tell(Listed(MEMBERS))
    second.wait_for_state("NetworkNotReady")
    second.wait(lambda: second.owned() == {"10.244.1.0/24", "10.244.2.0/24"}, "the routes")
    second.source.tell(Gone("node-1"))
    second.wait(lambda: second.owned() == {"10.244.2.0/24"}, "a peer's end")
    second.stop()
    plugin.delete(conf, sandbox)


def test_what_is_shared_is_read_again(follow, never):
    node = ready(follow(0))
    node.template["plugins"][0]["mtu"] = 1300
    node.template["plugins"].append({"type": "tuning"})
    begun = monotonic()
    node.share()
    node.wait(lambda: node.plugin()["mtu"] == 1300, "another MTU")
    assert monotonic() - begun < SOON_S
    assert [plugin["type"] for plugin in node.conflist()["plugins"]] == ["podwire", "tuning"]
    node.share("{")
    node.wait(lambda: "not valid JSON" in message(node), "what is wrong")
    assert node.plugin()["mtu"] == 1300
    assert all(state.ready for state in node.source.states)


def test_a_change_that_fails_is_taken_back(follow, never, caplog):
    """What is wrong only here: a link that this node lacks. It is not tried again and again."""
    caplog.set_level(logging.INFO)
    node = ready(follow(0))
    before = node.conflist()
    node.template["plugins"][0].update({"backend": "vxlan", "underlay": {"interface": "eth7"}})
    node.share()
    node.wait(lambda: "stays in force" in message(node), "what is wrong")
    assert "eth7" in message(node)
    assert node.owned() == {"10.244.1.0/24", "10.244.2.0/24"}
    caplog.clear()
    for _ in range(3):
        node.source.tell(Listed(MEMBERS))
        sleep(0.3)
    assert "set up" not in caplog.messages
    assert node.conflist() == before
    assert all(state.ready for state in node.source.states)


def test_another_name_while_pods_run_is_refused(follow, topology, podwire, tmp_path):
    """The new network would give the old one's addresses away; a bridge would cut them off."""
    node = ready(follow(0))
    conf, sandbox = request(node), topology.sandbox("pod")
    plugin = podwire.on(node.node)
    assert plugin.add(conf, sandbox).ok
    before = node.conflist()
    node.template["name"] = "other"
    node.share()
    node.wait(lambda: 'expected "podwire"' in message(node), "a refusal of the name")
    node.template["name"] = "podwire"
    node.template["plugins"][0]["bridge"] = "cni9"
    node.share()
    node.wait(lambda: 'expected "cni0"' in message(node), "a refusal of the bridge")
    assert all(state.ready for state in node.source.states)
    node.source.tell(Gone("node-1"))
    node.wait(lambda: node.owned() == {"10.244.2.0/24"}, "a peer's end")
    assert node.conflist() == before
    node.stop()
    again = Follower(node.node, 0, tmp_path)
    again.start()
    ready(again)
    assert 'expected "cni0"' in message(again)
    assert again.conflist() == before
    plugin.delete(conf, sandbox)
    again.template["name"] = "other"
    again.share()
    again.wait(lambda: again.conflist()["name"] == "other", "the new name, without pods")
    again.stop()
