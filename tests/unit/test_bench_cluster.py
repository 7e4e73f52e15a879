"""The benchmark of following a cluster: what was counted, and what a reader sees of it."""

from __future__ import annotations

import json

import pytest

from bench import cluster, clusterplane, clustertables, goals, report, results, scenarios
from bench.cluster import GONE, HEARTBEAT, LINK, ROUTER, SERVER, SIZES, START
from bench.results import Amount, Results, Series

MS = 1_000_000
FEW, MANY = SIZES


def _series(what: str, wall: float, cpu: float, label: str = LINK, size: int = MANY) -> Series:
    return Series("cluster", what, label, (round(wall * MS),), (round(cpu * MS),), size)


def _amount(
    what: str, value: float, label: str = LINK, size: int = MANY, unit: str = "KiB"
) -> Amount:
    return Amount("cluster", what, label, unit, value, size)


def _results(*found: Series | Amount) -> Results:
    return Results(
        {"kernel": "Linux"},
        {},
        {},
        tuple(each for each in found if isinstance(each, Series)),
        amounts=tuple(each for each in found if isinstance(each, Amount)),
    )


def _cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


# --- what is counted ----------------------------------------------------------------------------


def _event(verb: str, resource: str, subresource: str = "") -> str:
    about = {"resource": resource}
    if subresource:
        about["subresource"] = subresource
    return json.dumps({"verb": verb, "objectRef": about})


def test_requests_are_counted_by_what_they_ask(tmp_path):
    site = clusterplane.Site.__new__(clusterplane.Site)
    site._audit = str(tmp_path / "audit.log")
    assert site.requests() == {}  # the API server makes it with the first request
    lines = [_event("list", "nodes"), _event("patch", "nodes", "status"), _event("list", "nodes")]
    (tmp_path / "audit.log").write_text("\n".join(lines) + "\n")
    assert site.requests() == {"list nodes": 2, "patch nodes/status": 1}


def test_only_what_is_new_is_told():
    before, after = {"list nodes": 2, "watch nodes": 1}, {"list nodes": 3, "watch nodes": 1}
    assert clusterplane.since(before, after) == {"list nodes": 1}


def test_peers_have_subnets_of_their_own():
    found = {clusterplane.subnet_of(number) for number in range(1, MANY + 1)}
    assert len(found) == MANY


def test_it_is_not_part_of_a_usual_run():
    assert "cluster" in scenarios.SCENARIOS
    assert "cluster" not in scenarios.DEFAULT


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "/proc/nowhere")
    monkeypatch.setenv("PATH", "/proc/nowhere")
    (note,) = cluster.missing()
    assert "kube-apiserver" in note
    assert "KUBEBUILDER_ASSETS" in note


# --- results ------------------------------------------------------------------------------------


def test_amounts_are_written_and_read():
    found = _results(_series(START, 900, 700), _amount(cluster.RSS, 51_200))
    assert results.decode(results.encode(found)) == found


def test_results_of_before_have_none():
    document = json.loads(results.encode(_results()))
    del document["amounts"]
    assert results.decode(json.dumps(document)).amounts == ()


# --- what is shown ------------------------------------------------------------------------------


def test_times_stand_beside_the_agents_cpu():
    text = clustertables.agent(
        _results(
            _series(START, 900, 700, size=FEW),
            _series(START, 4200, 2500),
            _series(HEARTBEAT, 5, 0.25),
        )
    )
    assert _cells(text, f"{START}, {LINK}") == [
        *(f"{START}, {LINK}", "900.0", "700.0", "4200.0", "2500.0"),
    ]
    assert _cells(text, f"{HEARTBEAT}, {LINK}")[1:] == ["", "", "", "0.250"]
    assert ROUTER not in text


def test_what_the_agent_holds():
    text = clustertables.held(
        _results(
            _series(START, 1, 1),
            _amount(cluster.RSS, 61_440),
            _amount(cluster.PEAK, 71_680),
            _amount(cluster.REST, 300, unit="ms a minute"),
            _amount("requests: list nodes", 20, unit="requests"),
            _amount(cluster.LATER, 0, unit="requests"),
        )
    )
    cells = _cells(text, f"{LINK}, {MANY:,} nodes")[1:]
    assert cells == ["60.0", "70.0", "0.50", "20 list nodes, 0 later"]


def test_what_the_api_server_pays():
    what = cluster.SIZED.format(what="RSS", watches=200)
    found = _results(_series(START, 1, 1), _amount(what, 512_000, SERVER))
    assert _cells(clustertables.server(found), f"{what}, KiB")[1:] == ["512,000"]


def test_nothing_measured_nothing_shown():
    empty = _results()
    assert clustertables.held(empty) == clustertables.server(empty) == clustertables.agent(empty)
    assert clustertables.agent(empty) == ""
    assert "Kubernetes" not in report.page(empty)
    assert clustertables.per_node(empty) is None


def test_a_page_has_it():
    page = report.page(_results(_series(START, 900, 700)))
    assert "## Following a Kubernetes cluster" in page


# --- goals --------------------------------------------------------------------------------------


def _goal(found: Results, words: str) -> goals.Goal:
    (goal,) = [goal for goal in goals.goals(found) if words in goal.title]
    return goal


@pytest.mark.parametrize(("kib", "met"), [(110_000, True), (140_000, False)])
def test_memory_has_room_for_each_node(kib, met):
    goal = _goal(_results(_amount(cluster.RSS, kib)), f"RSS at {MANY:,} nodes")
    assert goal.met is met


def test_memory_for_each_node_is_that_of_the_steeper_way():
    found = _results(
        _series(START, 1, 1, size=FEW),
        _series(START, 1, 1),
        *(_amount(cluster.RSS, kib, LINK, size) for kib, size in ((50_000, FEW), (54_000, MANY))),
        *(_amount(cluster.RSS, kib, ROUTER, size) for kib, size in ((50_000, FEW), (62_000, MANY))),
    )
    assert _goal(found, "RSS for each node").measured == 12_000 / (MANY - FEW)


@pytest.mark.parametrize(("cpu", "met"), [(15, True), (40, False)])
def test_a_change_costs_little(cpu, met):
    assert _goal(_results(_series(GONE, 200, cpu)), f"CPU for {GONE}").met is met


@pytest.mark.parametrize(("requests", "met"), [(0, True), (7, False)])
def test_nobody_polls(requests, met):
    found = _results(_amount(cluster.LATER, requests, unit="requests"))
    assert _goal(found, "after the start").met is met


@pytest.mark.parametrize(("last", "met"), [(81_000, True), (120_000, False)])
def test_memory_stays(last, met):
    first, end = cluster.MANY[0], cluster.MANY[-1]
    found = _results(
        _amount(cluster.KEPT.format(first), 80_000, ROUTER),
        _amount(cluster.KEPT.format(end), last, ROUTER),
    )
    assert _goal(found, "changes of nodes").met is met
