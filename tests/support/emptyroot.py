"""A root file system with nothing in it but the executable, /proc, /sys and /run.

It is a tmpfs in a mount namespace of its own, with a network namespace of its own and a pod's, and
vanishes with the process that holds them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType

from tests.support import require
from tests.support.plugin import Reply, hold_to_specification, read_reply

POD = "/run/netns/pod"
EXECUTABLE = "/podwire"
_SETUP = """
set -e
root=$1; executable=$2; run_options=$3; root_options=$4
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir proc sys run
cp "$executable" podwire
ln podwire podwire-ipam
chmod 755 podwire
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o "mode=755,$run_options" tmpfs run
mkdir run/netns
: > run/netns/pod
ip link set lo up
unshare --net=run/netns/pod ip link set lo up
mount -o "remount,$root_options" "$root"
echo ready
exec sleep infinity
"""


class EmptyRoot:
    """Made when it is entered, as a context manager. `run_options` and `root_options` are mount
    options, of /run and of the root."""

    def __init__(
        self, folder: str, executable: str, run_options: str = "exec", root_options: str = "rw"
    ) -> None:
        require.root()
        self._folder = folder
        self._arguments = [folder, executable, run_options, root_options]

    def __enter__(self) -> EmptyRoot:
        command = ["unshare", "--mount", "--net", "sh", "-c", _SETUP, "sh", *self._arguments]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holder.kill()
        self._holder.communicate()

    def path(self, path: str) -> str:
        """A path of the root, as seen from outside."""
        return f"/proc/{self._holder.pid}/root{self._folder}{path}"

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self.path(path)))

    def run(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = b"",
        uid: int = 0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Execute a file of the root there; with `stdin` None it is closed."""
        pid = self._holder.pid
        command = ["nsenter", f"--target={pid}", "--mount", "--net", f"--root={self.path('')}"]
        if uid:
            command += [f"--setuid={uid}", f"--setgid={uid}"]
        command += ["--", *argv]
        if stdin is None:
            command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
        return subprocess.run(
            command, input=stdin or b"", env=dict(env or {}), capture_output=True, timeout=120
        )

    def call(
        self,
        command: str,
        conf: bytes,
        uid: int = 0,
        name: str = EXECUTABLE,
        variables: Sequence[tuple[str, str]] = (),
    ) -> Reply:
        """One call of the plugin for the pod, held to the specification's rules for stdout."""
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "pod",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": POD,
            "CNI_PATH": "/",
            **dict(variables),
        }
        done = self.run(name, env=env, stdin=conf, uid=uid)
        reply = read_reply(done.returncode, done.stdout, done.stderr)
        hold_to_specification(command, reply)
        return reply
