"""API objects for tests, all of the busybox image, and pods as the API tells of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.support import images
from tests.support.kubernetes import reach

Object = dict[str, Any]


class Pod(NamedTuple):
    """`addresses`: of each family. `node_addresses`: of its node, the first only."""

    name: str
    namespace: str
    node: str
    phase: str
    ready: bool
    addresses: tuple[str, ...]
    restarts: int
    uid: str


def pod_of(item: Object) -> Pod:
    """From the API's object."""
    status = item.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    return Pod(
        item["metadata"]["name"],
        item["metadata"]["namespace"],
        item["spec"].get("nodeName", ""),
        status.get("phase", ""),
        conditions.get("Ready") == "True" and "deletionTimestamp" not in item["metadata"],
        tuple(each["ip"] for each in status.get("podIPs", [])),
        sum(c.get("restartCount", 0) for c in status.get("containerStatuses", [])),
        item["metadata"]["uid"],
    )


def _template(name: str, script: str, ports: dict[int, int], **spec: Any) -> Object:
    """With a grace period of 0 the API forgets a pod before its kubelet has ended it, and some
    sandboxes would wait a minute for the kubelet's garbage collection."""
    container: Object = {
        "name": "main",
        "image": images.BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "ports": [
            {"containerPort": inner, **({"hostPort": outer} if outer else {})}
            for inner, outer in ports.items()
        ],
    }
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
    }


def daemon_set(name: str, host_port: int = 0) -> Object:
    """A server on each node, at port 80, and at a port of the node when one is given."""
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": _template(name, reach.SERVE, {reach.PORT: host_port}),
        },
    }


def deployment(name: str, replicas: int) -> Object:
    """So many servers, at port 80."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": _template(name, reach.SERVE, {reach.PORT: 0}),
        },
    }


def service(name: str, app: str, **spec: Any) -> Object:
    """Port 80 of all pods with the label."""
    ports = [{"port": reach.PORT, "targetPort": reach.PORT}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": app}, "ports": ports, **spec},
    }


def pod(name: str, node: str = "", script: str = "exec sleep 100000", app: str = "") -> Object:
    """One pod, on a node of the test's choice (past the scheduler) or of the scheduler's."""
    place = {"nodeName": node} if node else {}
    template = _template(app or name, script, {}, restartPolicy="Never", **place)
    template["metadata"]["name"] = name
    return {"apiVersion": "v1", "kind": "Pod", **template}
