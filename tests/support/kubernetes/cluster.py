"""A Kubernetes cluster of a test's own: a real control plane and three real nodes.

    with Cluster(tmp_path) as cluster:
        cluster.apply(objects.daemon_set("web"))

n1 and n2 share a link, n3 is behind a router (`ground`). Nodes run without a network until
somebody installs one: `static` and `manifest` do. Authorization is Node,RBAC, and kubelets have
the identities of their nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.support import images, netns, require
from tests.support.apiclient import ApiError
from tests.support.controlplane import ControlPlane
from tests.support.executable import executable
from tests.support.kubeconfig import User
from tests.support.kubeprograms import component, minor_version
from tests.support.kubernetes import nodeconfig, reach
from tests.support.kubernetes.collector import Collector
from tests.support.kubernetes.ground import PLACES, PLANE_ADDRESSES, Ground
from tests.support.kubernetes.node import Node
from tests.support.kubernetes.objects import Object, Pod, pod_of

T = TypeVar("T")

POD_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
_PROXY, _SCHEDULER = "system:kube-proxy", "system:kube-scheduler"
_WAITS_FOR_SANDBOXES = 20  # the minor version: see Collector
_ASKING_S = 120  # for all targets of one who asks: an answer takes milliseconds


class Cluster:
    """See the module. `families`: 1 for IPv4, 2 for dual-stack."""

    def __init__(self, folder: Path | str, families: int = 1) -> None:
        require.programs("busybox", "containerd", "ctr", "runc", "nft", "iptables", "openssl")
        for name in ("kube-scheduler", "kubelet", "kube-proxy", "kubectl"):
            component(name)
        self.folder = str(folder)
        self.pod_cidrs = POD_CIDRS[:families]
        self._service_cidrs = SERVICE_CIDRS[:families]
        self.executable = executable()
        self._plugins = require.go_plugins("loopback")
        self._began = time.monotonic()
        self.nodes: list[Node] = []

    # --- life ----------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            namespaces = netns.Namespaces()
            stack.callback(namespaces.close)
            self._ground = Ground(namespaces)
            self._write_archives()
            for name in PLACES:  # here, for they end with the thread that made them
                self.nodes.append(Node(name, self._ground, self.pod_cidrs))
                stack.callback(self.nodes[-1].close)
            with ThreadPoolExecutor(len(PLACES)) as pool:
                loaded = [pool.submit(self._prepare, node) for node in self.nodes]
                self.plane = stack.enter_context(self._make_plane())
                self.plane.start_scheduler(self._kubeconfig(_SCHEDULER))
                for done in loaded:
                    done.result()
            for node in self.nodes:
                self.start_node(node)
            if minor_version(component("kubelet")) == _WAITS_FOR_SANDBOXES:
                stack.callback(Collector(self.nodes).close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_plane(self) -> ControlPlane:
        kubelets = [User(f"system:node:{name}", ("system:nodes",)) for name in PLACES]
        folder = os.path.join(self.folder, "plane")
        os.makedirs(folder)
        return ControlPlane(
            folder,
            self._ground.plane,
            address=PLANE_ADDRESSES[0],
            port=6443,
            authorization="Node,RBAC",
            pod_cidrs=self.pod_cidrs,
            service_cidrs=self._service_cidrs,
            users=[*kubelets, User(_PROXY), User(_SCHEDULER)],
            api_options=["--enable-admission-plugins=NodeRestriction"],
        )

    def _kubeconfig(self, user: str) -> str:
        name = user.replace(":", "-")
        return self.plane.write_kubeconfig(name, self.plane.tokens[user])

    def _write_archives(self) -> None:
        self._archives = [os.path.join(self.folder, f"{name}.tar") for name in ("pods", "agent")]
        images.write_archive(self._archives[0])
        images.write_agent_archive(self._archives[1], self.executable)

    def _prepare(self, node: Node) -> None:
        """Images, the loopback plugin that the runtime itself calls, and a server on the node."""
        node.wait_for_containerd()
        for archive in self._archives:
            node.load_image(archive)
        loopback = os.path.join(self._plugins, "loopback")
        os.symlink(loopback, node.path(f"{nodeconfig.BIN_DIR}/loopback"))
        pages = reach.write_pages(node.machine.path("pages"))
        argv = ("busybox", "httpd", "-p", str(reach.NODE_PORT), "-h", pages)
        node.run(*argv)

    def start_node(self, node: Node) -> None:
        node.start_kubernetes(
            self._kubeconfig(f"system:node:{node.name}"), self._kubeconfig(_PROXY)
        )

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    # --- the API -------------------------------------------------------------------------------

    def kubectl(self, *argv: str, **options: Any) -> str:
        """What kubectl prints, run by the admin."""
        return str(self.plane.kubectl(*argv, **options).stdout)

    def apply(self, *given: Object | str) -> None:
        """Apply objects, or manifests as text (YAML or JSON)."""
        for each in given:
            text = each if isinstance(each, str) else json.dumps(each)
            self.kubectl("apply", "-f", "-", stdin=text)

    def get(self, path: str) -> Object | None:
        """An object by its path in the API; None when there is none."""
        try:
            return self.plane.api.get(path)
        except ApiError as e:
            if e.status == 404:
                return None
            raise

    def delete(self, kind: str, *names: str, namespace: str = "default") -> None:
        """Delete objects and do not wait for their end; those that are not there don't matter."""
        options = ("--ignore-not-found", "--wait=false", f"--namespace={namespace}")
        self.kubectl("delete", kind, *names, *options)

    def pods(self, app: str = "", namespace: str = "default") -> list[Pod]:
        """All pods of a namespace, or those with the label."""
        selector = f"?labelSelector=app%3D{app}" if app else ""
        found = self.plane.api.get(f"/api/v1/namespaces/{namespace}/pods{selector}")
        return [pod_of(item) for item in found["items"]]

    def exec(self, pod: Pod, *argv: str, **options: Any) -> str:
        """What a command prints in a pod; options as for `netns.run`."""
        return self.kubectl("exec", pod.name, f"-n{pod.namespace}", "--", *argv, **options)

    def logs(self, pod: Pod) -> str:
        return self.kubectl("logs", pod.name, f"-n{pod.namespace}")

    def pod_cidrs_of(self, name: str) -> tuple[str, ...]:
        """The pod subnets of a node, () before it has any."""
        found = self.get(f"/api/v1/nodes/{name}") or {}
        return tuple(found.get("spec", {}).get("podCIDRs", ()))

    def conditions(self, name: str) -> dict[str, str]:
        """A node's conditions: type to "status reason"; {} when there is no such node."""
        found = self.get(f"/api/v1/nodes/{name}") or {}
        return {
            each["type"]: f"{each['status']} {each.get('reason', '')}".strip()
            for each in found.get("status", {}).get("conditions", [])
        }

    # --- waiting -------------------------------------------------------------------------------

    def wait(
        self, what: str, look: Callable[[], T], good: Callable[[T], object], seconds: float = 180
    ) -> T:
        """Look until it is good: what was seen. Raises AssertionError with the last that was seen.

        An API server that can't be reached counts as nothing seen.
        """
        deadline = time.monotonic() + seconds
        while True:
            seen: Any = None
            try:
                seen = look()
                if good(seen):
                    return seen  # type: ignore[no-any-return]
            except (OSError, ApiError) as e:
                seen = e
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {seconds} s: {what}; last seen: {str(seen)[:2000]}"
                )
            time.sleep(0.2)

    def wait_for_pods(
        self, app: str, count: int, seconds: float = 180, namespace: str = "default"
    ) -> list[Pod]:
        """Until so many pods with the label are ready, and there are no others of it."""
        return self.wait(
            f"{count} ready pods of {app}",
            lambda: self.pods(app, namespace),
            lambda pods: len(pods) == count and all(pod.ready for pod in pods),
            seconds,
        )

    def wait_for_nodes(self, *names: str, seconds: float = 180) -> None:
        """Until these, or all, are Ready."""
        for name in names or tuple(PLACES):
            self.wait(
                f"node {name} Ready",
                lambda name=name: self.conditions(name),  # type: ignore[misc]
                lambda seen: seen.get("Ready", "").startswith("True"),
                seconds,
            )

    # --- reaching ------------------------------------------------------------------------------

    def asks(
        self, source: Pod | Node | None, targets: Sequence[tuple[str, int]], tries: int = 1
    ) -> dict[tuple[str, int], reach.Answer]:
        """The answers that a pod, a node or, for None, a host outside of the cluster gets."""

        def run(script: str) -> str:
            if isinstance(source, Pod):
                return self.exec(source, "sh", "-c", script, timeout=_ASKING_S)
            runner = self._ground.plane if source is None else source
            return str(runner.run("sh", "-c", script, timeout=_ASKING_S).stdout)

        return reach.ask(run, targets, tries)

    # --- for messages --------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds since the cluster began."""
        return time.monotonic() - self._began

    def state(self) -> str:
        """What is there, as a person would look: for the message of a failure."""
        parts = []
        for argv in (
            ("get", "nodes,pods,ds,svc", "-A", "-o", "wide"),
            ("get", "events", "-A", "--sort-by=.lastTimestamp"),
        ):
            done = self.plane.kubectl(*argv, check=False)
            parts.append(done.stdout[-6000:] + done.stderr)
        parts += [node.state() for node in self.nodes]
        return "\n".join(parts)
