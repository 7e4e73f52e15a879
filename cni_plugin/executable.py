"""How podwire can start itself again."""

from __future__ import annotations

import sys


def path() -> list[str]:
    """The first arguments of a command that runs podwire."""
    return [sys.executable, "-m", "cni_plugin"]
