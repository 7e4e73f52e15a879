"""Node objects as kubelets write them, some 6 kB each, for tests that need many."""

from __future__ import annotations

from typing import Any

_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)


def node_object(
    number: int, addresses: tuple[str, ...] = (), pod_cidrs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Node "node-<number>"; its address and its /24 count with the number, below 40,000."""
    name = f"node-{number}"
    high, low = divmod(number, 256)
    addresses = addresses or (f"10.1.{high}.{low}",)
    pod_cidrs = pod_cidrs or (f"10.{64 + high}.{low}.0/24",)
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "standard-8",
        "topology.kubernetes.io/region": "region-1",
        "topology.kubernetes.io/zone": f"region-1-{'abc'[number % 3]}",
    }
    annotations = {
        "node.alpha.kubernetes.io/ttl": "0",
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
        "podwire.io/backend": "vxlan vni=1 port=8472",
        "podwire.io/vtep-mac": f"0e:00:00:00:{high:02x}:{low:02x}",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)},
        "status": _status(name, addresses),
    }


def heartbeat(time: str) -> list[dict[str, str]]:
    """The conditions of a kubelet that lives; `time` in RFC 3339."""
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": time,
            "lastTransitionTime": "2024-01-01T00:00:00Z",
        }
        for kind, status, reason, message in _CONDITIONS
    ]


def _status(name: str, addresses: tuple[str, ...]) -> dict[str, Any]:
    sizes = {"cpu": "8", "memory": "32885592Ki", "pods": "110", "ephemeral-storage": "101430960Ki"}
    return {
        "addresses": [
            *({"type": "InternalIP", "address": address} for address in addresses),
            {"type": "Hostname", "address": name},
        ],
        "allocatable": sizes,
        "capacity": sizes,
        "conditions": heartbeat("2024-01-01T00:00:00Z"),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "images": [
            {
                "names": [
                    f"registry.example/team-{i}/service-{i}@sha256:{i:064x}",
                    f"registry.example/team-{i}/service-{i}:v1.{i}.0",
                ],
                "sizeBytes": 50_000_000 + i,
            }
            for i in range(20)
        ],
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": "00000000-0000-0000-0000-000000000000",
            "containerRuntimeVersion": "containerd://1.6.20",
            "kernelVersion": "6.1.0",
            "kubeProxyVersion": "v1.20.2",
            "kubeletVersion": "v1.20.2",
            "machineID": "00000000000000000000000000000000",
            "operatingSystem": "linux",
            "osImage": "Debian GNU/Linux 12 (bookworm)",
            "systemUUID": "00000000-0000-0000-0000-000000000000",
        },
    }
