"""Fixtures of the real clients; each test has a machine of its own (tests/support/machine.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.support import ondemand, require
from tests.support.cnibin import PluginFolder
from tests.support.executable import executable
from tests.support.machine import Machine
from tests.support.plugin import Config, Plugin

# Where the executable starts its agent by other means than the console script; it has to unpack
# its runtime on each machine, which is why these are not all.
_CALLED_BOTH_WAYS = (
    "test_it_has_nothing_of_its_caller",
    "test_what_confines_its_caller_confines_it",
    "test_of_32_calls_at_once_one_starts_it",
    "test_what_an_agent_leaves_is_in_nobodys_way",
    "test_its_folder_is_made",
)


@pytest.fixture
def machine(_nothing_left: None) -> Iterator[Machine]:
    """Namespaces with /etc/cni, /opt/cni/bin, /var/lib/cni and /run of the test's own."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def plugins(
    request: pytest.FixtureRequest,
    machine: Machine,
    podwire_executable: str,
    podwire_ipam_executable: str,
) -> PluginFolder:
    """A folder with podwire and podwire-ipam, each execution noted; `.add` puts more into it.

    They are the self-contained executable; for the fixture `cnitool` the console scripts.
    """
    if "cnitool" in request.fixturenames:
        found = {"podwire": podwire_executable, "podwire-ipam": podwire_ipam_executable}
    else:
        found = {"podwire": executable(), "podwire-ipam": machine.path("podwire-ipam")}
        os.symlink(executable(), found["podwire-ipam"])
    return PluginFolder(machine, found)


@pytest.fixture
def go_plugins(plugins: PluginFolder) -> Callable[..., PluginFolder]:
    """go_plugins("portmap") adds Go reference plugins to the folder, under their own names."""

    def add(*names: str) -> PluginFolder:
        folder = require.go_plugins(*names)
        for name in names:
            plugins.add(name, f"{folder}/{name}")
        return plugins

    return add


@pytest.fixture
def network(machine: Machine) -> Callable[..., Config]:
    """network(version, chained...) is a conflist of podwire and what follows it in the chain.

    Keywords go to podwire's own section; `ipam` is merged into its ipam section.
    """

    def make(version: str = "1.0.0", *chained: Config, **keys: object) -> Config:
        ipam = {
            "type": "host-local",
            "dataDir": machine.path("networks"),
            "ranges": [[{"subnet": "10.244.0.0/24"}]],
        }
        given = keys.pop("ipam", {})
        assert isinstance(given, dict)
        main = {"type": "podwire", "bridge": "cni0", "isDefaultGateway": True}
        main |= {**keys, "ipam": {k: v for k, v in (ipam | given).items() if v is not None}}
        main = {k: v for k, v in main.items() if v is not None}
        return {"cniVersion": version, "name": "podnet", "plugins": [main, *chained]}

    return make


@pytest.fixture
def reservations(machine: Machine) -> Callable[..., dict[str, str]]:
    """reservations() is what the address directory holds: address to the file's content."""

    def read(network: str = "podnet") -> dict[str, str]:
        folder = machine.path("networks", network)
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return {
            name: machine.read("networks", network, name)
            for name in names
            if "." in name[1:] or ":" in name
            if not name.startswith("last_reserved_ip.")
        }

    return read


@pytest.fixture
def agents(machine: Machine) -> ondemand.Agents:
    """The agents that calls on the machine have started."""
    return ondemand.Agents(machine)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.originalname in _CALLED_BOTH_WAYS:
        metafunc.parametrize("called", ["script", "executable"], indirect=True)


@pytest.fixture
def called(request: pytest.FixtureRequest, machine: Machine, podwire_executable: str) -> Plugin:
    """The plugin on the machine, called without a runtime: the console script, or as a parameter
    the executable."""
    by_script = getattr(request, "param", "script") == "script"
    return Plugin(podwire_executable if by_script else executable(), machine)


@pytest.fixture
def make_sandbox(machine: Machine) -> Callable[[str], str]:
    """make_sandbox(name) is the path of a new one on the machine."""

    def make(name: str) -> str:
        machine.run("ip", "netns", "add", name)
        return f"/run/netns/{name}"

    return make


@pytest.fixture
def auto_conf(network: Callable[..., Config]) -> Callable[..., Config]:
    """auto_conf(**keys) is podwire's part of a conflist that starts its agent, as a plugin gets
    it."""

    def make(**keys: object) -> Config:
        given = network("1.1.0", **{"agent": "auto", "agentIdle": 60} | keys)
        return {**given["plugins"][0], "name": given["name"], "cniVersion": "1.1.0"}

    return make
