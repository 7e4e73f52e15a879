"""conf/podwire.yaml on a cluster of a test's own: as it is, but for what has to be there already.

The image comes from no registry, so its name and its pull policy are others; the readiness probe
asks more often, for a kubelet of 1.20 does not ask as soon as an agent has started. With an older
API server than the manifest was written for, fields that it doesn't know are dropped, as it says in
its documentation.
"""

from __future__ import annotations

import json
import os
from typing import Any

from tests.support import netns
from tests.support.images import AGENT
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.node import Node
from tests.support.kubernetes.objects import Object, Pod, pod_of

PATH = os.path.join(
    os.path.dirname(__file__), os.pardir, os.pardir, os.pardir, "conf", "podwire.yaml"
)
NAMESPACE, NAME = "podwire", "podwire"
DAEMON_SET = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{NAME}"
_MERGE = "application/merge-patch+json"


def objects(cluster: Cluster) -> list[Object]:
    """What the manifest has, for this cluster."""
    shown = cluster.kubectl(
        *("create", "--dry-run=client", "--validate=false", "-o", "json", "-f", PATH)
    )
    found: list[Object] = _documents(shown)
    (daemon_set,) = (each for each in found if each["kind"] == "DaemonSet")
    spec = daemon_set["spec"]["template"]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        container |= {"image": AGENT, "imagePullPolicy": "Never"}
        if "readinessProbe" in container:
            container["readinessProbe"]["periodSeconds"] = 2
    return found


def _documents(text: str) -> list[Object]:
    """One JSON document after the other, or one List of them."""
    decoder, at = json.JSONDecoder(), 0
    found: list[Object] = []
    while at < len(text.rstrip()):
        document, end = decoder.raw_decode(text[at:].lstrip())
        at = len(text) - len(text[at:].lstrip()) + end
        found += document["items"] if document["kind"] == "List" else [document]
    return found


def install(cluster: Cluster) -> None:
    """Apply it, and do not wait."""
    for each in objects(cluster):
        cluster.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(each))


def remove(cluster: Cluster) -> None:
    """Delete all of it but the namespaces that were there, and wait until its pods have gone."""
    for each in reversed(objects(cluster)):
        metadata = each["metadata"]
        place = [f"--namespace={metadata['namespace']}"] if "namespace" in metadata else []
        cluster.kubectl("delete", each["kind"], metadata["name"], *place, "--wait=false")
    cluster.wait("agents gone", lambda: agents(cluster), lambda seen: not seen, 180)


def agents(cluster: Cluster) -> list[Pod]:
    """The pods of the DaemonSet."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io%2Fname%3D{NAME}"
    return [pod_of(item) for item in cluster.plane.api.get(path)["items"]]


def agent_on(cluster: Cluster, node: Node) -> Pod:
    (found,) = (pod for pod in agents(cluster) if pod.node == node.name)
    return found


def wait_for_agents(cluster: Cluster, count: int = 3, seconds: float = 180) -> list[Pod]:
    """Until so many are ready, and none else is there."""
    return cluster.wait(
        f"{count} ready agents",
        lambda: agents(cluster),
        lambda pods: len(pods) == count and all(pod.ready for pod in pods),
        seconds,
    )


def roll(cluster: Cluster, word: str) -> None:
    """Make the pods of another template, as a new image would; do not wait."""
    annotations = {"metadata": {"annotations": {"podwire.test/roll": word}}}
    cluster.plane.api.patch(DAEMON_SET, {"spec": {"template": annotations}}, _MERGE)


def is_rolled(cluster: Cluster) -> bool:
    """Whether all pods are of the present template, and ready."""
    found: dict[str, Any] = cluster.plane.api.get(DAEMON_SET)
    status, wanted = found["status"], found["status"].get("desiredNumberScheduled", 0)
    return bool(
        status.get("observedGeneration") == found["metadata"]["generation"]
        and status.get("updatedNumberScheduled", 0) == wanted
        and status.get("numberReady", 0) == wanted
    )


def agent_process(node: Node) -> int:
    """The agent's process, as it is numbered on the node; 0 when there is none."""
    processes = node.path("/proc")
    for name in os.listdir(processes):
        try:
            with open(os.path.join(processes, name, "cmdline"), "rb") as file:
                words = file.read().split(b"\0")
        except OSError:  # no process, or one that has ended
            continue
        if {b"agent", b"--kubernetes"} <= set(words):
            return int(name)
    return 0


def kill_agent(node: Node) -> None:
    """SIGKILL, and wait for its end: a call that has reached a dying agent fails with error 11, and
    it is the runtime that tries again."""
    pid = agent_process(node)
    assert pid, f"no agent on {node.name}"
    node.run("kill", "-KILL", str(pid))
    netns.wait_until(lambda: not os.path.exists(node.path(f"/proc/{pid}")), 30, "its end")


def described(cluster: Cluster) -> str:
    """The agents' logs, for the message of a failure."""
    parts = []
    for pod in agents(cluster):
        for container in ("install", "agent"):
            options = ("-c", container, "--tail=40")
            done = cluster.plane.kubectl("logs", pod.name, f"-n{NAMESPACE}", *options, check=False)
            parts.append(f"--- {pod.node} {pod.name} {container}\n{done.stdout}{done.stderr}")
    return "\n".join(parts)
