"""What `podwire status` says of a cluster: cni_plugin/tool_cluster.py."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cni_plugin import tool_cluster, tool_statustext

SAID = {"ready": True, "reason": "PodwireReady", "message": "pods get addresses; node-1 overlaps"}


def cluster(**fields: Any) -> dict[str, Any]:
    return {
        "kind": "kubernetes",
        "servers": ["https://192.168.1.10:6443"],
        "following": True,
        "state": "heard",
        "since": "2026-11-23T14:51:20Z",
        "reason": "",
        "leaseUntil": None,
        "node": "node-1",
        "said": None,
        "untold": "",
        "refused": [],
        **fields,
    }


def refusal(number: int, message: str) -> dict[str, str]:
    return {"name": f"n{number}", "reason": "PodCIDROverlap", "message": message, "holder": ""}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_cluster.time, "localtime", time.gmtime)


def lines(**fields: Any) -> list[tuple[str, str]]:
    return list(tool_cluster.lines(cluster(**fields)))


def test_a_cluster_that_is_there() -> None:
    line = "kubernetes https://192.168.1.10:6443, heard since 2026-11-23 14:51:20"
    if time.strftime("%Y-%m-%d", time.gmtime()) == "2026-11-23":
        line = line.replace("2026-11-23 ", "")
    assert lines() == [("cluster", line)]


def test_moments_of_today_have_no_date() -> None:
    now = time.time()
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    ((_, line),) = lines(since=since)
    assert line.endswith(f"heard since {since[11:-1]}")


def test_a_cluster_that_is_away() -> None:
    found = lines(state="away", since="2020-01-02T03:04:05Z", reason="Connection refused")
    which = "kubernetes https://192.168.1.10:6443"
    assert found[0] == ("cluster", f"{which}, away since 2020-01-02 03:04:05: Connection refused")
    assert [label for label, _ in found[1:]] == ["warning"]


@pytest.mark.parametrize(
    ("until", "text"),
    [
        ("9999-12-31T23:59:59Z", "lease until 9999-12-31 23:59:59"),
        ("2001-01-01T00:00:00Z", "lease ended 2001-01-01 00:00:00"),
    ],
)
def test_a_lease(until: str, text: str) -> None:
    ((_, line),) = lines(kind="etcd", servers=["http://a:1", "http://b:1"], leaseUntil=until)
    assert line.startswith("etcd http://a:1, http://b:1, ")
    assert line.endswith(text)


def test_why_it_is_away_comes_last() -> None:
    until = "9999-12-31T23:59:59Z"
    (_, line), _ = lines(state="away", reason="Connection refused", leaseUntil=until)
    assert "lease until" in line
    assert line.endswith(": Connection refused")


def test_one_that_was_not_heard_yet() -> None:
    ((_, line),) = lines(state="starting")
    assert "not heard yet" in line


def test_what_is_said_of_the_node_comes_once() -> None:
    refused = [refusal(1, "node-1 overlaps"), refusal(2, "node-2 overlaps")]
    found = lines(said=SAID, refused=refused, untold="forbidden")[1:]
    assert found == [
        ("", "node-1: PodwireReady: pods get addresses; node-1 overlaps"),
        ("warning", "the cluster can't be told of this node: forbidden"),
        ("warning", "PodCIDROverlap: node-2 overlaps"),
    ]


def test_of_many_refusals_the_first_are_shown() -> None:
    found = lines(refused=[refusal(number, f"no {number}") for number in range(30)])
    assert len(found) == 12
    assert found[-1] == ("", "and 20 more (--json lists them)")


def test_the_report_has_it_whatever_the_verdict_is() -> None:
    error = {"code": 7, "msg": "holds no network configuration", "details": ""}
    report = {"ready": False, "file": None, "broken": [], "networks": [], "error": error}
    without = list(tool_statustext.lines({**report, "cluster": None}))
    assert without == list(tool_statustext.lines(report))
    first, *rest = tool_statustext.lines({**report, "cluster": cluster()})
    assert first.startswith("cluster    kubernetes https://192.168.1.10:6443, heard since ")
    assert rest == without
