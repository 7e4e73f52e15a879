"""Build the archive with the CPython runtime, which launcher/unpack.py unpacks on a node.

Below the folder it is unpacked into:
    ld.so, lib/          the dynamic linker and the shared libraries: the node's don't matter
    python               the interpreter
    main.pyc             launcher/entry.py
    code                 the modules of the standard library, of the packages and of podwire
    lib/python3.11/      extension modules; what the interpreter imports before main.pyc; packages
                         that read files beside their code
    licenses/            the texts, of all that the executable is made of
The bytes depend on the interpreter, the packages and podwire's own code; not on the time, nor on
the folder. Which interpreter: $PODWIRE_PYTHON, else Debian's Python 3.11 (it is built with
profile-guided optimization and is not position-independent), else the one that runs this.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from typing import NamedTuple

from launcher import runtime_contents as contents
from launcher import runtime_licenses as licenses
from launcher.archive import BLOCK, HEADER
from launcher.runtime_libs import linker_without_preload, shared_libraries, stripped
from launcher.source import BuildError

_DEBIAN = "/usr/bin/python3.11"
_HERE = os.path.dirname(os.path.abspath(__file__))
_BLOCK_BYTES = 1 << 18  # plain: the unpacker holds one, compressed and plain
_QUERY = """
import json, sys, sysconfig
print(json.dumps({
    "implementation": sys.implementation.name,
    "executable": sys.executable,
    "version": list(sys.version_info[:2]),
    "library": sysconfig.get_path("stdlib"),
    "extensions": sysconfig.get_config_var("DESTSHARED"),
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
}))
"""


class Interpreter(NamedTuple):
    """`folder`: python3.11. `library`: of the standard library's sources. `extensions`: the folder
    of its extension modules. `suffix`: what the names of those end with."""

    executable: str
    folder: str
    library: str
    extensions: str
    suffix: str


class File(NamedTuple):
    mode: int
    data: bytes


def build(work: str) -> str:
    """Write the archive into the folder `work`, which is emptied first: its path.

    Raises BuildError when something it needs is not here.
    """
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    contents.check_versions()
    files = collect(interpreter(), work)
    path = os.path.join(work, "runtime")
    with open(path, "wb") as archive:
        archive.write(packed(files))
    return path


def interpreter() -> Interpreter:
    """The interpreter to pack. Raises BuildError when it is not CPython 3.11 or later."""
    chosen = os.environ.get("PODWIRE_PYTHON") or (
        _DEBIAN if os.access(_DEBIAN, os.X_OK) else sys.executable
    )
    command = [chosen, "-I", "-S", "-c", _QUERY]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    if found["implementation"] != "cpython" or found["version"] < [3, 11]:
        raise BuildError(f"{chosen} is not CPython 3.11 or later")
    return Interpreter(
        os.path.realpath(found["executable"]),
        "python{}.{}".format(*found["version"]),
        found["library"],
        found["extensions"],
        found["suffix"],
    )


def collect(python: Interpreter, work: str) -> dict[str, File]:
    """Every file of the runtime by its path in it."""
    extensions = contents.extension_modules(python.extensions)
    of_packages = dict(contents.package_extensions(python.suffix))
    compiled = [python.executable, *extensions, *of_packages.values()]
    linker, libraries = shared_libraries(compiled)
    below = f"lib/{python.folder}"
    files = {
        "ld.so": File(0o755, linker_without_preload(_read(linker))),
        "python": File(0o755, stripped(python.executable)),
        # The interpreter looks for these two to know where its library is; it reads neither.
        f"{below}/os.pyc": File(0o644, b""),
        f"{below}/lib-dynload/empty": File(0o644, b""),
    }
    files |= {f"lib/{name}": File(0o755, stripped(path)) for name, path in libraries.items()}
    for path in extensions:
        files[f"{below}/{os.path.basename(path)}"] = File(0o755, stripped(path))
    for name, path in of_packages.items():
        files[f"{below}/{name}"] = File(0o644, stripped(path))
    for name, data in contents.versions():
        files[f"{below}/{name}"] = File(0o644, data)
    for name, path in contents.data_files():
        files[f"{below}/{name}"] = File(0o644, _read(path))
    for name, text in licenses.texts(python.library).items():
        files[f"licenses/{name}"] = File(0o644, text)
    return files | _code(python, below, os.path.join(work, "code"))


def _code(python: Interpreter, below: str, work: str) -> dict[str, File]:
    """The compiled modules: `code`, main.pyc, and those that are files of their own."""
    os.mkdir(work)
    loose = contents.loose_modules(python.library)
    plan = {
        "modules": contents.modules(python.library),
        "bundle": contents.ADD_IMPORTS,
        "path": [python.library, python.extensions, *contents.package_folders()],
        "loose": [[f"{below}/{path}", *rest] for path, *rest in loose]
        + [["main.pyc", False, f"{_HERE}/entry.py", 2, "launcher/entry.py"]],
    }
    path = os.path.join(work, "plan")
    with open(path, "w") as file:
        json.dump(plan, file)
    command = [python.executable, "-sS", "-X", "no_debug_ranges", f"{_HERE}/runtime_code.py"]
    # A hash seed, because the order of a set is in the code of a module that has one.
    subprocess.run([*command, path, work], env={"PYTHONHASHSEED": "0"}, check=True)
    os.unlink(path)
    return {
        os.path.relpath(os.path.join(folder, name), work): File(
            0o644, _read(os.path.join(folder, name))
        )
        for folder, _, names in os.walk(work)
        for name in names
    }


def packed(files: dict[str, File]) -> bytes:
    """The archive; launcher/archive.py has the format."""
    folders = {""}
    index = []
    for path in sorted(files):
        parts = path.split("/")[:-1]
        for depth in range(len(parts)):
            folder = "/".join(parts[: depth + 1])
            if folder not in folders:
                folders.add(folder)
                index.append(f"d {folder}\n")
        index.append(f"{files[path].mode:o} {len(files[path].data)} {path}\n")
    plain = b"".join(files[path].data for path in sorted(files))
    blocks = [
        _block(plain[start : start + _BLOCK_BYTES]) for start in range(0, len(plain), _BLOCK_BYTES)
    ]
    lines = "".join(index).encode()
    return b"".join([struct.pack(HEADER, len(lines), len(blocks)), lines, *blocks])


def _block(plain: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    data = deflate.compress(plain) + deflate.flush()
    return struct.pack(BLOCK, len(data), len(plain)) + data


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
