"""A real API server with thousands of Nodes, and two nodes beside it that agents run on.

The first node is on the link of all others, the second behind a router. The programs are those of
the tests (tests/support/controlplane.py), and so are the objects.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from bench import byhand
from bench.namespaces import Namespace
from bench.sites import new_namespace
from tests.support.nodeobjects import heartbeat, node_object

NODES = "/api/v1/nodes"
AGENTS, WATCHERS = "agents", "watchers"  # users of the API
FIRST = 1  # peers are numbered from here
_SERVER, _ROUTER = "10.1.255.254", "192.0.2.254"  # of the API server's node; the router's
_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"],
    "rules": [{"level": "Metadata", "users": [AGENTS]}, {"level": "None"}],
}


class Spot(NamedTuple):
    """A node for an agent: where it is, the number of its Node object, and its address."""

    namespace: Namespace
    number: int
    address: str

    @property
    def name(self) -> str:
        return f"node-{self.number}"


class _Inside:
    """All that the control plane uses of a namespace of the tests'."""

    def __init__(self, namespace: Namespace) -> None:
        self.entered = namespace.entered
        self._path = namespace.path

    def prefix(self) -> list[str]:
        return ["nsenter", f"--net={self._path}", "--"]


def lacking() -> str:
    """What keeps this from being measured here, "" for nothing."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    for program in ("kube-apiserver", "etcd"):
        there = bool(folder) and os.access(os.path.join(folder, program), os.X_OK)
        if not there and shutil.which(program) is None:
            return f"{program} is missing: KUBEBUILDER_ASSETS names a folder with it"
    return ""


class Site:
    """`near` has all peers on its link, `far` has them behind a router."""

    def __init__(self, folder: str, stack: ExitStack) -> None:
        from tests.support.controlplane import ControlPlane, User  # with pytest, for this alone

        server = new_namespace(stack, node=True)
        near, far = new_namespace(stack, node=True), new_namespace(stack, node=True)
        _cable(server, near, "near", f"{_SERVER}/16", "10.1.255.1/16")
        _cable(server, far, "far", f"{_ROUTER}/24", "192.0.2.1/24")
        byhand.ip(far, f"route add default via {_ROUTER}")
        self.near = Spot(near, 30_000, "10.1.255.1")
        self.far = Spot(far, 30_001, "192.0.2.1")
        self._audit = os.path.join(folder, "audit.log")
        policy = os.path.join(folder, "policy.json")
        with open(policy, "w", encoding="utf-8") as file:
            json.dump(_POLICY, file)
        self.plane = ControlPlane(
            os.path.join(folder, "plane"),
            _Inside(server),  # type: ignore[arg-type]
            address=_SERVER,
            users=[User(name, ("system:masters",)) for name in (AGENTS, WATCHERS)],
            api_options=(f"--audit-policy-file={policy}", f"--audit-log-path={self._audit}"),
        )
        stack.callback(self.plane.close)
        self.server = server
        self.peers = 0

    def kubeconfig(self, user: str) -> str:
        return self.plane.write_kubeconfig(user, self.plane.tokens[user])

    # --- Nodes ----------------------------------------------------------------------------------

    def grow(self, size: int) -> None:
        """Create Nodes until there are `size` peers."""
        while self.peers < size:
            self.create(FIRST + self.peers)
            self.peers += 1

    def create(self, number: int) -> None:
        self.plane.api.create(NODES, node_object(number))

    def delete(self, number: int) -> None:
        self.plane.api.delete(f"{NODES}/node-{number}")

    def renumber(self, number: int, subnet: str) -> None:
        """Give a node another podCIDR, as when it is registered anew."""
        self.delete(number)
        self.plane.api.create(NODES, node_object(number, pod_cidrs=(subnet,)))

    def announce(self, number: int, mac: str) -> None:
        patch = {"metadata": {"annotations": {"podwire.io/vtep-mac": mac}}}
        self.plane.api.patch(f"{NODES}/node-{number}", patch)

    def beat(self, number: int, second: int) -> None:
        """A kubelet's heartbeat: the conditions of its Node get another time."""
        time = f"2024-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z"
        patch = {"status": {"conditions": heartbeat(time)}}
        self.plane.api.patch(f"{NODES}/node-{number}/status", patch)

    @contextmanager
    def registered(self, spot: Spot) -> Iterator[None]:
        """The Node of an agent's own, for the block."""
        made = node_object(spot.number, (spot.address,))
        made["metadata"]["annotations"] = {}
        self.plane.api.create(NODES, made)
        try:
            yield
        finally:
            self.delete(spot.number)

    # --- what it costs --------------------------------------------------------------------------

    def requests(self) -> dict[str, int]:
        """How often the agents have asked since the API server's start: by verb and resource."""
        counts: dict[str, int] = {}
        if not os.path.exists(self._audit):  # as long as nobody has asked
            return counts
        with open(self._audit, encoding="utf-8") as file:
            for line in file:
                kind = _kind(json.loads(line))
                counts[kind] = counts.get(kind, 0) + 1
        return counts


def _kind(event: dict[str, Any]) -> str:
    about = event["objectRef"]
    sub = f"/{about['subresource']}" if about.get("subresource") else ""
    return f"{event['verb']} {about['resource']}{sub}"


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What `Site.requests` counted between two calls."""
    found = {kind: count - before.get(kind, 0) for kind, count in after.items()}
    return {kind: count for kind, count in sorted(found.items()) if count}


def subnet_of(number: int) -> str:
    """The podCIDR of a peer."""
    subnet: str = node_object(number)["spec"]["podCIDR"]
    return subnet


def _cable(server: Namespace, node: Namespace, name: str, near: str, far: str) -> None:
    """A link from the API server's node to another, with these addresses."""
    line = partial(byhand.ip, server)
    line(f"link add {name} type veth peer name eth0 netns {node.path}")
    line(f"address add {near} dev {name}", f"link set {name} up")
    byhand.ip(node, f"address add {far} dev eth0", "link set eth0 up")
