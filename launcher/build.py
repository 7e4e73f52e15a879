"""`python -m launcher.build`: make the self-contained executable.

The file is MicroPython with the client (the front), then the archive with the CPython runtime, then
a trailer that says where the archive lies (unpack.TRAILER). The front is built in a cache, under a
name that is the hash of all it is made of: it is compiled when one of these has changed.

Reproducible: no time, path, user or order of files of the machine gets into the file. Two builds of
one commit with the same compiler are the same bytes, wherever the folders lie.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from launcher import source
from launcher.archive import MAGIC, TRAILER
from launcher.source import BuildError, MissingError

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.path.join(PROJECT, "build", ".launcher")
OUTPUT = os.path.join(PROJECT, "build", "podwire")
_LAUNCHER = os.path.join(PROJECT, "launcher")
_PORT = os.path.join(_LAUNCHER, "port")
MANIFEST = os.path.join(_LAUNCHER, "manifest.py")
_PROGRAMS = {"gcc": "gcc libc6-dev", "make": "make", "strip": "binutils"}
_EPOCH = "1744675200"  # the day of MicroPython's release: its build date, wherever it asks for one
_LAST_LINES = 30


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.build", description=__doc__)
    parser.add_argument("--output", default=OUTPUT, help="the file to make (build/podwire)")
    parser.add_argument("--cache", default=CACHE, help="where to compile (build/.launcher)")
    parser.add_argument(
        "--front", action="store_true", help="MicroPython with the client alone, without a runtime"
    )
    options = parser.parse_args(argv)
    try:
        build(options.output, os.path.abspath(options.cache), with_runtime=not options.front)
    except (BuildError, OSError) as e:
        sys.stderr.write(f"launcher.build: {e}\n")
        return 1
    sys.stdout.write(f"{options.output}: {os.path.getsize(options.output) / 1e6:.1f} MB\n")
    return 0


def build(output: str, cache: str = CACHE, *, with_runtime: bool = True) -> None:
    """Make the executable `output`, which appears when it is whole. Raises BuildError, OSError."""
    with locked(cache):
        front = build_front(cache)
        archive = ""
        if with_runtime:
            from launcher import runtime

            archive = runtime.build(os.path.join(cache, "runtime"))
        assemble(front, archive, output)


def build_front(cache: str, name: str = "front", manifest: str = MANIFEST) -> str:
    """The path of the ELF file, MicroPython with what `manifest` freezes. Raises BuildError.

    `name`: what such files are called in the cache, which keeps one of each.
    """
    missing = [packages for program, packages in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise MissingError(f"a C compiler is needed: apt-get install {' '.join(missing)}")
    micropython = source.find(PROJECT, cache)
    read = {f"micropython/{path}": f"{micropython}/{path}" for path in source.needed(micropython)}
    cross = os.path.join(cache, f"mpy-cross-{_fingerprint(read)}")
    read |= {f"project/{os.path.relpath(path, PROJECT)}": path for path in _sources(manifest)}
    front = os.path.join(cache, f"{name}-{_fingerprint(read)}")
    if os.path.exists(front):
        return front
    with _workshop(read) as folder:
        if not os.path.exists(cross):
            _make(f"{folder}/micropython/mpy-cross", {"BUILD": f"{folder}/cross"})
            _keep_only(f"{folder}/cross/mpy-cross", cross, "mpy-cross-")
        shutil.copy2(cross, f"{folder}/mpy-cross")
        variables = {
            "SRC": f"{folder}/micropython",
            "BUILD": f"{folder}/port",
            "MICROPY_MPYCROSS": f"{folder}/mpy-cross",
            "FROZEN_MANIFEST": f"{folder}/project/{os.path.relpath(manifest, PROJECT)}",
            "MPY_LIB_DIR": folder,  # nothing of that library is frozen, but a file is asked for
        }
        with open(f"{folder}/README.md", "w", encoding="utf-8"):
            pass
        _make(f"{folder}/project/launcher/port", variables)
        _keep_only(f"{folder}/port/podwire-front", front, name + "-")
    return front


@contextmanager
def _workshop(read: dict[str, str]) -> Iterator[str]:
    """A folder with a copy of each file that make reads: name in it, path of the original.

    Nothing else is written to then, and the makefiles of MicroPython, which can't handle a blank in
    a path, don't get to see where the project lies.
    """
    with tempfile.TemporaryDirectory(prefix="podwire-") as folder:
        if len(folder.split()) != 1:
            raise BuildError(f"there is a blank in {folder}: set TMPDIR to a folder without")
        for name, path in read.items():
            copy = os.path.join(folder, name)
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copyfile(path, copy)
        yield folder


def _keep_only(made: str, path: str, prefix: str) -> None:
    """Put `made` at `path`, in place of what older builds left with this prefix."""
    folder = os.path.dirname(path)
    for name in os.listdir(folder):
        if name.startswith(prefix):
            os.unlink(os.path.join(folder, name))
    shutil.copy2(made, path + ".new")
    os.rename(path + ".new", path)


def frozen_modules(manifest: str = MANIFEST) -> list[str]:
    """The paths of the modules that the manifest freezes."""
    found = []

    def module(name: str, base_path: str) -> None:
        found.append(os.path.normpath(base_path.replace("$(PORT_DIR)", _PORT) + "/" + name))

    runpy.run_path(manifest, {"module": module})
    return found


def _sources(manifest: str) -> list[str]:
    """The paths of podwire's files that the front is made of."""
    folders = (_PORT, os.path.join(_LAUNCHER, "sysio"))
    files = [os.path.join(folder, name) for folder in folders for name in os.listdir(folder)]
    scripts = [os.path.join(_LAUNCHER, name) for name in ("build.py", "source.py")]
    return sorted([*files, *scripts, manifest, *frozen_modules(manifest)])


