"""GC removes what no valid attachment owns; STATUS tells whether an ADD would be served."""

from __future__ import annotations

import os

import pytest

from tests.support import probe
from tests.support.plugin import Plugin


@pytest.fixture
def conf(make_conf, dual):
    return make_conf(cniVersion="1.1.0", ipam={"ranges": dual.ranges})


@pytest.fixture
def pods(plugin, topology, conf):
    """Three pods of the network: name to sandbox."""
    sandboxes = {name: topology.sandbox(name) for name in ("a", "b", "c")}
    for sandbox in sandboxes.values():
        assert plugin.add(conf, sandbox).ok
    return sandboxes


def linked(pods):
    """The names of the pods that have their interface."""
    return {name for name, sandbox in pods.items() if "eth0" in sandbox.links()}


def holders(reservations, network="podnet"):
    return {content.split("\r\n")[0] for content in reservations(network).values()}


# --- GC ---------------------------------------------------------------------------------------


def test_gc_keeps_the_valid_and_removes_the_rest(plugin, node, pods, conf, dual, reservations):
    assert plugin.gc(conf, [("b", "eth0"), ("unknown", "eth0")]).ok
    assert linked(pods) == {"b"}
    assert holders(reservations) == {"b"}
    assert len([link for link in node.links() if link.startswith("veth")]) == 1
    assert probe.tcp(node, pods["b"], dual.hosts(3)[0]).source == dual.hosts(1)[0]
    assert plugin.gc(conf, []).ok
    assert linked(pods) == set()
    assert reservations() == {}
    assert plugin.gc(conf, []).ok


def test_gc_in_mode_ptp(plugin, node, topology, make_conf, dual, reservations, untouched):
    conf = make_conf(cniVersion="1.1.0", mode="ptp", ipam={"ranges": dual.ranges})
    with untouched(node):
        a, b = topology.sandbox("a"), topology.sandbox("b")
        plugin.add(conf, a)
        with untouched(node, b):
            plugin.add(conf, b)
            assert plugin.gc(conf, [("a", "eth0")]).ok
        assert holders(reservations) == {"a"}
        assert plugin.gc(conf, []).ok


def test_an_attachment_is_a_container_and_an_interface(plugin, sandbox, conf, reservations):
    """One container with two interfaces of one network: each is an attachment of its own."""
    assert plugin.add(conf, sandbox).ok
    assert plugin.add(
        {**conf, "isDefaultGateway": False}, sandbox, ifname="net1"
    ).addresses() == ["10.244.0.3/24", "fd00:10:244::3/64"]  # fmt: skip
    assert plugin.gc(conf, [("pod", "net1")]).ok
    assert set(sandbox.links()) == {"lo", "net1"}
    assert set(reservations().values()) == {"pod\r\nnet1"}


def test_gc_leaves_other_networks_alone(plugin, pods, topology, conf, reservations):
    """Even when one network's name begins with another's, on one bridge and in one directory."""
    other = {**conf, "name": "pod"}
    stranger = topology.sandbox("stranger")
    plugin.add({**other, "isGateway": False, "isDefaultGateway": False}, stranger)
    assert plugin.gc(other, []).ok
    assert linked(pods) == {"a", "b", "c"}
    assert linked({"stranger": stranger}) == set()
    assert holders(reservations, "pod") == set()
    assert plugin.gc(conf, []).ok
    assert linked(pods) == set()


def test_gc_leaves_links_of_others_alone(plugin, node, pods, conf):
    before = set(node.links())
    node.run("ip", "link", "add", "vethfeedbeef", "type", "veth", "peer", "name", "mine")
    node.run("ip", "link", "set", "vethfeedbeef", "alias", "podwire is not my owner")
    assert plugin.gc(conf, [("a", "eth0"), ("b", "eth0"), ("c", "eth0")]).ok
    assert set(node.links()) == before | {"vethfeedbeef", "mine"}


@pytest.mark.parametrize("length", [64, 200])
def test_gc_tells_long_names_apart(plugin, topology, conf, reservations, length):
    """Container IDs and networks' names of any length that the file system takes."""
    conf = {**conf, "name": "n" * length}
    pods = {"a" * length: topology.sandbox("a"), "a" * (length - 1) + "b": topology.sandbox("b")}
    for container_id, sandbox in pods.items():
        assert plugin.add(conf, sandbox, cid=container_id).result
    assert plugin.gc(conf, [("a" * length, "eth0")]).ok
    assert linked(pods) == {"a" * length}
    assert holders(reservations, "n" * length) == {"a" * length}
    assert plugin.delete(conf, pods["a" * length], cid="a" * length).ok
    assert linked(pods) == set()


@pytest.mark.parametrize("value", ["absent", None])
def test_gc_without_a_list_changes_nothing(plugin, node, pods, conf, untouched, value):
    if value is None:
        conf = {**conf, "cni.dev/valid-attachments": None}
    with untouched(node, *pods.values()):
        assert plugin.call("GC", conf).ok


