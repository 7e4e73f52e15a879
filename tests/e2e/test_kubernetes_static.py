"""Kubernetes with a written inventory: podwire needs nothing of the API then.

Real control plane, three nodes, kube-proxy; podwire is installed by `podwire install`, and its
agent is started by hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kubernetes import checks, objects, static
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.story import tell

_HOST_PORT = 8080


@pytest.mark.timeout(400)
@pytest.mark.parametrize("families", [1, 2], ids=["IPv4", "dual-stack"])
def test_a_cluster_with_a_written_inventory(tmp_path: Path, families: int) -> None:
    with Cluster(tmp_path, families) as cluster:
        tell(cluster, (nodes_go_ready, pods_reach_pods_and_nodes, pods_leave_nothing))


def nodes_go_ready(cluster: Cluster) -> None:
    static.install(cluster)
    cluster.wait_for_nodes()


def pods_reach_pods_and_nodes(cluster: Cluster) -> None:
    """A DaemonSet and a Deployment; host ports; a Service; exec and logs."""
    checks.default_account(cluster)
    cluster.apply(
        objects.daemon_set("web", _HOST_PORT),
        objects.deployment("many", 3),
        objects.service("web", "web"),
    )
    web, many = cluster.wait_for_pods("web", 3), cluster.wait_for_pods("many", 3)
    assert {pod.node for pod in web} == {"n1", "n2", "n3"}
    checks.addresses_of_their_nodes(cluster, web + many)
    checks.all_reach_all(cluster, web + many)
    checks.exec_and_logs(cluster, web)
    checks.host_ports(cluster, web, _HOST_PORT)
    checks.service(cluster, "web", web)


def pods_leave_nothing(cluster: Cluster) -> None:
    cluster.delete("service", "web")
    cluster.delete("daemonset", "web")
    cluster.delete("deployment", "many")
    cluster.wait("no pods", cluster.pods, lambda pods: not pods)
    checks.nothing_of_pods(cluster)
