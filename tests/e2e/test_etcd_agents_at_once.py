"""Twelve agents, a process and a node each, that all begin at the same moment with one etcd."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import require
from tests.support.agent import Agent
from tests.support.netns import Namespace, wait_until
from tests.support.topology import Topology

NODES = 12
SERVER = "192.168.1.8"
_SECONDS = 90  # each start takes a processor for a second


@pytest.fixture
def places(topology: Topology, tmp_path: Path) -> Iterator[list[Namespace]]:
    """The nodes, on one link, and etcd beside them."""
    server = topology.node("server")
    made = {topology.node(f"node-{n}"): (f"192.168.1.{100 + n}/24",) for n in range(NODES)}
    topology.cable({server: (f"{SERVER}/24",), **made})
    etcd = server.popen(
        *(require.program("etcd"), "--data-dir", str(tmp_path / "etcd")),
        *("--listen-client-urls", "http://0.0.0.0:2379"),
        *("--advertise-client-urls", f"http://{SERVER}:2379"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ":2379" in server.run("ss", "-ltn").stdout, 20, "etcd listens", 0.05)
        yield list(made)
    finally:
        etcd.kill()
        etcd.wait()


def agent(place: Namespace, number: int, folder: Path, executable: str) -> Agent:
    (folder / f"net.d-{number}").mkdir()
    options = (
        *("--etcd", f"http://{SERVER}:2379", "--etcd-pool", "10.244.0.0/16"),
        *("--node-address", f"192.168.1.{100 + number}", "--node-name", f"node-{number}"),
        *("--inventory", str(folder / f"state-{number}" / "nodes.json")),
        *("--conf-dir", str(folder / f"net.d-{number}")),
    )
    return Agent(place, executable, str(folder), name=f"agent-{number}", options=options)


def subnet(folder: Path, number: int) -> str:
    """That of the node's network configuration, "" before there is one."""
    try:
        text = (folder / f"net.d-{number}" / "05-podwire.conflist").read_text()
    except FileNotFoundError:
        return ""
    ((one,),) = json.loads(text)["plugins"][0]["ipam"]["ranges"]
    return str(one["subnet"])


def routes(place: Namespace) -> set[str]:
    """The subnets of the other nodes that podwire leads to them."""
    listed = place.run("ip", "-j", "route", "show", "proto", "112").stdout
    return {route["dst"] for route in json.loads(listed or "[]")}


def test_each_gets_a_subnet_and_keeps_it(
    places: list[Namespace], tmp_path: Path, podwire_executable: str
) -> None:
    """Also when all of them die, and begin anew at the same moment."""
    agents = [agent(place, n, tmp_path, podwire_executable) for n, place in enumerate(places)]
    numbers = range(NODES)
    found: list[list[str]] = []

    def settled() -> bool:
        """Each has a subnet of its own, and leads to those of the others."""
        now = [subnet(tmp_path, n) for n in numbers]
        return len({*now} - {""}) == NODES and all(
            routes(places[n]) == {*now} - {now[n]} for n in numbers
        )

    try:
        for _ in range(2):
            for one in agents:
                one.launch()
            for one in agents:
                wait_until(lambda one=one: one.log("serving"), _SECONDS, "it serves", 0.1)
            wait_until(settled, _SECONDS, "all have all routes", 0.2)
            found.append([subnet(tmp_path, n) for n in numbers])
            for one in agents:
                one.kill()
                Path(f"{tmp_path}/{Path(one.socket).stem}.log").unlink()
    finally:
        for one in agents:
            one.close()
    assert found[0] == found[1]
