"""Small executables with an archive as the real one has it, and processes that unpack them."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher import runtime
from launcher.archive import MAGIC, TRAILER, Archive

PROJECT = Path(__file__).parents[2]
FRONT = b"\x7fELF and more, which nobody reads" * 100
FILES = {
    "ld.so": runtime.File(0o755, b"#!/bin/sh\n"),
    "lib/python3.11/os.pyc": runtime.File(0o644, b""),
    "lib/libc.so.6": runtime.File(0o755, os.urandom(700_000)),  # of several blocks
    "main.pyc": runtime.File(0o644, b"code" * 1000),
}


def make_executable(path: Path, files: dict[str, runtime.File] = FILES) -> Path:
    """A file that ends as the executable does."""
    archive = runtime.packed(files)
    digest = hashlib.sha256(archive).digest()
    path.write_bytes(
        FRONT + archive + struct.pack(TRAILER, MAGIC, len(FRONT), len(archive), digest)
    )
    path.chmod(0o755)
    return path


@contextmanager
def opened(executable: Path) -> Iterator[Archive]:
    fd = os.open(executable, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Archive(fd)
    finally:
        os.close(fd)


def contents(folder: Path) -> dict[str, runtime.File]:
    """The files of an unpacked runtime, without its lock."""
    return {
        str(path.relative_to(folder)): runtime.File(path.stat().st_mode & 0o7777, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path != folder / "lock"
    }


def start(code: str, *args: str, **options: object) -> subprocess.Popen[bytes]:
    """A Python process that can import the launcher; `code` has its arguments in sys.argv[1:]."""
    return subprocess.Popen(
        [*options.pop("prefix", ()), sys.executable, "-c", code, *args],  # type: ignore[misc]
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def finished(process: subprocess.Popen[bytes]) -> str:
    """stdout of the process, which has to succeed."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()
