"""podwire on Kubernetes by its own manifest, with its ServiceAccount's token, under Node,RBAC.

Real control plane (1.20), three nodes with kubelet, containerd and kube-proxy, of which one is
behind a router. One test has one cluster, and goes from step to step on it.
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.support import netns
from tests.support.kubernetes import checks, manifest, nodeconfig, objects, sandboxes
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.node import Node
from tests.support.kubernetes.story import tell

CONFLIST = f"{nodeconfig.CONF_DIR}/05-podwire.conflist"
NODES = ("n1", "n2", "n3")
_GONE = "code = NotFound desc = an error occurred when try to find sandbox"


@pytest.mark.timeout(900)
def test_the_life_of_a_cluster(tmp_path: Path) -> None:
    steps = (
        nodes_go_ready,
        checks.pods_reach_pods_and_nodes,
        agents_are_replaced_while_pods_are_made,
        an_agent_is_killed,
        kubelet_and_containerd_start_again,
        the_api_server_is_away,
        a_node_comes_back_with_another_subnet,
        a_hundred_pods_come_and_go,
        uninstalled_nodes_are_as_they_were,
    )
    with Cluster(tmp_path) as cluster:
        before = {node.name: node.footprint() for node in cluster.nodes}
        (tmp_path / "before").write_text(json.dumps(before))
        tell(cluster, steps, more=manifest.described)


@pytest.mark.timeout(600)
def test_a_dual_stack_cluster(tmp_path: Path) -> None:
    steps = (nodes_go_ready, checks.pods_reach_pods_and_nodes, uninstalled_nodes_are_as_they_were)
    with Cluster(tmp_path, families=2) as cluster:
        before = {node.name: node.footprint() for node in cluster.nodes}
        (tmp_path / "before").write_text(json.dumps(before))
        tell(cluster, steps, more=manifest.described)


# --- the network comes ------------------------------------------------------------------------


def nodes_go_ready(cluster: Cluster) -> None:
    """Each node says that its network is available, and has the configuration for its subnets."""
    manifest.install(cluster)
    cluster.wait_for_nodes()
    manifest.wait_for_agents(cluster)
    for node in cluster.nodes:
        cluster.wait(
            f"what {node.name} says of its network",
            lambda node=node: cluster.conditions(node.name).get("NetworkUnavailable"),  # type: ignore[misc]
            lambda said: said == "False PodwireReady",
        )
        (plugin,) = json.loads(node.read(CONFLIST))["plugins"]
        ranges = [each["subnet"] for (each,) in plugin["ipam"]["ranges"]]
        assert tuple(ranges) == cluster.pod_cidrs_of(node.name)


# --- it is disturbed --------------------------------------------------------------------------


def agents_are_replaced_while_pods_are_made(cluster: Cluster) -> None:
    """A rolling update; no sandbox fails meanwhile, neither to be made nor to be removed."""
    before = {pod.uid for pod in manifest.wait_for_agents(cluster)}
    manifest.roll(cluster, "once")
    made = 0
    while not manifest.is_rolled(cluster):
        assert made < 120, "the update does not end"
        names = [f"roll-{made + number}" for number in range(3)]
        pods = [
            objects.pod(name, node, app="roll") for name, node in zip(names, NODES, strict=True)
        ]
        cluster.apply({"apiVersion": "v1", "kind": "List", "items": pods})
        made += len(names)
        cluster.wait_for_pods("roll", made)
    after = {pod.uid for pod in manifest.wait_for_agents(cluster)}
    assert made >= 6
    assert not before & after
    _delete_all(cluster, "roll")
    assert _sandbox_failures(cluster, "roll") == []


def an_agent_is_killed(cluster: Cluster) -> None:
    """Pods are made by processes of the calls' own until it is back, which is soon."""
    node = cluster.node("n1")
    restarts = manifest.agent_on(cluster, node).restarts
    manifest.kill_agent(node)
    cluster.apply(objects.pod("orphan", "n1"))
    cluster.wait_for_pods("orphan", 1)
    _delete_all(cluster, "orphan")
    cluster.wait(
        "the agent's restart",
        lambda: manifest.agent_on(cluster, node),
        lambda pod: pod.ready and pod.restarts == restarts + 1,
    )
    assert _sandbox_failures(cluster, "orphan") == []


def kubelet_and_containerd_start_again(cluster: Cluster) -> None:
    """Pods that run keep their addresses, and are reached; new ones come."""
    node, before = cluster.node("n2"), cluster.pods("web")
    for daemon in (node.containerd, node.kubelet):
        daemon.restart()
        if daemon is node.containerd:
            node.wait_for_containerd()
    cluster.apply(objects.pod("after", "n2"))
    cluster.wait_for_pods("after", 1)
    after = cluster.wait_for_pods("web", 3)
    assert {pod.addresses for pod in after} == {pod.addresses for pod in before}
    checks.all_reach_all(cluster, after)
    _delete_all(cluster, "after")


def the_api_server_is_away(cluster: Cluster) -> None:
    """For a minute: pods come up from what is known, also after the agent was killed; and no agent
    ends for it."""
    web, node = cluster.pods("web"), cluster.node("n3")
    (address,) = next(pod.addresses for pod in web if pod.node == "n1")
    cluster.plane.stop_api()
    try:
        began = cluster.elapsed()
        sandboxes.reach(node, "early", address)
        killed = manifest.agent_process(node)
        manifest.kill_agent(node)
        sandboxes.reach(node, "late", address)
        netns.wait_until(lambda: manifest.agent_process(node) not in (0, killed), 120, "an agent")
        sandboxes.reach(node, "with-the-next-agent", address)
        netns.wait_until(lambda: cluster.elapsed() > began + 60, 120, pause=0.5)
        assert json.loads(node.read(CONFLIST))["plugins"][0]["ipam"]["ranges"]
    finally:
        cluster.plane.start_api()
    cluster.wait_for_nodes()
    manifest.wait_for_agents(cluster)
    checks.all_reach_all(cluster, cluster.wait_for_pods("web", 3))


