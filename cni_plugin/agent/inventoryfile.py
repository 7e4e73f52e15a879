"""The inventory that an agent writes, and what is in force while it can't be written.

On a full or read-only disk the kernel still takes what the cluster says: the agent, its upkeep and
the calls that it serves go by what it would have written. Calls that are served by processes of
their own go by the file, as it was; they are served as long as it gives this node its subnets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cni_plugin.fabric import Memory, exact_stamp
from cni_plugin.spec import CniError, IPNetwork
from ipam import inventory as inventories
from ipam.inventory import Inventory, Node


class InventoryFile:
    """One thread writes it; `memory` tells the others what it says."""

    def __init__(self, path: str, memory: Memory) -> None:
        self.path = path
        self._memory = memory
        self._lines: inventories.Lines = {}
        self._failure: CniError | None = None

    @property
    def problem(self) -> str:
        """Why the file is not what it is to be; "" when it is."""
        return self._failure.msg if self._failure is not None else ""

    def read(self) -> tuple[Node, ...]:
        """The nodes in the file, () when there is none. Raises CniError 5 and 7."""
        try:
            return inventories.load(self.path).nodes
        except CniError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                return ()
            raise

    def write(self, some: Sequence[Node]) -> None:
        """Have these nodes be in force, and in the file as soon as that can be.

        Raises CniError 5 and 110 when there never was a file: no call could be served.
        """
        nodes = tuple(some)
        try:
            inventories.write(self.path, nodes, self._lines)
            self._failure = None
        except CniError as e:
            if not exact_stamp(self.path):
                raise
            self._failure = e
        now = exact_stamp(self.path), Inventory(self.path, nodes)
        is_new = self._memory.written.get(self.path) != now
        self._memory.written = {self.path: now}
        if is_new and self._failure is not None:
            self._memory.happened()  # the same file stands for something else

    def stamp(self) -> object:
        """What changes when somebody else changes the file."""
        return None if self._memory.stamp_written(self.path) else exact_stamp(self.path)

    def refuse_stale(self, name: str, subnets: Collection[IPNetwork]) -> None:
        """Raises the CniError of what could not be written when calls that go by the file would not
        be served: it gives the node `name` other subnets."""
        if self._failure is None:
            return
        try:
            own = next((node for node in self.read() if node.name == name), None)
        except CniError as e:
            raise self._failure from e
        if own is None or not set(own.pod_cidrs) >= set(subnets):
            raise self._failure
