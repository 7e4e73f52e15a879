"""Configuration of what runs on a node: containerd, kubelet, kube-proxy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.support import containerdconfig

BIN_DIR, CONF_DIR = "/opt/cni/bin", "/etc/cni/net.d"
KUBELET_CONFIG = "/etc/kubernetes/kubelet.conf"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


def containerd(data: str, runc: str) -> str:
    """Its config.toml, with the paths that are its defaults, but for `data`: a folder in memory."""
    return containerdconfig.text(
        containerdconfig.Places(
            root=f"{data}/containerd",
            state="/run/containerd",
            socket=CONTAINERD_SOCKET,
            runc_root="/run/containerd/runc",
            runc=runc,
            bin_dir=BIN_DIR,
            conf_dir=CONF_DIR,
        )
    )


def kubelet(cgroup: str, dual_stack: bool) -> str:
    """A KubeletConfiguration. What a small machine can't give is not reserved or enforced, and the
    status is told often, so that tests needn't wait."""
    made: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        "nodeStatusUpdateFrequency": "2s",
        "syncFrequency": "5s",
        "registryPullQPS": 100,
        "eventRecordQPS": 50,
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "resolvConf": "",
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
    }
    if dual_stack:
        made["featureGates"] = {"IPv6DualStack": True}
    return json.dumps(made)


def kube_proxy(kubeconfig: str, pod_cidrs: Sequence[str]) -> str:
    """A KubeProxyConfiguration with iptables; the machine's conntrack limits stay."""
    made: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": ",".join(pod_cidrs),
        "conntrack": {"maxPerCore": 0},
        "oomScoreAdj": 0,
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
    }
    if len(pod_cidrs) > 1:
        made["featureGates"] = {"IPv6DualStack": True}
    return json.dumps(made)
