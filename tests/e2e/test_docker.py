"""podwire's image, built and used without a registry: two nodes that are containers of Compose.

The daemon and Compose are real; pytest-docker starts and ends the containers.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from cni_plugin.version import VERSION
from tests.support import netns, require
from tests.support.dockerd import Dockerd, components
from tests.support.machine import Machine

pytestmark = pytest.mark.timeout(600)  # the first one builds the image

_HERE = os.path.dirname(os.path.abspath(__file__))
_BASE, _IMAGE = "podwire.test/base:1", "podwire.test/podwire:1"
_SUBNETS = {"n1": "10.244.1.0/24", "n2": "10.244.2.0/24"}
_ADDRESSES = {"n1": "10.88.90.2", "n2": "10.88.90.3"}
_INVENTORY = "/var/lib/podwire/nodes.json"
_MOST_BYTES = 20_000_000
_HOST_PORT, _RATE = 8080, 200_000_000  # the rate in bits a second
_EXTRAS = {
    "runtimeConfig": {
        "portMappings": [{"hostPort": _HOST_PORT, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": _RATE, "ingressBurst": _RATE},
    },
    "capabilities": {"portMappings": True, "bandwidth": True},
}

# What a pod answers to whoever connects: the address that it sees.
_SERVER = """
import socket
with socket.create_server(("0.0.0.0", 80)) as listener:
    while True:
        with listener.accept()[0] as taken:
            taken.sendall(taken.getpeername()[0].encode())
"""
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as asked:
    print(asked.recv(100).decode())
"""


# --- pytest-docker --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker() -> Iterator[Dockerd]:
    require.modules("pytest_docker")
    components()
    machine = Machine()
    try:
        daemon = Dockerd(machine)
        daemon.import_base(_BASE)
        daemon.build(_IMAGE, _BASE)
        yield daemon
    finally:
        machine.close()


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return os.path.join(_HERE, "docker-compose.yml")


@pytest.fixture(scope="session")
def docker_compose_command(docker: Dockerd, docker_compose_project_name: str) -> str:
    own = {"PROJECT": docker_compose_project_name, "NODE_IMAGE": _BASE, "PODWIRE_IMAGE": _IMAGE}
    return docker.shell_words({**own, "COMPOSE_PROGRESS": "quiet"}, "docker", "compose")


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up --detach --wait --wait-timeout 60"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down --volumes --timeout 0"]


# --- nodes and pods -------------------------------------------------------------------------------


class Pod(NamedTuple):
    node: str
    name: str
    address: str


class Nodes:
    """The containers of Compose, by their services' names."""

    def __init__(self, docker: Dockerd, project: str) -> None:
        self._docker, self._project = docker, project

    def run(self, node: str, *argv: str, **options: Any) -> str:
        """What a command prints in the container of a node."""
        words = [
            word
            for name, value in options.pop("env", {}).items()
            for word in ("-e", f"{name}={value}")
        ]
        name = f"{self._project}-{node}-1"
        return str(self._docker("exec", "-i", *words, name, *argv, **options).stdout)

    def write(self, node: str, path: str, text: str) -> None:
        self.run(node, "sh", "-c", f"cat > {shlex.quote(path)}", stdin=text)

    def logs(self, service: str) -> str:
        done = self._docker("logs", f"{self._project}-{service}-1")
        return f"{done.stdout}{done.stderr}"

    def call(self, command: str, pod: str, node: str, conf: dict[str, Any]) -> str:
        """The plugin's answer to a runtime."""
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        }
        return self.run(node, "/opt/cni/bin/podwire", env=env, stdin=json.dumps(conf))

    def add(self, node: str, name: str, conf: dict[str, Any]) -> Pod:
        self.run(node, "ip", "netns", "add", name)
        result = json.loads(self.call("ADD", name, node, conf))
        (ip,) = result["ips"]
        pod = Pod(node, name, ip["address"].partition("/")[0])
        inside = ("ip", "netns", "exec", name)
        self.run(
            node, "sh", "-c", f"{shlex.join([*inside, 'python3', '-c', _SERVER])} >/dev/null 2>&1 &"
        )
        return pod

    def ports(self, node: str) -> list[str]:
        """The ports of the node's bridge."""
        return self.run(node, "ip", "-o", "link", "show", "master", "cni0").splitlines()

    def seen_by(self, source: Pod, target: str, port: int = 80) -> str:
        """The address that `target` sees when the pod connects to it."""
        client = ("python3", "-c", _CLIENT, target, str(port))
        inside = ("ip", "netns", "exec", source.name, *client)
        found = netns.wait_until(
            lambda: self.run(source.node, *inside, check=False).strip(),
            what=f"an answer of {target}",
        )
        return str(found)


