"""Fixtures for every test; README.md of this folder lists them.

Tests under kernel/ and e2e/ are marked `root`: they are skipped without root, and each is held
to leave nothing on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks, machine, netns, order, private, require
from tests.support.netns import Namespace, Namespaces
from tests.support.plugin import Config, Plugin, find_executable
from tests.support.topology import Topology

_ROOT_FOLDERS = ("kernel", "e2e")
_HERE = Path(__file__).parent


# --- the run --------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    os.environ[leaks.RUN_VARIABLE] = str(os.getpid())
    wanted = os.environ.get("PODWIRE_TEST_PRIVATE", "1") != "0"
    if wanted and require.is_root() and require.find_program("ip"):
        require.refuse_root(private.enter())
    if config.pluginmanager.hasplugin("_cov") and config.getoption("--cov", default=None):
        # Set, the plugin's processes measure themselves too: see Plugin.environ.
        os.environ["PODWIRE_COVERAGE"] = str(config.rootpath / ".coverage")
    if hasattr(config, "workerinput"):
        # A worker's tmp_path is no longer than that of a run without workers: xdist would have it
        # one folder deeper, and a socket's path and a value in a message have an end.
        config.option.basetemp = None


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody calls it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.distribution import Distribution

    return Distribution(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: order.rank(item.nodeid))
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0] if item.path.is_relative_to(_HERE) else ""
        if folder in _ROOT_FOLDERS:
            item.add_marker(pytest.mark.root)


class NoSkips:
    """Makes a run fail that skipped a test for want of something that can be installed."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report.nodeid, report.longrepr)

    def _note(self, nodeid: str, longrepr: object) -> None:
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(require.KERNEL):
            self.skipped.append(f"{nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, and PODWIRE_NO_SKIPS=1", red=True)
            for line in self.skipped:
                terminalreporter.line(line)


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.environ.get("PODWIRE_NO_SKIPS") == "1":
        session.config.pluginmanager.register(NoSkips())
    if require.is_root():
        netns.sweep()
        machine.sweep()


# --- nothing may be left ------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_by_the_run() -> Iterator[None]:
    """What fixtures of a session or a module leave shows up here."""
    if not (require.is_root() and require.find_program("ip")):
        yield
        return
    before = leaks.snapshot()
    yield
    found = leaks.leaked(before)
    assert not found, "the run left something on the machine:\n" + "\n".join(found)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("root") is None:
        yield
        return
    require.root()
    before = leaks.snapshot()
    yield
    found = leaks.leaked(before)
    assert not found, "the test left something on the machine:\n" + "\n".join(found)


# --- coverage -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that measures itself takes three times as long to start: the marker `unmeasured`
    is for tests whose calls other tests make as well, one fault each."""
    if request.node.get_closest_marker("unmeasured"):
        monkeypatch.delenv("PODWIRE_COVERAGE", raising=False)


# --- namespaces -----------------------------------------------------------------------------


@pytest.fixture
def namespaces(_nothing_left: None) -> Iterator[Namespaces]:
    """Makes network namespaces; all of them are gone after the test."""
    require.root()
    made = Namespaces()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def topology(namespaces: Namespaces) -> Topology:
    """Nodes, sandboxes and cables: `tests.support.topology.Topology`."""
    return Topology(namespaces)


@pytest.fixture
def node(topology: Topology) -> Namespace:
    """One node with eth0 192.168.1.2/24 and fd00:1::2/64."""
    return topology.node("node", "192.168.1.2/24", "fd00:1::2/64")


@pytest.fixture
def sandbox(topology: Topology) -> Namespace:
    """One empty sandbox, named "pod"."""
    return topology.sandbox("pod")


# --- the plugin -----------------------------------------------------------------------------


def _executable(name: str, variable: str) -> str:
    found = find_executable(name, variable)
    if found is None:
        pytest.fail(f"{name} is not installed beside Python (pip install -e .) nor in ${variable}")
    return found


@pytest.fixture(scope="session")
def podwire_executable() -> str:
    return _executable("podwire", "PODWIRE_BIN")


@pytest.fixture(scope="session")
def podwire_ipam_executable() -> str:
    return _executable("podwire-ipam", "PODWIRE_IPAM_BIN")


@pytest.fixture
def podwire(podwire_executable: str) -> Plugin:
    """The plugin, nowhere in particular: for tests that need no node. `.on(node)` places it."""
    return Plugin(podwire_executable)


@pytest.fixture
def plugin(podwire: Plugin, node: Namespace) -> Plugin:
    """The plugin on the node of the `node` fixture."""
    return podwire.on(node)


@pytest.fixture
def make_conf(tmp_path: Path) -> Callable[..., Config]:
    """Configurations with an address directory of the test's own.

    make_conf() is a bridge with 10.244.0.0/24; keywords replace or add keys, `ipam` keys are
    merged into the ipam section, and a key given as None goes.
    """

    def make(**keys: object) -> Config:
        ipam = {
            "type": "host-local",
            "dataDir": str(tmp_path / "networks"),
            "ranges": [[{"subnet": "10.244.0.0/24"}]],
        }
        conf: Config = {
            "cniVersion": "1.0.0",
            "name": "podnet",
            "type": "podwire",
            "isGateway": True,
            "isDefaultGateway": True,
        }
        given = keys.pop("ipam", {})
        assert isinstance(given, dict)
        conf["ipam"] = {k: v for k, v in (ipam | given).items() if v is not None}
        return {k: v for k, v in (conf | keys).items() if v is not None}

    return make
