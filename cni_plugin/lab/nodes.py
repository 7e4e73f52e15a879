"""The lab itself: a switch, nodes on it, sandboxes for pods.

Nothing is remembered outside of what exists: the namespaces tell by their names which nodes and
pods there are, and what the kernel holds in them tells the rest. So a lab that was interrupted at
any moment can be looked at, and taken down.

    /run/netns/podwire-<lab>-switch           a bridge, the network between the nodes
    /run/netns/podwire-<lab>-node-1           a node: eth0 on the switch
    /run/netns/podwire-<lab>-node-1-pod-2     a pod's sandbox
    /run/podwire-lab/<lab>/node-1.conf        the node's network configuration
    /run/podwire-lab/<lab>/nodes.json         the inventory
    /run/podwire-lab/<lab>/node-1/            the node's address directories
    /run/podwire-lab/<lab>/lock               flock(2)ed while a demo is running
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from ipaddress import ip_interface
from typing import NamedTuple

from cni_plugin.lab import cables, plan, spaces
from cni_plugin.lab.plan import Node
from cni_plugin.spec import CniError, Code

STATE = "/run/podwire-lab"
DEFAULT = "lab"
DEMO = "demo-"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class Member(NamedTuple):
    """A namespace of the lab: "switch", "node-1" or "node-1/pod-2"."""

    name: str
    netns: str

    @property
    def node(self) -> str:
        return self.name.partition("/")[0]


class LabIsUpError(CniError):
    """The name is taken: what exists is somebody else's, and not to be removed."""