MALFORMED = (
    *({}, "a", 7, [7], ["a"], [{}], [{"containerID": "a"}], [{"ifname": "eth0"}]),
    [{"containerID": "a", "ifname": "eth0"}, {"containerID": 7, "ifname": "eth0"}],
    [{"containerID": "a", "ifname": "eth0"}, {"containerID": "", "ifname": "eth0"}],
)


def test_gc_with_a_malformed_list_changes_nothing(plugin, node, sandbox, conf, untouched):
    assert plugin.add(conf, sandbox).ok
    with untouched(node, sandbox):
        for value in MALFORMED:
            refused = plugin.call("GC", {**conf, "cni.dev/valid-attachments": value})
            assert refused.code == 7, value
            assert "cni.dev/valid-attachments" in refused.error["msg"], value


def test_gc_knows_reservations_of_the_old_kind(plugin, conf, tmp_path, reservations):
    """Files that hold a container ID alone belong to every interface of that container."""
    folder = tmp_path / "networks" / "podnet"
    folder.mkdir(parents=True)
    for address, content in (("10.244.0.7", "valid"), ("10.244.0.8", "gone")):
        (folder / address).write_text(content)
    assert plugin.gc(conf, [("valid", "eth0")]).ok
    assert reservations() == {"10.244.0.7": "valid"}


def test_gc_frees_what_a_pod_left_whose_link_is_gone(plugin, pods, conf, dual, reservations):
    """Its sandbox vanished without DEL; its addresses are given out again."""
    pods["a"].run("ip", "link", "del", "eth0")
    assert plugin.gc(conf, [("b", "eth0"), ("c", "eth0")]).ok
    assert holders(reservations) == {"b", "c"}


def test_gc_is_forwarded_to_the_delegate(plugin_there, sandbox, make_conf, fake_ipam):
    fake = fake_ipam('[ "$CNI_COMMAND" != ADD ] || echo \'{"cniVersion":"1.1.0",'
                     '"ips":[{"address":"10.9.0.7/24","gateway":"10.9.0.1"}]}\'')  # fmt: skip
    conf = make_conf(cniVersion="1.1.0", ipam={"type": fake.name})
    assert plugin_there.add(conf, sandbox).addresses() == ["10.9.0.7/24"]
    assert plugin_there.gc(conf, [("pod", "eth0")]).ok
    assert linked({"pod": sandbox}) == {"pod"}
    assert plugin_there.gc(conf, []).ok
    assert linked({"pod": sandbox}) == set()
    assert fake.calls() == ["ADD", "GC", "GC"]
    assert fake.stdin("GC")["cni.dev/valid-attachments"] == []
    assert fake.stdin("GC")["name"] == "podnet"


def test_a_delegate_that_fails_on_gc_is_reported_and_links_go_all_the_same(
    plugin_there, sandbox, make_conf, fake_ipam
):
    fake = fake_ipam(
        'case "$CNI_COMMAND" in\n'
        'ADD) echo \'{"cniVersion":"1.1.0",'
        '"ips":[{"address":"10.9.0.7/24","gateway":"10.9.0.1"}]}\';;\n'
        'GC) echo \'{"cniVersion":"1.1.0","code":123,"msg":"no way"}\'; exit 1;;\nesac'
    )
    conf = make_conf(cniVersion="1.1.0", ipam={"type": fake.name})
    plugin_there.add(conf, sandbox)
    refused = plugin_there.gc(conf, [])
    assert refused.code == 123
    assert "no way" in refused.error["msg"]
    assert linked({"pod": sandbox}) == set()


def test_gc_and_status_need_the_newest_version(plugin, make_conf):
    for conf in (make_conf(cniVersion="1.0.0"), make_conf(cniVersion="0.4.0")):
        assert plugin.gc(conf, []).code == 1
        assert plugin.status(conf).code == 1


# --- STATUS -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_status_of_a_fresh_node(plugin, node, make_conf, dual, tmp_path, untouched, mode):
    """It succeeds, and makes nothing."""
    conf = make_conf(cniVersion="1.1.0", mode=mode, ipam={"ranges": dual.ranges})
    with untouched(node):
        assert plugin.status(conf).ok
    assert not (tmp_path / "networks").exists()


def test_status_of_a_node_in_use(plugin, node, pods, conf, untouched):
    with untouched(node, *pods.values()):
        assert plugin.status(conf).ok


def test_status_without_ipam(plugin, make_conf):
    conf = make_conf(cniVersion="1.1.0", isGateway=None, isDefaultGateway=None)
    del conf["ipam"]
    assert plugin.status(conf).ok


