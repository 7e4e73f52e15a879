"""The benchmark of a cluster's start and its pods: what is heard, and what a reader sees of it."""

from __future__ import annotations

import json
import os

import pytest

from bench import goals, kubeready, kubereadytables, kubereadywatch, report, scenarios
from bench.contenders import AGENT
from bench.kubeready import AGAIN, ALL_READY, FIRST, HAND, POD_READY, POD_RUNS, READY, SUBNETS
from bench.kubereadywatch import Stamps
from bench.measure import CallFailedError
from bench.nodes import Place
from bench.results import Results, Series
from tests.support import require
from tests.support.executable import executable
from tests.support.kubeprograms import component
from tests.support.kubernetes import manifest

MS = 1_000_000


# --- what is heard ------------------------------------------------------------------------------


def _node(name: str, *conditions: str, subnet: str = "") -> dict[str, object]:
    said = [dict(zip(("type", "status"), c.split(), strict=True)) for c in conditions]
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": subnet} if subnet else {},
        "status": {"conditions": said},
    }


def _line(kind: str, item: dict[str, object]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def test_a_node_goes_from_registered_to_ready():
    bare = _node("n1", "Ready False", "DiskPressure False")
    whole = _node("n1", "DiskPressure True", "Ready True", subnet="10.244.0.0/24")
    assert kubereadywatch.of_node("ADDED", bare) == ["n1 registered"]
    words = kubereadywatch.of_node("MODIFIED", whole)
    assert words == ["n1 registered", "n1 has a subnet", "n1 Ready"]
    assert kubereadywatch.of_node("DELETED", whole) == []


def test_a_pod_is_ready_or_not():
    waits, runs = _node("pod", "PodScheduled True", "Ready False"), _node("pod", "Ready True")
    found = [kubereadywatch.of_pod("MODIFIED", each) for each in (waits, runs)]
    assert found == [[], ["pod Ready"]]
    assert kubereadywatch.of_pod("DELETED", runs) == []


def _heard(*lines: bytes) -> Stamps:
    made = Stamps(kubereadywatch.of_node)
    made.feed(lines)
    return made


def test_the_first_moment_of_each_word_counts():
    first, later = (_node("n1", "Ready True", subnet=subnet) for subnet in ("10.244.1.0/24", ""))
    heard = _heard(_line("ADDED", first), _line("MODIFIED", later), _line("ADDED", _node("n2")))
    registered, last = (
        heard.wait([kubereadywatch.registered(name) for name in names])
        for names in (["n1"], ["n1", "n2"])
    )
    assert heard.wait(["n1 Ready"]) == registered < last
    assert heard.objects["n1"] == later


def test_what_is_forgotten_was_not_heard():
    heard = _heard(_line("ADDED", _node("n1")))
    heard.forget()
    with pytest.raises(CallFailedError, match="n1 registered: the API server ended it"):
        heard.wait(["n1 registered"])


def test_what_never_comes_ends_the_measurement():
    with pytest.raises(CallFailedError, match=r"n1 Ready: not within 0\.01 s"):
        Stamps(kubereadywatch.of_node).wait(["n1 Ready"], 0.01)


def test_a_watch_that_breaks_says_why():
    gone = json.dumps({"type": "ERROR", "object": {"message": "too old"}}).encode()
    with pytest.raises(CallFailedError, match="too old"):
        _heard(gone).wait(["n1 Ready"])


# --- the other side -----------------------------------------------------------------------------


def test_times_of_logs_are_read_to_the_microsecond():
    from bench import kubereadysite

    read = kubereadysite.nanoseconds
    assert read("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert read("2024-02-29T12:00:00.000001999Z") - read("2024-02-29T11:59:59Z") == 1_000_001_000
    assert read("1970-01-01T01:00:01.25+01:00") == 1_250_000_000


def test_both_sides_have_one_network():
    from bench import kubereadysite

    bridge, ports = kubereadysite.conflist("10.244.7.0/24")["plugins"]
    with open(manifest.PATH) as file:
        text = file.read().partition("network.json: |")[2].partition("---")[0]
    (ours,) = json.loads(text)["plugins"]
    for key in ("bridge", "hairpinMode", "ipMasq"):
        assert bridge[key] == ours[key]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.7.0/24"}]]
    assert ports["capabilities"].items() <= ours["capabilities"].items()


# --- what a reader sees -------------------------------------------------------------------------


def _series(what: str, name: str, *times: int, size: int = 0) -> Series:
    return Series("kubernetes", what, name, tuple(time * MS for time in times), size=size)


def _start(name: str, *times: int, start: str = FIRST, what: str = READY) -> Series:
    return _series(kubeready.step(start, what), name, *times)


FOUND = Results(
    {"kernel": "Linux"},
    {},
    {},
    (
        _start(AGENT, 8000, 9000, 7000),
        _start(HAND, 4000, 4000, 4000),
        _start(AGENT, 1000, what=SUBNETS),
        _start(HAND, 1000, what=SUBNETS),
        _start(AGENT, 3000, start=AGAIN),
        _start(HAND, 4000, start=AGAIN),
        _series(POD_READY, AGENT, 1200, 1400, 1600, size=1),
        _series(POD_READY, HAND, 1400, 1500, 1600, size=1),
        _series(POD_READY, AGENT, 2000, size=10),
        _series(POD_RUNS, AGENT, 700, size=1),
        _series(POD_RUNS, HAND, 800, size=1),
        _series(ALL_READY, AGENT, 4900, 5500, size=10),
        _series(ALL_READY, HAND, 5000, 5000, size=10),
    ),
)
NOTHING = FOUND._replace(series=())


def _cells(text: str, begin: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {begin} ")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


def test_a_start_beside_the_one_by_hand():
    text = kubereadytables.starts(FOUND)
    (ours,) = _cells(text, f"{FIRST}: {READY}, {AGENT}")
    assert ours == ["3", "7000.0", "8000.0", "9000.0", "2.00", "2.00", "1.75 to 2.25"]
    (hand,) = _cells(text, f"{FIRST}: {READY}, {HAND}")
    assert hand == ["3", "4000.0", "4000.0", "4000.0", "", "", ""]
    order = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert order == [
        f"{start}: {what}, {side}"
        for start, what in ((FIRST, SUBNETS), (FIRST, READY), (AGAIN, READY))
        for side in (AGENT, HAND)
    ]


def test_pods_stand_beside_each_other_by_how_many_there_were():
    text = kubereadytables.pods(FOUND)
    ours = _cells(text, f"{POD_READY}, {AGENT}")
    assert ours == [
        ["1", "3", "1200.0", "1400.0", "1600.0", "0.93", "0.93", "0.86 to 1.00"],
        ["10", "1", "2000.0", "2000.0", "2000.0", "", "", ""],
    ]
    ((size, *_, ratio, _, _),) = _cells(text, f"{ALL_READY}, {AGENT}")
    assert (size, ratio) == ("10", "1.04")


def test_a_page_says_what_dominates():
    page = report.page(FOUND)
    assert page.index(kubereadytables.starts(FOUND)) < page.index(kubereadytables.EXPLAINED_STARTS)
    assert page.index(kubereadytables.pods(FOUND)) < page.index(kubereadytables.EXPLAINED_PODS)


def test_nothing_measured_nothing_shown():
    assert kubereadytables.starts(NOTHING) == kubereadytables.pods(NOTHING) == ""
    assert "Kubernetes" not in report.page(NOTHING)
    assert goals.goals(NOTHING) == []


def test_no_goal_allows_to_be_later_than_by_hand():
    found = [(goal.limit, round(goal.measured or 0, 2)) for goal in goals.goals(FOUND)]
    assert found == [(1, 2.0), (1, 0.75), (1, 0.93), (1, 1.04)]
    assert [goal.verdict for goal in goals.goals(FOUND)] == ["no", "yes", "yes", "can't tell"]


def test_it_is_not_part_of_a_usual_run():
    assert "kubernetes" in scenarios.SCENARIOS
    assert "kubernetes" not in scenarios.DEFAULT


# --- who is there -------------------------------------------------------------------------------


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    for variable in ("KUBEBUILDER_ASSETS", "PATH", "CNI_PEER_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))
    (note,) = kubeready.missing()
    assert "no kubelet" in note
    assert f"no {tmp_path}/host-local" in note
    assert kubeready.kubernetes(Place(str(tmp_path)), 1) == []
    assert kubeready.versions() == {}


# --- a real one ---------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.unmeasured
@pytest.mark.timeout(600)
def test_both_sides_are_started_and_get_pods_and_nothing_is_left(monkeypatch, tmp_path):
    require.root()
    require.programs("containerd", "ctr", "runc", "busybox", "nft", "iptables", "openssl")
    for name in ("kube-scheduler", "kubelet", "kube-proxy", "kubectl"):
        component(name)
    monkeypatch.setenv("CNI_PEER_PATH", require.go_plugins(*kubeready._GO_PLUGINS))
    monkeypatch.setenv("PODWIRE_EXECUTABLE", executable())
    few = {"START_ROUNDS": 1, "CROWD_ROUNDS": 1, "LEAST_PODS": 1, "AT_ONCE": (1, 3)}
    for name, value in few.items():
        monkeypatch.setattr(kubeready, name, value)
    before = _folders()
    assert kubeready.missing() == []
    found = {
        (series.what, series.contender, series.size): series.wall
        for series in kubeready.kubernetes(Place(str(tmp_path)), 1)
    }
    for side in kubeready.SIDES:
        steps = [found[kubeready.step(FIRST, what), side, 0][0] for what in kubeready.STEPS]
        assert 0 < steps[0] <= steps[1] <= steps[2] <= steps[3]
        for size in kubeready.AT_ONCE:
            runs, ready = (found[what, side, size] for what in (POD_RUNS, POD_READY))
            assert len(runs) == len(ready) == size
            assert min(runs + ready) > 0
        assert found[ALL_READY, side, 3][0] >= max(found[POD_READY, side, 3])
    assert _folders() == before


def _folders() -> set[str]:
    return {name for name in os.listdir("/var/tmp") if name.startswith(f"pwt-{os.getpid()}-")}
