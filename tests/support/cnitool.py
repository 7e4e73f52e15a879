"""The real cnitool, on a `Machine`: sandboxes by `ip netns`, networks as conflists."""

from __future__ import annotations

import json
import os
import subprocess

from tests.support import require
from tests.support.cnibin import PluginFolder
from tests.support.machine import Machine
from tests.support.plugin import Config

_CONF_FOLDER = "/etc/cni/net.d"
IFNAME = "eth0"


class Cnitool:
    """Each call names the network and the sandbox; runtime data goes as CAP_ARGS and CNI_ARGS."""

    def __init__(self, machine: Machine, plugins: PluginFolder) -> None:
        self._program = require.program("cnitool")
        self._machine = machine
        self._plugins = plugins

    def configure(self, conflist: Config) -> None:
        text = json.dumps(conflist)
        name = f"{_CONF_FOLDER}/{conflist['name']}.conflist"
        self._machine.run("sh", "-c", 'cat > "$1"', "-", name, stdin=text)

    def sandbox(self, name: str) -> str:
        """A sandbox, and its path."""
        self._machine.run("ip", "netns", "add", name)
        return f"/run/netns/{name}"

    def call(
        self,
        command: str,
        network: str,
        netns: str,
        capabilities: Config | None = None,
        args: str = "",
        check: bool = True,
    ) -> subprocess.CompletedProcess:
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "CNI_PATH": self._plugins.path,
            "NETCONFPATH": _CONF_FOLDER,
            "CNI_IFNAME": IFNAME,
        }
        if capabilities:
            env["CAP_ARGS"] = json.dumps(capabilities)
        if args:
            env["CNI_ARGS"] = args
        return self._machine.run(self._program, command, network, netns, env=env, check=check)

    def add(self, netns: str, network: str = "podnet", **more: object) -> Config:
        """The result, as cnitool prints it."""
        return json.loads(self.call("add", network, netns, **more).stdout)
