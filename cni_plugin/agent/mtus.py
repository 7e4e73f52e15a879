"""Telling in the log when the room for packets changed: what new pods get, what old ones have.

A pod keeps the MTU that it was made with, since nobody but the pod's owner changes its link. Where
the paths to the peers got narrower, packets of old pods are too large for them.
"""

from __future__ import annotations

from logging import Logger

from cni_plugin import cluster as clusters
from cni_plugin import names
from cni_plugin.cluster import Mtus as Sizes
from cni_plugin.fabric import Fabric, cluster_of
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.records import NetworkRecord


def of_pods(route_socket: RouteSocket, network: str) -> dict[int, int]:
    """How many pods of a network have which MTU, by the node's ends of their links."""
    prefix = names.alias_prefix(network)
    counts: dict[int, int] = {}
    for link in observe.veths(route_socket):
        if link.alias.startswith(prefix):
            counts[link.mtu] = counts.get(link.mtu, 0) + 1
    return dict(sorted(counts.items()))


def in_words(counts: dict[int, int]) -> str:
    """The outcome of `of_pods` for people: "1450 (3 pods), 1500 (1 pod)"."""
    return ", ".join(f"{mtu} ({n} pod{'' if n == 1 else 's'})" for mtu, n in counts.items())


class Mtus:
    """Remembers the sizes by network, and tells when they change."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._known: dict[str, Sizes] = {}

    def look(self, fabric: Fabric, record: NetworkRecord) -> list[str]:
        """Compare with the last look; what is told is no repair, so nothing is returned.

        While links are missing there is no size to tell, and the last one is kept. Raises CniError
        104 for peers that have to wait for theirs.
        """
        now = clusters.mtus(cluster_of(fabric, record), fabric.route_socket, whole=True)
        if not now.underlay:
            return []
        before = self._known.get(record.network)
        self._known[record.network] = now
        if before is None or (before.underlay, before.pods) == (now.underlay, now.pods):
            return []
        counts = of_pods(fabric.route_socket, record.network)
        others = {mtu: count for mtu, count in counts.items() if mtu != now.pods}
        fields = {
            "network": record.network,
            "link": now.link,
            "was": before.underlay,
            "now": now.underlay,
            "new_pods": now.pods,
            "old_pods": in_words(others) or "none with another",
        }
        if others:
            fields["remedy"] = "restart the pods that were made before"
        self._logger.info("underlay MTU changed", extra={"fields": fields})
        return []
