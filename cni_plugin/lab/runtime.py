"""What a container runtime does: executes the plugin as the CNI specification says.

The plugin is a process of its own, in the node's namespace, with its environment and stdin. None
of its functions is called from here.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from json import loads
from typing import Any, NamedTuple

from cni_plugin import executable
from cni_plugin.lab import spaces
from cni_plugin.lab.nodes import Lab
from cni_plugin.spec import CniError, Code

IFNAME = "eth0"
CNI_PATH = "/opt/cni/bin"
_TIMEOUT_S = 60


class Reply(NamedTuple):
    """What a call gave: exit status, the decoded document on stdout, stderr, and how long it took
    in milliseconds, process start included."""

    status: int
    document: Mapping[str, Any] | None
    stderr: str
    milliseconds: float

    @property
    def addresses(self) -> list[str]:
        """The addresses of a result, without their prefixes."""
        ips = (self.document or {}).get("ips", [])
        return [ip["address"].partition("/")[0] for ip in ips]


class Runtime:
    """The container runtime of every node of a lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._command = executable.path()

    def environment(self, command: str, node: str, pod: str) -> dict[str, str]:
        """The CNI_ variables of a call for a pod; for a STATUS those of the pod are left out."""
        found = {"CNI_COMMAND": command, "CNI_PATH": CNI_PATH}
        if pod:
            found["CNI_CONTAINERID"] = f"{node}-{pod}"
            found["CNI_NETNS"] = spaces.path_of(self._lab.netns(f"{node}/{pod}"))
            found["CNI_IFNAME"] = IFNAME
        return found

    def shell(self, command: str, node: str, pod: str) -> list[str]:
        """The call as lines that a reader can type."""
        variables = self.environment(command, node, pod)
        words = [f"{key}={value}" for key, value in variables.items()]
        return [
            f"podwire lab exec --name {self._lab.name} {node} -- env \\",
            f"    {words[0]} {words[2]} {words[4]} \\" if pod else f"    {words[0]} \\",
            *([f"    {words[3]} \\"] if pod else []),
            f"    {words[1]} podwire < {self._lab.conf_path(node)}",
        ]

    def call(self, command: str, node: str, pod: str = "") -> Reply:
        """One call of the plugin on a node, with the node's configuration on stdin."""
        with open(self._lab.conf_path(node), "rb") as file:
            conf = file.read()
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CNI_")}
        environ |= self.environment(command, node, pod)
        begin = time.perf_counter()
        done = self._run(node, self._command, environ, conf)
        took = (time.perf_counter() - begin) * 1000
        return Reply(done.returncode, _decoded(done.stdout), done.stderr.decode(), took)

    def tool(self, node: str, *args: str) -> subprocess.CompletedProcess[bytes]:
        """The tool, run on a node."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CNI_")}
        return self._run(node, [*self._command, *args], environ, b"")

    def _run(
        self, node: str, argv: Sequence[str], environ: Mapping[str, str], stdin: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        with spaces.entered(self._lab.netns(node)):
            return subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                check=False,
                env=environ,
                timeout=_TIMEOUT_S,
            )

    def add(self, node: str, pod: str) -> Reply:
        """A sandbox and ADD. Raises CniError with the plugin's own error when it fails."""
        self._lab.add_sandbox(node, pod)
        return expect(self.call("ADD", node, pod))

    def delete(self, node: str, pod: str) -> Reply:
        """DEL, then the sandbox goes."""
        reply = expect(self.call("DEL", node, pod))
        self._lab.remove_sandbox(node, pod)
        return reply


def expect(reply: Reply) -> Reply:
    """The reply of a call that had to succeed; its error as CniError when it did not."""
    if reply.status == 0:
        return reply
    document = reply.document or {}
    raise CniError(
        int(document.get("code", Code.INTERNAL)),
        str(document.get("msg", f"the plugin ended with status {reply.status}: {reply.stderr}")),
        str(document.get("details", "")),
    )


def _decoded(stdout: bytes) -> Mapping[str, Any] | None:
    if not stdout.strip():
        return None
    try:
        document = loads(stdout)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CniError(Code.INTERNAL, f"the plugin's stdout is no JSON document: {stdout!r}")
    return document
