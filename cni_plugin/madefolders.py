"""Folders that `podwire install` had to make, remembered in the folder itself, for `uninstall`."""

from __future__ import annotations

import os
from contextlib import suppress

MARKER = ".made-by-podwire"
"""In a folder that was made; it holds the path of the topmost folder that was made with it."""


def make(folder: str) -> bool:
    """Make the folder, and what is missing above it; whether it was missing. Raises OSError."""
    if os.path.isdir(folder):
        return False
    topmost = os.path.abspath(folder)
    while not os.path.lexists(os.path.dirname(topmost)):
        topmost = os.path.dirname(topmost)
    os.makedirs(folder, 0o755)
    with open(os.path.join(folder, MARKER), "w", encoding="utf-8") as file:
        file.write(topmost)
    return True


def remove(folder: str) -> list[str]:
    """Remove the folder and those above it that `make` made, as far as they are empty; the paths.

    A folder that was there before stays, and so does one that others use by now.
    """
    marker = os.path.join(folder, MARKER)
    if set(_names(folder)) != {MARKER}:
        return []
    with open(marker, encoding="utf-8") as file:
        topmost = file.read()
    os.unlink(marker)
    removed = []
    path = os.path.abspath(folder)
    with suppress(OSError):  # not empty: others use it
        while path == topmost or path.startswith(topmost + "/"):
            os.rmdir(path)
            removed.append(path)
            path = os.path.dirname(path)
    return removed


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
