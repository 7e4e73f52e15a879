"""MicroPython's source: found on this machine, or downloaded from its release.

Rules: a tarball that nobody chose explicitly has to be one of those whose SHA-256 stands here; and
the version has to be the one that the port was written for. A folder is never written to.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request

VERSION = "1.25.0"
VARIABLE = "MICROPYTHON_SRC"
_RELEASE = f"micropython-{VERSION}.tar.xz"
_URLS = (
    f"https://github.com/micropython/micropython/releases/download/v{VERSION}/{_RELEASE}",
    f"https://micropython.org/resources/source/{_RELEASE}",
)
_RELEASE_SHA256 = "9fe99ad5808e66bb40d374f5cad187c32c7d1c49cf47f72b38fd453c28c2aebe"
# Debian's, which lacks what is not free; none of that is needed.
_DEBIAN_SHA256 = "7b25be99a502f070b2de81dafc08da7051d992325d6e67daa9045a918fffdbea"
_TIMEOUT_S = 60
# Of 300 MB the part that this port and mpy-cross are made of.
_NEEDED = ("extmod", "lib/crypto-algorithms", "lib/uzlib", "mpy-cross", "py", "shared", "tools")


class BuildError(Exception):
    """The executable can't be built; the message says what to do."""


class MissingError(BuildError):
    """Something has to be installed, or put in place, first."""


def find(project: str, cache: str) -> str:
    """The folder of MicroPython's source. `project`: podwire's; `cache`: to unpack and download to.

    Looked for in $MICROPYTHON_SRC (a folder or a tarball), in ../shared/src beside the project, and
    at the official release. Raises BuildError.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not os.path.exists(chosen):
            raise MissingError(f"${VARIABLE} is {chosen}, which does not exist")
        return _folder_of(os.path.abspath(chosen), cache, check=False)
    beside = os.path.join(os.path.dirname(project), "shared", "src")
    names = sorted(os.listdir(beside)) if os.path.isdir(beside) else []
    for name in names:
        if name.startswith("micropython") and VERSION in name:
            return _folder_of(os.path.join(beside, name), cache, check=True)
    return _folder_of(_download(cache), cache, check=True)


def needed(folder: str) -> list[str]:
    """The files that the build reads, relative to the source's folder, in order."""
    found = []
    for part in _NEEDED:
        for parent, folders, names in os.walk(os.path.join(folder, part)):
            folders[:] = [name for name in folders if name not in ("build", "__pycache__")]
            found += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
    return sorted(found)


def _folder_of(path: str, cache: str, *, check: bool) -> str:
    folder = path
    if not os.path.isdir(path):
        digest = sha256(path)
        if check and digest not in (_RELEASE_SHA256, _DEBIAN_SHA256):
            raise BuildError(
                f"{path} has the SHA-256 {digest}, and is no known tarball of MicroPython"
                f" {VERSION}: remove it, or choose it by ${VARIABLE}"
            )
        folder = os.path.join(cache, f"micropython-{digest[:16]}")
        if not os.path.isdir(folder):
            _unpack(path, folder)
    found = _version(folder)
    if found != VERSION:
        raise BuildError(f"{path} is MicroPython {found or 'of no known version'}, not {VERSION}")
    return folder


def _unpack(tarball: str, folder: str) -> None:
    """The needed part of the source as `folder`, which appears when it is whole."""
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as scratch:
        try:
            with tarfile.open(tarball) as archive:
                members = [member for member in archive if _is_needed(member)]
                archive.extractall(scratch, members)  # noqa: S202  _is_needed looked at the names
        except (tarfile.TarError, EOFError, OSError) as e:
            raise BuildError(f"can't unpack {tarball}: {e}") from e
        tops = os.listdir(scratch)
        if len(tops) != 1:
            raise BuildError(f"{tarball} does not hold one folder with MicroPython's source")
        os.rename(os.path.join(scratch, tops[0]), folder)


def _is_needed(member: tarfile.TarInfo) -> bool:
    parts = member.name.removeprefix("./").split("/")
    path = "/".join(parts[1:]) + "/"
    return (
        (member.isfile() or member.isdir())
        and ".." not in parts
        and not member.name.startswith("/")
        and any(path.startswith(needed + "/") for needed in _NEEDED)
    )


def _version(folder: str) -> str:
    """ "1.25.0", from the header that says it; "" when there is none."""
    try:
        with open(os.path.join(folder, "py", "mpconfig.h"), encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return ""
    found = [
        re.search(rf"^#define MICROPY_VERSION_{part} (\d+)", text, re.MULTILINE)
        for part in ("MAJOR", "MINOR", "MICRO")
    ]
    return ".".join(number.group(1) for number in found if number)


def _download(cache: str) -> str:
    """The release's tarball in `cache`."""
    path = os.path.join(cache, _RELEASE)
    if os.path.exists(path):
        return path
    os.makedirs(cache, exist_ok=True)
    failures = []
    for url in _URLS:
        try:
            _fetch(url, path)
        except (OSError, urllib.error.URLError) as e:
            failures.append(f"{url}: {e}")
        else:
            return path
    raise MissingError(
        f"MicroPython's source is needed: set ${VARIABLE} to version {VERSION}, a folder or a"
        " tarball. It could not be downloaded:\n  " + "\n  ".join(failures)
    )


def _fetch(url: str, path: str) -> None:
    partial = path + ".part"
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply,  # noqa: S310  one of _URLS
        open(partial, "wb") as file,
    ):
        shutil.copyfileobj(reply, file)
    digest = sha256(partial)
    if digest != _RELEASE_SHA256:
        os.unlink(partial)
        raise BuildError(f"{url} has the SHA-256 {digest}, expected {_RELEASE_SHA256}")
    os.replace(partial, path)


def sha256(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
