"""A Node object as podwire reads it: what of it counts, and the member it makes.

No I/O, and nothing of a client library: `kubeapi` decodes objects into NodeFacts. What can't be
used of a Node becomes the member's `problem`, never an error: one bad object must not stop the
others. An ExternalIP is no substitute for an InternalIP, since nothing says that pods' packets may
go there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cni_plugin.fields import as_address, as_network, invalid
from cni_plugin.sources import Announcement, Member, Readiness
from cni_plugin.spec import CniError, IPAddress, IPNetwork

VTEP_MAC = "podwire.io/vtep-mac"
OVERLAY_ADDRESS = "podwire.io/overlay-address"
BACKEND = "podwire.io/backend"
ANNOTATIONS = (VTEP_MAC, OVERLAY_ADDRESS, BACKEND)
NETWORK_UNAVAILABLE = "NetworkUnavailable"

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


class Condition(NamedTuple):
    """The Node's condition NetworkUnavailable; `since` is its lastTransitionTime."""

    status: str
    reason: str = ""
    message: str = ""
    since: str = ""


class NodeFacts(NamedTuple):
    """What is decoded of a Node. `addresses`: (type, address). `annotations`: ours only."""

    name: str
    uid: str = ""
    created: str = ""
    annotations: Mapping[str, str] = {}
    addresses: tuple[tuple[str, str], ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    network: Condition | None = None


def member_of(node: NodeFacts) -> Member:
    """The member that a Node makes."""
    reader = _Reader(node)
    return Member(
        name=node.name,
        addresses=reader.addresses(),
        pod_cidrs=tuple(reader.pod_cidrs()),
        since=node.created,
        uid=node.uid,
        overlay_address=reader.overlay_address(),
        vtep_mac=reader.vtep_mac(),
        backend=node.annotations.get(BACKEND, ""),
        problem="; ".join(reader.problems),
    )


class _Reader:
    """Reads one Node; `problems` grows with what can't be used."""

    def __init__(self, node: NodeFacts) -> None:
        self._node = node
        self.problems: list[str] = []

    def addresses(self) -> tuple[IPAddress, ...]:
        """The first usable InternalIP of each family, in the Node's order."""
        found: dict[int, IPAddress] = {}
        for kind, text in self._node.addresses:
            if kind != "InternalIP":
                continue
            try:
                address = as_address(text, "status.addresses: InternalIP")
                if address.is_unspecified or address.is_loopback or address.is_multicast:
                    raise invalid("status.addresses: InternalIP", text, "expected a node's address")
            except CniError as e:
                self.problems.append(e.msg)
            else:
                found.setdefault(address.version, address)
        return tuple(found.values())

    def pod_cidrs(self) -> Iterator[IPNetwork]:
        for text in self._node.pod_cidrs:
            try:
                yield as_network(text, "spec.podCIDRs")
            except CniError as e:
                self.problems.append(f"{e.msg} {e.details}".strip())

    def overlay_address(self) -> IPAddress | None:
        text = self._node.annotations.get(OVERLAY_ADDRESS, "")
        try:
            return as_address(text, f"annotation {OVERLAY_ADDRESS}") if text else None
        except CniError as e:
            self.problems.append(e.msg)
            return None

    def vtep_mac(self) -> str:
        """In small letters; "" for none, and for one that no interface can have."""
        text = self._node.annotations.get(VTEP_MAC, "").lower()
        if not text:
            return ""
        if _MAC.fullmatch(text) and text != "00:00:00:00:00:00" and not int(text[:2], 16) & 1:
            return text
        wanted = "expected a unicast MAC address such as 0e:00:0a:f4:00:05"
        self.problems.append(invalid(f"annotation {VTEP_MAC}", text, wanted).msg)
        return ""


# --- what we write ------------------------------------------------------------------------------


def annotations_to_change(node: NodeFacts, own: Announcement) -> dict[str, str | None]:
    """The annotations of the Node that say something else than `own`; None takes one away."""
    wanted = {
        VTEP_MAC: own.vtep_mac or None,
        OVERLAY_ADDRESS: str(own.overlay_address) if own.overlay_address else None,
        BACKEND: own.backend or None,
    }
    return {k: v for k, v in wanted.items() if node.annotations.get(k) != v}


def condition_to_write(node: NodeFacts, state: Readiness, now: str) -> dict[str, str] | None:
    """The condition NetworkUnavailable as the API has it; None when the Node says so already.

    `now`: RFC 3339. The time of the transition moves only with the status.
    """
    status = "False" if state.ready else "True"
    wanted = (status, state.reason, state.message)
    current = node.network
    if current is not None and current[:3] == wanted:
        return None
    moved = current is None or current.status != status or not current.since
    return {
        "type": NETWORK_UNAVAILABLE,
        "status": status,
        "reason": state.reason,
        "message": state.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now if current is None or moved else current.since,
    }
