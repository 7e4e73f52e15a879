"""What must hold on a cluster with a network, whoever installed it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from tests.support import netns
from tests.support.kubernetes import objects, reach
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.node import Leftovers, Node
from tests.support.kubernetes.objects import Pod

NOTHING = Leftovers((), (), (), ())
HOST_PORT = 8080
TRIES = 8  # a machine may be busy, and kube-proxy late


def pods_reach_pods_and_nodes(cluster: Cluster) -> None:
    """A DaemonSet "web" and a Deployment "many"; host ports; a Service; exec and logs."""
    default_account(cluster)
    cluster.apply(
        objects.daemon_set("web", HOST_PORT),
        objects.deployment("many", 3),
        objects.service("web", "web"),
    )
    web, many = cluster.wait_for_pods("web", 3), cluster.wait_for_pods("many", 3)
    assert {pod.node for pod in web} == {node.name for node in cluster.nodes}
    addresses_of_their_nodes(cluster, web + many)
    all_reach_all(cluster, web + many)
    exec_and_logs(cluster, web)
    host_ports(cluster, web, HOST_PORT)
    service(cluster, "web", web)


def addresses_of_their_nodes(cluster: Cluster, pods: list[Pod]) -> None:
    """Each pod has one address of each of its node's subnets; no two pods share one."""
    for pod in pods:
        subnets = cluster.pod_cidrs_of(pod.node)
        assert len(pod.addresses) == len(subnets) == len(cluster.pod_cidrs), (pod, subnets)
        for address, subnet in zip(pod.addresses, subnets, strict=True):
            assert ip_address(address) in ip_network(subnet), (pod, subnets)
    given = [address for pod in pods for address in pod.addresses]
    assert len(given) == len(set(given))


def all_reach_all(cluster: Cluster, pods: list[Pod]) -> None:
    """Every pod reaches every pod and node, and every node every pod; the source address that is
    seen there is the pod's own, or one of the node's."""
    to_pods = [(address, reach.PORT) for pod in pods for address in pod.addresses]
    to_nodes = [(a, reach.NODE_PORT) for node in cluster.nodes for a in node.addresses]
    wrong = [
        *(line for pod in pods for line in _wrong(cluster, pod, to_pods + to_nodes)),
        *(line for node in cluster.nodes for line in _wrong(cluster, node, to_pods)),
    ]
    assert not wrong, "\n".join(wrong)


def _wrong(cluster: Cluster, source: Pod | Node, targets: list[tuple[str, int]]) -> list[str]:
    own = source.addresses if isinstance(source, Pod) else _all_addresses(source)
    answers = cluster.asks(source, targets, TRIES)
    assert set(answers) == set(targets), answers
    return [
        f"{source.name} {own} to {address}:{port}: seen as {answer.source or 'nobody'}"
        for (address, port), answer in answers.items()
        if answer.source not in own
    ]


def _all_addresses(node: Node) -> tuple[str, ...]:
    return tuple(
        item["local"]
        for link in node.ip("addr", "show")
        for item in link.get("addr_info", [])
        if "local" in item and item["scope"] == "global"
    )


def host_ports(cluster: Cluster, pods: list[Pod], port: int) -> None:
    """A port of each pod's node leads to the pod: from outside, from the node, from each other
    node, and from a pod on another node."""
    by_node = {pod.node: pod for pod in pods}
    targets = {
        (address, port): by_node[node.name].name
        for node in cluster.nodes
        for address in node.addresses
    }
    sources: list[Pod | Node | None] = [None, *cluster.nodes, pods[0]]
    for source in sources:
        answers = cluster.asks(source, list(targets), TRIES)
        found = {target: answer.host for target, answer in answers.items()}
        assert found == targets, source


def service(cluster: Cluster, name: str, pods: list[Pod]) -> None:
    """A Service's addresses lead from each pod and node to some of the pods, by kube-proxy."""
    path = f"/api/v1/namespaces/default/services/{name}"
    spec = cluster.wait(f"service {name}", lambda: cluster.get(path), bool)["spec"]  # type: ignore[index]
    targets = [(address, 80) for address in spec.get("clusterIPs") or [spec["clusterIP"]]]
    names = {pod.name for pod in pods}
    clients: list[Pod | Node] = [*pods, *cluster.nodes]
    for source in clients:
        for target, answer in cluster.asks(source, targets, TRIES).items():
            assert answer.host in names, (source, target, answer.host)
            if isinstance(source, Pod) and answer.host != source.name:
                assert answer.source in source.addresses, (source, target, answer.source)


def exec_and_logs(cluster: Cluster, pods: list[Pod]) -> None:
    """Both by way of the API server and each kubelet."""
    for pod in pods:
        assert cluster.exec(pod, "hostname").strip() == pod.name
        assert "serving" in cluster.logs(pod)


def nothing_of_pods(cluster: Cluster, seconds: float = 180) -> None:
    """No veth, address or host port is left on any node, after the DELs that are still to come."""
    for node in cluster.nodes:
        cluster.wait(
            f"nothing of pods on {node.name}",
            lambda node=node: node.leftovers().of_pods(),  # type: ignore[misc]
            lambda seen: seen == NOTHING,
            seconds,
        )


def default_account(cluster: Cluster) -> None:
    """Until pods can be made: their ServiceAccount is made by the controller manager."""
    path = "/api/v1/namespaces/default/serviceaccounts/default"
    netns.wait_until(lambda: (cluster.get(path) or {}).get("secrets"), 90, "the ServiceAccount")
