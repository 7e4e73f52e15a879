"""The benchmark: statistics, calls and their order, contenders, agents. Reports: another file."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import agents, contenders, measure, scenarios, statistic
from bench.contenders import AGENT, ALONE, MASQUERADE, PEER, WHEEL, Contender, bridge_config
from bench.measure import Call, CallFailedError, execute, execute_all, rotated
from bench.nodes import Place
from bench.profiling import Import, parse_importtime

_times = st.lists(st.integers(min_value=1, max_value=10**12), min_size=1, max_size=50)
GO = Contender(PEER, "/usr/lib/cni/bridge", "bridge", "/usr/lib/cni")
PODWIRE = Contender(AGENT, "/opt/podwire", "podwire", "/opt", agent=True)


# --- statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7], 95, 7),
        (range(1, 101), 95, 95),
        ([3, 1, 2], 50, 2),
        ([3, 1, 2], 0, 1),
        ([1, 9], 100, 9),
    ],
)
def test_percentile_is_the_nearest_rank(values, percent, expected):
    assert statistic.percentile(values, percent) == expected


@given(_times)
def test_summary_is_in_order(values):
    found = statistic.summary(values)
    assert found.runs == len(values)
    assert found.least <= found.median <= max(values)
    assert found.least <= found.p95 <= max(values)
    assert found.p95 in values


@given(_times, st.integers(min_value=1, max_value=100))
def test_ratio_of_a_multiple(values, factor):
    found = statistic.ratio([value * factor for value in values], values)
    assert found.of_medians == pytest.approx(factor)
    assert found.of_pairs == pytest.approx(factor)


def test_ratio_of_pairs_does_not_see_drift():
    """The machine becomes ten times slower; the pairs keep their ratio."""
    reference = [10, 10, 10, 100, 100]
    assert statistic.ratio([20, 20, 20, 200, 200], reference).of_pairs == 2


@pytest.mark.parametrize(("values", "reference"), [([], [1]), ([1], []), ([1], [0])])
def test_ratio_needs_times(values, reference):
    with pytest.raises(ValueError, match="needs samples"):
        statistic.ratio(values, reference)


@given(st.lists(st.integers(), min_size=1, max_size=6, unique=True))
def test_everyone_comes_first_equally_often(items):
    orders = [tuple(rotated(items, turn)) for turn in range(len(items))]
    assert {order[0] for order in orders} == set(items)
    assert all(sorted(order) == sorted(items) for order in orders)


# --- calls ------------------------------------------------------------------------------------


def test_execute_feeds_stdin_and_times_the_process():
    sample, said = execute(Call("/bin/cat", {}, {"name": "bench"}))
    assert json.loads(said) == {"name": "bench"}
    assert sample.wall > 0
    assert sample.cpu >= 0


def test_execute_raises_for_a_failure():
    with pytest.raises(CallFailedError, match="exit 1"):
        execute(Call("/bin/false", {}, {}))


def test_the_printed_command_does_what_was_measured():
    call = Call("/usr/bin/env", {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=b c;D='e'"}, {"a": "$b'"})
    done = subprocess.run(["sh", "-c", call.shell()], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()) == {"CNI_COMMAND=ADD", "CNI_ARGS=A=b c;D='e'"}
    echo = call._replace(executable="/bin/cat").shell()
    done = subprocess.run(["sh", "-c", echo], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"a": "$b'"}


def test_a_command_in_a_namespace():
    assert Call("/p", {"A": "1"}, {}).shell("node").startswith("ip netns exec node env -i A=1 ")


def test_ranges_follow_the_families():
    sets = bridge_config("/d", (4, 6))["ipam"]["ranges"]
    assert [entries[0]["subnet"] for entries in sets] == ["10.244.0.0/16", "fd00:10:244::/64"]


def test_calls_at_once_overlap_and_keep_their_own_times_and_ends(tmp_path):
    """The slow one is started first and ends last; each wall time is its own."""
    slow, quick, failing = (
        _script(tmp_path, name, text)
        for name, text in (
            ("slow", "sleep 0.4; cat"),
            ("quick", "cat"),
            ("failing", "echo no; exit 3"),
        )
    )
    calls = [Call(path, {}, {"name": path}) for path in (slow, quick, failing)]
    replies = execute_all(calls)
    assert [reply.status for reply in replies] == [0, 0, 3]
    assert [json.loads(reply.said)["name"] for reply in replies[:2]] == [slow, quick]
    assert replies[2].said == b"no\n"
    assert replies[0].sample.wall >= 400_000_000 > replies[1].sample.wall


def _script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_a_call_that_lasts_too_long_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "TIMEOUT_S", 0.2)
    call = Call(_script(tmp_path, "hanging", "exec sleep 60"), {}, {})
    assert execute_all([call])[0].status == -signal.SIGKILL


def test_an_output_that_somebody_else_keeps_open_is_not_waited_for(tmp_path):
    """What a call starts in the background may hold its stdout."""
    call = Call(_script(tmp_path, "parent", "echo here; sleep 5 2>&- &"), {}, {})
    sample, said = execute(call)
    assert said == b"here\n"
    assert sample.wall < 4_000_000_000


def test_a_budget_ends_a_scenario_but_not_before_the_least():
    assert measure.Budget(seconds=-1).spent(5, least=5)
    assert not measure.Budget(seconds=-1).spent(4, least=5)
    assert not measure.Budget(seconds=60).spent(500, least=5)


# --- contenders -------------------------------------------------------------------------------


def test_everyone_gets_the_same_configuration_but_for_its_own():
    config = bridge_config("/d", (4,))
    masquerade = GO._replace(name=MASQUERADE, options={"ipMasq": True})
    calls = [side.call("ADD", config, "pod", "/netns") for side in (PODWIRE, GO, masquerade)]
    assert [call.config["type"] for call in calls] == ["podwire", "bridge", "bridge"]
    assert [call.config["ipMasq"] for call in calls] == [False, False, True]
    rest = [{**call.config, "type": "", "ipMasq": ""} for call in calls]
    assert rest[0] == rest[1] == rest[2]


def test_a_socket_is_for_podwire_alone():
    assert GO.at("/s", "/r") == GO
    call = PODWIRE.at("/s", "/r").version()
    assert call.environ["PODWIRE_SOCKET"] == "/s"
    assert call.environ["PODWIRE_RUNTIME"] == "/r"
    assert "PODWIRE_RUNTIME" not in PODWIRE.at("/s").version().environ


def test_status_is_asked_in_the_version_that_has_it():
    call = GO.status(bridge_config("/d", (4,)))
    assert call.config["cniVersion"] == "1.1.0"
    assert call.environ["CNI_COMMAND"] == "STATUS"
    assert "CNI_CONTAINERID" not in call.environ


def test_with_an_executable_it_is_the_agents_client_and_alone(monkeypatch):
    monkeypatch.setenv("PODWIRE_EXECUTABLE", "/bin/cat")
    found = {side.name: side for side in contenders.podwires()}
    assert list(found) == [AGENT, ALONE, WHEEL]
    assert found[AGENT].executable == found[ALONE].executable == "/bin/cat"
    assert [side.name for side in found.values() if side.agent] == [AGENT]
    assert found[WHEEL].executable != "/bin/cat"


def test_an_executable_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("PODWIRE_EXECUTABLE", "/proc/nowhere/podwire")
    with pytest.raises(FileNotFoundError, match="/proc/nowhere/podwire"):
        contenders.podwires()


def test_without_the_peer_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CNI_PEER_PATH", str(tmp_path))
    monkeypatch.setenv("PODWIRE_EXECUTABLE", "/bin/cat")
    assert contenders.peers() == []
    (note,) = contenders.missing()
    assert str(tmp_path) in note


def test_the_newer_peer_is_named_by_a_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("PODWIRE_NEWER", raising=False)
    assert contenders.newer() == []
    monkeypatch.setenv("PODWIRE_NEWER", str(tmp_path))
    assert contenders.newer() == []
    _script(tmp_path, "bridge", "exit 0")
    assert [side.executable for side in contenders.newer()] == [str(tmp_path / "bridge")]


def test_every_scenario_but_the_longest_is_measured_by_default():
    assert set(scenarios.SCENARIOS) - set(scenarios.DEFAULT) == {"cluster", "kubernetes", "soak"}


def test_a_place_gives_each_folder_once(tmp_path):
    place = Place(str(tmp_path))
    folders = [place.new("podwire"), place.new("podwire"), place.runtime]
    assert len(set(folders)) == 3
    assert all(os.stat(folder).st_mode & 0o777 == 0o700 for folder in folders)


# --- agents -----------------------------------------------------------------------------------


def test_nobody_serves_where_no_socket_is(tmp_path):
    path = str(tmp_path / "agent.sock")
    assert agents.server(path) is None
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)  # and does not listen
        assert agents.server(path) is None
    agents.end_server(path)


_LISTENER = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
print("ready", flush=True)
time.sleep(60)
"""


def test_who_serves_is_found_and_ended(tmp_path):
    path = str(tmp_path / "agent.sock")
    with subprocess.Popen(
        [sys.executable, "-c", _LISTENER, path], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert agents.server(path) == process.pid
        agents.end_server(path)
        assert process.wait() == -signal.SIGTERM


def test_usage_is_of_the_process_asked_for():
    found = agents.usage(os.getpid())
    assert found.rss_kib > 1_000
    with open(os.devnull):
        assert agents.usage(os.getpid()).fds == found.fds + 1
    assert found.threads >= 1


# --- profiles -------------------------------------------------------------------------------


def test_importtime_is_parsed():
    text = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |   zipimport
podwire: something else
import time:       250 |        350 | cni_plugin.spec
"""
    assert parse_importtime(text) == [Import("zipimport", 100), Import("cni_plugin.spec", 250)]
