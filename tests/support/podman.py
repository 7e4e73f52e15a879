"""A private podman on a `Machine`, its networks made by CNI plugins."""

from __future__ import annotations

import json
import os

from tests.support import images, require
from tests.support.cnibin import PluginFolder
from tests.support.machine import Machine
from tests.support.plugin import Config

_CONFIG = """
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin}"]
network_config_dir = "{conf}"
default_network = "podnet"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[containers]
apparmor_profile = "unconfined"
default_ulimits = []
log_driver = "k8s-file"
"""


class Podman:
    """`podman` with storage, state and networks of the machine's own, and the test image."""

    def __init__(self, machine: Machine, plugins: PluginFolder, *conflists: Config) -> None:
        """Each conflist is a network; the default one is called podnet."""
        self._program = require.program("podman")
        require.programs("conmon", "runc", "busybox")
        self._machine = machine
        for conflist in conflists:
            conf = os.path.join("cni", "net.d", f"10-{conflist['name']}.conflist")
            machine.write(conf, json.dumps(conflist))
        config = _CONFIG.format(bin=plugins.path, conf=machine.path("cni", "net.d"))
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
            "HOME": machine.path("data"),
            "CONTAINERS_CONF": machine.write("containers.conf", config),
        }
        images.write_archive(machine.path("images.tar"))
        self.call("load", "--quiet", "--input", machine.path("images.tar"))

    def call(self, *argv: str) -> str:
        """One command; what it printed."""
        storage = ("--root", self._machine.path("data", "storage"))
        state = ("--runroot", self._machine.path("data", "run"))
        done = self._machine.run(self._program, *storage, *state, *argv, env=self._env)
        return done.stdout.strip()

    def start(self, name: str, *options: str) -> str:
        """Start a container that waits; its ID."""
        common = ("--detach", "--name", name, "--cgroup-parent", self._machine.cgroup)
        return self.call("run", *common, *options, images.BUSYBOX, "sleep", "1000")

    def address(self, name: str, network: str = "podnet") -> str:
        """The container's IPv4 address as podman reports it."""
        networks = json.loads(
            self.call("inspect", name, "--format", "{{json .NetworkSettings.Networks}}")
        )
        return networks[network]["IPAddress"]
