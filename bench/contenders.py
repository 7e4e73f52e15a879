"""Who is compared, and the calls that they get: the same configuration but for the type.

The contenders are data: a scenario takes those whose `agent` and options fit it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.measure import Call

AGENT, ALONE, WHEEL = "podwire, agent", "podwire, no agent", "podwire, wheel"
PEER, MASQUERADE, NEWER = "Go", "Go, ipMasq", "Go, newer"
AGENT_MASQUERADE, BY_HAND = "podwire, agent, ipMasq", "by hand"
CONTROL = "by hand, again"  # what a comparison of equals says
CHAIN, CHAIN_MASQUERADE = "Go chain", "Go chain, ipMasq"
PORTMAP = "Go portmap"
PODWIRE_IPAM, PEER_IPAM = "podwire's IPAM", "Go host-local"
DEFAULT_PEER_PATH = "/usr/lib/cni"
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RANGES = {4: "10.244.0.0/16", 6: "fd00:10:244::/64"}


class Contender(NamedTuple):
    """One side of a comparison.

    `type` is the plugin's name in a configuration, `cni_path` where its delegates are. `options`
    are added to the configuration, `environ` to the environment. `agent`: a resident one runs.
    """

    name: str
    executable: str
    type: str
    cni_path: str
    agent: bool = False
    options: Mapping[str, Any] = {}
    environ: Mapping[str, str] = {}

    @property
    def ours(self) -> bool:
        return self.type == "podwire"

    def at(self, socket: str, runtime: str = "") -> Contender:
        """podwire with its agent, or the absence of one, at this socket; others are as they were.

        `runtime` is where the executable unpacks itself.
        """
        if not self.ours:
            return self
        environ = {"PODWIRE_SOCKET": socket} | ({"PODWIRE_RUNTIME": runtime} if runtime else {})
        return self._replace(environ=environ)

    def call(self, command: str, config: Mapping[str, Any], container: str, netns: str) -> Call:
        """A call of this plugin as a runtime makes it."""
        environ = {
            "PATH": _SEARCH,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.cni_path,
            **self.environ,
        }
        return Call(self.executable, environ, {**config, **self.options, "type": self.type})

    def version(self) -> Call:
        environ = {"PATH": _SEARCH, "CNI_COMMAND": "VERSION", **self.environ}
        return Call(self.executable, environ, {"cniVersion": "1.0.0"})

    def status(self, config: Mapping[str, Any]) -> Call:
        environ = {
            "PATH": _SEARCH,
            "CNI_COMMAND": "STATUS",
            "CNI_PATH": self.cni_path,
            **self.environ,
        }
        content = {**config, "cniVersion": "1.1.0", **self.options, "type": self.type}
        return Call(self.executable, environ, content)


def everyone() -> list[Contender]:
    """Those that are installed; podwire always is.

    Raises FileNotFoundError when it is not.
    """
    return [*podwires(), *peers()]


def podwires() -> list[Contender]:
    """The executable with and without an agent, and the wheel's script without one.

    As long as there is no executable the script stands in for it, and `missing` says so.
    """
    script, built = _script(), executable()
    folder = os.path.dirname(built or script)
    found = [Contender(AGENT, built or script, "podwire", folder, agent=True)]
    if built:
        found.append(Contender(ALONE, built, "podwire", folder))
    return [*found, Contender(WHEEL, script, "podwire", os.path.dirname(script))]


def executable() -> str:
    """$PODWIRE_EXECUTABLE, or build/podwire; "" when there is none.

    Raises FileNotFoundError for a variable that names none.
    """
    named = os.environ.get("PODWIRE_EXECUTABLE")
    path = os.path.abspath(named or os.path.join(os.path.dirname(__file__), "../build/podwire"))
    if os.access(path, os.X_OK):
        return path
    if named:
        raise FileNotFoundError(f"PODWIRE_EXECUTABLE={named}: there is no executable")
    return ""


def _script() -> str:
    """The console script beside this Python, or $PODWIRE_BIN."""
    beside = os.path.join(os.path.dirname(sys.executable), "podwire")
    path = os.path.abspath(os.environ.get("PODWIRE_BIN") or beside)
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(f"{path}: podwire is not installed (pip install -e .)")
    return path


def peer_path() -> str:
    return os.environ.get("CNI_PEER_PATH") or DEFAULT_PEER_PATH


def peers() -> list[Contender]:
    """The Go bridge, which executes the Go host-local: plain, and with masquerading."""
    folder = peer_path()
    if peer_ipam() is None or not _installed(folder, "bridge"):
        return []
    plain = Contender(PEER, os.path.join(folder, "bridge"), "bridge", folder)
    return [plain, plain._replace(name=MASQUERADE, options={"ipMasq": True})]


def masquerading(sides: Sequence[Contender]) -> list[Contender]:
    """podwire with its agent as a side that masquerades."""
    return [
        side._replace(name=AGENT_MASQUERADE, options={**side.options, "ipMasq": True})
        for side in sides
        if side.name == AGENT
    ]


def newer() -> list[Contender]:
    """The Go bridge of the folder $PODWIRE_NEWER, which knows STATUS (1.5.0 or later)."""
    folder = os.environ.get("PODWIRE_NEWER", "")
    beneath = os.path.join(folder, "usr/lib/cni")  # as newer-components.sh unpacks them
    if folder and _installed(beneath, "bridge"):
        folder = beneath
    if not folder or not _installed(folder, "bridge"):
        return []
    return [Contender(NEWER, os.path.join(folder, "bridge"), "bridge", folder)]


def peer_ipam() -> Contender | None:
    folder = peer_path()
    if not _installed(folder, "host-local"):
        return None
    return Contender(PEER_IPAM, os.path.join(folder, "host-local"), "host-local", folder)


def _installed(folder: str, plugin: str) -> bool:
    return os.access(os.path.join(folder, plugin), os.X_OK)


def missing() -> list[str]:
    """What a reader must know about who was not there."""
    notes = []
    if not peers():
        notes.append(
            f"The Go plugins bridge and host-local are not in {peer_path()}: only podwire was"
            " measured. Install Debian's package containernetworking-plugins, or set"
            " CNI_PEER_PATH."
        )
    if not executable():
        notes.append(
            "There is no executable (`make build`): the wheel's script, which takes as long to"
            " start as Python, was the agent's client."
        )
    return notes


def describe(contender: Contender) -> str:
    """Which version this is, as far as it or the package system tells."""
    environ = dict(contender.environ)
    said = subprocess.run(
        [contender.executable], env=environ, capture_output=True, text=True, check=False
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
