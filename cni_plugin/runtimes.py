"""Unpacking the executable's CPython runtime into a folder of this node: see `runtimefolder`.

A runtime gets its name when it is whole, and loses it before it is taken apart. Its hash is that of
its archive, so versions lie side by side.

One source for MicroPython, where it is frozen into the executable, and for CPython, where it is
tested: it keeps to what both have.
"""

import sys

if sys.implementation.name != "micropython":
    from cni_plugin import runtimefolder, sysio
else:
    import runtimefolder  # type: ignore[import-not-found, no-redef]
    import sysio  # type: ignore[import-not-found, no-redef]

PATIENCE_MS = 60_000  # for another process that unpacks

_O_RDONLY, _O_WRONLY = 0, 1
_O_CREAT, _O_EXCL, _O_NOFOLLOW = 0o100, 0o200, 0o400000
_IFMT, _IFDIR = 0o170000, 0o040000
_ENOENT, _EEXIST = 2, 17
_ST_NOEXEC = 8
_DIGITS = 16  # of the hash, in a name


class UnusableError(Exception):
    """Runtimes can't be in this folder: why, as text."""


class ForeignError(Exception):
    """The folder is not ours alone: what it is, as text."""


def folders(uid: int, session: str) -> list[str]:
    """Where a user's runtimes may be, the first choice first. `session`: $XDG_RUNTIME_DIR.

    /run is often mounted noexec.
    """
    if uid == 0:
        return ["/run/podwire", "/var/lib/podwire"]
    found = ["/run/user/" + str(uid) + "/podwire", "/tmp/podwire-" + str(uid)]  # noqa: S108
    if session.startswith("/"):
        found.insert(0, session.rstrip("/") + "/podwire")
    return found


def name_of(digest: bytes) -> str:
    return "runtime-" + "".join([f"{byte:02x}" for byte in digest])[:_DIGITS]


def prepare(folder: str, archive) -> int:  # type: ignore[no-untyped-def]
    """Unpack the runtime of `archive` (a launcher.archive.Archive), if it is not in the folder.

    The descriptor of its lock, held shared: while it is open nobody removes the runtime. Raises
    UnusableError, ForeignError, runtimefolder.BusyError, OSError, and what the archive raises.
    """
    _refuse_noexec(folder)
    uid = sysio.geteuid()
    _own(folder, uid)
    name = name_of(archive.digest)
    held = _hold(folder + "/" + name, archive.files, uid)
    if held < 0:
        held = _unpack_once(folder, archive, uid)
    try:  # noqa: SIM105 - MicroPython has no contextlib
        runtimefolder.remove_stale(folder, name)
    except OSError:
        pass  # ours is ready, which is what we came for; the next process tries again
    return held


def _refuse_noexec(folder: str) -> None:
    try:
        flags = sysio.mount_flags(folder)
    except OSError:
        flags = sysio.mount_flags(folder[: folder.rfind("/")] or "/")
    if flags & _ST_NOEXEC:
        raise UnusableError("mounted noexec")


def _own(folder: str, uid: int) -> None:
    """Make the folder unless it is there; only ours will do, where nobody else can write."""
    try:
        sysio.mkdir(folder, 0o700)
        sysio.chmod(folder, 0o700)  # whatever the umask
    except OSError as e:
        if e.errno != _EEXIST:
            raise
    owner, mode = sysio.owner_mode(folder)
    if mode & _IFMT != _IFDIR:
        raise ForeignError("no folder")
    if owner != uid or mode & 0o022:
        raise ForeignError(f"a folder of user {owner} with mode {mode & 0o7777:o}")


def _hold(runtime: str, files: list[tuple[int, int, str]], uid: int) -> int:
    """The lock of an unpacked runtime, held shared; -1 when there is none, or not whole."""
    try:
        fd = runtimefolder.open_lock(runtime + "/lock", _O_RDONLY)
    except OSError as e:
        if e.errno != _ENOENT:
            raise
        return -1
    usable = False
    try:
        # A remover may have had it between our open and our lock: then the name is gone.
        usable = (
            sysio.lock(fd, False, 0)
            and _is_current(fd, runtime + "/lock")
            and _is_whole(runtime, files, uid)
        )
        if usable:
            _touch(runtime + "/lock")
    finally:
        if not usable:
            sysio.close(fd)
    return fd if usable else -1


def _is_current(fd: int, path: str) -> bool:
    try:
        return sysio.inode("/proc/self/fd/" + str(fd)) == sysio.inode(path)
    except OSError:
        return False


def _is_whole(runtime: str, files: list[tuple[int, int, str]], uid: int) -> bool:
    """Whether nothing has been deleted: cleaners of /tmp take what was not read for days."""
    try:
        if sysio.owner_mode(runtime) != (uid, _IFDIR | 0o700):
            return False
        for mode, size, path in files:
            if mode and sysio.size(runtime + "/" + path) != size:
                return False
    except OSError:
        return False
    return True


def _touch(path: str) -> None:
    try:  # noqa: SIM105
        sysio.touch(path)
    except OSError:
        pass  # on a read-only file system nobody removes runtimes either


def _unpack_once(folder: str, archive, uid: int) -> int:  # type: ignore[no-untyped-def]
    """Unpack unless another process just did; as `_hold`."""
    lock = runtimefolder.lock_folder(folder, PATIENCE_MS)
    try:
        runtime = folder + "/" + name_of(archive.digest)
        held = _hold(runtime, archive.files, uid)
        if held >= 0:
            return held
        runtimefolder.clear_leftovers(folder)
        try:
            _unpack(archive, runtime + ".new")
            runtimefolder.discard(runtime)  # one that is not whole
            sysio.rename(runtime + ".new", runtime)
        except BaseException:
            runtimefolder.remove_tree(runtime + ".new")
            raise
        held = _hold(runtime, archive.files, uid)
        if held < 0:
            raise UnusableError("something removes files there")
        return held
    finally:
        sysio.close(lock)


def _unpack(archive, folder: str) -> None:  # type: ignore[no-untyped-def]
    sysio.mkdir(folder, 0o700)
    sysio.chmod(folder, 0o700)
    sysio.close(_create(folder + "/lock"))
    blocks = archive.contents()
    block = memoryview(b"")
    for mode, size, path in archive.files:
        if not mode:
            sysio.mkdir(folder + "/" + path, 0o700)
            sysio.chmod(folder + "/" + path, 0o700)
            continue
        fd = _create(folder + "/" + path)
        try:
            while size > 0:
                if not len(block):
                    block = memoryview(next(blocks))
                written = min(size, len(block))
                sysio.write(fd, block[:written])  # type: ignore[arg-type]
                block = block[written:]
                size -= written
        finally:
            sysio.close(fd)
        sysio.chmod(folder + "/" + path, mode)
    for _ in blocks:  # the digest is compared at the end
        pass


def _create(path: str) -> int:
    return sysio.open_file(path, _O_WRONLY | _O_CREAT | _O_EXCL | _O_NOFOLLOW, 0o600)
