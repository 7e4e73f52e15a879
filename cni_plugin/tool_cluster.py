"""`podwire status`: the cluster that an agent follows here, as that agent notes it.

That a cluster is away, or that nobody follows it, keeps no pod from being added: what was known
last goes on. So this is told, and is no part of the verdict.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator
from typing import Any

from cni_plugin.agent import clusterstate
from cni_plugin.spec import CniError

_LISTED = 10  # refusals that the text shows
_RFC3339 = "%Y-%m-%dT%H:%M:%SZ"


def gather() -> dict[str, Any]:
    """`cluster`, which is None where no agent follows one; nothing for who may not know."""
    try:
        state = clusterstate.read()
        following = bool(clusterstate.is_followed())
    except (CniError, OSError):
        return {}
    if state is None:
        return {"cluster": None}
    about, said = state.about, state.said
    cluster = {
        "kind": about.kind,
        "servers": [server for server in about.servers if server],
        "following": following,
        "state": state.state,
        "since": _rfc3339(state.since),
        "reason": state.reason,
        "leaseUntil": _rfc3339(about.lease_until) if about.lease_until else None,
        "node": state.node,
        "said": said and said._asdict(),
        "untold": state.untold,
        "refused": [refusal._asdict() for refusal in state.refused],
    }
    return {"cluster": cluster}


def is_kept(inventory: str) -> bool | None:
    """Whether an agent writes this inventory; None where none ever did, and where that can't be
    known."""
    try:
        return clusterstate.is_kept(inventory)
    except OSError:
        return None


def lines(cluster: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Labels and texts: which cluster, how it stands, and what is to be looked at."""
    which = " ".join(filter(None, (cluster["kind"], ", ".join(cluster["servers"]))))
    parts = [which or "of nodes", _standing(cluster)]
    if cluster["leaseUntil"]:
        at = 1 if cluster["state"] == clusterstate.AWAY else 2  # a reason may have any length
        parts.insert(at, f"lease {_until(cluster['leaseUntil'])}")
    yield "cluster", ", ".join(parts)
    if not cluster["following"]:
        return
    said = cluster["said"]
    if said:
        yield "", f"{cluster['node']}: {said['reason']}: {said['message']}"
    if cluster["state"] == clusterstate.AWAY:
        yield "warning", "nothing new is heard of the cluster: what was known last goes on"
    if cluster["untold"]:
        yield "warning", f"the cluster can't be told of this node: {cluster['untold']}"
    others = [
        each for each in cluster["refused"] if not (said and each["message"] in said["message"])
    ]
    for refusal in others[:_LISTED]:
        yield "warning", f"{refusal['reason']}: {refusal['message']}"
    if len(others) > _LISTED:
        yield "", f"and {len(others) - _LISTED} more (--json lists them)"


def _standing(cluster: dict[str, Any]) -> str:
    since = _local(cluster["since"])
    if not cluster["following"]:
        return "followed by no agent: the one that did was killed"
    if cluster["state"] == clusterstate.AWAY:
        return f"away since {since}: {cluster['reason']}"
    if cluster["state"] == clusterstate.HEARD:
        return f"heard since {since}"
    return f"not heard yet, its agent is there since {since}"


def _rfc3339(moment: int) -> str:
    return time.strftime(_RFC3339, time.gmtime(moment))


def _until(moment: str) -> str:
    is_over = calendar.timegm(time.strptime(moment, _RFC3339)) < time.time()
    return f"{'ended' if is_over else 'until'} {_local(moment)}"


def _local(moment: str) -> str:
    """The time of day here, with the date on other days."""
    then = time.localtime(calendar.timegm(time.strptime(moment, _RFC3339)))
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)
