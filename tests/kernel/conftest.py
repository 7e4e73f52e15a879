"""Fixtures of the kernel tests: address families, reservations, "as it was before", delegates."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import executable, faults, require
from tests.support.agent import Agent, AgentPlugin, AgentStage
from tests.support.faults import Stage
from tests.support.follower import Follower, followers
from tests.support.netns import Namespace, Namespaces
from tests.support.plugin import Config, Plugin
from tests.support.topology import Split, Topology

# --- ways ---------------------------------------------------------------------------------------

# What is about behaviour has to be the same in a process of the call's own and through an agent.
_BOTH_WAYS = (
    *("audit", "bridge", "bridge_options", "check", "delegation", "gc_status", "host_ports"),
    *(
        "host_ports_life",
        "hostile",
        "neighbours",
        "overlay",
        "parallel",
        "ptp",
        "results",
        "routes",
    ),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of these files run both ways; `@pytest.mark.parametrize("way", ["process"],
    indirect=True)` is for one that makes no sense with an agent."""
    marks = metafunc.definition.iter_markers("parametrize")
    fixed = "way" not in metafunc.fixturenames or any(mark.args[0] == "way" for mark in marks)
    if not fixed and metafunc.module.__name__.rpartition(".test_")[2] in _BOTH_WAYS:
        metafunc.parametrize("way", ["process", "agent"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the address families both ways need only the sum, and of the coverage only one's: what an
    agent adds is measured where it is tested. Where a test's cases are ways to configure or to
    spoil something, which the same code looks at in both ways, an agent needs one of them."""
    by_agent: set[str] = set()
    items[:] = [
        item
        for item in items
        if not _is_one_family_by_agent(item) and not _is_another_case_by_agent(item, by_agent)
    ]
    for item in items:
        if _params(item).get("way") == "agent":
            item.add_marker(pytest.mark.unmeasured)


def _params(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _is_another_case_by_agent(item: pytest.Item, seen: set[str]) -> bool:
    """Notes each test that is marked so in `seen`."""
    if _params(item).get("way") != "agent" or not item.get_closest_marker("one_case_by_agent"):
        return False
    name = item.nodeid.partition("[")[0]
    if name in seen:
        return True
    seen.add(name)
    return False


def _is_one_family_by_agent(item: pytest.Item) -> bool:
    params = _params(item)
    return params.get("way") == "agent" and params.get("family", "dual") != "dual"


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """Who serves the calls: "process", the plugin's own, or "agent"."""
    return getattr(request, "param", "process")


@pytest.fixture(scope="session")
def client_executable(podwire_executable: str) -> str:
    """What dials an agent: the self-contained executable, where that can be built."""
    try:
        return executable.executable()
    except pytest.skip.Exception:
        return podwire_executable


@pytest.fixture
def by_way(
    way: str,
    namespaces: Namespaces,
    podwire_executable: str,
    client_executable: str,
    tmp_path: Path,
) -> Iterator[Callable[[Plugin], Plugin]]:
    """by_way(plugin) is the plugin whose calls are served in the way of this test.

    Each node gets one agent, which must end well and must have declined nothing.
    """
    agents: dict[Namespace, Agent] = {}

    def served(plugin: Plugin) -> Plugin:
        if way == "process":
            return plugin
        node = plugin.node
        assert node is not None
        if node not in agents:
            name = f"way{len(agents)}"
            agents[node] = Agent(node, podwire_executable, str(tmp_path), name).start()
        is_main = os.path.basename(plugin.executable) == "podwire"
        client = client_executable if is_main else plugin.executable
        return AgentPlugin(client, node, plugin.cni_path, agents[node].socket)

    try:
        yield served
        for agent in agents.values():
            agent.terminate()
            assert "declined" not in {outcome for _, outcome in agent.served()}
            assert agent.log("a worker failed") == []
    finally:
        for agent in agents.values():
            agent.close()


class _Podwire(Plugin):
    """The plugin nowhere in particular: where it is placed it is served in the test's way."""

    def __init__(self, executable: str, by_way: Callable[[Plugin], Plugin]) -> None:
        super().__init__(executable)
        self._by_way = by_way

    def on(self, node: Namespace) -> Plugin:
        return self._by_way(super().on(node))


@pytest.fixture
def podwire(podwire_executable: str, by_way: Callable[[Plugin], Plugin]) -> Plugin:
    return _Podwire(podwire_executable, by_way)


# --- families -------------------------------------------------------------------------------


class Family(NamedTuple):
    """The pod subnets of a test: one of IPv4, one of IPv6, or both."""

    subnets: tuple[str, ...]

    @property
    def ranges(self) -> list[list[dict[str, str]]]:
        """For ipam.ranges: one set for each subnet, so one address of each."""
        return [[{"subnet": subnet}] for subnet in self.subnets]

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(ipaddress.ip_network(subnet).version for subnet in self.subnets)

    def hosts(self, number: int) -> list[str]:
        """The addresses with this number, as in 10.244.0.<number>; without a prefix."""
        return [str(ipaddress.ip_network(subnet)[number]) for subnet in self.subnets]

    def interfaces(self, number: int) -> list[str]:
        """The same with the subnet's prefix length."""
        return [
            f"{ipaddress.ip_network(subnet)[number]}/{subnet.split('/')[1]}"
            for subnet in self.subnets
        ]


_V4, _V6 = "10.244.0.0/24", "fd00:10:244::/64"
FAMILIES = {"ipv4": Family((_V4,)), "ipv6": Family((_V6,)), "dual": Family((_V4, _V6))}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """IPv4, IPv6 and dual-stack: the test runs once with each."""
    return FAMILIES[request.param]


@pytest.fixture
def dual() -> Family:
    return FAMILIES["dual"]


# --- what must not change -----------------------------------------------------------------------


@pytest.fixture
def reservations(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """reservations() maps each reserved address to the content of its file."""

    def read(network: str = "podnet", folder: str = "networks") -> dict[str, str]:
        path = tmp_path / folder / network
        found = {}
        for name in os.listdir(path) if path.is_dir() else []:
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(name)
                found[name] = (path / name).read_bytes().decode()
        return found

    return read


@pytest.fixture
def untouched(
    reservations: Callable[..., dict[str, str]],
) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with untouched(node, sandbox):` holds the block to change no link, address, route or
    reservation."""

    @contextlib.contextmanager
    def compare(*namespaces: Namespace) -> Iterator[None]:
        before = [namespace.state() for namespace in namespaces], reservations()
        yield
        assert ([namespace.state() for namespace in namespaces], reservations()) == before

    return compare


# --- several nodes ------------------------------------------------------------------------------


class Cluster:
    """Nodes on one layer-2 link, and the inventory that tells of them.

    Node number i has 192.168.1.<i+2>, fd00:1::<i+2>, and the pod subnets 10.244.<i>.0/24 and
    fd00:10:244:<i>::/64, of the families that are asked for.
    """

    def __init__(self, nodes: list[Namespace], versions: tuple[int, ...], folder: Path) -> None:
        self.nodes = nodes
        self.path = folder / "nodes.json"
        self._folder = folder
        self.entries: list[dict[str, Any]] = []
        for number in range(len(nodes)):
            self.entries.append(
                {
                    "name": f"node-{number}",
                    "addresses": self.node_addresses(number, versions),
                    "podCIDRs": [
                        subnet
                        for subnet in (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")
                        if ipaddress.ip_network(subnet).version in versions
                    ],
                }
            )
        self.write()

    @staticmethod
    def node_addresses(number: int, versions: tuple[int, ...] = (4, 6)) -> list[str]:
        both = (f"192.168.1.{number + 2}/24", f"fd00:1::{number + 2}/64")
        return [text for text in both if ipaddress.ip_interface(text).version in versions]

    def write(self) -> None:
        """Write the inventory anew, from `entries`."""
        self.path.write_text(json.dumps({"nodes": self.entries}))

    def conf(self, number: int, **keys: Any) -> Config:
        """The configuration of one node: nothing but the inventory says which addresses."""
        data_dir = str(self._folder / f"networks-{number}")
        ipam = {"type": "host-local", "dataDir": data_dir, **keys.pop("ipam", {})}
        conf = {"cniVersion": "1.1.0", "name": "podnet", "type": "podwire"}
        return {**conf, "nodes": str(self.path), "ipam": ipam, **keys}

    def hosts(self, number: int) -> list[str]:
        """The addresses of a node on the link, of its inventory's families."""
        return [text.split("/")[0] for text in self.entries[number]["addresses"]]

    def owned(self, number: int) -> set[tuple[str, str]]:
        """Destination and gateway of the node's routes with podwire's protocol and a gateway."""
        return {
            (route["dst"], route["gateway"])
            for version in (4, 6)
            for route in self.nodes[number].routes(version)
            if route.get("protocol") == "112" and "gateway" in route
        }


@pytest.fixture
def make_cluster(topology: Topology, tmp_path: Path) -> Callable[..., Cluster]:
    """make_cluster(3, (4, 6)) cables three nodes and writes a dual-stack inventory."""

    def make(count: int = 2, versions: tuple[int, ...] = (4, 6)) -> Cluster:
        nodes = [topology.node(f"node-{number}") for number in range(count)]
        for node in nodes:  # else the link-local address takes two seconds, and IPv6 with it
            node.run("sysctl", "-qw", "net/ipv6/conf/default/accept_dad=0")
        topology.cable(
            {node: tuple(Cluster.node_addresses(number)) for number, node in enumerate(nodes)}
        )
        return Cluster(nodes, versions, tmp_path)

    return make


# --- CNI_PATH -----------------------------------------------------------------------------------


class FakeIpam:
    """A delegate that notes how it is called; `script` is shell, run with CNI_COMMAND set."""

    def __init__(self, folder: Path, name: str, script: str) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        path = folder / name
        path.write_text(
            f'#!/bin/sh\necho "$CNI_COMMAND" >> {self._log}\n'
            f"cat > {self._log}.$CNI_COMMAND\n{script}\n"
        )
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []

    def stdin(self, command: str) -> Config:
        """The configuration that the last call with this command got."""
        return json.loads(self._log.with_name(f"{self._log.name}.{command}").read_text())


@pytest.fixture
def bin_folder(tmp_path: Path, podwire_executable: str, podwire_ipam_executable: str) -> Path:
    """A folder for CNI_PATH with podwire and podwire-ipam."""
    path = tmp_path / "bin"
    path.mkdir()
    (path / "podwire").symlink_to(podwire_executable)
    (path / "podwire-ipam").symlink_to(podwire_ipam_executable)
    return path


@pytest.fixture
def fake_ipam(bin_folder: Path) -> Callable[..., FakeIpam]:
    """fake_ipam(script) puts a delegate of this behaviour into CNI_PATH."""

    def make(script: str = "", name: str = "fake-ipam") -> FakeIpam:
        return FakeIpam(bin_folder, name, script)

    return make


@pytest.fixture
def plugin_there(
    podwire_executable: str,
    node: Namespace,
    bin_folder: Path,
    by_way: Callable[[Plugin], Plugin],
) -> Plugin:
    """podwire on the node, with `bin_folder` for its CNI_PATH."""
    return by_way(Plugin(podwire_executable, node, str(bin_folder)))


@pytest.fixture
def go_plugin(node: Namespace, bin_folder: Path) -> Callable[..., Plugin]:
    """go_plugin("bridge") is a Go reference plugin on the node, with `bin_folder` as CNI_PATH.

    Every further name is copied there, so that it can be delegated to.
    """

    def make(name: str, *delegates: str) -> Plugin:
        folder = require.go_plugins(name, *delegates)
        for delegate in delegates:
            shutil.copy(os.path.join(folder, delegate), bin_folder / delegate)
        return Plugin(os.path.join(folder, name), node, str(bin_folder))

    return make


# --- a node for faults --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept_stage(podwire_executable: str, tmp_path_factory) -> Iterator[Stage]:
    made = Namespaces()
    try:
        folder = str(tmp_path_factory.mktemp("stage"))
        stage = Stage(Topology(made), podwire_executable, folder)
        stage.use()
        yield stage
    finally:
        made.close()


@pytest.fixture
def stage(kept_stage: Stage) -> Iterator[Stage]:
    """One node for a whole file; what a failed test leaves is removed."""
    before = kept_stage.world()
    yield kept_stage
    if faults.difference(before, kept_stage.world()):
        kept_stage.repair()


# --- agents -------------------------------------------------------------------------------------


@pytest.fixture
def make_agent(node: Namespace, podwire_executable: str, tmp_path: Path) -> Iterator[Callable]:
    """make_agent() starts an agent on the node of the `node` fixture; keywords as of `Agent`.

    Whatever happens it has ended after the test.
    """
    made: list[Agent] = []

    def make(command: Any = podwire_executable, **options: Any) -> Agent:
        name = f"agent{len(made)}"
        made.append(Agent(node, command, str(tmp_path), **{"name": name, **options}))
        return made[-1].start()

    yield make
    for one in made:
        one.close()


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Iterator[Agent]:
    """An agent on the node of the `node` fixture; one that runs at the end must end well."""
    started = make_agent(name="agent")
    yield started
    if started.process is not None and started.process.poll() is None:
        started.terminate()


@pytest.fixture
def agent_stages(topology: Topology, podwire_executable: str, tmp_path: Path) -> Iterator[Callable]:
    """agent_stages(2) is two equal stages, each with an agent of its own that runs. With
    `client=client_executable` a sweep's calls take a tenth of the time."""
    made: list[AgentStage] = []

    def make(count: int = 2, **keys: Any) -> list[AgentStage]:
        for name in "abcd"[:count]:
            stage = AgentStage(topology, podwire_executable, str(tmp_path), name, **keys)
            made.append(stage)
            stage.agent.start()
        return made

    yield make
    for stage in made:
        stage.agent.close()


# --- nodes that follow a cluster ------------------------------------------------------------------


@pytest.fixture
def split(topology: Topology, tmp_path: Path) -> Split:
    """Three nodes, two on one link and the third behind routers."""
    return Split(topology, tmp_path)


@pytest.fixture
def follow(split: Split, tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    """follow(0) is node 0 of these, which follows a cluster that has told nothing yet."""
    with followers(split, tmp_path) as make:
        yield make
