"""Configuration of what runs on a node: containerd, kubelet, kube-proxy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.support import images

BIN_DIR, CONF_DIR = "/opt/cni/bin", "/etc/cni/net.d"
KUBELET_CONFIG = "/etc/kubernetes/kubelet.conf"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

# The network's folders are the defaults; restrict_oom_score_adj: root may lack CAP_SYS_RESOURCE.
_CONTAINERD = """
version = 2
root = "{data}/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin_dir}"
    conf_dir = "{conf_dir}"
    max_conf_num = 1
"""


def containerd(data: str, runc: str) -> str:
    """Its config.toml; `data` is a folder in memory, for images and snapshots."""
    return _CONTAINERD.format(
        data=data,
        socket=CONTAINERD_SOCKET,
        pause=images.PAUSE,
        runc=runc,
        bin_dir=BIN_DIR,
        conf_dir=CONF_DIR,
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
