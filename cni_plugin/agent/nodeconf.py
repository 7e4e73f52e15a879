"""A node's network configuration, whose presence tells the runtime that pods can come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from json import dumps, loads
from logging import Logger
from typing import NamedTuple

from cni_plugin import confdir, conflists, pluginfiles, skel
from cni_plugin.agent.templates import Shared, Template
from cni_plugin.fabric import Memory
from cni_plugin.fields import invalid
from cni_plugin.inspection import status
from cni_plugin.node import Node as Caller
from cni_plugin.spec import SUPPORTED_VERSIONS, CniError, Code, IPNetwork, Request


class Place(NamedTuple):
    """Where a node keeps what it is told: its name in the cluster, the inventory's path, the folder
    of the runtime's network configurations, the configuration that all nodes share, what tells
    of the cluster, by a name and as a network of one address (no pod may have that), and where the
    runtime finds plugins."""

    name: str
    inventory: str
    conf_dir: str
    template: Template
    servers: tuple[tuple[str, IPNetwork], ...] = ()
    bin_dir: str = pluginfiles.FOLDER


class NodeConf:
    """What is made of the shared configuration for this node; one thread uses it."""

    def __init__(self, place: Place, memory: Memory, logger: Logger) -> None:
        self._place = place
        self._memory = memory
        self._logger = logger
        self.path = os.path.join(place.conf_dir, conflists.NAME)
        self._written = 0
        self.unplaced = ""  # why the file is not what it is to be, while the one before serves

    @property
    def is_placed(self) -> bool:
        """Whether there is a file, so that the runtime goes by it. Raises CniError 5."""
        return conflists.held(self.path) is not None

    def stamps(self) -> object:
        """What changes when somebody else changes the runtime's configurations, and with each file
        that is written here: it may be gone again before it was seen."""
        return self._written, confdir.stamps(self._place.conf_dir)

    def request(self, shared: Shared, subnets: tuple[IPNetwork, ...]) -> Request:
        """The plugin's STATUS. Raises CniError 7 for what is wrong in the list around it."""
        return _request(self._render(shared, subnets, 0))

    def write(self, shared: Shared, subnets: tuple[IPNetwork, ...], mtu: int) -> None:
        """Write the file when a pod could be served by it; `mtu` (bytes, 0 for none) is for new
        pods. Raises CniError."""
        text = self._render(shared, subnets, mtu)
        self._ask(text)
        self.unplaced = ""
        try:
            written = conflists.place(self._place.conf_dir, text)
        except CniError as e:
            former = conflists.held(self.path)
            if former is None or not conflists.is_marked(former):
                raise
            self._ask(former)
            self.unplaced = e.msg
            return
        if written:
            self._written += 1
            fields = {"folder": self._place.conf_dir, "mtu": mtu}
            fields["subnets"] = " ".join(map(str, subnets))
            self._logger.info("network configuration written", extra={"fields": fields})

    def doubts(self, shared: Shared) -> Iterator[str]:
        """What may keep the runtime from using it. Raises CniError 5 for a folder that can't be
        read."""
        stopping = confdir.stopping(self._place.conf_dir)
        if stopping is not None:
            what = f"{stopping.path} sorts first and can't be used: {stopping.problem}"
            yield f"{what}; containerd stops there and has no network: correct or remove that file"
        used = confdir.in_use(self._place.conf_dir)
        if used is not None and used.path != self.path:
            what = f"the runtime uses {used.path}"
            if used.is_multus:
                yield f"{what}: podwire's is the pods' network as far as Multus delegates to it"
            else:
                yield f"{what}, which sorts before {conflists.NAME}; remove that file"
        types = [each["type"] for each in loads(self._render(shared, (), 0))["plugins"]]
        for missing in pluginfiles.missing(types, [self._place.bin_dir]):
            yield f"there is no plugin {missing} in {self._place.bin_dir}, and pods need it"

    def _render(self, shared: Shared, subnets: tuple[IPNetwork, ...], mtu: int) -> str:
        place = self._place
        return conflists.render(shared, subnets, place.inventory, place.name, mtu)

    def _ask(self, text: str) -> None:
        """Raises the CniError of the plugin's STATUS."""
        caller = Caller(dict(os.environ), memory=self._memory)
        try:
            status(_request(text), caller)
        finally:
            caller.close()


def _request(text: str) -> Request:
    """What a runtime would ask podwire's plugin of the list `text` for STATUS.

    Raises CniError 7 for a list without podwire.
    """
    document = loads(text)
    offered = [document["cniVersion"], *document.get("cniVersions", ())]
    for version in offered:
        if version not in SUPPORTED_VERSIONS:
            raise invalid("cniVersion", version, f"expected of {', '.join(SUPPORTED_VERSIONS)}")
    for plugin in document["plugins"]:
        if plugin.get("type") == conflists.TYPE:
            conf = {**plugin, "name": document["name"], "cniVersion": "1.1.0"}
            return skel.parse_request({"CNI_COMMAND": "STATUS"}, dumps(conf).encode())
    raise CniError(
        Code.INVALID_CONFIG,
        f"plugins: none of type {conflists.TYPE}",
        "name podwire in the network configuration that the agent was given",
    )
