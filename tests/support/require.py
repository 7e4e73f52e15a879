"""What a test needs and the machine may lack: each missing thing skips the test and says so.

A reason that begins with "kernel:" is about something that cannot be installed; any other skip
fails the run when PODWIRE_NO_SKIPS=1 (see conftest.py).
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

KERNEL = "kernel:"

_REFUSED = "PODWIRE_TEST_REFUSED"

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_HINTS = {
    "busybox": "apt-get install busybox-static",
    "containerd": "apt-get install containerd",
    "cnitool": "set CNITOOL to the executable of github.com/containernetworking/cni/cnitool",
    "conmon": "apt-get install conmon",
    "ctr": "apt-get install containerd",
    "etcd": "apt-get install etcd-server",
    "ip": "apt-get install iproute2",
    "iptables": "apt-get install iptables",
    "nft": "apt-get install nftables",
    "nsenter": "apt-get install util-linux",
    "podman": "apt-get install podman",
    "runc": "apt-get install runc",
    "unshare": "apt-get install util-linux",
}
_CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")


def is_root() -> bool:
    return os.geteuid() == 0


def refuse_root(reason: str) -> None:
    """Note why root may not make namespaces here, "" when it may."""
    os.environ[_REFUSED] = reason


def root() -> None:
    """Skip unless this process may make network namespaces."""
    if not is_root():
        pytest.skip("needs root, to make network namespaces: run as root")
    if os.environ.get(_REFUSED):
        pytest.skip(f"may not make namespaces, CAP_SYS_ADMIN is missing: {os.environ[_REFUSED]}")
    for name in ("ip", "nsenter", "unshare"):
        program(name)


def find_program(name: str) -> str | None:
    """The path of a program: $<NAME> (CNITOOL, PODMAN, ...) before PATH and the sbin folders."""
    chosen = os.environ.get(name.upper().replace("-", "_"))
    if chosen and os.access(chosen, os.X_OK):
        return os.path.abspath(chosen)
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    return shutil.which(name, path=path)


def program(name: str) -> str:
    """The path of a program, or skip."""
    found = find_program(name)
    if found is None:
        pytest.skip(f"{name} is missing: {_HINTS.get(name, 'install it')}")
    return found


def programs(*names: str) -> None:
    for name in names:
        program(name)


def go_plugins(*names: str) -> str:
    """The folder of the Go reference plugins that holds all of `names`, or skip."""
    for folder in _CNI_FOLDERS:
        if all(os.access(os.path.join(folder, name), os.X_OK) for name in names):
            return folder
    pytest.skip(
        f"the Go reference plugins {', '.join(names)} are in none of {', '.join(_CNI_FOLDERS)}:"
        " apt-get install containernetworking-plugins"
    )


def newer() -> str:
    """The folder that newer-components.sh unpacked containerd 2 and new plugins into, or skip."""
    folder = os.environ.get("PODWIRE_NEWER", "")
    if not os.access(os.path.join(folder, "usr/bin/containerd"), os.X_OK):
        pytest.skip(
            "containerd 2 is missing: set PODWIRE_NEWER to the folder that"
            " tests/support/newer-components.sh filled"
        )
    return folder


def modules(*names: str) -> None:
    """Skip unless these Python packages can be imported."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the Python packages {', '.join(missing)} are missing: pip install .[test]")
