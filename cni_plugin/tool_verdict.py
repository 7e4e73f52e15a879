"""Whether an ADD would be served: what the plugin's own STATUS says, for configurations that can't
ask for STATUS as well.

STATUS came with CNI 1.1.0, and most configurations are older. podwire's own part is asked in 1.1.0
all the same. Another IPAM plugin is asked only if it speaks 1.1.0, by its VERSION; of one that does
not, no more can be known than that it is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from json import loads

from cni_plugin import cluster, commands, netconf
from cni_plugin.kernel import bridge, privileges
from cni_plugin.leases import IN_PROCESS
from cni_plugin.node import Node, cluster_of
from cni_plugin.spec import CURRENT_VERSION, CniError, Code, Request
from cni_plugin.tool_conf import Plugin

_TIMEOUT_S = 10.0


def verdict(plugin: Plugin, version: str, cni_path: str) -> CniError | None:
    """Why an ADD would not be served, None when it would; `version` is the one runtimes use."""
    node = Node({**_environ(), "CNI_COMMAND": "STATUS", "CNI_PATH": cni_path})
    try:
        _ask(plugin.request(cni_path), version, node)
    except CniError as e:
        return e
    finally:
        node.close()
    return None


def _ask(request: Request, version: str, node: Node) -> None:
    kind = netconf.ipam_type(request.conf)
    if kind in ("", *IN_PROCESS):
        commands.run(request._replace(version=version), node)
        return
    executable = shutil.which(kind, path=":".join(request.path))
    spoken = _versions(executable, node.environ) if executable else (version, CURRENT_VERSION)
    if spoken and version not in spoken:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"ipam.type: {kind} does not speak cniVersion {version}, but {', '.join(spoken)}",
            "install a newer one, or take this version out of cniVersion and cniVersions",
        )
    if CURRENT_VERSION in spoken:
        commands.run(request, node)  # which forwards it, or says that the executable is missing
    else:
        _ask_podwire_alone(request, node)


def _versions(executable: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the plugin's VERSION lists; () when it has no answer."""
    try:
        done = subprocess.run(
            [executable],
            input=b'{"cniVersion": "1.0.0"}',
            capture_output=True,
            env={**environ, "CNI_COMMAND": "VERSION"},
            timeout=_TIMEOUT_S,
            check=False,
        )
        spoken = loads(done.stdout)["supportedVersions"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return ()
    listed = spoken if isinstance(spoken, list) else []
    return tuple(version for version in listed if isinstance(version, str))


def _ask_podwire_alone(request: Request, node: Node) -> None:
    """What STATUS looks at, but for the addresses."""
    conf = netconf.parse(request)
    privileges.require()
    nodes = cluster_of(conf, node)
    if conf.mode == "bridge":
        bridge.refuse_unusable(node.route_socket, conf.bridge, ())
    if nodes:
        cluster.refuse_obstructed(nodes, node.route_socket, patient=bool(conf.mtu))


def _environ() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
