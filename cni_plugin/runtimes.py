"""The CPython runtimes that executables have unpacked into a folder of this node.

One source for MicroPython, where it is frozen into the executable, and for CPython, where the
tool removes runtimes: it keeps to what both have.

    runtime.lock         held exclusively by whoever makes or removes runtimes in this folder
    runtime-HASH/lock    held shared by every process of that runtime; its time is the last use
    runtime-HASH.new     being unpacked; while nobody holds runtime.lock, left by a killed process
    runtime-HASH.old     being removed; likewise

A runtime gets its name when it is whole, and loses it before it is taken apart. HASH is that of
its archive, so versions lie side by side.
"""

import sys

if sys.implementation.name != "micropython":
    from cni_plugin import sysio
else:
    import sysio  # type: ignore[import-not-found, no-redef]

UNUSED_S = 600  # a runtime nobody has used for so long is stale
PATIENCE_MS = 60_000  # for another process that unpacks

_O_RDONLY, _O_WRONLY, _O_RDWR = 0, 1, 2
_O_CREAT, _O_EXCL, _O_NOFOLLOW = 0o100, 0o200, 0o400000
_IFMT, _IFDIR = 0o170000, 0o040000
_ENOENT, _EEXIST = 2, 17
_ST_NOEXEC = 8
_DIGITS = 16  # of the hash, in a name


class UnusableError(Exception):
    """Runtimes can't be in this folder: why, as text."""


class ForeignError(Exception):
    """The folder is not ours alone: what it is, as text."""


class BusyError(Exception):
    """Another process has held the lock of this path for longer than it takes."""


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


def is_runtime(name: str) -> bool:
    return name.startswith("runtime-") and "." not in name


def prepare(folder: str, archive) -> int:  # type: ignore[no-untyped-def]
    """Unpack the runtime of `archive` (a launcher.archive.Archive), if it is not in the folder.

    The descriptor of its lock, held shared: while it is open nobody removes the runtime. Raises
    UnusableError, ForeignError, BusyError, OSError, and what the archive raises.
    """
    _refuse_noexec(folder)
    uid = sysio.geteuid()
    _own(folder, uid)
    name = name_of(archive.digest)
    held = _hold(folder + "/" + name, archive.files, uid)
    if held < 0:
        held = _unpack_once(folder, archive, uid)
    try:  # noqa: SIM105 - MicroPython has no contextlib
        remove_stale(folder, name)
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
        fd = _open_lock(runtime + "/lock", _O_RDONLY)
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


def _open_lock(path: str, flags: int) -> int:
    """Open a lock file under a number that is not stdin's, stdout's or stderr's."""
    low = []
    try:
        fd = sysio.open_file(path, flags | _O_NOFOLLOW, 0o600)
        while fd < 3:
            low.append(fd)
            fd = sysio.open_file(path, flags | _O_NOFOLLOW, 0o600)
    finally:
        for number in low:
            sysio.close(number)
    return fd


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
    lock = lock_folder(folder, PATIENCE_MS)
    try:
        runtime = folder + "/" + name_of(archive.digest)
        held = _hold(runtime, archive.files, uid)
        if held >= 0:
            return held
        _remove_leftovers(folder)
        try:
            _unpack(archive, runtime + ".new")
            _discard(runtime)  # one that is not whole
            sysio.rename(runtime + ".new", runtime)
        except BaseException:
            _remove_tree(runtime + ".new")
            raise
        held = _hold(runtime, archive.files, uid)
        if held < 0:
            raise UnusableError("something removes files there")
        return held
    finally:
        sysio.close(lock)


def lock_folder(folder: str, timeout_ms: int) -> int:
    """The descriptor of the folder's lock, held exclusively. Raises BusyError, OSError."""
    path = folder + "/runtime.lock"
    lock = _open_lock(path, _O_RDWR | _O_CREAT)
    try:
        if sysio.lock(lock, True, timeout_ms):
            return lock
    except BaseException:
        sysio.close(lock)
        raise
    sysio.close(lock)
    raise BusyError(path)


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


def remove_stale(folder: str, current: str, unused_s: int = UNUSED_S) -> list[str]:
    """Remove the runtimes but `current` that nobody runs, nor has run for a while, and what killed
    processes left; the names of those that are removed. Raises OSError."""
    if not any(_is_stale(folder, name, current, unused_s) for name in sysio.listdir(folder)):
        return []
    try:
        lock = lock_folder(folder, 0)
    except BusyError:
        return []  # another process is at it
    try:
        _remove_leftovers(folder)
        return [
            name
            for name in sysio.listdir(folder)
            if _is_stale(folder, name, current, unused_s) and _remove_unused(folder + "/" + name)
        ]
    finally:
        sysio.close(lock)


def remove_leftovers(folder: str) -> None:
    """Remove what killed processes left half made or half removed. Raises OSError."""
    try:
        lock = lock_folder(folder, 0)
    except BusyError:
        return  # another process is at it
    try:
        _remove_leftovers(folder)
    finally:
        sysio.close(lock)


def _is_stale(folder: str, name: str, current: str, unused_s: int) -> bool:
    if not is_runtime(name) or name == current:
        return False
    try:
        used = sysio.mtime(folder + "/" + name + "/lock")
    except OSError:
        return True  # without a lock nobody can use it
    return used + unused_s < sysio.clock()


def _remove_unused(runtime: str) -> bool:
    """Remove a runtime unless a process holds its lock; whether it is gone."""
    try:
        fd = _open_lock(runtime + "/lock", _O_RDONLY)
    except OSError as e:
        if e.errno != _ENOENT:
            raise
        _discard(runtime)
        return True
    try:
        if not sysio.lock(fd, True, 0):
            return False
        _discard(runtime)
    finally:
        sysio.close(fd)
    return True


def _remove_leftovers(folder: str) -> None:
    """What killed processes left half made or half removed; the folder's lock is held."""
    for name in sysio.listdir(folder):
        if name.startswith("runtime-") and (name.endswith(".new") or name.endswith(".old")):  # noqa: PIE810
            _remove_tree(folder + "/" + name)


def _discard(runtime: str) -> None:
    """Take the name away first, so that nobody finds it half removed."""
    try:
        sysio.rename(runtime, runtime + ".old")
    except OSError as e:
        if e.errno != _ENOENT:
            raise
        return
    _remove_tree(runtime + ".old")


def _remove_tree(path: str) -> None:
    try:
        mode = sysio.owner_mode(path)[1]
    except OSError as e:
        if e.errno != _ENOENT:
            raise
        return
    if mode & _IFMT != _IFDIR:
        sysio.unlink(path)
        return
    for name in sysio.listdir(path):
        _remove_tree(path + "/" + name)
    sysio.rmdir(path)
