"""A folder of unpacked runtimes: its lock, and removing what nobody uses any more.

    runtime.lock         held exclusively by whoever makes or removes runtimes in this folder
    runtime-HASH/lock    held shared by every process of that runtime; its time is the last use
    runtime-HASH.new     being unpacked; while nobody holds runtime.lock, left by a killed process
    runtime-HASH.old     being removed; likewise

One source for MicroPython, where it is frozen into the executable, and for CPython, where the
tool removes runtimes: it keeps to what both have.
"""

import sys

if sys.implementation.name != "micropython":
    from cni_plugin import sysio
else:
    import sysio  # type: ignore[import-not-found, no-redef]

UNUSED_S = 600  # a runtime nobody has used for so long is stale

_O_RDONLY, _O_RDWR = 0, 2
_O_CREAT, _O_NOFOLLOW = 0o100, 0o400000
_IFMT, _IFDIR = 0o170000, 0o040000
_ENOENT = 2


class BusyError(Exception):
    """Another process has held the lock of this path for longer than it takes."""


def is_runtime(name: str) -> bool:
    return name.startswith("runtime-") and "." not in name


def lock_folder(folder: str, timeout_ms: int) -> int:
    """The descriptor of the folder's lock, held exclusively. Raises BusyError, OSError."""
    path = folder + "/runtime.lock"
    lock = open_lock(path, _O_RDWR | _O_CREAT)
    try:
        if sysio.lock(lock, True, timeout_ms):
            return lock
    except BaseException:
        sysio.close(lock)
        raise
    sysio.close(lock)
    raise BusyError(path)


def open_lock(path: str, flags: int) -> int:
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
        clear_leftovers(folder)
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
        clear_leftovers(folder)
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
        fd = open_lock(runtime + "/lock", _O_RDONLY)
    except OSError as e:
        if e.errno != _ENOENT:
            raise
        discard(runtime)
        return True
    try:
        if not sysio.lock(fd, True, 0):
            return False
        discard(runtime)
    finally:
        sysio.close(fd)
    return True


def clear_leftovers(folder: str) -> None:
    """What killed processes left half made or half removed; the folder's lock is held."""
    for name in sysio.listdir(folder):
        if name.startswith("runtime-") and (name.endswith(".new") or name.endswith(".old")):  # noqa: PIE810
            remove_tree(folder + "/" + name)


def discard(runtime: str) -> None:
    """Take the name away first, so that nobody finds it half removed."""
    try:
        sysio.rename(runtime, runtime + ".old")
    except OSError as e:
        if e.errno != _ENOENT:
            raise
        return
    remove_tree(runtime + ".old")


def remove_tree(path: str) -> None:
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
        remove_tree(path + "/" + name)
    sysio.rmdir(path)