@pytest.fixture(scope="session")
def nodes(docker: Dockerd, docker_compose_project_name: str, docker_services: object) -> Nodes:
    return Nodes(docker, docker_compose_project_name)


def conf_of(node: str, **more: Any) -> dict[str, Any]:
    return {
        **more,
        "cniVersion": "1.0.0",
        "name": "podwire",
        "type": "podwire",
        "hairpinMode": True,
        "ipMasq": True,
        "nodes": _INVENTORY,
        "nodeName": node,
        "ipam": {"type": "host-local"},
    }


# --- tests ----------------------------------------------------------------------------------------


def test_the_image_holds_the_executable_alone(docker: Dockerd) -> None:
    (found,) = json.loads(docker("image", "inspect", _IMAGE).stdout)
    assert found["Config"]["Entrypoint"] == ["/podwire"]
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "podwire"
    assert found["Size"] < _MOST_BYTES
    assert docker.files_of(_IMAGE) == {"podwire"}

    options = ("--rm", "--network=none", "--cap-drop=ALL")
    assert docker("run", *options, _IMAGE, "--version").stdout.startswith(f"podwire {VERSION}")
    # As in the DaemonSet on a node of kind: two folders to write to, /run noexec.
    folders = ("--read-only", "--tmpfs=/run/podwire:noexec,mode=755", "--volume=/var/lib/podwire")
    assert docker("run", *options, *folders, _IMAGE, "--version").stdout.startswith("podwire ")
    refused = docker("run", *options, "--read-only", _IMAGE, "--version", check=False)
    assert refused.returncode == 1
    assert "no folder to unpack podwire's runtime into" in refused.stderr


def test_pods_of_two_nodes(nodes: Nodes) -> None:
    """Each sees the other's own address. n1's pods, a port of the node and a limit among them, are
    made by an agent with no more rights than the DaemonSet's, n2's by a process for each call."""
    inventory = {
        "nodes": [
            {"name": name, "addresses": [f"{_ADDRESSES[name]}/24"], "podCIDRs": [_SUBNETS[name]]}
            for name in _SUBNETS
        ]
    }
    for node in _SUBNETS:
        nodes.write(node, _INVENTORY, json.dumps(inventory))
    confs = {"a": conf_of("n1", **_EXTRAS), "b": conf_of("n1"), "c": conf_of("n2")}
    pods = [nodes.add(conf["nodeName"], name, conf) for name, conf in confs.items()]
    assert [pod.address for pod in pods] == ["10.244.1.2", "10.244.1.3", "10.244.2.2"]
    for source in pods:
        for target in pods:
            assert nodes.seen_by(source, target.address) == source.address
    c = pods[-1]
    assert nodes.seen_by(c, _ADDRESSES["n1"], _HOST_PORT) == c.address
    limits = nodes.run("n1", "tc", "qdisc", "show")
    assert f"rate {_RATE // 1_000_000}Mbit" in limits

    for pod in pods:
        nodes.call("DEL", pod.name, pod.node, confs[pod.name])
    outcomes = [line for line in nodes.logs("agent-n1").splitlines() if "msg=served" in line]
    assert len(outcomes) == 4, nodes.logs("agent-n1")
    assert all("outcome=ok" in line for line in outcomes)
    for node in _SUBNETS:
        assert nodes.ports(node) == []
