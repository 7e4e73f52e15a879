"""The client of the Kubernetes API inside of the self-contained executable."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support import executable, require
from tests.support.controlplane import ControlPlane
from tests.support.nodeobjects import node_object

# Starts as launcher/entry.py does, in the interpreter and with the modules of the executable alone.
_START = """
import sys, marshal
entry = {"__name__": "entry"}
exec(marshal.loads(open(ROOT + "/main.pyc", "rb").read()[16:]), entry)
entry["install"](ROOT)
"""
_FOLLOW = """
import json, os, threading
from cni_plugin.sources import Announcement, Listed, Readiness, SourceError
from cni_plugin.sources.kubernetes import KubernetesSource, Options
first = threading.Event()
told = []
def tell(change):
    told.append(change)
    first.set()
source = KubernetesSource(Options("node-1", kubeconfig=KUBECONFIG))
thread = threading.Thread(target=source.follow, args=(tell,))
thread.start()
assert first.wait(90)
assert isinstance(told[0], Listed), told
source.announce(Announcement(backend="host-gw"))
source.say_ready(Readiness(True, "PodwireReady", "pods have a network"))
source.report("node-1", "NoAddress", "it has none")
other = KubernetesSource(Options("node-1", kubeconfig=KUBECONFIG, api_server="https://127.0.0.1:1"))
other._own.note(source._own.known())
try:
    other.announce(Announcement())
except SourceError as e:
    refused = str(e)
source.stop()
thread.join()
print(json.dumps([[member.name for member in told[0].members], refused]))
"""
_WITHOUT = """
import cni_plugin.agent.server, cni_plugin.agent.coordination, cni_plugin.sources.kubernetes
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the executable has unpacked its runtime into."""
    require.root()
    path = executable.executable()
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o700)
    environ = {"PODWIRE_RUNTIME": str(folder)}
    subprocess.run([path, "--version"], env=environ, check=True, capture_output=True)
    (unpacked,) = folder.glob("runtime-*")
    return unpacked


def run(runtime: Path, program: str, **names: str) -> str:
    """What a program prints that runs in the executable's interpreter, with these names."""
    names["ROOT"] = str(runtime)
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    command = [f"{runtime}/ld.so", "--inhibit-cache", "--library-path", f"{runtime}/lib"]
    command += [f"{runtime}/python", "-I", "-S", "-X", "utf8", "-c", given + _START + program]
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_follows_and_tells_a_real_api_server(runtime: Path, tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as plane:
        plane.api.create("/api/v1/nodes", node_object(1))
        names, refused = json.loads(run(runtime, _FOLLOW, KUBECONFIG=plane.kubeconfig))
        node = plane.api.get("/api/v1/nodes/node-1")
        events = plane.api.get("/api/v1/namespaces/default/events")["items"]
    assert names == ["node-1"]
    assert refused == "https://127.0.0.1:1: ConnectError: [Errno 111] Connection refused"
    assert node["metadata"]["annotations"]["podwire.io/backend"] == "host-gw"
    assert "PodwireReady" in [one["reason"] for one in node["status"]["conditions"]]
    assert [one["reason"] for one in events if one["source"]["component"] == "podwire"]


def test_an_agent_that_does_not_follow_has_nothing_of_it(runtime: Path) -> None:
    loaded = {name.partition(".")[0] for name in run(runtime, _WITHOUT).split()}
    assert "cni_plugin" in loaded
    client = {"lightkube", "httpx2", "httpcore2", "h11", "msgspec", "yaml", "ssl", "asyncio"}
    assert not client & loaded
