"""A machine of a test's own: network, mount and process namespaces for real runtimes.

Runtimes write to paths that are compiled in (/etc/cni, /opt/cni/bin, /var/lib/cni, /run) and start
daemons. Here all of that happens in namespaces: /etc, /opt and /var/lib are overlays whose upper
side is memory, /run and /dev/shm are empty, and when the first process of the process namespace
is killed, which also happens when the test run dies, the kernel ends all others and drops every
mount. Only `folder` is shared with the outside.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import select
import shutil
import subprocess
import tempfile
from typing import Any

import pytest

from tests.support import netns, require

_SETUP = """
set -e
ip link set lo up
mkdir "$1/data"
mount -t tmpfs tmpfs "$1/data"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/netns /run/lock
for folder in /etc /opt /var/lib; do
    upper="$1/data/upper$folder" work="$1/data/work$folder"
    mkdir -p "$upper" "$work"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$upper,workdir=$work" $folder
done
rm -rf /etc/cni /opt/cni /var/lib/cni
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni
echo ready
while :; do sleep infinity & wait $! || :; done
"""


_TOP, _PREFIX = "/var/tmp", "pwt-"
_END_S = 60


class Machine:
    """See the module. `folder` is shared with the outside; `folder`/data is memory, seen inside."""

    def __init__(self) -> None:
        require.root()
        # Short, for the path of a UNIX socket has room for 107 bytes; not /run, often noexec.
        self.folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_TOP)
        self.cgroup = f"/{os.path.basename(self.folder)}"
        self._started: list[subprocess.Popen] = []
        self._first = -1
        flags = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        unshare = ("unshare", *flags, "--propagation=private", "bash", "-c", _SETUP, "-")
        self._keeper = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *unshare, self.folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "ready\n":
            assert self._keeper.stderr is not None
            self._keeper.wait()
            said = self._keeper.stderr.read()
            self.close()
            with open("/proc/filesystems") as file:  # a module is loaded by the first mount
                known = "overlay" in file.read().split()
            if not known:
                pytest.skip(f"{require.KERNEL} no overlay mounts here: {said.strip()}")
            raise AssertionError(f"no machine: {said}")
        with open(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children") as f:
            self.pid = int(f.read().split()[0])
        self._first = os.pidfd_open(self.pid)

    # --- running things inside -----------------------------------------------------------------

    def prefix(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--"]

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess:
        """Run a command inside; options as for `netns.run`."""
        return netns.run([*self.prefix(), *argv], **options)

    def start(self, *argv: str, log: str, env: dict[str, str] | None = None) -> subprocess.Popen:
        """Start a daemon inside; what it prints goes to `folder`/<log>."""
        with open(self.path(log), "a") as out:
            process = subprocess.Popen(
                [*self.prefix(), *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
            )
        self._started.append(process)
        return process

    # --- files ---------------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)

    def read(self, *parts: str) -> str:
        """A file of `folder`; "" when there is none."""
        try:
            with open(self.path(*parts)) as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def write(self, name: str, text: str, mode: int = 0o644) -> str:
        """Write a file of `folder` as a whole, under its name from the first moment; its path."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + "~", "w") as f:
            f.write(text)
        os.chmod(path + "~", mode)
        os.rename(path + "~", path)
        return path

    # --- looking -------------------------------------------------------------------------------

    def links(self) -> list[str]:
        """The names of all links of the machine's own network namespace."""
        shown = self.run("ip", "-o", "link", "show").stdout
        return [line.split(":")[1].split("@")[0].strip() for line in shown.splitlines()]

    def pod_links(self) -> list[str]:
        """The host sides of pods' links."""
        shown = self.run("ip", "-o", "link", "show", "type", "veth").stdout
        return [line.split(":")[1].split("@")[0].strip() for line in shown.splitlines()]

    # --- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything inside by ending its first process; remove what was shared."""
        if self._keeper.poll() is None:
            # --kill-child takes the first process along, and that one all others.
            self._keeper.kill()
        self._keeper.wait()
        if self._first >= 0:
            # It ends as the last one, which may take seconds on a busy machine.
            select.select([self._first], [], [], _END_S)
            os.close(self._first)
            self._first = -1
        for stream in (self._keeper.stdout, self._keeper.stderr):
            if stream is not None:
                stream.close()
        for process in self._started:
            process.wait(_END_S)
        _remove(self.folder)


def sweep() -> None:
    """Remove the folders and control groups of runs that were killed."""
    for folder in glob.glob(os.path.join(_TOP, f"{_PREFIX}*-*")):
        pid = os.path.basename(folder).split("-")[1]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _remove(folder)


def _remove(folder: str) -> None:
    """Remove what outlives a machine: its folder, and its control groups, innermost first."""
    name = os.path.basename(folder)
    for top in (*glob.glob(f"/sys/fs/cgroup/{name}"), *glob.glob(f"/sys/fs/cgroup/*/{name}")):
        for group, _, _ in os.walk(top, topdown=False):
            netns.wait_until(functools.partial(_rmdir, group), what=f"empty {group}")
    shutil.rmtree(folder)


def _rmdir(folder: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.exists(folder)