def _fingerprint(read: dict[str, str]) -> str:
    """A hash of the compiler, the C library, and of what the files are called and hold."""
    made_of = hashlib.sha256()
    for option in ("--version", "-print-file-name=libc.a"):
        command = ["gcc", option]
        said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        made_of.update(said.encode())
    if not os.path.exists(said.strip()):
        raise MissingError("the static C library is needed: apt-get install libc6-dev")
    for name, path in {"libc.a": said.strip(), **read}.items():
        made_of.update(f"{name} {source.sha256(path)}\n".encode())
    return made_of.hexdigest()[:16]


def _make(folder: str, variables: dict[str, str]) -> None:
    """Run make in an environment that holds nothing of this machine's but PATH."""
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": _EPOCH,
        "MICROPY_GIT_TAG": f"v{source.VERSION}",
        "MICROPY_GIT_HASH": "release",
        "MICROPY_MPYCROSS": variables.get("MICROPY_MPYCROSS", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    jobs = len(os.sched_getaffinity(0))
    given = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", f"-j{jobs}", "-C", folder, f"PYTHON={sys.executable}", *given]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environ,
        check=False,
    )
    if done.returncode != 0:
        shown = done.stdout.decode(errors="replace").splitlines()[-_LAST_LINES:]
        raise BuildError(f"make failed in {folder}:\n" + "\n".join(shown))


def assemble(front: str, archive: str, output: str) -> None:
    """Front, archive and trailer as one file; the front alone when `archive` is ""."""
    folder = os.path.dirname(os.path.abspath(output))
    os.makedirs(folder, exist_ok=True)
    partial = os.path.join(folder, f".{os.path.basename(output)}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            _append(file, front)
            if archive:
                offset = file.tell()
                _append(file, archive)
                length = file.tell() - offset
                digest = bytes.fromhex(source.sha256(archive))
                file.write(struct.pack(TRAILER, MAGIC, offset, length, digest))
        os.chmod(partial, 0o755)  # noqa: S103  anybody may execute it
        os.replace(partial, output)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def _append(file: BinaryIO, path: str) -> None:
    with open(path, "rb") as part:
        shutil.copyfileobj(part, file)


@contextmanager
def locked(cache: str) -> Iterator[None]:
    """One build at a time in this cache."""
    os.makedirs(cache, exist_ok=True)
    with open(os.path.join(cache, "lock"), "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
