"""The index of a reservation directory: who holds what, answered without reading the directory.

It is a directory of its own beside the reservations, and holds two names for each of them:

- the *mirror*, named with the address: a hard link to the reservation. While it exists the
  inode can't be used again, so equal inode numbers on both sides prove that a reservation is
  the very one that was indexed; releasing and reserving an address anew, by whomever, gives
  another number. A listing of both sides compares everything, and opens nothing.
- the *entry*, named "<container ID>:<ifname>.<n>": a symbolic link whose target is the address.
  n counts an attachment's addresses without gaps.

and `boot`, a symbolic link whose target is the ID of the boot in which it was last in use.

Order, so that a process may die between any two system calls: an entry is made after its
mirror and before the reservation, and removed after the reservation and before the mirror.
Hence a reservation with an equal mirror has its entry; what lacks the reservation is litter.

The index is a hint. What a reservation says itself is compared before anything is removed, and
docs/adr/0002-host-local-directory-and-index.md tells how it stays in step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from errno import EISDIR, ENOSPC
from stat import S_ISREG

from cni_plugin.spec import Attachment, IPAddress
from cni_plugin.typed import NamedTuple

_BOOT = "boot"
_SEPARATOR = ":"  # is in no interface name and no container ID
_LONGEST = 240  # of the 255 bytes of a file name; the rest is for the number
_READABLE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-@+=,")
_LARGEST = 1 << 18  # more than any container ID; what is larger is no reservation of anybody's
_UNKNOWN_INODES = (0, 0xFFFFFFFF)  # what FUSE reports for names that it did not look up
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # no symbolic link, no waiting for a FIFO


# --- reservations as text ---------------------------------------------------------------------


class Reservation(NamedTuple):
    """An address with its holder; `since` is when it was reserved, in seconds since the epoch."""

    address: IPAddress
    attachment: Attachment
    since: int = 0


def encode(attachment: Attachment) -> bytes:
    """What a reservation holds: "<container ID>\\r\\n<ifname>", without a newline at the end."""
    return f"{attachment.container_id}\r\n{attachment.ifname}".encode("utf-8", "surrogateescape")


def decode(content: bytes | None) -> Attachment | None:
    """Who holds a reservation; the ifname is "" in one of an old version, which has only the ID.

    None for an empty one: its writer died before it could write.
    """
    if content is None or not (text := content.strip()):
        return None
    container_id, _, ifname = text.decode("utf-8", "surrogateescape").partition("\r\n")
    return Attachment(container_id, ifname)


def read(directory: int, name: str) -> bytes | None:
    """The content of a reservation; None when there is none, or something that is no file."""
    try:
        fd = os.open(name, _FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError:
        if _is_file(directory, name):
            raise
        return None
    try:
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode):
            return None
        # Not _LARGEST itself: Python would make room for that much, and more each time.
        return os.read(fd, min(status.st_size, _LARGEST))
    finally:
        os.close(fd)


def _is_file(directory: int, name: str) -> bool:
    try:
        return S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True  # it could not be opened for another reason, and is gone by now


def same_file(one: int, other: int) -> bool:
    """Whether two inode numbers of listings prove the same file."""
    return one == other and one not in _UNKNOWN_INODES


# --- the index --------------------------------------------------------------------------------


class Index:
    """The index behind an open directory `fd`, which the caller owns. Used under the lock only."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def boot(self) -> str:
        """The boot in which the index was last in use; "" for none."""
        try:
            return os.readlink(_BOOT, dir_fd=self.fd)
        except FileNotFoundError:
            return ""

    def set_boot(self, boot: str) -> None:
        fresh = f"{_BOOT}.new"
        with suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=self.fd)
        os.symlink(boot, fresh, dir_fd=self.fd)
        os.rename(fresh, _BOOT, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def listing(self) -> tuple[dict[str, int], list[str]]:
        """The mirrors with their inode numbers, and the names of the entries."""
        mirrors: dict[str, int] = {}
        entries: list[str] = []
        with os.scandir(self.fd) as listing:
            for found in listing:
                if found.is_dir(follow_symlinks=False):
                    raise IsADirectoryError(EISDIR, os.strerror(EISDIR), found.name)
                if not found.is_symlink():
                    mirrors[found.name] = found.inode()
                elif _SEPARATOR in found.name:
                    entries.append(found.name)
        return mirrors, entries

    # --- entries ---

    def addresses(self, attachment: Attachment) -> list[str]:
        """The addresses that the attachment holds according to the index."""
        prefix = key(attachment)
        found: list[str] = []
        with suppress(FileNotFoundError):
            while True:
                found.append(os.readlink(f"{prefix}.{len(found)}", dir_fd=self.fd))
        return found

    def target(self, entry: str) -> str:
        return os.readlink(entry, dir_fd=self.fd)

    def enter(self, attachment: Attachment, address: str) -> bool:
        """Makes the entry; False when it exists."""
        known = self.addresses(attachment)
        if address in known:
            return False
        os.symlink(address, f"{key(attachment)}.{len(known)}", dir_fd=self.fd)
        return True

    def forget(self, attachment: Attachment, address: str) -> bool:
        """Removes the entry; False when there is none. The last one moves into the gap."""
        known = self.addresses(attachment)
        if address not in known:
            return False
        prefix, gap, end = key(attachment), known.index(address), len(known) - 1
        if gap == end:
            os.unlink(f"{prefix}.{end}", dir_fd=self.fd)
        else:
            os.rename(f"{prefix}.{end}", f"{prefix}.{gap}", src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return True

    # --- mirrors ---

    def write(self, address: str, content: bytes) -> None:
        """Makes the file that is to become a reservation by a hard link."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            fd = os.open(address, flags, 0o600, dir_fd=self.fd)
        except FileExistsError:  # the reservation was removed by hand, behind the lock's back
            self.drop(address)
            fd = os.open(address, flags, 0o600, dir_fd=self.fd)
        try:
            if os.write(fd, content) != len(content):
                raise OSError(ENOSPC, os.strerror(ENOSPC), address)
        finally:
            os.close(fd)

    def drop(self, address: str) -> int:
        """Removes mirror and entry of an address; the number of entries removed."""
        holder = decode(read(self.fd, address))
        removed = int(holder is not None and self.forget(holder, address))
        with suppress(FileNotFoundError):
            os.unlink(address, dir_fd=self.fd)
        return removed

    def clear(self, names: Iterable[str]) -> None:
        """Removes these mirrors or entries; gaps between entries are the caller's concern."""
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)


def key(attachment: Attachment) -> str:
    """The part of an entry's name that stands for the attachment.

    Readable where it can be; the hash of it where it is too long. Reservations of others may
    hold any bytes.
    """
    name = f"{_quoted(attachment.container_id)}{_SEPARATOR}{_quoted(attachment.ifname)}"
    if len(name) <= _LONGEST:
        return name
    from hashlib import sha256  # here, because it costs milliseconds and is hardly ever needed

    return f"sha256-{sha256(name.encode()).hexdigest()}{_SEPARATOR}"


def _quoted(text: str) -> str:
    if _READABLE.issuperset(text):
        return text
    return "".join(_quoted_characters(text))


def _quoted_characters(text: str) -> Iterator[str]:
    for char in text:
        if char in _READABLE:
            yield char
        else:
            yield from (f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
