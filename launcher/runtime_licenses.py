"""The licence texts of what the executable is made of: the runtime's folder licenses/.

They come from where the components come from: the packages' metadata, the interpreter's library,
and for Debian's packages /usr/share/doc and the texts in /usr/share/common-licenses that these
refer to. licenses/README says of each component which files are its own, or that there were none.
"""

from __future__ import annotations

import os
from importlib import metadata

_DOC = "/usr/share/doc"
_COMMON = "/usr/share/common-licenses"
_PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TEXTS = ("licen", "copying", "notice")  # in the name of a file of a package's metadata
_PACKAGES = (
    "click",
    "h11",
    "httpcore2",
    "httpx2",
    "idna",
    "lightkube",
    "lightkube-models",
    "msgspec",
    "netaddr",
    "pyroute2",
    "pyyaml",
    "truststore",
    "typing_extensions",
)

# Component, where it is, Debian's package, and the texts that its copyright file refers to.
_LIBRARIES = (
    (
        "glibc",
        "ld.so, lib/libc.so.6, lib/libm.so.6, lib/libpthread.so.0; static in the front",
        "libc6",
        "LGPL-2.1",
    ),
    ("OpenSSL", "lib/libssl.so.3, lib/libcrypto.so.3", "libssl3", "Apache-2.0"),
    ("zlib", "lib/libz.so.1", "zlib1g", ""),
    ("expat", "lib/libexpat.so.1", "libexpat1", ""),
    ("libffi", "lib/libffi.so.8", "libffi8", ""),
)
# The first part of LICENSE in MicroPython's source, for all that the front is made of but
# lib/uzlib, whose licence (zlib's) asks for no notice in a program.
_MICROPYTHON = """\
The MIT License (MIT)

Copyright (c) 2013-2025 Damien P. George

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in
all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN
THE SOFTWARE.
"""


def texts(library: str) -> dict[str, bytes]:
    """The files of the folder by their names. `library`: the interpreter's standard library, whose
    folder is named as Debian's package of the interpreter."""
    files = {
        "podwire": _read(os.path.join(_PROJECT, "LICENSE")),
        "MicroPython": _MICROPYTHON.encode(),
    }
    readme = [("podwire", "", ["podwire"]), ("MicroPython", "the front", ["MicroPython"])]
    python = [f"{_DOC}/{os.path.basename(library)}/copyright", f"{library}/LICENSE.txt"]
    readme.append(("CPython", "python, code, lib/python*", _add(files, "CPython", python)))
    for component, place, package, common in _LIBRARIES:
        own = _add(files, component, [f"{_DOC}/{package}/copyright"])
        if own and common:
            own += _add(files, common, [f"{_COMMON}/{common}"])
        readme.append((component, place, own))
    for package in _PACKAGES:
        own = []
        for path in _of_package(package):
            own += _add(files, f"{package}-{os.path.basename(path)}", [path])
        readme.append((package, "code", own))
    files["README"] = "".join(_line(*entry) for entry in readme).encode()
    return files


def _line(component: str, place: str, own: list[str]) -> str:
    where = f" ({place})" if place else ""
    named = ", ".join(own) or "no text was found where this was built"
    return f"{component}{where}: {named}\n"


def _add(files: dict[str, bytes], name: str, paths: list[str]) -> list[str]:
    """Add the first of the paths that exists under this name: the names added, one or none."""
    for path in paths:
        if os.path.exists(path):
            files[name] = _read(path)
            return [name]
    return []


def _of_package(package: str) -> list[str]:
    """The paths of the licence files in the metadata of an installed package, in order."""
    found = metadata.files(package) or []
    return sorted(
        str(path.locate())
        for path in found
        if ".dist-info" in str(path) and any(part in path.name.lower() for part in _TEXTS)
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
