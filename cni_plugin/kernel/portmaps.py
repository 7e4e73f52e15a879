"""The maps of host ports as the kernel has them: looking into them, and changing them.

A change is one transaction, which the kernel refuses as a whole when an element to be added is
there, or one to be removed is not. What the elements mean is the matter of `portelements`, and who
may have which of `hostports`.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable, Collection, Sequence

from cni_plugin import ruleset
from cni_plugin.hostports import HostPort, PortRecord
from cni_plugin.kernel import nftsets
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftsets import Element
from cni_plugin.kernel.portelements import MAPS, Entry, additions, entries_of, removals
from cni_plugin.spec import CniError, Code

_VERSIONS = (4, 6)
_TRIES = 3

Change = tuple[Sequence[Entry], Sequence[Entry]]
"""The elements to remove, and those to add."""


class PortMaps:
    """The maps of the current network namespace; `transact` sends a transaction, as the socket's
    own does."""

    def __init__(
        self,
        netfilter: NetfilterSocket,
        transact: Callable[[Sequence[Message]], None] | None = None,
    ) -> None:
        self._netfilter = netfilter
        self._transact = transact or netfilter.transaction

    def present(self, entries: Sequence[Entry]) -> list[Element | None]:
        """What the kernel has under the same keys; None for what it has not."""
        answers = self._netfilter.batch(
            [
                nftsets.get_element(entry.version, ruleset.TABLE, entry.where, entry.element.key)
                for entry in entries
            ]
        )
        found = [nftsets.decode_elements([answer]) if answer else [] for answer in answers]
        return [elements[0] if elements else None for elements in found]

    def insert(self, record: PortRecord) -> None:
        """Add the elements; leftovers of the same attachment, without a record, are replaced.

        Raises CniError 103 when one is there that is somebody else's.
        """
        entries = list(entries_of(record))
        try:
            self._transact(additions(entries))
        except KernelError as e:
            if e.errno != errnos.EEXIST:
                raise
            present = self.present(entries)
            for entry, found in zip(entries, present, strict=True):
                if found is not None and not entry.shared and found.comment != record.comment:
                    whose = found.comment or "somebody who left no name"
                    raise held(entry.port, f"{whose}, of which podwire has no record") from e
            left = removals([own for own, found in zip(entries, present, strict=True) if found])
            self._transact([*left, *additions(entries)])

    def change(self, look: Callable[[], Change]) -> Change:
        """Make the change that `look` finds to be due, and say which it was.

        It looks again when somebody else has removed or added one of the elements since.
        """
        for _ in range(_TRIES):
            gone, new = look()
            try:
                self._transact([*removals(gone), *additions(new)])
            except KernelError as e:
                if e.errno not in (errnos.ENOENT, errnos.EEXIST):
                    raise
                continue
            return gone, new
        raise KernelError(errnos.EAGAIN, "remove host ports", "somebody else changes them as well")

    def refill(self, records: Collection[PortRecord]) -> None:
        """Let the maps that are there hold what these records say, and nothing else."""
        maps = {(version, name) for version in _VERSIONS for name in self._names(version)}
        emptied = [
            nftsets.flush_elements(version, ruleset.TABLE, name) for version, name in sorted(maps)
        ]
        entries = [
            entry
            for record in records
            for entry in entries_of(record)
            if (entry.version, entry.where) in maps
        ]
        self._transact([*emptied, *additions(entries)])

    def _names(self, version: int) -> list[str]:
        """Those that are there: a family without pods needs none."""
        sets = self._netfilter.dump(nftsets.dump_sets(version, ruleset.TABLE))
        there = {entry.get_attr("NFTA_SET_NAME") for entry in sets}
        return [name for name in MAPS if name in there]


def held(port: HostPort, holder: str) -> CniError:
    """The error for a host port that somebody else has."""
    return CniError(
        Code.LINK_CONFLICT,
        f"runtimeConfig.portMappings: host port {port.where} is held by {holder}",
        "delete that pod first, or give this one another hostPort or hostIP",
    )
