"""CNI_NETNS: everything that is not a pod's network namespace.

ADD and CHECK refuse it at once and touch nothing; DEL takes it for a sandbox that is gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.netns import Namespace
from tests.support.plugin import Config, Plugin
from tests.support.topology import Topology

pytestmark = pytest.mark.root

MakeConf = Callable[..., Config]
ENV = {"CNI_CONTAINERID": "ctr", "CNI_IFNAME": "eth0"}
TIMEOUT_S = 15  # none of these calls may wait for anything

MISSING = ("nothing there", "under a plain file", "dangling link", "an empty folder's child")


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Paths that are no network namespace, by what they are."""
    here = tmp_path / "paths"
    here.mkdir()
    (here / "file").write_text("x")
    (here / "empty").touch()
    (here / "folder").mkdir()
    (here / "dangling").symlink_to(here / "no")
    (here / "loop").symlink_to(here / "loop")
    (here / "to-fifo").symlink_to(here / "fifo")
    os.mkfifo(here / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(here)  # the path of a UNIX socket has room for 107 bytes
    listener.bind("socket")
    found = {
        "nothing there": str(here / "no"),
        "under a plain file": str(here / "file" / "x"),
        "dangling link": str(here / "dangling"),
        "an empty folder's child": str(here / "folder" / "x"),
        "plain file": str(here / "file"),
        "empty file": str(here / "empty"),
        "folder": str(here / "folder"),
        "loop": str(here / "loop"),
        "FIFO": str(here / "fifo"),
        "link to a FIFO": str(here / "to-fifo"),
        "socket": str(here / "socket"),
        "null device": "/dev/null",
        "endless device": "/dev/zero",
        "terminal": "/dev/tty",
        "too long": "/" + "x" * 5000,
        "a proc file": "/proc/self/status",
        "relative": "file",
        "mount namespace": "/proc/self/ns/mnt",
        "UTS namespace": "/proc/self/ns/uts",
        "user namespace": "/proc/self/ns/user",
        "process namespace": "/proc/self/ns/pid",
    }
    try:
        yield found
    finally:
        listener.close()
        os.chdir("/")


@pytest.fixture
def before(node: Namespace) -> dict[str, list[str]]:
    return node.state()


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_what_is_no_network_namespace_is_refused_at_once(
    plugin: Plugin,
    node: Namespace,
    before: dict[str, list[str]],
    make_conf: MakeConf,
    paths: dict[str, str],
    command: str,
) -> None:
    conf = make_conf()
    if command == "CHECK":
        conf["prevResult"] = {"interfaces": [{"name": "eth0", "sandbox": "/x"}]}
        paths = {kind: paths[kind] for kind in ("nothing there", "plain file", "FIFO", "folder")}
    codes = {}
    for kind, path in paths.items():
        reply = plugin.call(command, conf, {**ENV, "CNI_NETNS": path}, timeout=TIMEOUT_S)
        codes[kind] = reply.code
        assert "CNI_NETNS" in reply.error["msg"], kind
    assert codes == {kind: 3 if kind in MISSING else 4 for kind in paths}
    assert node.state() == before
    assert not os.path.exists(conf["ipam"]["dataDir"])


def test_del_takes_it_for_gone(
    plugin: Plugin,
    node: Namespace,
    before: dict[str, list[str]],
    make_conf: MakeConf,
    paths: dict[str, str],
) -> None:
    conf = make_conf()
    for kind, path in {**paths, "absent": None, "empty": ""}.items():
        reply = plugin.call("DEL", conf, {**ENV, "CNI_NETNS": path}, timeout=TIMEOUT_S)
        assert (reply.rc, reply.stdout) == (0, ""), (kind, reply.stdout)
    assert node.state() == before
    assert not os.path.exists(conf["ipam"]["dataDir"])
    assert os.path.exists(paths["FIFO"])
    assert Path(paths["plain file"]).read_text() == "x"


def test_del_of_what_was_never_added(
    plugin: Plugin, node: Namespace, sandbox: Namespace, make_conf: MakeConf
) -> None:
    before, inside = node.state(), sandbox.state()
    for version in ("0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"):
        for _ in range(2):
            reply = plugin.delete(make_conf(cniVersion=version), sandbox)
            assert (reply.rc, reply.stdout, reply.stderr) == (0, "", "")
    assert (node.state(), sandbox.state()) == (before, inside)


def test_del_leaves_a_link_that_podwire_did_not_make(
    plugin: Plugin, sandbox: Namespace, make_conf: MakeConf
) -> None:
    sandbox.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    assert plugin.delete(make_conf(), sandbox).ok
    assert {"eth0", "other"} <= set(sandbox.links())


# --- the host's own -----------------------------------------------------------------------------


def own_paths(node: Namespace, folder: Path) -> dict[str, str]:
    """Names of the namespace that the plugin itself runs in."""
    link = folder / "link"
    link.symlink_to(node.path)
    return {
        "its file": node.path,
        "a link to it": str(link),
        "its process": "/proc/self/ns/net",
        "its thread": "/proc/thread-self/ns/net",
    }


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
@pytest.mark.parametrize("ifname", ["eth0", "eth7"])
def test_the_hosts_own_namespace_is_refused(
    plugin: Plugin,
    node: Namespace,
    before: dict[str, list[str]],
    make_conf: MakeConf,
    tmp_path: Path,
    command: str,
    ifname: str,
) -> None:
    conf = make_conf()
    if command == "CHECK":
        conf["prevResult"] = {"interfaces": [{"name": ifname, "sandbox": node.path}]}
    for kind, path in own_paths(node, tmp_path).items():
        env = {**ENV, "CNI_IFNAME": ifname, "CNI_NETNS": path}
        reply = plugin.call(command, conf, env, timeout=TIMEOUT_S)
        assert reply.code == 4, kind
        assert "CNI_NETNS" in reply.error["msg"]
        assert "own" in reply.error["msg"]
    assert node.state() == before
    assert not os.path.exists(conf["ipam"]["dataDir"])


def test_del_never_deletes_the_hosts_own_link(
    plugin: Plugin,
    node: Namespace,
    before: dict[str, list[str]],
    make_conf: MakeConf,
    tmp_path: Path,
) -> None:
    """eth0 of the node is a veth as well, and prevResult claims it."""
    conf = make_conf()
    conf["prevResult"] = {"interfaces": [{"name": "eth0", "sandbox": node.path}]}
    for path in own_paths(node, tmp_path).values():
        plugin.call("DEL", conf, {**ENV, "CNI_NETNS": path}, timeout=TIMEOUT_S)
    assert node.state() == before


def test_another_nodes_namespace_is_a_sandbox_like_any_other(
    plugin: Plugin, topology: Topology, make_conf: MakeConf
) -> None:
    other = topology.sandbox("other")
    assert plugin.add(make_conf(), other).ok
    assert plugin.delete(make_conf(), other).ok
