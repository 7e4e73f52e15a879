"""The host ports of a node's pods, in files: who holds which, found in a time that does not grow.

Rules:
- A record (`hostports.PortRecord`) is the truth; its file has the name of the host veth.
- A claim is a file for one port of one protocol, which names the records that may hold it. It only
  shows where to look: a name in it without a record, or one whose record holds another port, says
  nothing. So it may be left by a process that was killed, and none is missing for a record whose
  elements are in the kernel.
- The names in a claim stand in the order in which they came. Of one container's attachments that
  want the same port the first there has it; the others' records hold it as well, for later.
- Both change under the lock alone, which is held for less than a millisecond.
- What else lies there, or is damaged, says nothing and stands in nobody's way: see `broken`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress

from cni_plugin import portrecord
from cni_plugin.hostports import HostPort, PortRecord
from cni_plugin.kernel import portlock
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.spec import CniError, Code

_NAME = 15  # characters at most in a record's name, a link's
_LOCALNET = "localnet."  # how a link's file begins
_BEFORE = "before"  # in a link's file: it carried 127.0.0.1 before any port needed it


class BrokenRecordError(CniError):
    """A file of a record that holds something else."""


class PortRecords:
    """The records and claims in a folder of their own."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock. Raises CniError: 11 when it can't be had in time, 5 for its file."""
        return portlock.held(self._folder)

    # --- records ---------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether there is a record of this name, or whatever is in its place."""
        return self._folder.has(name)

    def read(self, name: str) -> PortRecord | None:
        """The record of this name. Raises BrokenRecordError, a CniError 5."""
        try:
            data = self._folder.read(name)
        except CniError as e:
            if self._is_plain(name):
                raise
            raise BrokenRecordError(e.code, e.msg, e.details) from e
        if data is None:
            return None
        try:
            return portrecord.decode(data, name)
        except ValueError as e:
            raise BrokenRecordError(
                Code.IO_FAILURE,
                f"{self._folder.path}/{name}: not a record of host ports ({e})",
                "podwire writes it whole: see who else did; removed, its ports are forgotten",
            ) from e

    def sound(self, name: str) -> PortRecord | None:
        """The record of this name; None as well for a broken one."""
        with suppress(BrokenRecordError):
            return self.read(name)
        return None

    def broken(self) -> list[str]:
        """The names of what is in the place of a record, and is none."""
        found = []
        for name in self._folder.names():
            try:
                if "." not in name:
                    self.read(name)
            except BrokenRecordError:
                found.append(name)
        return found

    def _is_plain(self, name: str) -> bool:
        """Whether it is a file, so that another reason kept us from reading it."""
        try:
            return stat.S_ISREG(os.lstat(f"{self._folder.path}/{name}").st_mode)
        except OSError:
            return True

    def everything(self) -> dict[str, PortRecord]:
        """All records by name, each with those ports alone that lead to it.

        Without broken ones: they stand in nobody's way.
        """
        found: dict[str, PortRecord] = {}
        attachments: dict[str, int] = {}  # how many a container has
        for name in self._folder.names():
            record = None if "." in name else self.sound(name)
            if record is not None:
                found[name] = record
                container_id = record.attachment.container_id
                attachments[container_id] = attachments.get(container_id, 0) + 1
        return {
            name: self.leading(record)
            if attachments[record.attachment.container_id] > 1
            else record
            for name, record in found.items()
        }

    def discard(self, name: str) -> None:
        """Remove a broken record, whatever it is. Its claims say nothing without it."""
        self._clear_way(name)
        self._folder.remove(name)

    def _clear_way(self, name: str) -> None:
        """Remove a directory where a file should be, with all in it."""
        path = f"{self._folder.path}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            import shutil

            try:
                shutil.rmtree(path)
            except OSError as e:
                raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", "remove it") from e

    def _put(self, name: str, text: str) -> None:
        self._clear_way(name)
        self._folder.write(name, text.encode())

    def _words(self, name: str) -> list[str]:
        """Of a claim, or of a link's file; one that is no file has none."""
        try:
            data = self._folder.read(name) or b""
        except CniError:
            if self._is_plain(name):
                raise
            return []
        return data.decode("ascii", "replace").split()

    def write(self, record: PortRecord) -> None:
        """The record first: by it a DEL finds what is written after it."""
        name = record.name
        self._clear_way(name)
        self._folder.write(name, portrecord.encode(record))
        for claim in _claims(record.ports):
            holders = self._holders(claim)
            if name not in holders:
                self._put(claim, "\n".join([*holders, name]))

    def remove(self, name: str, record: PortRecord) -> None:
        """The record last: until then another DEL can go on where this one ended."""
        for claim in _claims(record.ports):
            others = [holder for holder in self._holders(claim) if holder != name]
            if others:
                self._put(claim, "\n".join(others))
            else:
                self.discard(claim)
        self._folder.remove(name)

    def holders(self, port: HostPort) -> list[PortRecord]:
        """The records with this number and protocol, on whatever addresses."""
        claim = _claim(port)
        records = (self.sound(name) for name in self._holders(claim))
        return [
            record for record in records if record is not None and claim in _claims(record.ports)
        ]

    def leading(self, record: PortRecord, without: str = "") -> PortRecord:
        """The record with those ports alone that lead to it, as if there were none of the name
        `without`."""
        ports = tuple(port for port in record.ports if not self._covered(port, record, without))
        return record if ports == record.ports else record._replace(ports=ports)

    def _covered(self, port: HostPort, record: PortRecord, without: str) -> bool:
        """Whether an attachment of the same container that came earlier has the port."""
        for name in self._holders(_claim(port)):
            if name == record.name:
                return False
            earlier = None if name == without else self.sound(name)
            if earlier is None or not earlier.beside(record):
                continue
            if any(other.covers(port) for other in earlier.ports):
                return True
        return False

    def beside(self, record: PortRecord) -> list[PortRecord]:
        """The other records of the same container that share a number and protocol with it."""
        names = {name: None for claim in _claims(record.ports) for name in self._holders(claim)}
        names.pop(record.name, None)
        others = (self.sound(name) for name in names)
        return [other for other in others if other is not None and other.beside(record)]

    def _holders(self, claim: str) -> list[str]:
        return [word for word in self._words(claim) if len(word) <= _NAME and word.isalnum()]

    # --- links that carry 127.0.0.1 ----------------------------------------------------------

    def uses(self, link: str, besides: str) -> bool:
        """Whether a record but this one needs the link for 127.0.0.1.

        A file names one that does; only when that one goes, another is looked for.
        """
        for name in self._holders(_localnet(link)):
            record = self.sound(name) if name != besides else None
            if record is not None and record.localnet == link:
                return True
        other = next(self._users(link, besides), "")
        if other:
            self.note_link(link, other, False)
        return bool(other)

    def _users(self, link: str, besides: str) -> Iterator[str]:
        for name in self._folder.names():
            if "." not in name and name != besides:
                record = self.sound(name)
                if record is not None and record.localnet == link:
                    yield name

    def carried_before(self, link: str) -> bool:
        """Whether the link carried 127.0.0.1 before the first port needed it."""
        return _BEFORE in self._words(_localnet(link))

    def note_link(self, link: str, name: str, carried: bool) -> None:
        """The record of this name needs the link; `carried`: now, and counts if nobody did yet."""
        file = _localnet(link)
        before = _BEFORE in self._words(file) if self.has(file) else carried
        self._put(file, f"{name}\n{_BEFORE if before else ''}")

    def links(self) -> list[str]:
        """Those that somebody noted."""
        return [
            file.removeprefix(_LOCALNET)
            for file in self._folder.names()
            if file.startswith(_LOCALNET)
        ]

    def forget_link(self, link: str) -> None:
        """No record needs the link any more, or nobody knows of one."""
        self.discard(_localnet(link))

    def note_whole(self) -> None:
        """No element is without a record now. Where that can't be written the next DEL looks."""
        with suppress(CniError):
            self._folder.write(portlock.WHOLE, b"")

    def clear(self) -> None:
        """Remove all files, and the folder's lock."""
        for name in (*self._folder.names(), portlock.NAME, portlock.WHOLE):
            self.discard(name)


def _localnet(link: str) -> str:
    """The name of a link's file."""
    return _LOCALNET + link


def _claim(port: HostPort) -> str:
    """The name of a claim's file; a record's holds no dot."""
    return f"{port.protocol}.{port.host_port}"


def _claims(ports: tuple[HostPort, ...]) -> dict[str, None]:
    return dict.fromkeys(_claim(port) for port in ports)
