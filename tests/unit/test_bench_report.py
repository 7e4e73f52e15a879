"""What a reader of the benchmark sees: tables, goals, the page, the plot; results as JSON."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import goals, plot, report, results, tables
from bench.contenders import AGENT, ALONE, MASQUERADE, PEER, PEER_IPAM, PODWIRE_IPAM, WHEEL
from bench.crowd import AT_ONCE, MANY_PODS
from bench.ipam import FILLS, SCATTERED
from bench.results import Held, Results, Series

MS = 1_000_000
SVG = "{http://www.w3.org/2000/svg}"


def _results(*series: Series, **more: object) -> Results:
    fields = {"machine": {"kernel": "Linux"}, "contenders": {}, "commands": {}}
    return Results(**{**fields, "series": series, **more})


def _one(scenario: str, what: str, contender: str, ms: float, size: int = 0) -> Series:
    return Series(scenario, what, contender, (round(ms * MS),), (MS,), size)


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ns", "expected"), [(85_400, "0.085"), (1_234_000, "1.23"), (104_560_000, "104.6")]
)
def test_milliseconds(ns, expected):
    assert tables.milliseconds(ns) == expected


def test_table_is_aligned():
    assert tables.table(("name", "ms"), [("a", "1.5"), ("long name", "10")]).splitlines() == [
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
        Series("pod", "ADD", AGENT, (30 * MS, 40 * MS, 50 * MS), (MS, MS, MS)),
        Series("pod", "ADD", PEER, (10 * MS, 10 * MS, 20 * MS), (MS, MS, MS)),
    )
    text = tables.processes(found, "pod")
    assert _cells(text, f"ADD, {AGENT}")[1:] == [
        *("3", "30.0", "40.0", "50.0", "1.00", "4.00", "3.00")
    ]
    assert _cells(text, f"ADD, {PEER}")[-2:] == ["", ""]
    assert tables.processes(found, "dual") == ""


def test_without_a_peer_there_is_no_ratio():
    text = tables.processes(_results(Series("pod", "DEL", AGENT, (MS,))), "pod")
    assert _cells(text, f"DEL, {AGENT}")[1:] == ["1", "1.00", "1.00", "1.00", ""]
    assert "ratio" not in text


def _ipam_series() -> list[Series]:
    series = [Series("ipam", "VERSION", PEER_IPAM, (3 * MS,), size=size) for size in FILLS]
    for what in ("add", "release"):
        series.append(Series("ipam", what, SCATTERED, (MS // 5,), size=FILLS[-1]))
        for number, size in enumerate(FILLS):
            ours = MS // 10 + number * MS // 100
            series.append(Series("ipam", what, PODWIRE_IPAM, (ours,), size=size))
            series.append(Series("ipam", what, PEER_IPAM, ((4 + 10 * number) * MS,), size=size))
    return series


def test_ipam_by_reservations():
    text = tables.ipam(_results(*_ipam_series()))
    assert _cells(text, f"add, {PODWIRE_IPAM} ")[1:] == ["0.100", "0.110", "0.120", "0.130", "1.30"]
    assert _cells(text, f"add, {SCATTERED}")[1:] == ["", "", "", "0.200", ""]
    # less the start of a process, 3 ms
    assert _cells(text, f"add, {PEER_IPAM}")[1:] == ["1.00", "11.0", "21.0", "31.0", "31"]
    assert tables.ipam(_results()) == ""


def test_a_peer_that_took_no_longer_than_its_start():
    """Noise may make the difference negative; then there is nothing to divide by."""
    found = _results(
        Series("ipam", "VERSION", PEER_IPAM, (3 * MS,), size=10),
        Series("ipam", "add", PEER_IPAM, (2 * MS,), size=10),
        Series("ipam", "VERSION", PEER_IPAM, (3 * MS,), size=60_000),
        Series("ipam", "add", PEER_IPAM, (12 * MS,), size=60_000),
    )
    assert _cells(tables.ipam(found), f"add, {PEER_IPAM}")[1:] == ["~0", "9.00", ""]


def test_ipam_without_a_peer():
    ours = [series for series in _ipam_series() if series.contender != PEER_IPAM]
    assert PEER_IPAM not in tables.ipam(_results(*ours))


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


# --- results ----------------------------------------------------------------------------------


def test_results_survive_json():
    found = _results(*_ipam_series(), commands={"a": "b"}, notes=("c",), aliases={"d": "e"})
    assert results.decode(results.encode(found)) == found


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 0}', "nonsense"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"format|Expecting"):
        results.decode(text)


def test_what_an_agent_held_survives_json() -> None:
    found = _results(held=(Held("soak", 5, 1024, 7, 4), Held("full", 0, 2048, 8, 5)))
    assert results.decode(results.encode(found)) == found


# --- many pods --------------------------------------------------------------------------------


def _crowd() -> list[Series]:
    """podwire makes 32 in 100 ms, Go in 400."""
    return [
        Series("parallel", "ADDs", AGENT, (90 * MS, 100 * MS, 900 * MS), (), AT_ONCE),
        Series("parallel", "ADDs", PEER, (400 * MS,), (), AT_ONCE),
        Series("parallel", "ADD", AGENT, (20 * MS, 30 * MS), (MS, MS), AT_ONCE),
        Series("parallel", "ADD", PEER, (200 * MS, 300 * MS), (MS, MS), AT_ONCE),
    ]


def test_parallel_counts_calls_a_second_of_the_median_round() -> None:
    found = _results(*_crowd())
    assert tables.calls_a_second(found, "ADD", AGENT) == 320
    assert tables.calls_a_second(found, "DEL", AGENT) == 0
    text = tables.parallel(found)
    ours = [f"{AT_ONCE} ADDs, {AGENT}", "3", "320", "4.00", "25.0", "30.0", "0.10"]
    assert _cells(text, ours[0]) == ours
    assert _cells(text, f"{AT_ONCE} ADDs, {PEER}")[-4:] == ["", "250.0", "300.0", ""]


def test_masquerading_has_a_column_of_its_own() -> None:
    found = _results(
        *(_one("pod", "ADD", side, ms) for side, ms in ((AGENT, 4), (PEER, 10), (MASQUERADE, 20)))
    )
    text = tables.processes(found, "pod")
    assert _cells(text, f"ADD, {AGENT}")[-3:] == ["0.40", "0.40", "0.20"]
    assert _cells(text, f"ADD, {PEER}")[-3:] == ["", "", "0.50"]
    assert "ipMasq" not in tables.processes(_results(_one("pod", "ADD", AGENT, 4)), "pod")


def test_a_thousand_pods_against_the_first() -> None:
    found = _results(
        *(_one("thousand", "ADD", AGENT, ms, size) for size, ms in ((1, 4), (MANY_PODS, 5)))
    )
    assert _cells(tables.thousand(found), f"ADD, {AGENT}") == [
        *(f"ADD, {AGENT}", "1", "4.00", "5.00", "1.25", "1.25")
    ]
    assert (
        tables.thousand(_results()) == tables.held(_results()) == tables.parallel(_results()) == ""
    )


# --- goals ------------------------------------------------------------------------------------


def _goal(found: Results, title: str) -> goals.Goal:
    (goal,) = [goal for goal in goals.goals(found) if goal.title == title]
    return goal


def test_goals_are_read_from_the_results() -> None:
    found = _results(
        *_crowd(),
        *(_one("pod", "ADD", side, ms) for side, ms in ((AGENT, 5), (ALONE, 40), (PEER, 10))),
        _one("pod", "ADD", WHEEL, 70),
        *(_one("version", "VERSION", side, ms) for side, ms in ((AGENT, 1), (PEER, 4))),
        held=(Held("full", 33, 40 * 1024, 9, 6),),
    )
    assert _goal(found, "ADD / Go").measured == 0.5
    assert not _goal(found, "ADD / Go").met
    assert _goal(found, "ADD without an agent / Go").measured == 4
    assert _goal(found, "VERSION / Go").met
    rate = _goal(found, f"{AT_ONCE} ADDs at once, throughput / Go")
    assert (rate.measured, rate.met) == (4, True)
    assert _goal(found, f"{AT_ONCE} ADDs at once, p95 / Go").measured == pytest.approx(0.1)
    assert _goal(found, "agent's RSS at 110 pods").measured == 40
    text = goals.shown(found)
    assert _cells(text, "ADD / Go") == ["ADD / Go", "<= 0.4", "0.50", "no"]
    assert _cells(text, "agent's RSS")[1:] == ["<= 60 MiB", "40.00 MiB", "yes"]


def test_without_an_executable_the_wheel_is_what_has_no_agent() -> None:
    found = _results(*(_one("pod", "ADD", side, ms) for side, ms in ((WHEEL, 50), (PEER, 10))))
    assert _goal(found, "ADD without an agent / Go").measured == 5


def test_what_was_not_measured_is_no_goal() -> None:
    assert goals.goals(_results()) == []
    assert goals.shown(_results(_one("pod", "ADD", AGENT, 1))) == ""


def test_an_agent_that_grows_is_seen() -> None:
    """From the second look on: what it takes for the first pods is its working memory."""
    looks = (Held("soak", 0, 100, 9, 5), Held("soak", 10, 200, 9, 5), Held("soak", 99, 300, 9, 6))
    found = _results(held=looks)
    over = "from 10 to 99 pairs"
    assert _goal(found, f"agent's RSS {over}").measured == 1.5
    assert not _goal(found, f"agent's RSS {over}").met
    assert _goal(found, f"agent's descriptors {over}").met
    assert not _goal(found, f"agent's threads {over}").met
    assert goals.goals(_results(held=looks[:2])) == []


# --- the plot ---------------------------------------------------------------------------------


def _bars(text: str) -> list[float]:
    root = ElementTree.fromstring(text)
    return [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect")]


def test_bars_are_as_long_as_the_medians() -> None:
    sides = ((AGENT, 5), (ALONE, 40), (WHEEL, 60), (PEER, 10), (MASQUERADE, 20))
    found = _results(*(_one("pod", "ADD", side, ms) for side, ms in sides), *_crowd())
    ours, alone, go, masquerade, rate, go_rate = _bars(plot.svg(found))
    assert [alone / ours, go / ours, masquerade / ours] == pytest.approx([8, 2, 4], rel=0.01)
    assert rate / go_rate == pytest.approx(4, rel=0.01)


def test_every_bar_has_its_name_and_value() -> None:
    text = plot.svg(_results(_one("pod", "DEL", AGENT, 2.34), _one("pod", "DEL", PEER, 30)))
    said = ["".join(node.itertext()) for node in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert said[1:] == [AGENT, "2.3 ms", PEER, "30.0 ms"]
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r'rect class="(\w+)"', text)) == {"agent", "go"}


@given(st.lists(st.integers(min_value=1, max_value=10**10), min_size=2, max_size=2))
def test_equal_results_give_equal_bytes_inside_the_picture(walls: list[int]) -> None:
    found = _results(
        *(Series("pod", "ADD", s, (w,)) for s, w in zip((AGENT, PEER), walls, strict=True))
    )
    text = plot.svg(found)
    assert text == plot.svg(found)
    root = ElementTree.fromstring(text)
    for bar in root.iter(f"{SVG}rect"):
        right = float(bar.attrib["x"]) + float(bar.attrib["width"])
        assert right < float(root.attrib["width"])


def test_nothing_to_plot_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        plot.svg(_results())
