"""Reservations as files of one directory, kept in step with the index beside it.

`Directory` works while the lock is held (store.py takes it) and on open descriptors, so nothing
here depends on a path. Each change follows the order that index.py gives; a process that dies
between two system calls leaves litter in the index at most, and never a stamp on it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from errno import EDQUOT, EINVAL, EMLINK, ENOSPC, EOPNOTSUPP, EPERM, EXDEV
from stat import S_ISREG
from time import time_ns

from cni_plugin.spec import Attachment, IPAddress
from ipam.index import Index, Reservation, decode, encode, key, read, same_file
from ipam.ranges import parse_address

LOCK = "lock"
CURSOR = "last_reserved_ip."
_NO_ROOM = (ENOSPC, EDQUOT, EOPNOTSUPP)


class Directory:
    """The `Store` in a directory whose lock is held; `fd` and the index are the caller's.

    `boot` is the ID of this boot, "" when unknown. Any method may raise OSError: then the call
    is given up without `stamp`, and the next one repairs what was left. `blind` is without an
    index: every reservation is read, and nothing can be reserved.
    """

    def __init__(self, fd: int, index: Index, boot: str, blind: bool = False) -> None:
        self._fd = fd
        self._index = index
        self._boot = boot
        self._changed = False
        self._trusted = not blind
        self._blind = blind  # the index has no room for what others made: read everything

    # --- reading ---

    def held(self, attachment: Attachment) -> list[IPAddress]:
        return self._verified(attachment) or self._verified(attachment._replace(ifname=""))

    def _verified(self, attachment: Attachment) -> list[IPAddress]:
        found = []
        names = _inodes(self._fd) if self._blind else self._index.addresses(attachment)
        for name in names:
            address = parse_address(name)
            if address is not None and decode(read(self._fd, name)) == attachment:
                found.append(address)
        return found

    def holder(self, address: IPAddress) -> Attachment | None:
        return decode(read(self._fd, str(address)))

    def taken(self, address: IPAddress) -> bool:
        return exists(self._fd, address)

    def names(self) -> Collection[str]:
        return os.listdir(self._fd)

    def cursor(self, range_set: int) -> IPAddress | None:
        return read_cursor(self._fd, range_set)

    def others(self, valid: Collection[Attachment]) -> list[Reservation]:
        """The reservations of attachments that are not valid.

        Valid ones are told by the names of the index and not opened. A reservation that names
        the container only is valid if any of that container's attachments is.
        """
        self._bring_in_step()
        kept = {key(attachment) for attachment in valid}
        kept |= {key(attachment._replace(ifname="")) for attachment in valid}
        found = []
        for name in self._unless(kept):
            address = parse_address(name)
            holder = None if address is None else self.holder(address)
            if address is not None and holder is not None and key(holder) not in kept:
                found.append(Reservation(address, holder))
        return found

    def _unless(self, kept: Collection[str]) -> Collection[str]:
        """The names of reservations, without those that the index has under one of these keys."""
        if self._blind:
            return _inodes(self._fd)
        entries = self._index.listing()[1]
        return [self._index.target(e) for e in entries if e.rpartition(".")[0] not in kept]

    # --- changing ---

    def reserve(self, address: IPAddress, attachment: Attachment, range_set: int | None) -> bool:
        if self.taken(address):
            return False
        self._changed = True
        name = str(address)
        if range_set is not None:
            self._move_cursor(range_set, name)
        try:
            self._index.write(name, encode(attachment))
            self._index.enter(attachment, name)
            _link(name, self._index.fd, self._fd)
        except OSError as e:
            with suppress(OSError):  # what stays is litter, which the next call finds
                self._index.drop(name)
            if isinstance(e, FileExistsError):  # made by hand, behind the lock's back
                return False
            raise
        return True

    def _move_cursor(self, range_set: int, name: str) -> None:
        """In place, as the reference does; torn, it would only cost one round of the robin.

        It comes before the reservation: an address that is handed out has moved the cursor.
        """
        content = name.encode()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(f"{CURSOR}{range_set}", flags, 0o600, dir_fd=self._fd)
        try:
            if not S_ISREG(os.fstat(fd).st_mode):
                raise OSError(EINVAL, "not a regular file", f"{CURSOR}{range_set}")
            if os.fstat(fd).st_size > len(content):
                os.ftruncate(fd, len(content))
            os.write(fd, content)
        finally:
            os.close(fd)

    def release(self, address: IPAddress, attachment: Attachment) -> bool:
        name = str(address)
        if decode(read(self._fd, name)) != attachment:
            return False
        self._changed = True
        os.unlink(name, dir_fd=self._fd)
        self._index.forget(attachment, name)
        self._index.clear((name,))
        return True

    def release_all(self, attachment: Attachment) -> list[IPAddress]:
        """Frees what the attachment holds; entries that turn out to be wrong are removed."""
        freed = []
        for address in self.held(attachment):
            holders = attachment, attachment._replace(ifname="")
            if any(self.release(address, holder) for holder in holders):
                freed.append(address)
        for stale in self._index.addresses(attachment):
            self._changed = True
            self._index.forget(attachment, stale)
        return freed

    def reclaim(self) -> None:
        self._bring_in_step()

    # --- staying in step ---

    def catch_up(self) -> None:
        """Brings the index in step, and frees what an earlier boot left.

        In step means: both directories carry the same modification time, and it is not the time
        of their last change. A change of a directory makes these two equal, so that only a
        stamp separates them, and only podwire stamps.
        """
        here, there = os.fstat(self._fd), os.fstat(self._index.fd)
        in_step = (
            here.st_mtime_ns == there.st_mtime_ns
            and here.st_mtime_ns != here.st_ctime_ns
            and there.st_mtime_ns != there.st_ctime_ns
        )
        if not in_step or self._boot not in ("", self._index.boot()):
            self._bring_in_step()

    def _bring_in_step(self) -> None:
        """`_compare`; where there is no room for the index, DEL and GC shall work even so."""
        if self._blind:
            return
        try:
            self._compare()
        except OSError as e:
            if e.errno not in _NO_ROOM:
                raise
            self._blind = True
            self.distrust()

    def distrust(self) -> None:
        """No stamp: a change failed half way, and the next call shall compare."""
        self._trusted = False

    def stamp(self) -> None:
        """Declares the index in step; where that fails, the next call compares again.

        The time is some seconds in the past and random below that, so that no change by anybody
        else carries it, be the clock of the file system as coarse as a second.
        """
        if not (self._changed and self._trusted):
            return
        moment = time_ns() - 2_000_000_000 - int.from_bytes(os.urandom(4), "big")
        with suppress(OSError):  # the change itself is done, and is not to fail for its mark
            os.utime(self._index.fd, ns=(moment, moment))
            os.utime(self._fd, ns=(moment, moment))

    def _compare(self) -> None:
        """Makes the index agree with the directory by comparing two listings.

        Opened are only reservations that the index does not know, and mirrors of ones that are
        gone. In a new boot, reservations that the index knows are freed first: they were made
        before it, and no sandbox outlives a boot. Unknown ones are kept, since somebody else may
        have made them after it; hence the boot is recorded before they become known.
        """
        self._changed = True
        before = self._index.boot()
        rebooted = bool(before and self._boot and before != self._boot)
        mirrors, entries = self._index.listing()
        present = _inodes(self._fd)
        known = {name for name in mirrors if same_file(present.get(name, 0), mirrors[name])}
        if rebooted:
            for name in known:
                os.unlink(name, dir_fd=self._fd)
                del present[name]
            self._index.clear(entries)
            self._index.clear(mirrors)
            mirrors, entries, known = {}, [], set()
        count = len(entries)
        for name in [name for name in mirrors if name not in known]:
            count -= self._index.drop(name)
            del mirrors[name]
        if self._boot and before != self._boot:
            self._index.set_boot(self._boot)
        for name, inode in present.items():
            if name not in mirrors and (made := self._adopt(name)) is not None:
                mirrors[name] = inode
                count += made
        if count != len(mirrors):
            self._rebuild()

    def _adopt(self, name: str) -> int | None:
        """Takes a reservation of somebody else into the index; an empty one is freed.

        The number of entries that this made, None for what is no reservation.
        """
        if parse_address(name) is None:
            return None
        content = read(self._fd, name)
        if content is None:
            return None
        holder = decode(content)
        if holder is None:
            os.unlink(name, dir_fd=self._fd)
            return None
        made = self._index.enter(holder, name)
        _link(name, self._fd, self._index.fd)
        return int(made)

    def _rebuild(self) -> None:
        """From nothing: somebody tampered with the index."""
        mirrors, entries = self._index.listing()
        self._index.clear(entries)
        self._index.clear(mirrors)
        for name in _inodes(self._fd):
            self._adopt(name)


def _link(name: str, source: int, target: int) -> None:
    """A second name for a file in another directory, with an errno that says what is missing."""
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as e:
        if e.errno in (EPERM, EXDEV, EMLINK):
            raise OSError(EOPNOTSUPP, f"hard links are refused ({e.strerror})", name) from e
        raise


def _inodes(fd: int) -> dict[str, int]:
    """The names of a directory that can be reservations, with their inode numbers."""
    with os.scandir(fd) as listing:
        return {
            found.name: found.inode()
            for found in listing
            if found.name != LOCK and not found.name.startswith(CURSOR)
        }


def exists(directory: int, address: IPAddress) -> bool:
    """Whether anything has the name of the address."""
    try:
        os.stat(str(address), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def read_cursor(directory: int, range_set: int) -> IPAddress | None:
    """The address that was handed out last in a range set; None for none, or nonsense."""
    content = read(directory, f"{CURSOR}{range_set}")
    return None if content is None else parse_address(content.decode("ascii", "replace").strip())
