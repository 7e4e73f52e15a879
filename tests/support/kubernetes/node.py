"""A node of a cluster: containerd, kubelet and kube-proxy on a `Machine` of its own.

The machine has its own /run, /etc, /opt and /var/lib already; here /sys and /var/log/pods follow,
so that podwire's and Kubernetes' default paths are used as they are. All of it ends with the
machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.support import netns, require
from tests.support.kubeprograms import component
from tests.support.kubernetes import nodeconfig
from tests.support.kubernetes.daemon import Daemon
from tests.support.kubernetes.ground import PLACES, Ground
from tests.support.machine import Machine

# A kubelet of this age asks the clouds' metadata service before it registers, for seconds.
_NO_CLOUD = {"AWS_EC2_METADATA_DISABLED": "true"}
# sysfs shows the namespace that it was mounted in; the cgroups below it are carried over. The
# kubelet wants shared mounts, which stay within the machine's private namespace.
_SETUP = """
set -e
mkdir -p "$1/data/cgroup" "$1/data/kubelet" /var/log/pods /var/log/containers
mount --rbind /sys/fs/cgroup "$1/data/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$1/data/cgroup" /sys/fs/cgroup
umount -l "$1/data/cgroup"
mount -t tmpfs tmpfs /var/log/pods
mount -t tmpfs tmpfs /var/log/containers
mount --make-rshared /
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then  # version 2: one tree
    mkdir -p "/sys/fs/cgroup/$2"
