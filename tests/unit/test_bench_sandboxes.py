"""The benchmark of pod sandboxes: who can be measured, what a reader sees, and that it measures."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from bench import goals, report, sandboxes, sandboxes_table, scenarios
from bench.contenders import AGENT, Contender
from bench.measure import CallFailedError
from bench.results import Results, Series
from bench.sandboxes import GO, INSTALLED, NEWER, network_of
from bench.sandboxes_node import RUN, STOP, Host, Network, Runtime
from tests.support import require
from tests.support.executable import executable

MS = 1_000_000


def _series(what: str, name: str, times: list[int], network: int, size: int = 1) -> list[Series]:
    return [
        Series(INSTALLED, what, name, tuple(each * MS for each in times), size=size),
        Series(INSTALLED, network_of(what), name, (network * MS,), size=size),
    ]


def _results(*series: Series) -> Results:
    return Results({"kernel": "Linux"}, {}, {}, series)


FOUND = _results(
    *_series(RUN, AGENT, [70, 80, 90], 10),
    *_series(RUN, GO, [90, 100, 110], 40),
    *_series(RUN, AGENT, [180] * 4, 30, 4),
    *_series(RUN, GO, [200] * 4, 130, 4),
)


# --- what a reader sees -----------------------------------------------------------------------


def _cells(text: str, begin: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {begin} ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_call_beside_gos_and_the_plugins_share_of_it():
    ours = _cells(sandboxes_table.sandboxes(FOUND, INSTALLED), f"{RUN}, {AGENT}")
    assert [row[1:] for row in ours] == [
        ["1", "3", "70.0", "80.0", "90.0", "0.80", "0.80", "0.78 to 0.82", "10.0", "12 %"],
        ["4", "4", "180.0", "180.0", "180.0", "0.90", "0.90", "0.90 to 0.90", "30.0", "17 %"],
    ]
    (go, _) = _cells(sandboxes_table.sandboxes(FOUND, INSTALLED), f"{RUN}, {GO}")
    assert go[6:] == ["", "", "", "40.0", "40 %"]


def test_what_was_not_measured_has_no_table():
    assert sandboxes_table.sandboxes(FOUND, NEWER) == ""
    assert sandboxes.TITLES[NEWER] not in report.page(FOUND)
    assert f"## {sandboxes.TITLES[INSTALLED]}\n" in report.page(FOUND)


def test_the_goals_are_of_medians_one_at_a_time_and_four_at_once():
    found = {goal.limit: goal for goal in goals.goals(FOUND)}
    assert set(found) == {0.9, 0.8}
    assert found[0.9].measured == pytest.approx(0.8)
    assert found[0.9].verdict == "yes"
    assert found[0.8].measured == pytest.approx(0.9)
    assert found[0.8].verdict == "no"
    assert "4 at once" in found[0.8].title


# --- who is there -----------------------------------------------------------------------------


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CNI_PEER_PATH", str(tmp_path))
    monkeypatch.delenv("PODWIRE_NEWER", raising=False)
    (said,) = sandboxes.missing()
    assert "no containerd" in said
    assert f"no {tmp_path}/host-local" in said
    assert "grpc" not in said.partition("(")[0]
    assert sandboxes.sandboxes([], 1) == []
    assert sandboxes.versions() == {}


def test_both_sides_have_one_network_and_their_own_chain():
    ours, go = (sandboxes.conflist(name) for name in (AGENT, GO))
    for key in ("cniVersion", "name"):
        assert ours[key] == go[key]
    own = {"type", "capabilities"}
    first = [{k: v for k, v in each["plugins"][0].items() if k not in own} for each in (ours, go)]
    assert first[0] == first[1]
    assert first[0]["ipMasq"] is True
    assert [plugin["type"] for plugin in ours["plugins"]] == ["podwire"]
    assert [plugin["type"] for plugin in go["plugins"]] == ["bridge", "portmap"]
    for last in (ours["plugins"][-1], go["plugins"][-1]):
        assert last["capabilities"]["portMappings"] is True


# --- a real one -------------------------------------------------------------------------------


@pytest.fixture
def runtime():
    require.root()
    require.programs("containerd", "ctr", "runc", "busybox")
    require.modules("grpc", "google.protobuf")
    return Runtime("", require.go_plugins("bridge", "host-local", "portmap", "loopback"))


@pytest.mark.root
@pytest.mark.unmeasured
def test_sandboxes_are_run_and_stopped_in_turns_and_nothing_is_left(runtime, monkeypatch):
    before = _folders()
    monkeypatch.setenv("CNI_PEER_PATH", runtime.plugins)
    monkeypatch.delenv("PODWIRE_NEWER", raising=False)
    monkeypatch.setattr(sandboxes, "LEAST", 1)
    monkeypatch.setattr(sandboxes, "WARM_UPS", 0)
    side = Contender(AGENT, executable(), "podwire", "", agent=True)
    found = {
        (series.what, series.contender, series.size): series.wall
        for series in sandboxes.sandboxes([side], 1)
    }
    assert set(found) == {
        (what, name, size)
        for call in (RUN, STOP)
        for what in (call, network_of(call))
        for name in (AGENT, GO)
        for size in (1, 4)
    }
    for (what, name, size), wall in found.items():
        assert len(wall) == (1 if what.endswith("network") else size)
        if what in (RUN, STOP):
            assert 0 < found[network_of(what), name, size][0] < max(wall)
    assert _folders() == before


@pytest.mark.root
@pytest.mark.unmeasured
def test_a_plugin_that_fails_is_an_error_of_the_benchmark(runtime):
    """Without the plugins of the chain no sandbox can run: nothing is measured then."""
    network = Network(sandboxes.conflist(GO), {"loopback": f"{runtime.plugins}/loopback"})
    with ExitStack() as stack:
        host = Host(GO, network, runtime, stack)
        with pytest.raises(CallFailedError, match="bridge"):
            host.run(1)


def _folders() -> set[str]:
    return {name for name in os.listdir("/var/tmp") if name.startswith(f"pwt-{os.getpid()}-")}


def test_it_is_measured_by_default():
    assert "sandboxes" in scenarios.DEFAULT
