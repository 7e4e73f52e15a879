"""podwire without Kubernetes' help: a written inventory, and an agent started by hand."""

from __future__ import annotations

import json

from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.daemon import Daemon
from tests.support.kubernetes.nodeconfig import BIN_DIR, CONF_DIR

NODES = "/etc/podwire/nodes.json"


def install(cluster: Cluster) -> list[Daemon]:
    """On each node: the inventory with the pod subnets that the cluster has given, the executable
    by `podwire install`, an agent, and the conflist. The agents, in the nodes' order."""
    entries = [
        {
            "name": node.name,
            "addresses": [f"{a}/{64 if ':' in a else 24}" for a in node.addresses],
            "podCIDRs": cluster.wait(
                f"pod subnets of {node.name}",
                lambda node=node: cluster.pod_cidrs_of(node.name),  # type: ignore[misc]
                lambda seen: len(seen) == len(cluster.pod_cidrs),
            ),
        }
        for node in cluster.nodes
    ]
    agents = []
    for node in cluster.nodes:
        node.write(NODES, json.dumps({"nodes": entries}))
        program = cluster.executable
        node.run(
            program, "install", f"--bin-dir={BIN_DIR}", f"--conf-dir={CONF_DIR}", f"--nodes={NODES}"
        )
        agents.append(Daemon(node.machine, "agent", f"{BIN_DIR}/podwire", "agent"))
        agents[-1].start()
    return agents
