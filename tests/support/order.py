"""In which order tests run, and which of them one worker runs, one after the other."""

from __future__ import annotations

# Clusters of three nodes: minutes each, and a machine is busy with one at a time.
_CLUSTERS = (
    "e2e/test_kubernetes.py",
    "e2e/test_kubernetes_static.py",
    "unit/test_bench_kubeready.py",
)
# The longest first: so what takes minutes is begun early, and the many short ones at the end leave
# no worker alone with the last.
_FIRST = (
    *_CLUSTERS,
    "e2e/test_docker.py",
    "e2e/",
    "kernel/test_agent_faults_",
    "kernel/test_faults_",
    "kernel/",
    "protocol/",
)
# All of these start something that takes seconds, once for the module: a control plane, dockerd, a
# build. And pure tests are too short to be given out one by one.
_WHOLE = ("e2e/test_agent_kubernetes", "e2e/test_docker", "e2e/test_kubernetes_source", "unit/")


def rank(nodeid: str) -> int:
    """By what the tests are sorted; those with the same rank stay as they are."""
    path = nodeid.removeprefix("tests/")
    return next((n for n, start in enumerate(_FIRST) if path.startswith(start)), len(_FIRST))


def piece(nodeid: str) -> str:
    """The name of the piece of work that a test belongs to: that of clusters, its module's, or its
    own."""
    path = nodeid.removeprefix("tests/")
    if path.startswith(_CLUSTERS):
        return "clusters"
    return path.partition("::")[0] if path.startswith(_WHOLE) else path
