"""The interpreter, its dynamic linker and the shared libraries: what is compiled in the runtime."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

from launcher.source import BuildError

# A file that no node has, of the same length: what root lists in the real one for all programs of
# the node was made for the node's C library.
_PRELOAD_LIST = b"/etc/ld.so.preload\0"
_NO_PRELOAD_LIST = b"/proc/self/nothing\0"

_LINE = re.compile(r"^\s*(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_MISSING = re.compile(r"^\s*(\S+) => not found$", re.MULTILINE)


def shared_libraries(files: list[str]) -> tuple[str, dict[str, str]]:
    """The dynamic linker of these ELF files, and what they need: {name: path}.

    Raises BuildError when something is not found.
    """
    linkers: set[str] = set()
    needed: dict[str, str] = {}
    environ = {k: v for k, v in os.environ.items() if not k.startswith("LD_")} | {"LC_ALL": "C"}
    for file in files:
        done = subprocess.run(
            ["ldd", file],  # noqa: S607 - of glibc, wherever it is
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        missing = _MISSING.findall(done.stdout)
        if missing:
            raise BuildError(f"{file} needs {', '.join(missing)}, which are not here")
        for found in _LINE.finditer(done.stdout):
            if found["name"]:
                needed[found["name"]] = found["path"]
            else:
                linkers.add(found["path"])
    if len(linkers) != 1:
        raise BuildError(f"not one dynamic linker: {', '.join(sorted(linkers)) or 'none'}")
    return linkers.pop(), needed


def stripped(path: str) -> bytes:
    """The ELF file without symbols that only a debugger reads; distributions have removed them."""
    with open(path, "rb") as file:
        data = file.read()
    if b"\0.symtab\0" not in data:
        return data
    with tempfile.NamedTemporaryFile() as smaller:
        command = ["strip", "--strip-unneeded", "-o", smaller.name, path]
        subprocess.run(command, check=True)
        with open(smaller.name, "rb") as file:
            return file.read()


def linker_without_preload(data: bytes) -> bytes:
    """glibc's ld.so, deaf to /etc/ld.so.preload. Raises BuildError when it is another one."""
    if data.count(_PRELOAD_LIST) != 1:
        raise BuildError("the interpreter's dynamic linker is not glibc's as it is known here")
    return data.replace(_PRELOAD_LIST, _NO_PRELOAD_LIST)
