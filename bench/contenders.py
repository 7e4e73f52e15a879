"""Who is compared, and the calls that they get: the same configuration but for the type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.measure import Call

PODWIRE, PEER, PEER_IPAM = "podwire", "Go bridge + host-local", "Go host-local"
DEFAULT_PEER_PATH = "/usr/lib/cni"
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RANGES = {4: "10.244.0.0/16", 6: "fd00:10:244::/64"}


class Contender(NamedTuple):
    """One side of a comparison. `type` is the plugin's name in a configuration, `cni_path` where
    its delegates are."""

    name: str
    executable: str
    type: str
    cni_path: str

    def call(self, command: str, config: dict[str, Any], container: str, netns: str) -> Call:
        """A call of this plugin as a runtime makes it."""
        environ = {
            "PATH": _SEARCH,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.cni_path,
        }
        return Call(self.executable, environ, {**config, "type": self.type})

    def version(self) -> Call:
        environ = {"PATH": _SEARCH, "CNI_COMMAND": "VERSION"}
        return Call(self.executable, environ, {"cniVersion": "1.0.0"})


def podwire() -> Contender:
    """The console script beside this Python, or $PODWIRE_BIN.

    Raises FileNotFoundError when it is not installed.
    """
    beside = os.path.join(os.path.dirname(sys.executable), "podwire")
    path = os.path.abspath(os.environ.get("PODWIRE_BIN") or beside)
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(f"{path}: podwire is not installed (pip install -e .)")
    return Contender(PODWIRE, path, "podwire", os.path.dirname(path))


def peer_path() -> str:
    return os.environ.get("CNI_PEER_PATH") or DEFAULT_PEER_PATH


def peer() -> Contender | None:
    """The Go bridge, which executes the Go host-local; None when either is missing."""
    if peer_ipam() is None:
        return None
    return _peer(PEER, "bridge")


def peer_ipam() -> Contender | None:
    return _peer(PEER_IPAM, "host-local")


def _peer(name: str, plugin: str) -> Contender | None:
    folder = peer_path()
    path = os.path.join(folder, plugin)
    return Contender(name, path, plugin, folder) if os.access(path, os.X_OK) else None


def missing_peer() -> str:
    return (
        f"The Go plugins bridge and host-local are not in {peer_path()}: only podwire was measured."
        " Install Debian's package containernetworking-plugins, or set CNI_PEER_PATH."
    )


def describe(contender: Contender) -> str:
    """Which version this is, as far as it or the package system tells."""
    said = subprocess.run(
        [contender.executable], env={}, capture_output=True, text=True, check=False
    ).stderr.strip()
    about = said.splitlines()[0] if said else contender.type
    package = _package(contender.executable)
    return f"{about} ({package})" if package else about


def _package(path: str) -> str:
    """ "containernetworking-plugins 1.1.1+ds1-3" for a file of a Debian package, else ""."""
    if not shutil.which("dpkg-query"):
        return ""
    owner = _said("dpkg-query", "--search", os.path.realpath(path)).partition(": ")[0]
    if not owner:
        return ""
    return f"{owner} {_said('dpkg-query', '--show', '--showformat=${Version}', owner)}"


def _said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def bridge_config(data_dir: str, families: Sequence[int]) -> dict[str, Any]:
    """A bridge with a gateway, no masquerade, one range for each family."""
    return {
        "cniVersion": "1.0.0",
        "name": "bench",
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": data_dir,
            "ranges": [[{"subnet": _RANGES[family]}] for family in families],
        },
    }
