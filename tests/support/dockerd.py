"""A private Docker on a `Machine`: the daemon in the machine's namespaces, the client outside.

The programs, Compose and a base image are those that tests/support/docker-components.sh put into
$PODWIRE_DOCKER. The rules, bridges and mounts vanish with the machine. There is no registry
and no way to the network: images are imported, loaded or built.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support import netns, require
from tests.support.machine import Machine

VARIABLE = "PODWIRE_DOCKER"
_FILES = ("bin/docker", "bin/dockerd", "cli/cli-plugins/docker-compose", "base.tar", "supplies")
_PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What the Dockerfile may read: the test's context has nothing else beside it.
_CONTEXT = (".dockerignore", "Dockerfile", "LICENSE", "pyproject.toml")
_PACKAGES = ("cni_plugin", "ipam", "launcher")
# Each container gets these, whatever its image.
_OF_DOCKER = (
    ".dockerenv",
    "dev/console",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
)

# runc refuses to start a privileged container when this process lacks one of root's capabilities,
# as root does in many virtual machines: then CAP_SYS_RESOURCE is taken out of what is asked for.
_RUNC = """#!{python} -ISE
import json, os, sys

words = sys.argv[1:]
with open("/proc/self/status") as status:
    bounding = next(int(line.split()[1], 16) for line in status if line.startswith("CapBnd"))

def option(*names):
    return next((after for word, after in zip(words, words[1:]) if word in names), "")

path = option("--process", "-p") if "exec" in words else ""
if "create" in words:
    path = os.path.join(option("--bundle", "-b"), "config.json")
if path and not bounding >> 24 & 1:
    with open(path) as file:
        spec = json.load(file)
    asked = spec.get("process", spec).get("capabilities") or {{}}
    for kind, names in asked.items():
        asked[kind] = [name for name in names or [] if name != "CAP_SYS_RESOURCE"]
    with open(path, "w") as file:
        json.dump(spec, file)
os.execv("{runc}", ["{runc}", *words])
"""


def components() -> str:
    """The folder of what the daemon needs, or skip."""
    folder = os.environ.get(VARIABLE, "")
    missing = [name for name in _FILES if not os.path.exists(os.path.join(folder, name))]
    if not folder or missing:
        pytest.skip(
            f"Docker is missing ({', '.join(missing)}): set {VARIABLE} to the folder that"
            " tests/support/docker-components.sh filled"
        )
    require.programs("containerd", "runc", "iptables")
    return os.path.abspath(folder)


class Dockerd:
    """Started by the constructor; it ends with its machine.

    `environ`: for whoever calls `docker` or `docker compose`.
    """

    def __init__(self, machine: Machine) -> None:
        self._folder, self._machine = components(), machine
        path = os.pathsep.join((f"{self._folder}/bin", os.environ["PATH"], "/usr/sbin", "/sbin"))
        self.environ = {
            **os.environ,
            "PATH": path,
            "DOCKER_HOST": f"unix://{machine.path('docker.sock')}",
            "DOCKER_CONFIG": f"{self._folder}/cli",
            "DOCKER_BUILDKIT": "0",  # the builder that needs no frontend image
        }
        self._process = machine.start(
            *(f"{self._folder}/bin/dockerd", *self._options()),
            log="dockerd.log",
            env=self.environ,
        )
        netns.wait_until(self._answers, what="an answer of dockerd", timeout=90)

    def _options(self) -> tuple[str, ...]:
        text = _RUNC.format(python=sys.executable, runc=require.program("runc"))
        runc = self._machine.write("runc", text, 0o755)
        path = self._machine.path
        return (
            *("--host", f"unix://{path('docker.sock')}", "--pidfile", path("docker.pid")),
            *("--data-root", path("docker"), "--exec-root", path("exec")),
            *("--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"),
            *("--cgroup-parent", self._machine.cgroup, "--userland-proxy=false"),
            *("--add-runtime", f"test={runc}", "--default-runtime", "test"),
            *("--default-ulimit", "nofile=4096:8192"),
            *("--bip", "10.88.79.1/24"),
            *("--default-address-pool", "base=10.88.80.0/20,size=24"),
        )

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"dockerd ended:\n{self._machine.read('dockerd.log')[-4000:]}")
        return self("version", check=False).returncode == 0

    def __call__(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `docker`; options as for `netns.run`."""
        options = {"env": self.environ, **options}
        return netns.run([f"{self._folder}/bin/docker", *argv], **options)

    def import_base(self, tag: str) -> None:
        """The small Debian, as an image."""
        self("import", f"{self._folder}/base.tar", tag, timeout=120)

    def build(self, tag: str, base: str) -> None:
        """podwire's image, from this checkout and without a network."""
        context = self._machine.path("context")
        ignored = shutil.ignore_patterns("__pycache__")
        for name in _PACKAGES:
            shutil.copytree(f"{_PROJECT}/{name}", f"{context}/{name}", ignore=ignored)
        for name in _CONTEXT:
            shutil.copy(f"{_PROJECT}/{name}", context)
        shutil.copytree(f"{self._folder}/supplies", f"{context}/build/supplies")
        words = ("--network", "none", "--build-arg", f"BASE={base}", "--build-arg", "VERSION=test")
        self("build", *words, "--tag", tag, context, timeout=280)

    def path(self, name: str) -> str:
        """A path that daemon and client share."""
        return self._machine.path(name)

    def shell_words(self, environ: Mapping[str, str], *argv: str) -> str:
        """A command for a shell, with what the client needs in its environment."""
        given = {name: self.environ[name] for name in ("PATH", "DOCKER_HOST", "DOCKER_CONFIG")}
        pairs = [f"{name}={value}" for name, value in {**given, **environ}.items()]
        return shlex.join(["env", *pairs, *argv])

    def files_of(self, image: str) -> set[str]:
        """The files of an image, without folders and what the daemon itself puts in."""
        container = self("create", image).stdout.strip()
        try:
            exported = self.path("exported.tar")
            self("export", container, "--output", exported)
        finally:
            self("rm", container)
        with tarfile.open(exported) as archive:
            files = {member.name for member in archive if not member.isdir()}
        return {name for name in files if name not in _OF_DOCKER}
