"""The store of reservations: host-local's directory under its lock, with an index beside it.

    <dataDir>/<network>/             0755, the reference's format, byte for byte
        10.244.0.5                   0600, "<container ID>\\r\\n<ifname>"
        last_reserved_ip.<n>         the address of range set n that was handed out last
        lock                         flock(2): podwire and the Go host-local exclude each other
    <dataDir>/.podwire-<network>/    0700, the index (index.py)

Rules:
- A reservation appears by link(2), so it is whole or absent, and SIGKILL leaves nothing visible.
- Names are resolved from open directories, and a symbolic link in place of a file is not followed.
- Nothing is synced to the disk: after a power cut there are no sandboxes.
- Everything that fails is a CniError that names the path.

This module opens and locks; directory.py reads and changes what is inside.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import (
    EACCES,
    EDQUOT,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EOPNOTSUPP,
    EPERM,
    EROFS,
)
from functools import cache

from cni_plugin.lockwait import LockWait
from cni_plugin.spec import CniError, Code
from ipam.directory import LOCK, Directory
from ipam.index import Index
from ipam.ranges import parse_address

INDEX = ".podwire-"
PATIENCE = 10.0  # seconds that a call waits for the lock
_ATTEMPTS = 100  # to find a directory that others remove and make again
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_DAMAGED = (EEXIST, EINVAL, EISDIR, ELOOP, ENOTDIR, ENOTEMPTY)
_OWNER = "run podwire as root, or give it a dataDir that belongs to its user"
_REMEDIES = {
    EACCES: _OWNER,
    EPERM: _OWNER,
    EROFS: "the file system is mounted read-only: remount it, or set ipam.dataDir to another",
    ENOSPC: "free some space or inodes on this file system, or set ipam.dataDir to another",
    EDQUOT: "the disk quota is used up: raise it, or set ipam.dataDir to another file system",
    ENOTDIR: "a part of the path is a file: remove it, or set ipam.dataDir to another directory",
    ELOOP: "a symbolic link stands where podwire keeps a file: remove it",
    EOPNOTSUPP: "put ipam.dataDir on a local file system that has hard links (ext4, xfs, btrfs,"
    " tmpfs), and mount nothing below it",
}


def read_boot_id() -> str:
    """The kernel's ID of this boot; "" where there is none."""
    try:
        return _boot_id()
    except OSError:
        return ""


@cache  # no process outlives a boot
def _boot_id() -> str:
    fd = os.open(_BOOT_ID, os.O_RDONLY)
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip()
    finally:
        os.close(fd)


def location(data_dir: str, network: str) -> str:
    """The directory of a network's reservations."""
    return f"{data_dir.rstrip('/')}/{network}"


def failure(e: OSError, path: str) -> CniError:
    """The error for a failed system call in the directory `path`."""
    code = Code.PERMISSION_DENIED if e.errno in (EACCES, EPERM) else Code.IO_FAILURE
    where = path
    if isinstance(e.filename, str) and e.filename != path:
        where = os.path.normpath(os.path.join(path, e.filename))
    return CniError(code, f"{where}: {e.strerror or e}", _REMEDIES.get(e.errno or 0, ""))


@contextmanager
def opened(
    data_dir: str, network: str, boot: str | None = None, patience: float = PATIENCE
) -> Iterator[Directory]:
    """The store of a network, locked; it is made when it is missing.

    `boot` is the ID of this boot, the kernel's when None. Raises CniError 5 and 110 when the
    directory can't be used, 11 when another process holds the lock for longer than `patience`
    seconds. An OSError of the body is treated alike.
    """
    with _opened(location(data_dir, network), network, True, boot, patience) as store:
        assert store is not None  # noqa: S101 - it was made
        yield store


@contextmanager
def existing(
    data_dir: str, network: str, boot: str | None = None, patience: float = PATIENCE
) -> Iterator[Directory | None]:
    """As `opened`, but None, with nothing made on the disk, when the directory is missing."""
    with _opened(location(data_dir, network), network, False, boot, patience) as store:
        yield store


@contextmanager
def _opened(
    path: str, network: str, create: bool, boot: str | None, patience: float
) -> Iterator[Directory | None]:
    try:
        with ExitStack() as stack:  # closing the lock's descriptor gives the lock back
            fd = _locked(stack, path, create, LockWait(f"{path}/{LOCK}", patience))
            if fd is None:
                yield None
                return
            store = _store(stack, fd, network, create, read_boot_id() if boot is None else boot)
            try:
                yield store
            except CniError:  # a refusal, not a failure: everything was done or undone
                store.stamp()
                raise
            store.stamp()
    except OSError as e:
        raise failure(e, path) from e


