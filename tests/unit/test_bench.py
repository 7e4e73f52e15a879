"""The pure parts of the benchmark: statistics, order, tables, results as JSON."""

from __future__ import annotations

import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report, results, statistic
from bench.contenders import PEER, PEER_IPAM, PODWIRE, bridge_config
from bench.ipam import FILLS, SCATTERED
from bench.measure import Call, CallFailedError, execute, rotated
from bench.profiling import Import, parse_importtime
from bench.results import Results, Series

_times = st.lists(st.integers(min_value=1, max_value=10**12), min_size=1, max_size=50)
MS = 1_000_000


def _results(*series: Series, **more: object) -> Results:
    fields = {"machine": {"kernel": "Linux"}, "contenders": {}, "commands": {}}
    return Results(**{**fields, "series": series, **more})


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


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ns", "expected"), [(85_400, "0.085"), (1_234_000, "1.23"), (104_560_000, "104.6")]
)
def test_milliseconds(ns, expected):
    assert report.milliseconds(ns) == expected


def test_table_is_aligned():
    assert report.table(("name", "ms"), [("a", "1.5"), ("long name", "10")]).splitlines() == [
        "| name      |  ms |",
        "| --------- | --: |",
        "| a         | 1.5 |",
        "| long name |  10 |",
    ]


def _cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_processes_are_held_against_the_peer():
    found = _results(
        Series("pod", "ADD", PODWIRE, (30 * MS, 40 * MS, 50 * MS), (MS, MS, MS)),
        Series("pod", "ADD", PEER, (10 * MS, 10 * MS, 20 * MS), (MS, MS, MS)),
    )
    text = report.processes(found, "pod")
    assert _cells(text, f"ADD, {PODWIRE}")[1:] == [
        *("3", "30.0", "40.0", "50.0", "1.00", "4.00", "3.00")
    ]
    assert _cells(text, f"ADD, {PEER}")[-2:] == ["", ""]
    assert report.processes(found, "dual") == ""


def test_without_a_peer_there_is_no_ratio():
    text = report.processes(_results(Series("pod", "DEL", PODWIRE, (MS,))), "pod")
    assert _cells(text, f"DEL, {PODWIRE}")[-3:] == ["", "", ""]


def _ipam_series() -> list[Series]:
    series = [Series("ipam", "VERSION", PEER_IPAM, (3 * MS,), size=size) for size in FILLS]
    for what in ("add", "release"):
        series.append(Series("ipam", what, SCATTERED, (MS // 5,), size=FILLS[-1]))
        for number, size in enumerate(FILLS):
            ours = MS // 10 + number * MS // 100
            series.append(Series("ipam", what, PODWIRE, (ours,), size=size))
            series.append(Series("ipam", what, PEER_IPAM, ((4 + 10 * number) * MS,), size=size))
    return series


def test_ipam_by_reservations():
    text = report.ipam(_results(*_ipam_series()))
    assert _cells(text, f"add, {PODWIRE} ")[1:] == ["0.100", "0.110", "0.120", "0.130", "1.30"]
    assert _cells(text, f"add, {SCATTERED}")[1:] == ["", "", "", "0.200", ""]
    # less the start of a process, 3 ms
    assert _cells(text, f"add, {PEER_IPAM}")[1:] == ["1.00", "11.0", "21.0", "31.0", "31"]
    assert report.ipam(_results()) == ""


def test_a_peer_that_took_no_longer_than_its_start():
    """Noise may make the difference negative; then there is nothing to divide by."""
    found = _results(
        Series("ipam", "VERSION", PEER_IPAM, (3 * MS,), size=10),
        Series("ipam", "add", PEER_IPAM, (2 * MS,), size=10),
        Series("ipam", "VERSION", PEER_IPAM, (3 * MS,), size=60_000),
        Series("ipam", "add", PEER_IPAM, (12 * MS,), size=60_000),
    )
    assert _cells(report.ipam(found), f"add, {PEER_IPAM}")[1:] == ["~0", "9.00", ""]


def test_ipam_without_a_peer():
    ours = [series for series in _ipam_series() if series.contender != PEER_IPAM]
    assert PEER_IPAM not in report.ipam(_results(*ours))


def test_page_names_no_path_of_this_machine():
    found = _results(
        *_ipam_series(),
        commands={"ADD": "env -i /secret/bin/podwire"},
        aliases={"/secret/bin": ".venv/bin"},
        notes=("a note",),
    )
    page = report.page(found)
    assert "env -i .venv/bin/podwire" in page
    assert "/secret" not in page
    assert "a note" in page
    assert "/secret/bin/podwire" in report.text(found)


# --- results and profiles ---------------------------------------------------------------------


def test_results_survive_json():
    found = _results(*_ipam_series(), commands={"a": "b"}, notes=("c",), aliases={"d": "e"})
    assert results.decode(results.encode(found)) == found


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 0}', "nonsense"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"format|Expecting"):
        results.decode(text)


def test_importtime_is_parsed():
    text = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |   zipimport
podwire: something else
import time:       250 |        350 | cni_plugin.spec
"""
    assert parse_importtime(text) == [Import("zipimport", 100), Import("cni_plugin.spec", 250)]
