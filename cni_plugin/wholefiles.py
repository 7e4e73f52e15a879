"""Files that appear at once and whole: written under another name in the same folder, and renamed.

The other name begins with a dot and ends in ".new", which no runtime takes for a configuration.
One process at a time writes a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress


def write(path: str, mode: int, parts: Iterable[bytes]) -> None:
    """Put a file of these parts at `path`, on the disk when this returns. Raises OSError."""
    partial = partial_name(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(partial, flags, 0o600), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def partial_name(path: str) -> str:
    """The name a file has until it is whole; what a killed process left under it goes."""
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.new")
    with suppress(FileNotFoundError):
        os.unlink(partial)
    return partial


def read(path: str) -> bytes | None:
    """What the file holds; None when there is none. Raises OSError."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
            return file.read() or b""
    except FileNotFoundError:
        return None


def without_waiting(path: str, flags: int) -> int:
    """For `open`: a FIFO that nobody writes to then reads as empty; it would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)
