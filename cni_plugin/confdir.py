"""The folder of a runtime's network configurations: what is in it, and which file counts.

Runtimes use the first file by name of *.conf, *.conflist and *.json, whoever wrote it. What
podwire writes there itself is the matter of `conflists`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from json import loads
from typing import NamedTuple

from cni_plugin import wholefiles
from cni_plugin.conflists import TYPE, failure
from cni_plugin.fields import as_object
from cni_plugin.spec import CniError

_ENDINGS = (".conf", ".conflist", ".json")
_MULTUS = frozenset(("multus", "multus-shim"))  # the latter with its daemon, "thick"
_LARGEST = 1 << 21  # 2 MiB, as much as containerd reads of a configuration


class InUse(NamedTuple):
    """The file that runtimes use: its path, the network's name, the plugins by their types.

    `problem` says why it can't be used, "" when it can: containerd then has no network at all,
    where CRI-O goes on to the next file.
    """

    path: str
    network: str = ""
    types: tuple[str, ...] = ()
    problem: str = ""

    @property
    def ours(self) -> bool:
        """Whether the pods' network is podwire's, whoever wrote the file."""
        return TYPE in self.types

    @property
    def is_multus(self) -> bool:
        """Whether it is Multus, which has to come first and calls the networks behind it."""
        return not _MULTUS.isdisjoint(self.types)


def in_use(conf_dir: str) -> InUse | None:
    """The file of the folder that a runtime uses, the first that can be; None without one.

    Where none can be used it is the first. Raises CniError 5 for a folder that can't be read.
    """
    found = candidates(conf_dir)
    first = next(found, None)
    if first is None or not first.problem:
        return first
    return next((each for each in found if not each.problem), first)


def stopping(conf_dir: str) -> InUse | None:
    """The file at which containerd stops: the first, if that can't be used. CRI-O passes it over.

    Raises CniError 5 for a folder that can't be read.
    """
    first = next(candidates(conf_dir), None)
    return first if first is not None and first.problem else None


def candidates(conf_dir: str) -> Iterator[InUse]:
    """The configurations in the folder, in the order in which runtimes look at them."""
    try:
        found = names(conf_dir)
    except FileNotFoundError:
        return
    except OSError as e:
        raise failure(e, conf_dir) from e
    for name in found:
        yield examined(os.path.join(conf_dir, name))


def stamps(conf_dir: str) -> tuple[object, ...]:
    """What changes when one of the configurations in the folder comes, goes, or is written; raises
    nothing. A file that is on its way to its name is none."""
    found: list[object] = []
    with suppress(OSError):  # who has to read it says why it can't be
        for name in names(conf_dir):
            found.append(name)
            status = os.stat(os.path.join(conf_dir, name))
            found.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def names(conf_dir: str) -> list[str]:
    """The names of configurations in the folder, in that order. Raises OSError."""
    with os.scandir(conf_dir) as listing:
        files = [e.name for e in listing if not e.is_dir(follow_symlinks=False)]
    found = [name for name in files if os.path.splitext(name)[1] in _ENDINGS or name in _ENDINGS]
    return sorted(found, key=os.fsencode)


def examined(path: str) -> InUse:
    """What a runtime makes of one file, by its name and content; raises nothing."""
    try:
        with open(path, "rb", opener=wholefiles.without_waiting) as file:
            data = file.read(_LARGEST + 1) or b""
        if len(data) > _LARGEST:
            return InUse(path, problem=f"larger than {_LARGEST} bytes")
        fields = as_object(loads(data), "")
        whole = path.endswith(".conflist")
        plugins = fields.children("plugins") if whole else [fields]
        types = tuple(plugin.text("type") for plugin in plugins)
        if not (types and all(types)):
            return InUse(path, problem=f"no plugins with a type{'' if whole else ' of its own'}")
        if whole and not fields.has("name"):
            return InUse(path, problem="no name of a network")
        return InUse(path, fields.text("name"), types)
    except OSError as e:
        return InUse(path, problem=e.strerror or str(e))
    except (ValueError, RecursionError) as e:
        return InUse(path, problem=f"not valid JSON: {e}")
    except CniError as e:
        return InUse(path, problem=e.msg.removeprefix(": "))
