"""`ipam.type` is a name: with a path in it, nothing is ever executed (CVE-2021-20206)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.netns import Namespace
from tests.support.plugin import Config, Plugin

MakeConf = Callable[..., Config]
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")


class Trap(NamedTuple):
    """A plugin that leaves a mark when it runs, in a folder outside CNI_PATH and in one inside."""

    folder: Path
    cni_path: Path
    mark: Path


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    mark = tmp_path / "mark"
    cni_path = tmp_path / "bin"
    script = f"#!/bin/sh\necho $CNI_COMMAND >> {mark}\necho '{{}}'\n"
    for place in (tmp_path / "out", cni_path, cni_path / "sub"):
        place.mkdir(parents=True)
        (place / "evil").write_text(script)
        (place / "evil").chmod(0o755)
    return Trap(tmp_path / "out", cni_path, mark)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_is_never_executed(
    podwire: Plugin, make_conf: MakeConf, trap: Trap, command: str
) -> None:
    kinds = [str(trap.folder / "evil"), "../out/evil", "sub/evil"]
    if command == "ADD":
        kinds += ["./evil", "/evil", "evil/", "..", ".", "sub\\evil", "evil\0", "/../bin/sh"]
    env = {
        "CNI_CONTAINERID": "ctr",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/proc/nowhere/netns",
        "CNI_PATH": str(trap.cni_path),
    }
    for kind in kinds:
        conf = make_conf(
            cniVersion="1.1.0",
            ipam={"type": kind},
            **{"cni.dev/valid-attachments": []},
            prevResult={"interfaces": [{"name": "eth0", "sandbox": "/x"}]},
        )
        reply = podwire.call(command, conf, env)
        assert reply.code == 7, kind
        assert reply.error["msg"].startswith("ipam.type"), kind
        assert not trap.mark.exists(), kind


@pytest.mark.root
def test_a_name_is_executed_from_cni_path(
    plugin: Plugin, make_conf: MakeConf, trap: Trap, node: Namespace
) -> None:
    """The trap works: this is what the others would have seen."""
    conf = make_conf(ipam={"type": "evil"})
    env = {
        "CNI_CONTAINERID": "ctr",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": f"/proc/nowhere:{trap.cni_path}",
    }
    assert plugin.call("DEL", conf, env).ok
    assert trap.mark.read_text() == "DEL\n"


@pytest.mark.root
@pytest.mark.parametrize("found", ["nothing", "a folder", "not executable"])
def test_a_plugin_that_is_not_there(
    plugin: Plugin, make_conf: MakeConf, sandbox: Namespace, tmp_path: Path, found: str
) -> None:
    if found == "a folder":
        (tmp_path / "ghost").mkdir()
    elif found == "not executable":
        (tmp_path / "ghost").write_text("#!/bin/sh\n")
    here = Plugin(plugin.executable, plugin.node, str(tmp_path))
    conf = make_conf(ipam={"type": "ghost"})
    reply = here.add(conf, sandbox)
    assert reply.code == 105
    assert "ghost" in reply.error["msg"]
    assert str(tmp_path) in reply.error["msg"] + reply.error.get("details", "")
    assert list(sandbox.links()) == ["lo"]


@pytest.mark.root
def test_a_delegate_needs_cni_path(plugin: Plugin, make_conf: MakeConf, sandbox: Namespace) -> None:
    env = {
        "CNI_CONTAINERID": "ctr",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": sandbox.path,
        "CNI_PATH": None,
    }
    reply = plugin.call("ADD", make_conf(ipam={"type": "static"}), env)
    assert reply.code == 4
    assert "CNI_PATH" in reply.error["msg"]
    assert plugin.call("ADD", make_conf(), env).ok, "podwire's own IPAM needs none"
    assert plugin.call("DEL", make_conf(), env).ok


def test_nothing_is_run_from_the_working_directory(
    podwire: Plugin, make_conf: MakeConf, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trap.folder)
    env = {"CNI_CONTAINERID": "ctr", "CNI_IFNAME": "eth0", "CNI_PATH": "/proc/nowhere"}
    podwire.call("DEL", make_conf(ipam={"type": "evil"}), env)
    assert os.listdir() == ["evil"]
    assert not trap.mark.exists()