def test_status_when_the_pool_is_exhausted(plugin, topology, make_conf):
    """As long as there is no address in one of the sets; one that is freed makes it well again."""
    ranges = [[{"subnet": "fd00:10:244::/64"}], [{"subnet": "10.244.0.0/30"}]]
    conf, sandbox = make_conf(cniVersion="1.1.0", ipam={"ranges": ranges}), topology.sandbox("a")
    assert plugin.status(conf).ok
    assert plugin.add(conf, sandbox).ok
    refused = plugin.status(conf)
    assert refused.code == 50
    assert "10.244.0.2" in refused.error["msg"]
    assert plugin.add(conf, topology.sandbox("b")).code == 100
    assert plugin.delete(conf, sandbox).ok
    assert plugin.status(conf).ok


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("place", ["below a file", "a file", "the network's folder is a file"])
def test_status_when_the_directory_cannot_be_used(plugin, sandbox, make_conf, tmp_path, place):
    folder = tmp_path / "data"
    if place == "below a file":
        folder.write_text("")
        folder = folder / "networks"
    elif place == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        (folder / "podnet").write_text("")
    conf = make_conf(cniVersion="1.1.0", ipam={"dataDir": str(folder)})
    refused = plugin.status(conf)
    assert refused.code == 50
    assert str(tmp_path / "data") in refused.error["msg"]
    assert not plugin.add(conf, sandbox).ok


def test_status_when_the_bridges_name_is_taken(plugin, node, conf):
    node.run("ip", "link", "add", "cni0", "type", "veth", "peer", "name", "cni0-peer")
    refused = plugin.status(conf)
    assert refused.code == 50
    assert "cni0" in refused.error["msg"]


def test_status_when_the_bridge_has_another_address(plugin, node, sandbox, conf):
    """An ADD would be refused, so STATUS says no; with forceAddress both go well."""
    node.run("ip", "link", "add", "cni0", "up", "type", "bridge")
    node.run("ip", "addr", "add", "10.99.0.1/24", "dev", "cni0")
    assert plugin.add(conf, sandbox).code == 103
    refused = plugin.status(conf)
    assert refused.code == 50
    assert "10.99.0.1/24" in refused.error["msg"]
    assert plugin.status({**conf, "forceAddress": True}).ok


def test_status_of_a_wrong_configuration(plugin, conf):
    assert plugin.status({**conf, "mtu": "large"}).code == 7
    assert plugin.status({**conf, "macspoofchk": True}).code == 2


def test_status_when_a_route_to_another_node_cannot_be_made(make_cluster, topology, podwire):
    """An ADD would be refused, so STATUS says no."""
    cluster = make_cluster(2, (4,))
    node, sandbox = cluster.nodes[0], topology.sandbox("pod")
    node.run("ip", "route", "add", "10.244.1.0/24", "via", "192.168.1.99", "proto", "static")
    assert podwire.on(node).add(cluster.conf(0), sandbox).code == 103
    refused = podwire.on(node).status(cluster.conf(0))
    assert refused.code == 50
    assert "10.244.1.0/24" in refused.error["msg"]


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    ("script", "code", "word"),
    [
        ("", 0, ""),
        ('echo \'{"cniVersion":"1.1.0","code":50,"msg":"server is away"}\'; exit 1', 50, "away"),
        ('echo \'{"cniVersion":"1.1.0","code":51,"msg":"half is away"}\'; exit 1', 51, "half"),
    ],
)
def test_the_delegates_status_counts(plugin_there, make_conf, fake_ipam, script, code, word):
    fake = fake_ipam(script)
    reply = plugin_there.status(make_conf(cniVersion="1.1.0", ipam={"type": fake.name}))
    assert reply.code == code
    assert fake.calls() == ["STATUS"]
    assert word in str(reply.document)


def test_status_without_the_delegate(plugin_there, make_conf):
    refused = plugin_there.status(make_conf(cniVersion="1.1.0", ipam={"type": "no-such-ipam"}))
    assert refused.code == 50
    assert "no-such-ipam" in refused.error["msg"]


def test_podwire_ipam_has_gc_and_status_too(podwire_ipam_executable, by_way, node, make_conf,
                                            tmp_path, reservations):  # fmt: skip
    ipam = by_way(Plugin(podwire_ipam_executable, node))
    conf = make_conf(cniVersion="1.1.0", ipam={"type": "podwire-ipam",
                     "ranges": [[{"subnet": "10.244.0.0/30"}]]})  # fmt: skip
    assert ipam.status(conf).ok
    folder = tmp_path / "networks" / "podnet"
    folder.mkdir(parents=True)
    (folder / "10.244.0.2").write_text("gone\r\neth0")
    assert ipam.status(conf).code == 50
    assert ipam.gc(conf, [("other", "eth0")]).ok
    assert reservations() == {}
    assert os.listdir(folder)
    assert ipam.status(conf).ok