def _locked(stack: ExitStack, path: str, create: bool, wait: LockWait) -> int | None:
    """The directory, with its lock held; `stack` closes both."""
    for _ in range(_ATTEMPTS):
        with ExitStack() as attempt:
            try:
                fd = os.open(path, _DIRECTORY)
                attempt.callback(os.close, fd)
                # A lock nobody made protects nothing; on a full disk it could not be made now.
                made = os.O_CREAT if create or _any_reservation(fd) else 0
                lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | made, 0o600, dir_fd=fd)
                attempt.callback(os.close, lock)
            except FileNotFoundError:  # never made, or removed just now
                if not create:
                    return None
                _make(path)
                continue
            _wait(lock, wait)
            if _current(path, fd, lock):
                stack.push(attempt.pop_all())
                return fd
    raise CniError(
        Code.IO_FAILURE,
        f"{path}: the directory can't be made, or is removed as soon as it is",
        "see whether it is a dangling symbolic link, and who removes it",
    )


def _make(path: str) -> None:
    """Makes the directory and its parents, 0755 as the reference does."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o755)


def _wait(lock: int, wait: LockWait) -> None:
    """Takes the lock."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait.pause()
        else:
            return


def _current(path: str, fd: int, lock: int) -> bool:
    """Whether directory and lock are still the ones that others find under these names."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd)) and os.path.samestat(
            os.stat(LOCK, dir_fd=fd, follow_symlinks=False), os.fstat(lock)
        )
    except FileNotFoundError:
        return False


def _store(stack: ExitStack, fd: int, network: str, create: bool, boot: str) -> Directory:
    """The store with its index in step; an index that somebody damaged is made anew."""
    try:
        return _in_step(stack, fd, network, create, boot)
    except OSError as e:
        if e.errno not in _DAMAGED:
            raise
    _discard_index(fd, network)
    return _in_step(stack, fd, network, create, boot)


def _in_step(stack: ExitStack, fd: int, network: str, create: bool, boot: str) -> Directory:
    index, blind = _index_of(fd, network, create)
    stack.callback(os.close, index)
    store = Directory(fd, Index(index), boot, blind)
    if not blind:
        store.catch_up()
    return store


def _discard_index(directory: int, network: str) -> None:
    """Out of the way first, so that what can't be removed does no harm either."""
    from shutil import rmtree

    aside = f"../{INDEX}{network}.damaged-{os.urandom(4).hex()}"
    os.rename(f"../{INDEX}{network}", aside, src_dir_fd=directory, dst_dir_fd=directory)
    try:
        os.unlink(aside, dir_fd=directory)
    except (IsADirectoryError, PermissionError):
        rmtree(aside, ignore_errors=True, dir_fd=directory)


def _any_reservation(directory: int) -> bool:
    if os.access(LOCK, os.F_OK, dir_fd=directory, follow_symlinks=False):
        return True
    return any(parse_address(name) is not None for name in os.listdir(directory))


def _index_of(directory: int, network: str, needed: bool) -> tuple[int, bool]:
    """The index, and whether to do without: then the descriptor is the directory's own.

    Only what frees addresses may do without, so that a full disk keeps no pod from going.
    """
    try:
        return _open_index(directory, network), False
    except OSError as e:
        if needed or e.errno not in (ENOSPC, EDQUOT):
            raise
        return os.dup(directory), True


def _open_index(directory: int, network: str) -> int:
    """The index lies beside the directory itself, even if dataDir/<network> is a symbolic link."""
    name = f"../{INDEX}{network}"
    try:
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        os.mkdir(name, 0o700, dir_fd=directory)
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)


def reclaimable(directory: int, network: str, boot: str | None = None) -> Iterator[str]:
    """The names that opening the store would free, told without the lock and without a change."""
    with suppress(FileNotFoundError):
        fd = os.open(f"../{INDEX}{network}", _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            index, now = Index(fd), read_boot_id() if boot is None else boot
            if now and index.boot() not in ("", now):
                yield from index.listing()[0]
        finally:
            os.close(fd)
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):
            if not os.stat(name, dir_fd=directory, follow_symlinks=False).st_size:
                yield name
