"""The host ports of a node's pods, in files: who holds which, found in a time that does not grow.

Rules:
- A record (`hostports.PortRecord`) is the truth; its file has the name of the host veth.
- A claim is a file for one port of one protocol, which names the records that may hold it. It only
  shows where to look: a name in it without a record, or one whose record holds another port, says
  nothing. So it may be left by a process that was killed, and none is missing for a record whose
  elements are in the kernel.
- Both change under the lock alone, which is held for less than a millisecond.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from cni_plugin import hostports, waiting
from cni_plugin.hostports import HostPort, PortRecord
from cni_plugin.kernel.nodelock import make_folder
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.spec import CniError, Code

_LOCK = ".lock"  # begins like an unfinished file: `StateFolder.names` leaves it out
_PATIENCE_S = 10.0
_PAUSE_S = 0.0002


class BrokenRecordError(CniError):
    """A file of a record that holds something else."""


class PortRecords:
    """The records and claims in a folder of their own."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. Raises CniError: 11 when it can't be had in time, 5 for its file."""
        path = f"{self._folder.path}/{_LOCK}"
        try:
            fd = _locked(path)
        except OSError as e:
            remedy = "it must be a folder of root's that can be written"
            raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", remedy) from e
        try:
            yield
        finally:
            os.close(fd)

    # --- records ---------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        return os.path.exists(f"{self._folder.path}/{name}")

    def read(self, name: str) -> PortRecord | None:
        """The record of this name. Raises BrokenRecordError, a CniError 5."""
        data = self._folder.read(name)
        if data is None:
            return None
        try:
            return hostports.decode(data)
        except (ValueError, KeyError, TypeError) as e:
            raise BrokenRecordError(
                Code.IO_FAILURE,
                f"{self._folder.path}/{name}: not a record of host ports ({e})",
                "podwire writes it whole: see who else did; removed, its ports are forgotten",
            ) from e

    def everything(self) -> dict[str, PortRecord]:
        """All records by name, without broken ones: they stand in nobody's way."""
        found = {}
        for name in self._folder.names():
            if "." in name:
                continue
            with suppress(BrokenRecordError):
                record = self.read(name)
                if record is not None:
                    found[name] = record
        return found

    def discard(self, name: str) -> None:
        """Remove a broken record. Its claims say nothing without it."""
        self._folder.remove(name)

    def write(self, record: PortRecord) -> None:
        """The record first: by it a DEL finds what is written after it."""
        name = record.name
        self._folder.write(name, hostports.encode(record))
        for claim in _claims(record.ports):
            holders = self._holders(claim)
            if name not in holders:
                self._folder.write(claim, "\n".join([*holders, name]).encode())

    def remove(self, name: str, record: PortRecord) -> None:
        """The record last: until then another DEL can go on where this one ended."""
        for claim in _claims(record.ports):
            others = [holder for holder in self._holders(claim) if holder != name]
            if others:
                self._folder.write(claim, "\n".join(others).encode())
            else:
                self._folder.remove(claim)
        self._folder.remove(name)

    def holders(self, port: HostPort) -> list[PortRecord]:
        """The records with this number and protocol, on whatever addresses."""
        claim = _claim(port)
        records = (self.read(name) for name in self._holders(claim))
        return [
            record for record in records if record is not None and claim in _claims(record.ports)
        ]

    def _holders(self, claim: str) -> list[str]:
        return (self._folder.read(claim) or b"").decode("ascii", "replace").split()

    def uses(self, link: str, besides: str) -> bool:
        """Whether a record but this one needs the link for 127.0.0.1.

        A file names one that does; only when that one goes, another is looked for.
        """
        witness = f"localnet.{link}"
        name = (self._folder.read(witness) or b"").decode("ascii", "replace")
        if name != besides and name and self.has(name):
            return True
        other = next(self._users(link, besides), "")
        if other:
            self._folder.write(witness, other.encode())
        else:
            self._folder.remove(witness)
        return bool(other)

    def _users(self, link: str, besides: str) -> Iterator[str]:
        with os.scandir(self._folder.path) as entries:
            for entry in entries:
                if "." not in entry.name and entry.name != besides:
                    record = self.read(entry.name)
                    if record is not None and record.localnet == link:
                        yield entry.name

    def clear(self) -> None:
        """Remove all files, and the folder's lock."""
        for name in (*self._folder.names(), _LOCK):
            self._folder.remove(name)


def _claim(port: HostPort) -> str:
    """The name of a claim's file; a record's holds no dot."""
    return f"{port.protocol}.{port.host_port}"


def _claims(ports: tuple[HostPort, ...]) -> dict[str, None]:
    return dict.fromkeys(_claim(port) for port in ports)


def _locked(path: str) -> int:
    """The open lock file with the lock on it. Raises OSError."""
    deadline = monotonic() + _PATIENCE_S
    while True:
        fd = _opened(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        waiting.begins()
        if monotonic() > deadline:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"{path}: another process holds this lock",
                "it is held for milliseconds only: see who has it (fuser), and why it hangs",
            )
        sleep(_PAUSE_S)


def _opened(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        make_folder()
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        return os.open(path, flags, 0o600)
