"""Whether this process may do what an ADD needs: better said before than by a failing syscall."""

from __future__ import annotations

import os
from functools import cache

from cni_plugin.spec import CniError, Code

_NEEDED = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}  # capabilities(7)


@cache  # of success alone: who has them loses them by a call of its own, and there is none
def require() -> None:
    """Raises CniError 110 that names the capabilities this thread lacks."""
    effective = _effective()
    missing = [name for bit, name in _NEEDED.items() if not effective >> bit & 1]
    if missing:
        raise CniError(
            Code.PERMISSION_DENIED,
            f"podwire lacks {' and '.join(missing)}",
            "run it as root, or grant these capabilities",
        )


def _effective() -> int:
    fd = os.open("/proc/thread-self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.read(fd, 1 << 13)
    finally:
        os.close(fd)
    _, _, rest = status.partition(b"\nCapEff:")
    return int(rest.split(None, 1)[0], 16)