class Lab:
    """A lab by its name; whether it exists is `exists`."""

    def __init__(self, name: str = DEFAULT) -> None:
        if not _NAME.fullmatch(name):
            raise CniError(
                Code.INVALID_CONFIG,
                f"lab name {name!r}: expected lower-case letters, digits and '-'",
            )
        self.name = name
        self.folder = f"{STATE}/{name}"
        self._lock = -1

    @property
    def title(self) -> str:
        """The lab in a sentence."""
        return "the lab" if self.name == DEFAULT else f"lab {self.name}"

    @property
    def option(self) -> str:
        """What names the lab in a command, with a space in front; "" for the default one."""
        return "" if self.name == DEFAULT else f" --name {self.name}"

    # --- looking ---

    def netns(self, member: str) -> str:
        """The namespace's name for "switch", "node-1" or "node-1/pod-2"."""
        return f"podwire-{self.name}-{member.replace('/', '-')}"

    def exists(self) -> bool:
        return os.path.isdir(self.folder) or bool(self.members())

    def members(self) -> list[Member]:
        """Every namespace of the lab, each node followed by its pods, the switch last."""
        pattern = re.compile(
            rf"podwire-{re.escape(self.name)}-(?:(switch)|node-(\d+)(?:-pod-(\d+))?)"
        )
        found = []
        for name in spaces.names():
            match = pattern.fullmatch(name)
            if match is None:
                continue
            switch, number, pod = match.groups()
            if switch:
                found.append(((10**9, 0), Member("switch", name)))
                continue
            label = f"node-{number}" + (f"/pod-{pod}" if pod else "")
            found.append(((int(number), int(pod or 0)), Member(label, name)))
        return [member for _, member in sorted(found)]

    def member(self, name: str) -> Member:
        """The member of this name. Raises CniError 7 that lists what there is."""
        members = self.members()
        for found in members:
            if found.name == name:
                return found
        if not members:
            raise self.down()
        raise CniError(
            Code.INVALID_CONFIG,
            f"{self.title} has no {name}",
            f"it has {', '.join(member.name for member in members)}",
        )

    def down(self) -> CniError:
        """The error for a lab that is not there."""
        return CniError(
            Code.INVALID_CONFIG, f"{self.title} is not up", f"podwire lab up{self.option}"
        )

    def _up(self) -> LabIsUpError:
        return LabIsUpError(
            Code.INVALID_CONFIG,
            f"{self.title} is up already",
            f"podwire lab down{self.option}, or another --name for a second one",
        )

    # --- making ---

    def create(self) -> None:
        """The folder and the switch. Raises CniError 7 when the lab is up."""
        if self.members():
            raise self._up()
        with _state():
            try:
                os.mkdir(self.folder, mode=0o755)
            except FileExistsError:
                raise self._up() from None
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._lock = os.open(f"{self.folder}/lock", flags, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        spaces.make(self.netns("switch"))
        cables.make_switch(self.netns("switch"))

    def add_node(self, new: Node) -> None:
        """A namespace with eth0 on the switch and the node's addresses on it."""
        netns = self.netns(new.name)
        spaces.make(netns)
        addresses = [ip_interface(address) for address in new.addresses]
        cables.plug_in(self.netns("switch"), netns, new.number, addresses)
        os.makedirs(f"{self.folder}/{new.name}", exist_ok=True)

    def add_sandbox(self, node_name: str, pod: str) -> str:
        """An empty namespace, as a runtime makes one for a pod; its path."""
        netns = self.netns(f"{node_name}/{pod}")
        spaces.make(netns)
        return spaces.path_of(netns)

    def remove_sandbox(self, node_name: str, pod: str) -> None:
        spaces.remove(self.netns(f"{node_name}/{pod}"))

    def conf_path(self, node_name: str) -> str:
        return f"{self.folder}/{node_name}.conf"

    @property
    def inventory_path(self) -> str:
        return f"{self.folder}/nodes.json"

    def write_inventory(self, nodes: Sequence[Node]) -> list[str]:
        """The inventory of these nodes; its lines."""
        return self._write(self.inventory_path, plan.inventory(nodes))

    def write_conf(self, own: Node, mode: str, with_inventory: bool) -> list[str]:
        """The node's configuration, by the inventory or with ranges of its own; its lines."""
        path = self.inventory_path if with_inventory else ""
        return self._write(
            self.conf_path(own.name),
            plan.configuration(own, mode, data_dir=self.data_dir(own.name), inventory=path),
        )

    def data_dir(self, node_name: str) -> str:
        return f"{self.folder}/{node_name}"

    def _write(self, path: str, lines: list[str]) -> list[str]:
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(path + ".new", path)
        return lines

    def release_lock(self) -> None:
        """From now on anybody may sweep the lab."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- removing ---

    def remove(self) -> int:
        """Take away all of it; how many namespaces there were. No-op when nothing is there."""
        members = self.members()
        with contextlib.ExitStack() as stack:  # a failure does not keep the rest from going
            stack.callback(self.release_lock)
            stack.callback(self._remove_folder)
            for found in members:
                stack.callback(spaces.remove, found.netns)
        return len(members)

    def _remove_folder(self) -> None:
        if os.path.isdir(self.folder):
            with _state():
                shutil.rmtree(self.folder, ignore_errors=True)


# --- all labs ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _state() -> Iterator[None]:
    """The folder of all labs, there and locked; it goes afterwards if it is empty.

    Who begins a demo holds this until the demo's own lock is taken, so nobody sweeps it away.
    """
    while True:
        os.makedirs(STATE, mode=0o700, exist_ok=True)  # or anybody could open it, and lock it
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(STATE), os.fstat(fd)):
                    break
            os.close(fd)  # somebody removed it meanwhile
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(STATE)
        os.close(fd)


def labs() -> list[str]:
    """The names of all labs that are up, as far as their folders tell."""
    with contextlib.suppress(OSError):
        return sorted(os.listdir(STATE))
    return []


def sweep_demos() -> None:
    """Remove what demos left that were killed: nobody holds their lock any more."""
    if not os.path.isdir(STATE):
        return
    with _state():
        dead = [name for name in os.listdir(STATE) if name.startswith(DEMO) and _unlocked(name)]
    for name in dead:
        Lab(name).remove()


def _unlocked(name: str) -> bool:
    try:
        fd = os.open(f"{STATE}/{name}/lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)
