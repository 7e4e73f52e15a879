"""A private containerd on a `Machine`, with CRI and with `ctr`."""

from __future__ import annotations

import json
import os
import subprocess

from tests.support import containerdconfig, images, netns, require
from tests.support.cnibin import PluginFolder
from tests.support.cri import Client
from tests.support.machine import Machine


class Containerd:
    """Started by the constructor, with both test images for CRI; it ends with its machine.

    `plugins` is the bin_dir, `conf_folder` the conf_dir: a conflist is written there by
    `configure`, under a temporary name in the same folder, then renamed.
    """

    def __init__(self, machine: Machine, plugins: PluginFolder, programs: str = "") -> None:
        """`programs` is a folder with containerd, its shim and ctr, "" for the installed ones."""
        self.machine = machine
        self.plugins = plugins
        self.conf_folder = machine.path("cni", "net.d")
        self._folder = programs or os.path.dirname(require.program("containerd"))
        os.makedirs(self.conf_folder)
        config = machine.write("containerd.toml", self._config())
        path = os.pathsep.join((self._folder, os.environ.get("PATH", os.defpath), "/usr/sbin"))
        self._env = {**os.environ, "PATH": path}
        machine.start(
            *(os.path.join(self._folder, "containerd"), "--config", config),
            log="containerd.log",
            env=self._env,
        )
        self.cri = Client(machine.path("c.sock"), machine.cgroup, machine.path("data"))
        self._wait()
        images.write_archive(machine.path("images.tar"))
        self.import_images("k8s.io")

    def _config(self) -> str:
        path = self.machine.path
        return containerdconfig.text(
            containerdconfig.Places(
                root=path("data", "root"),
                state=path("data", "state"),
                socket=path("c.sock"),
                runc_root=path("data", "runc"),
                runc=require.program("runc"),
                bin_dir=self.plugins.path,
                conf_dir=self.conf_folder,
            )
        )

    def _wait(self) -> None:
        try:
            self.cri.wait()
        except Exception as e:
            log = self.machine.read("containerd.log")
            raise AssertionError(f"containerd does not answer:\n{log[-4000:]}") from e

    def configure(self, conflist: dict, name: str = "05-podwire.conflist") -> None:
        """Put a conflist in place and wait until the runtime calls the network ready."""
        self.machine.write(os.path.join("cni", "net.d", name), json.dumps(conflist))
        netns.wait_until(
            lambda: self.cri.condition("NetworkReady")[0],
            what="NetworkReady",
        )

    def import_images(self, namespace: str = "default") -> None:
        """Make both test images known in a namespace of containerd; CRI's is k8s.io."""
        archive = self.machine.path("images.tar")
        self.ctr("--namespace", namespace, "images", "import", archive)

    def ctr(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess:
        """The command-line client, on this containerd."""
        program = os.path.join(self._folder, "ctr")
        address = self.machine.path("c.sock")
        return self.machine.run(program, "--address", address, *argv, check=check, env=self._env)

    def close(self) -> None:
        """Hang up; the daemon and all its children end with the machine."""
        self.cri.close()
