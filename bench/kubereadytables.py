"""How soon a cluster and its pods are there, as tables. Pure.

A function returns "" for what was not measured.
"""

from __future__ import annotations

from bench import kubeready
from bench.kubeready import ALL_READY, AT_ONCE, HAND, POD_READY, POD_RUNS, SCENARIO
from bench.results import Results, Series
from bench.statistic import pairs, ratio, summary
from bench.tables import milliseconds, table

_TIMES = ("min", "median", "p95", "ratio", "of pairs", "95 % of it")
EXPLAINED_STARTS = (
    "From the start of three kubelets, the API server being up, until the API tells that a step is"
    " done on the last of the nodes; *network configured*: the time of the conflist. All three"
    " share this machine's processors. *by hand*: the conflist is written, and routes are made, in"
    " the moment in which the API tells the node's podCIDR. podwire's manifest is applied in the"
    " moment of the kubelets' start; its agent is a pod, which no kubelet makes before its node is"
    " registered. What dominates is the kubelet: for 5 s it looks for docker, on both sides; then"
    " it looks at the runtime's network, and again only every 5 s, and tells the API every 2 s"
    " (10 s by default). What is not there at its first look costs that much, however soon it"
    " comes; newer kubelets look every 100 ms until they are Ready. *after a reboot*: new machines,"
    " with what lay on the disks of the former: the network's configuration is there before the"
    " kubelet."
)
EXPLAINED_PODS = (
    "From before the API's call to the event that tells of it. *pod runs*: until its container's"
    " first word, by the runtime's log: it holds the kubelet's waiting for volumes, the sandbox"
    " with its network, and the container's start. *pod Ready* comes when the kubelet looks at what"
    " runs, which it does once a second: that is the difference between the two, and both sides'"
    " single pods are asked for at the same parts of that second, all over it. *all pods Ready*:"
    " from the first one's call to the last one's event. The kubelets may ask the API 50 times a"
    " second; with the 5 of Kubernetes before 1.27, which is their default, that dominates many at"
    " once."
)


def starts(results: Results) -> str:
    """One line for each step of each start and each side."""
    return _table(
        results,
        [
            (kubeready.step(start, what), 0)
            for start in (kubeready.FIRST, kubeready.AGAIN)
            for what in kubeready.STEPS
        ],
    )


def pods(results: Results) -> str:
    """One line for each time of a pod, number at once, and side."""
    wanted = [(what, size) for size in AT_ONCE for what in (POD_RUNS, POD_READY, ALL_READY)]
    return _table(results, wanted)


def _table(results: Results, wanted: list[tuple[str, int]]) -> str:
    rows = []
    for what, size in wanted:
        for side in kubeready.SIDES:
            found = results.find(SCENARIO, what, side, size)
            if found is not None:
                rows.append(_row(results, found))
    if not rows:
        return ""
    sized = any(row[1] for row in rows)
    head = ["ms", *(("at once",) if sized else ()), "runs", *_TIMES]
    return table(head, rows if sized else [[row[0], *row[2:]] for row in rows])


def _row(results: Results, series: Series) -> list[str]:
    wall = summary(series.wall)
    return [
        f"{series.what}, {series.contender}",
        str(series.size or ""),
        str(wall.runs),
        *(milliseconds(time) for time in (wall.least, wall.median, wall.p95)),
        *_against(results, series),
    ]


def _against(results: Results, series: Series) -> tuple[str, str, str]:
    hand = results.find(SCENARIO, series.what, HAND, series.size)
    if hand is None or hand is series:
        return "", "", ""
    found, spread = ratio(series.wall, hand.wall), pairs(series.wall, hand.wall)
    sure = f"{spread.low:.2f} to {spread.high:.2f}"
    return f"{found.of_medians:.2f}", f"{spread.median:.2f}", sure
