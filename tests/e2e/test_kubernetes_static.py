"""Kubernetes with a written inventory: podwire needs nothing of the API then.

Real control plane, three nodes, kube-proxy; podwire is installed by `podwire install`, and its
agent is started by hand. Dual-stack, for that has all that a cluster of IPv4 alone has.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kubernetes import checks, static
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.story import tell


@pytest.mark.timeout(600)
def test_a_cluster_with_a_written_inventory(tmp_path: Path) -> None:
    with Cluster(tmp_path, families=2) as cluster:
        tell(cluster, (nodes_go_ready, checks.pods_reach_pods_and_nodes, pods_leave_nothing))


def nodes_go_ready(cluster: Cluster) -> None:
    static.install(cluster)
    cluster.wait_for_nodes()


def pods_leave_nothing(cluster: Cluster) -> None:
    cluster.delete("service", "web")
    cluster.delete("daemonset", "web")
    cluster.delete("deployment", "many")
    cluster.wait("no pods", cluster.pods, lambda pods: not pods)
    checks.nothing_of_pods(cluster)
