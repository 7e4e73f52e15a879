"""A folder of CNI plugins for a runtime: each one a wrapper that notes the call, then runs it."""

from __future__ import annotations

import os
import shlex
from typing import NamedTuple

from tests.support.machine import Machine

_WRAPPER = """#!/bin/sh
echo "{name}|$CNI_COMMAND|$CNI_CONTAINERID|$CNI_IFNAME|$CNI_NETNS|$CNI_ARGS" >> {log}
exec {executable} "$@"
"""


class Call(NamedTuple):
    """One execution of a plugin, as its environment told."""

    plugin: str
    command: str
    container_id: str
    ifname: str
    netns: str
    args: str


class PluginFolder:
    """`path` is the bin_dir for a runtime; `calls` lists what it executed."""

    def __init__(self, machine: Machine, plugins: dict[str, str]) -> None:
        """`plugins` maps the name a configuration uses to an executable."""
        self._machine = machine
        self._plugins = plugins
        self.path = machine.path("cni", "bin")
        for name, executable in plugins.items():
            self.add(name, executable)

    def add(self, name: str, executable: str) -> None:
        script = _WRAPPER.format(
            name=name,
            log=shlex.quote(self._machine.path("calls")),
            executable=shlex.quote(executable),
        )
        self._machine.write(os.path.join("cni", "bin", name), script, 0o755)

    def restore(self, name: str) -> None:
        """Put back an executable that `add` replaced."""
        self.add(name, self._plugins[name])

    def calls(self, plugin: str = "", command: str = "", container_id: str = "") -> list[Call]:
        """The calls so far, in order; each argument that is given narrows them down."""
        read = [Call(*line.split("|", 5)) for line in self._machine.read("calls").splitlines()]
        return [
            call
            for call in read
            if plugin in ("", call.plugin)
            and command in ("", call.command)
            and container_id in ("", call.container_id)
        ]
