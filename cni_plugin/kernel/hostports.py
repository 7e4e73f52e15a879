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

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from cni_plugin.hostports import HostPort, PortRecord
from cni_plugin.kernel.localnet import Localnet
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.portelements import Entry, described, entries_of
from cni_plugin.kernel.portmaps import Change, PortMaps, held
from cni_plugin.kernel.portrecords import BrokenRecordError, PortRecords
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.kernel.sysctl import Sysctls
from cni_plugin.spec import Attachment


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
        self._maps = PortMaps(netfilter, transact)

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
            self._maps.insert(leading)
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

    def close_lost(self, attachment: PortRecord) -> None:
        """The same for one without a record, where records may be lost: somebody emptied their
        folder. `attachment` needs no ports.

        When nobody else's elements are without a record, that is noted (`portlock.WHOLE`), and no
        DEL has to look again. Raises CniError 104 when the kernel refuses to remove them.
        """
        from cni_plugin.kernel import lostports

        def look() -> list[Entry]:
            lost = lostports.find(self._netfilter, self._records)
            return lostports.of_attachment(lost, attachment)

        try:
            lost = lostports.of_any(lostports.find(self._netfilter, self._records))
        except KernelError:  # without nftables there are no elements
            return
        mine = lostports.of_attachment(lost, attachment)
        if mine:
            with self._records.locked():
                ports = self._remove_lost(look)
            _forget_closed(self._route_socket, ports)
        if len(mine) == len(lost):
            self._records.note_whole()

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
                    raise held(port, f"{holder.holder} (as {other.where})")

    def _withdraw(self, record: PortRecord) -> tuple[HostPort, ...]:
        """Remove those elements that are there and the record's; the ports that were handed on."""

        def look() -> Change:
            mine = self._own(record)
            return mine, self._heirs(record, mine)

        _, heirs = self._maps.change(look)
        return tuple(entry.port for entry in heirs if not entry.shared)

    def _own(self, record: PortRecord) -> list[Entry]:
        entries = list(entries_of(record))
        return [
            entry
            for entry, found in zip(entries, self._maps.present(entries), strict=True)
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
            for entry, found in zip(entries, self._maps.present(entries), strict=True)
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

    # --- CHECK, GC, upkeep ------------------------------------------------------------------------

    def check(self, record: PortRecord) -> list[str]:
        """What is not as an ADD left it, in words."""
        if not record.ports:
            return []
        found = []
        if self._records.sound(record.name) != record:
            found.append("host ports: the node has no record of them, or another")
        entries = list(entries_of(self._records.leading(record)))
        for entry, present in zip(entries, self._maps.present(entries), strict=True):
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
            ports = self._remove_lost(lambda: self._lost(network, valid))
        _forget_closed(self._route_socket, ports)

    def _lost(self, network: str, valid: frozenset[Attachment]) -> list[Entry]:
        from cni_plugin.kernel import lostports  # hardly a call needs it

        return lostports.of_network(lostports.find(self._netfilter, self._records), network, valid)

    def _remove_lost(self, look: Callable[[], list[Entry]]) -> tuple[HostPort, ...]:
        gone, _ = self._maps.change(lambda: (look(), ()))
        return tuple(entry.port for entry in gone if not entry.shared)

    def restore(self) -> None:
        """Make the maps hold what the records say, and nothing else: somebody emptied the ruleset.

        Where there are no maps whoever makes them fills them. Links that are gone are left out.
        """
        with self._records.locked():
            self._restore()

    def _restore(self) -> None:
        records = self._records.everything().values()
        self._maps.refill(records)
        for link in {record.localnet for record in records if record.localnet}:
            self._localnet.restore(link)

    def remove_all(self) -> None:
        """Forget every host port of the node; the maps may be gone already."""
        with self._records.locked():
            for name in self._records.everything():
                record = self._records.sound(name)  # with the ports that wait as well
                if record is not None:
                    self._close(name, record)
            self._records.clear()


def _forget_opened(route_socket: RouteSocket, ports: tuple[HostPort, ...]) -> None:
    if any(port.protocol == "udp" for port in ports):
        from cni_plugin.kernel import conntrack  # its messages take 2 ms to load

        conntrack.forget_opened(route_socket, ports)


def _forget_closed(route_socket: RouteSocket, ports: tuple[HostPort, ...]) -> None:
    if any(port.protocol == "udp" for port in ports):
        from cni_plugin.kernel import conntrack

        conntrack.forget_closed(route_socket, ports)
