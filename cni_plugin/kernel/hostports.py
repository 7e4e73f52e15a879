"""Host ports in the kernel: elements of the maps that `kernel.firewall` keeps.

Order, and why:
1. The record, before anything that it tells of: who was killed is cleaned up after by it.
2. The elements, all in one transaction, which the kernel refuses when one is there.
3. The UDP flows that were decided before: now each packet of theirs meets the elements.
A DEL goes the same way back. Nothing of it needs the pod's namespace, or a prevResult. In the
transaction that removes its elements the container's other attachments get what they waited for.

Everything but 3 happens under the lock of the records, so that with it in hand the records tell
what the maps hold: an element that no record explains was made by somebody else.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from cni_plugin import ruleset
from cni_plugin.hostports import HostPort, PortRecord
from cni_plugin.kernel import nftsets
from cni_plugin.kernel.localnet import Localnet
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftsets import Element
from cni_plugin.kernel.portelements import MAPS, Entry, additions, described, entries_of, removals
from cni_plugin.kernel.portrecords import BrokenRecordError, PortRecords
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.kernel.sysctl import Sysctls
from cni_plugin.spec import Attachment, CniError, Code

_VERSIONS = (4, 6)
_TRIES = 3


class HostPorts:
    """The host ports of the current network namespace; one thread uses it.

    `transact` sends a transaction: `Firewall.transaction`, which then knows that the ruleset has
    changed through us; the socket's own when there is none.
    """

    def __init__(
        self,
        netfilter: NetfilterSocket,
        route_socket: RouteSocket,
        folder: StateFolder,
        sysctls: Sysctls,
        transact: Callable[[Sequence[Message]], None] | None = None,
    ) -> None:
        self._netfilter = netfilter
        self._route_socket = route_socket
        self._records = PortRecords(folder)
        self._localnet = Localnet(self._records, sysctls)
        self._transact = transact or netfilter.transaction

    # --- ADD and DEL --------------------------------------------------------------------------

    def open(self, record: PortRecord, undo: ExitStack) -> None:
        """Let the ports lead to the pod. What an earlier try for this attachment left is replaced.

        One that another attachment of the same container has stays with that one until it goes.
        Raises CniError 103, and opens none, when another container holds one of them; 104 when the
        kernel refuses, 5 and 11 for the records.
        """
        if not record.ports:
            return
        name = record.name
        with self._records.locked():
            former = self._record(name)
            handed = self._close(name, former) if former is not None else ()
            for port in record.ports:
                self._refuse_held(port, record)
            undo.callback(self.close, name)
            self._records.write(record)
            self._localnet.let(name, record.localnet)
            leading = self._records.leading(record)
            self._insert(leading)
        _forget_opened(self._route_socket, (*leading.ports, *handed))
        if former is not None:
            _forget_closed(self._route_socket, former.ports)

    def close(self, name: str) -> None:
        """Take away the host ports of the attachment with this host veth; no-op when it has none.

        The record alone tells what to remove; an element that is gone is no error. Raises CniError
        104 when the kernel refuses, 5 and 11 for the records.
        """
        if not self._records.has(name):  # as with most pods: no lock for that
            return
        with self._records.locked():
            record = self._record(name)
            handed = self._close(name, record) if record is not None else ()
        if record is not None:
            _forget_closed(self._route_socket, record.ports)
            _forget_opened(self._route_socket, handed)

    def _record(self, name: str) -> PortRecord | None:
        """The record; a broken one goes, and with it whatever elements no other record explains."""
        try:
            return self._records.read(name)
        except BrokenRecordError:
            self._discard([name])
            return None

    def _discard(self, names: Sequence[str]) -> None:
        for name in names:
            self._records.discard(name)
        self._restore()
        self._localnet.settle()

    def _close(self, name: str, record: PortRecord) -> tuple[HostPort, ...]:
        """What of its ports leads to other attachments of the same container from now on."""
        handed = self._withdraw(record)
        unneeded = self._localnet.end(name, record.localnet)
        self._records.remove(name, record)
        if unneeded:
            self._records.forget_link(record.localnet)
        return handed

    def _refuse_held(self, port: HostPort, record: PortRecord) -> None:
        for holder in self._records.holders(port):
            for other in () if holder.beside(record) else holder.ports:
                if port.clashes(other):
                    raise _held(port, f"{holder.holder} (as {other.where})")

    def _insert(self, record: PortRecord) -> None:
        """Add the elements; leftovers of the same attachment, without a record, are replaced."""
        entries = list(entries_of(record))
        try:
            self._transact(additions(entries))
        except KernelError as e:
            if e.errno != errnos.EEXIST:
                raise
            present = self._present(entries)
            for entry, found in zip(entries, present, strict=True):
                if found is not None and not entry.shared and found.comment != record.comment:
                    whose = found.comment or "somebody who left no name"
                    raise _held(entry.port, f"{whose}, of which podwire has no record") from e
            left = removals([own for own, found in zip(entries, present, strict=True) if found])
            self._transact([*left, *additions(entries)])

    def _withdraw(self, record: PortRecord) -> tuple[HostPort, ...]:
        """Remove those elements that are there and the record's; the ports that were handed on."""
        for _ in range(_TRIES):
            mine = self._own(record)
            heirs = self._heirs(record, mine)
            try:
                self._transact([*removals(mine), *additions(heirs)])
            except KernelError as e:
                if e.errno not in (errnos.ENOENT, errnos.EEXIST):
                    raise
                continue  # somebody else removed or added one since we looked
            return tuple(entry.port for entry in heirs if not entry.shared)
        raise KernelError(errnos.EAGAIN, "remove host ports", "somebody else changes them as well")

    def _own(self, record: PortRecord) -> list[Entry]:
        entries = list(entries_of(record))
        return [
            entry
            for entry, found in zip(entries, self._present(entries), strict=True)
            if found is not None
            and (found.comment == record.comment or entry.shared)
            and not (entry.shared and self._shares(entry.port, record))
        ]

    def _heirs(self, record: PortRecord, mine: Sequence[Entry]) -> list[Entry]:
        """What other attachments of the container get when these elements of the record go."""
        freed = [entry.port for entry in mine if not entry.shared]
        entries = [
            entry
            for other in self._records.beside(record)
            for entry in entries_of(self._records.leading(other, without=record.name))
            if any(port.covers(entry.port) for port in freed)
        ]
        keys = {(entry.version, entry.where, entry.element.key) for entry in mine}
        return [
            entry
            for entry, found in zip(entries, self._present(entries), strict=True)
            if found is None or (entry.version, entry.where, entry.element.key) in keys
        ]

    def _shares(self, port: HostPort, record: PortRecord) -> bool:
        """Whether another record needs the same element of a set."""
        return any(
            (port.version, port.host_port, port.protocol)
            == (other.version, other.host_port, other.protocol)
            for holder in self._records.holders(port)
            if not holder.snat and holder.name != record.name
            for other in self._records.leading(holder, without=record.name).ports
        )

    def _present(self, entries: Sequence[Entry]) -> list[Element | None]:
        """What the kernel has under the same keys; None for what it has not."""
        answers = self._netfilter.batch(
            [
                nftsets.get_element(entry.version, ruleset.TABLE, entry.where, entry.element.key)
                for entry in entries
            ]
        )
        found = [nftsets.decode_elements([answer]) if answer else [] for answer in answers]
        return [elements[0] if elements else None for elements in found]

    # --- CHECK, GC, upkeep ------------------------------------------------------------------------

    def check(self, record: PortRecord) -> list[str]:
        """What is not as an ADD left it, in words."""
        if not record.ports:
            return []
        found = []
        if self._records.sound(record.name) != record:
            found.append("host ports: the node has no record of them, or another")
        entries = list(entries_of(self._records.leading(record)))
        for entry, present in zip(entries, self._present(entries), strict=True):
            if present is None:
                found.append(f"host port {entry.port.where}: its element of {entry.where} is gone")
            elif not entry.shared and present != entry.element:
                found.append(f"host port {entry.port.where}: leads to {described(present)}")
        if problem := self._localnet.problem(record.localnet):
            found.append(problem)
        return found

    def strays(self, network: str, valid: frozenset[Attachment]) -> dict[str, Attachment]:
        """The network's attachments with host ports that are not valid, by host veth name."""
        return {
            name: record.attachment
            for name, record in self._records.everything().items()
            if record.network == network and record.attachment not in valid
        }

    def collect(self, network: str, valid: frozenset[Attachment]) -> None:
        """For GC: remove what no record tells of.

        These are broken records, whosever they were, and elements that by their comments are of
        this network's attachments, when these are not valid and have no record.
        """
        if not (self._records.broken() or self._lost(network, valid)):
            return
        with self._records.locked():
            if broken := self._records.broken():
                self._discard(broken)
            ports = self._remove_lost(network, valid)
        _forget_closed(self._route_socket, ports)

    def _remove_lost(self, network: str, valid: frozenset[Attachment]) -> tuple[HostPort, ...]:
        for _ in range(_TRIES):
            gone = self._lost(network, valid)
            try:
                self._transact(removals(gone))
            except KernelError as e:
                if e.errno != errnos.ENOENT:
                    raise
                continue
            return tuple(entry.port for entry in gone if not entry.shared)
        raise KernelError(errnos.EAGAIN, "remove host ports", "somebody else changes them as well")

    def _lost(self, network: str, valid: frozenset[Attachment]) -> list[Entry]:
        from cni_plugin.kernel import lostports  # only a GC needs it

        return lostports.find(self._netfilter, self._records, network, valid)

    def restore(self) -> None:
        """Make the maps hold what the records say, and nothing else: somebody emptied the ruleset.

        Where there are no maps whoever makes them fills them. Links that are gone are left out.
        """
        with self._records.locked():
            self._restore()

    def _restore(self) -> None:
        records = self._records.everything().values()
        maps = {(version, name) for version in _VERSIONS for name in self._maps(version)}
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
        for link in {record.localnet for record in records if record.localnet}:
            self._localnet.restore(link)

    def _maps(self, version: int) -> list[str]:
        """Those that are there: a family without pods needs none."""
        sets = self._netfilter.dump(nftsets.dump_sets(version, ruleset.TABLE))
        there = {entry.get_attr("NFTA_SET_NAME") for entry in sets}
        return [name for name in MAPS if name in there]

    def remove_all(self) -> None:
        """Forget every host port of the node; the maps may be gone already."""
        with self._records.locked():
            for name in self._records.everything():
                record = self._records.sound(name)  # with the ports that wait as well
                if record is not None:
                    self._close(name, record)
            self._records.clear()


def _held(port: HostPort, holder: str) -> CniError:
    return CniError(
        Code.LINK_CONFLICT,
        f"runtimeConfig.portMappings: host port {port.where} is held by {holder}",
        "delete that pod first, or give this one another hostPort or hostIP",
    )


def _forget_opened(route_socket: RouteSocket, ports: tuple[HostPort, ...]) -> None:
    if any(port.protocol == "udp" for port in ports):
        from cni_plugin.kernel import conntrack  # its messages take 2 ms to load

        conntrack.forget_opened(route_socket, ports)


def _forget_closed(route_socket: RouteSocket, ports: tuple[HostPort, ...]) -> None:
    if any(port.protocol == "udp" for port in ports):
        from cni_plugin.kernel import conntrack

        conntrack.forget_closed(route_socket, ports)
