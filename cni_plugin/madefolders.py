"""The folders that `podwire install` writes to: one process's alone meanwhile, and made if missing.

Rules:
- The lock is the folder's own, flock(2) on its descriptor: it leaves no file, and ends with the
  process that holds it.
- What had to be made is remembered in the folder itself, for `uninstall`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOENT, ENOTDIR
from time import monotonic, sleep

from cni_plugin import wholefiles
from cni_plugin.spec import CniError, Code

MARKER = ".made-by-podwire"
"""In a folder that was made; it holds the path of the topmost folder that was made with it."""

PATIENCE_S = 60.0  # of one copy each, many can wait in turn
_PAUSE_S = 0.05
_TRIES = 10  # at a folder that an uninstall removes again and again


# --- having them ------------------------------------------------------------------------------


@contextmanager
def alone(folders: Iterable[str], *, make: bool = False) -> Iterator[list[str]]:
    """Keep other installs out of these folders; with `make`, yields those that this has made.

    Without it, one that is missing is passed over. Raises CniError 11 naming a folder that others
    do not let go within a minute, and OSError.
    """
    made: list[str] = []
    with ExitStack() as undo:
        held: set[tuple[int, int]] = set()
        for folder in sorted(folders, key=os.path.realpath):  # in one order, so that all get on
            for _ in range(_TRIES):
                topmost = _make(folder) if make else ""
                if _hold(folder, held, undo):
                    break
            else:
                if make:
                    raise FileNotFoundError(ENOENT, os.strerror(ENOENT), folder)
            if topmost:
                _remember(folder, topmost)
                made.append(folder)
        yield made


def _make(folder: str) -> str:
    """Make the folder and what is missing above it; the topmost that this call has made, or ""."""
    path = os.path.abspath(folder)
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    topmost = ""
    for path in reversed(missing):
        try:
            os.mkdir(path, 0o755)
        except FileExistsError as e:
            if not os.path.isdir(path):  # otherwise another install was faster
                raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), path) from e
        else:
            topmost = topmost or path
    return topmost


def _hold(folder: str, held: set[tuple[int, int]], undo: ExitStack) -> bool:
    """Lock the folder until `undo`; False when there is none, or it was removed meanwhile."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    undo.callback(os.close, fd)
    identity = _identity(os.fstat(fd))
    if identity in held:  # the same by another name: a second lock would wait for the first
        return True
    _lock(fd, folder)
    try:
        if _identity(os.stat(folder)) != identity:
            return False
    except FileNotFoundError:
        return False
    held.add(identity)
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _lock(fd: int, folder: str) -> None:
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            if monotonic() >= deadline:
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    f"{folder}: another process holds the lock of this folder",
                    f"another install has it for seconds only: see who it is (fuser -v {folder})",
                ) from e
            sleep(_PAUSE_S)
        else:
            return


# --- what had to be made ----------------------------------------------------------------------


def _remember(folder: str, topmost: str) -> None:
    """Of several installs at once each may have made a part: the topmost of all counts."""
    marker = os.path.join(folder, MARKER)
    others = wholefiles.read(marker)
    if others and len(others) <= len(os.fsencode(topmost)):
        return
    try:
        wholefiles.write(marker, 0o644, [os.fsencode(topmost)])
    except OSError as e:
        raise OSError(e.errno, e.strerror, marker) from e


def remove(folder: str) -> list[str]:
    """Remove the folder and those above it that were made, as far as they are empty; the paths.

    A folder that was there before stays, and so does one that others use by now.
    """
    marker = os.path.join(folder, MARKER)
    if set(_names(folder)) != {MARKER}:
        return []
    topmost = os.fsdecode(wholefiles.read(marker) or b"")
    os.unlink(marker)
    removed = []
    path = os.path.abspath(folder)
    with suppress(OSError):  # not empty: others use it
        while topmost and (path == topmost or path.startswith(topmost + "/")):
            os.rmdir(path)
            removed.append(path)
            path = os.path.dirname(path)
    return removed


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