def a_node_comes_back_with_another_subnet(cluster: Cluster) -> None:
    """Its Node is deleted while it is off; it registers again, and the cluster gives it another."""
    node, others = cluster.node("n3"), [cluster.node("n1"), cluster.node("n2")]
    (old,) = cluster.pod_cidrs_of("n3")
    node.kubelet.stop()
    cluster.delete("node", "n3")
    _force_away(cluster, "n3")
    for other in others:
        cluster.wait(
            f"no route to n3's pods on {other.name}",
            other.routes,
            lambda routes: not any(route.startswith(old) for route in routes),
        )
    node.kubelet.start()
    cluster.wait("n3's subnet", lambda: cluster.pod_cidrs_of("n3"), bool)
    (new,) = cluster.pod_cidrs_of("n3")
    assert new != old
    cluster.wait_for_nodes("n3")
    cluster.wait("the configuration", lambda: node.read(CONFLIST), lambda seen: new in seen)
    manifest.wait_for_agents(cluster)
    _make_anew(cluster, "web", "n3", new)
    web = cluster.wait_for_pods("web", 3)
    checks.addresses_of_their_nodes(cluster, web)
    checks.all_reach_all(cluster, web)
    # The bridge carries the former subnet as long as a former pod waits for its kubelet to end it.
    cluster.wait(
        "no route to the former subnet",
        lambda: {each.name: [r for r in each.routes() if old in r] for each in cluster.nodes},
        lambda seen: not any(seen.values()),
    )


# --- it goes ----------------------------------------------------------------------------------


def a_hundred_pods_come_and_go(cluster: Cluster) -> None:
    """Nothing of them is left in the kernel, nor in the address directory."""
    cluster.delete("service", "web")
    cluster.delete("deployment", "many")
    _delete_all(cluster, "web", "daemonset")
    cluster.apply(objects.deployment("hundred", 100))
    pods = cluster.wait_for_pods("hundred", 100, 300)
    checks.addresses_of_their_nodes(cluster, pods)
    cluster.delete("deployment", "hundred")
    cluster.wait("no pods", cluster.pods, lambda seen: not seen, 240)
    checks.nothing_of_pods(cluster)


def uninstalled_nodes_are_as_they_were(cluster: Cluster) -> None:
    """The manifest is deleted, and `podwire uninstall` run on each node, which then has nothing
    that it did not have before."""
    _delete_all(cluster, "web", "daemonset")
    _delete_all(cluster, "many", "deployment")
    checks.nothing_of_pods(cluster)
    manifest.remove(cluster)
    with open(f"{cluster.folder}/before") as file:
        before = json.load(file)
    for node in cluster.nodes:
        _uninstall(cluster, node, before[node.name])


def _uninstall(cluster: Cluster, node: Node, before: dict[str, list[str]]) -> None:
    """Again, when a call of the kubelet's for a pod that has gone was still under way: it keeps its
    runtime, which `podwire uninstall` says."""
    cluster.wait("the agent's end", lambda: manifest.agent_process(node), lambda pid: not pid)

    def uninstalled() -> dict[str, list[str]]:
        node.run(cluster.executable, "uninstall", f"--conf-dir={nodeconfig.CONF_DIR}")
        return node.footprint()

    cluster.wait(f"{node.name} as it was", uninstalled, lambda seen: seen == before, 60)


# --- what steps share -------------------------------------------------------------------------


def _delete_all(cluster: Cluster, app: str, kind: str = "") -> None:
    """Delete what the label names, pods or what makes them, and wait until the pods are gone."""
    if kind:
        cluster.delete(kind, app)
    elif names := [pod.name for pod in cluster.pods(app)]:
        cluster.delete("pod", *names)
    cluster.wait(f"no pods of {app}", lambda: cluster.pods(app), lambda pods: not pods, 180)


def _make_anew(cluster: Cluster, app: str, node_name: str, subnet: str) -> None:
    """Delete the node's pods that are not of its subnet, as a person does (docs/kubernetes.md): the
    kubelet may have made one while the former configuration was still there."""
    pods = [pod for pod in cluster.wait_for_pods(app, len(NODES)) if pod.node == node_name]
    for pod in pods:
        if not all(ip_address(address) in ip_network(subnet) for address in pod.addresses):
            cluster.delete("pod", pod.name)


def _force_away(cluster: Cluster, node_name: str) -> None:
    """Delete all pods of a node from the API, as its garbage collector would a minute later."""
    for namespace in ("default", manifest.NAMESPACE):
        for pod in cluster.pods(namespace=namespace):
            if pod.node == node_name:
                cluster.kubectl(
                    *("delete", "pod", pod.name, f"-n{namespace}", "--force", "--grace-period=0"),
                    check=False,
                )


def _sandbox_failures(cluster: Cluster, prefix: str) -> list[str]:
    """What kubelets said of sandboxes that could not be made or removed, of pods whose names begin
    so. That one is gone already is no failure: this kubelet removes some twice."""
    found = cluster.plane.api.get("/api/v1/events")["items"]
    reasons = ("FailedCreatePodSandBox", "FailedKillPod", "NetworkNotReady")
    return [
        f"{each['involvedObject']['name']}: {each['reason']}: {each['message']}"
        for each in found
        if each["reason"] in reasons and each["involvedObject"]["name"].startswith(prefix)
        if _GONE not in each["message"]
    ]
