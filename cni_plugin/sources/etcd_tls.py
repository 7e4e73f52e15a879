"""What TLS goes by, read again when its files have changed: certificates are renewed while agents
run."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence

from cni_plugin.spec import CniError

Tls = Callable[[], ssl.SSLContext | None]
"""What a new connection goes by, None for one without TLS."""


class Reread:
    """A `Tls`, for any thread."""

    def __init__(self, read: Tls, paths: Sequence[str]) -> None:
        """`read` reads the files at `paths`, "" for none. Raises what it raises: CniError 7."""
        self._read = read
        self._paths = tuple(filter(None, paths))
        stamp = self._stamp()
        self._made = stamp, read()

    def __call__(self) -> ssl.SSLContext | None:
        """While the files are no good, as in the midst of being replaced, what they were last."""
        stamp = self._stamp()
        if stamp != self._made[0]:
            try:
                self._made = stamp, self._read()
            except CniError:
                return self._made[1]
        return self._made[1]

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