else
    for folder in /sys/fs/cgroup/*/; do mkdir -p "$folder/$2"; done
fi
for key in net/ipv4/ip_forward net/ipv6/conf/all/forwarding; do
    echo 1 > /proc/sys/$key
done
"""


class Leftovers(NamedTuple):
    """What pods and podwire have on a node, in words; each empty on one that never had any."""

    links: tuple[str, ...]
    reservations: tuple[str, ...]
    rules: tuple[str, ...]
    routes: tuple[str, ...]

    def of_pods(self) -> Leftovers:
        """Only what a pod that is gone may not leave."""
        pods = tuple(link for link in self.links if link.startswith(("veth", "pwi")))
        # A host port is an element with its attachment as comment.
        ports = tuple(
            rule for rule in self.rules if 'comment "' in rule and "acceptForwarding" not in rule
        )
        return Leftovers(pods, self.reservations, ports, ())


class Node:
    """See the module. `root` is its file system as seen from the test."""

    def __init__(self, name: str, ground: Ground, pod_cidrs: Sequence[str]) -> None:
        self.name = name
        self.addresses = PLACES[name].addresses[: len(pod_cidrs)]
        self.machine = Machine()
        try:
            self.namespace = f"/proc/{self.machine.pid}/ns/net"
            self.root = f"/proc/{self.machine.pid}/root"
            folder = self.machine.folder
            self.run("bash", "-c", _SETUP, "-", folder, self.machine.cgroup.strip("/"))
            ground.connect(PLACES[name].link, self.namespace, PLACES[name].addresses)
            self._pod_cidrs = tuple(pod_cidrs)
            self.containerd = self._make_containerd()
            self.containerd.start()
        except BaseException:
            self.machine.close()
            raise

    # --- its daemons ---------------------------------------------------------------------------

    def start_kubernetes(self, kubelet_config: str, proxy_config: str) -> None:
        """Start kubelet and kube-proxy, each with a kubeconfig of its own.

        The kubelet's lies where kubeadm puts it: podwire reads the API server's address there.
        """
        with open(kubelet_config) as file:
            self.write(nodeconfig.KUBELET_CONFIG, file.read(), 0o600)
        self.kubelet = self._make_kubelet(nodeconfig.KUBELET_CONFIG)
        self.proxy = self._make_proxy(proxy_config)
        for daemon in (self.kubelet, self.proxy):
            daemon.start()

    def wait_for_containerd(self) -> None:
        """Until it answers; raises AssertionError with its log when it does not."""
        try:
            netns.wait_until(
                lambda: self.ctr("version", check=False).returncode == 0, timeout=90, pause=0.2
            )
        except AssertionError as e:
            raise AssertionError(f"{self.name}: containerd: {self.containerd.log()}") from e

    def load_image(self, archive: str) -> None:
        """Import a docker-archive that the machine can see."""
        self.ctr("--namespace", "k8s.io", "images", "import", archive, timeout=120)

    def daemons(self) -> tuple[Daemon, ...]:
        return (self.containerd, self.kubelet, self.proxy)

    def _make_containerd(self) -> Daemon:
        data = self.machine.path("data")
        config = nodeconfig.containerd(data, require.program("runc"))
        path = self.machine.write("containerd.toml", config)
        program = require.program("containerd")
        search = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
        env = {**os.environ, "PATH": search}
        return Daemon(self.machine, "containerd", program, "--config", path, env=env)

    def _make_kubelet(self, kubeconfig: str) -> Daemon:
        dual = len(self._pod_cidrs) > 1
        config = nodeconfig.kubelet(self.machine.cgroup, dual)
        return Daemon(
            self.machine,
            "kubelet",
            component("kubelet"),
            f"--config={self.machine.write('kubelet.json', config)}",
            f"--kubeconfig={kubeconfig}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{nodeconfig.CONTAINERD_SOCKET}",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(self.addresses)}",
            f"--root-dir={self.machine.path('data', 'kubelet')}",
            f"--cert-dir={self.machine.path('data', 'pki')}",
            env={**os.environ, **_NO_CLOUD},
        )

    def _make_proxy(self, kubeconfig: str) -> Daemon:
        config = nodeconfig.kube_proxy(kubeconfig, self._pod_cidrs)
        return Daemon(
            self.machine,
            "kube-proxy",
            component("kube-proxy"),
            f"--config={self.machine.write('kube-proxy.json', config)}",
            f"--hostname-override={self.name}",
        )

    # --- doing and looking ---------------------------------------------------------------------

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's namespaces; options as for `netns.run`."""
        return self.machine.run(*argv, **options)

    def ctr(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """containerd's own client."""
        program = require.program("ctr")
        return self.run(program, "--address", nodeconfig.CONTAINERD_SOCKET, *argv, **options)

    def path(self, path: str) -> str:
        """How the test reaches an absolute path of the node."""
        return self.root + path

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the node as a whole, by a rename within its folder, which is made."""
        target = self.path(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}~")
        with open(temporary, "w") as file:
            file.write(text)
        os.chmod(temporary, mode)
        os.rename(temporary, target)

    def read(self, path: str) -> str:
        """A file of the node, "" when there is none."""
        try:
            with open(self.path(path)) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def ip(self, *argv: str) -> list[dict[str, Any]]:
        """`ip -j -d <argv>` on the node, decoded."""
        shown = self.run("ip", "-j", "-d", *argv).stdout
        return [item for item in json.loads(shown or "[]") if item]

    def routes(self, family: int = 4) -> list[str]:
        """Its main table, a line for each route."""
        shown = self.run("ip", f"-{family}", "route", "show").stdout
        return [line.strip() for line in shown.splitlines()]

    def reservations(self) -> dict[str, str]:
        """Addresses that are taken, and by whom, over all networks."""
        top = self.path("/var/lib/cni/networks")
        networks = [n for n in _listdir(top) if not n.startswith(".")]
        return {
            name: self.read(f"/var/lib/cni/networks/{network}/{name}")
            for network in networks
            for name in _listdir(f"{top}/{network}")
            if name not in ("lock",) and not name.startswith(("last_reserved_ip", "."))
        }

    def leftovers(self) -> Leftovers:
        """What there is of podwire in the kernel and in its address directory."""
        links = [
            link["ifname"]
            for link in self.ip("link", "show")
            if link["ifname"] not in ("lo", "eth0")
        ]
        rules = self.run("nft", "list", "ruleset", check=False).stdout
        own, inside = [], False
        for line in rules.splitlines():
            if line.startswith("table "):
                inside = " podwire" in line
            if (inside or "podwire" in line) and line.strip(" \t{}"):
                own.append(line.strip())
        routes = [
            line
            for family in (4, 6)
            for line in self.run(
                "ip", f"-{family}", "route", "show", "proto", "112"
            ).stdout.splitlines()
        ]
        return Leftovers(
            tuple(sorted(links)), tuple(sorted(self.reservations())), tuple(own), tuple(routes)
        )

    def footprint(self) -> dict[str, list[str]]:
        """All that an installed podwire changes on a node, to compare with before."""
        left = self.leftovers()
        folders = (nodeconfig.BIN_DIR, nodeconfig.CONF_DIR, "/run/podwire", "/var/lib/podwire")
        return {
            "links": list(left.links),
            "rules": list(left.rules),
            "routes": sorted(self.routes() + [r for r in self.routes(6) if "fe80" not in r]),
            "reservations": list(left.reservations),
            **{folder: _listdir(self.path(folder)) for folder in folders},
        }

    def state(self) -> str:
        """What a person would look at first, for the message of a failure."""
        parts = [f"===== node {self.name}"]
        for daemon in self.daemons():
            parts += [f"--- {daemon.name}, {'runs' if daemon.lives() else 'ENDED'}", daemon.log()]
        for argv in (
            ("ip", "-br", "addr"),
            ("ip", "route"),
            ("ls", "-la", nodeconfig.CONF_DIR, nodeconfig.BIN_DIR),
        ):
            done = self.run(*argv, check=False)
            parts += [f"--- {' '.join(argv)}", done.stdout + done.stderr]
        return "\n".join(parts)

    # --- the end -------------------------------------------------------------------------------

    def stop(self) -> None:
        """kubelet, kube-proxy and containerd end at once, as if the power had gone; pods live on
        until `close`."""
        for daemon in self.daemons():
            daemon.stop(signal.SIGKILL)

    def close(self) -> None:
        self.machine.close()


def _listdir(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
