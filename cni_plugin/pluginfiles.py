"""Plugins' executables, as far as they can be seen from here.

A container may see the runtime's folder in part or not at all, and runtimes may have several: what
is missing here is a hint for people, and takes no node out of service.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

FOLDER = "/opt/cni/bin"


def missing(types: Iterable[str], folders: Iterable[str]) -> Iterator[str]:
    """The plugins that are in none of these folders; none when no folder can be seen.

    An empty folder is one that can't be seen: a mount of nothing. A link counts whether or not it
    leads anywhere: what it leads to may be out of sight.
    """
    names: set[str] = set()
    for folder in folders:
        try:
            names.update(os.listdir(folder))
        except OSError:
            continue  # out of sight
    if names:
        yield from (each for each in dict.fromkeys(types) if each not in names)
