"""`python -m launcher.supplies`: what the image's build would download, in a folder of the context.

The wheels of the packages that the executable holds, by pip as it is configured, and MicroPython's
source. With them, and with a base image that has the compiler, `docker build` needs no network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib

from launcher import source
from launcher.build import CACHE, PROJECT, locked
from launcher.source import BuildError

OUTPUT = os.path.join(PROJECT, "build", "supplies")
_NOTE = "requirements.txt"  # what the wheels were chosen by
_PYTHON = "3.11"  # that of the Dockerfile's base


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.supplies", description=__doc__)
    parser.add_argument("folder", nargs="?", default=OUTPUT, help="to fill (build/supplies)")
    parser.add_argument("--cache", default=CACHE, help="where to unpack (build/.launcher)")
    options = parser.parse_args(argv)
    try:
        changed = provide(os.path.abspath(options.folder), os.path.abspath(options.cache))
    except (BuildError, OSError) as e:
        sys.stderr.write(f"launcher.supplies: {e}\n")
        return 1
    sys.stdout.write(f"{options.folder}: {'filled' if changed else 'as it was'}\n")
    return 0


def requirements() -> str:
    """What the executable holds besides podwire, a line for each package."""
    with open(os.path.join(PROJECT, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]
    extra = project.get("optional-dependencies", {}).get("kubernetes", [])
    return "".join(f"{line}\n" for line in [*project["dependencies"], *extra])


def provide(folder: str, cache: str = CACHE) -> bool:
    """Fill the folder, unless it has been for the same packages and the same MicroPython; whether
    something changed. It appears when it is whole. Raises BuildError, OSError.
    """
    with locked(cache):
        micropython = source.find(PROJECT, cache)
        wanted = f"{requirements()}# MicroPython {source.VERSION}\n"
        if _read(os.path.join(folder, _NOTE)) == wanted:
            return False
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as scratch:
            made = os.path.join(scratch, "supplies")
            os.mkdir(made)
            for path in source.needed(micropython):
                copy = os.path.join(made, "micropython", path)
                os.makedirs(os.path.dirname(copy), exist_ok=True)
                shutil.copy(os.path.join(micropython, path), copy)
            with open(os.path.join(made, _NOTE), "w", encoding="utf-8") as file:
                file.write(wanted)
            _wheels(made)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(made, folder)
    return True


def _wheels(folder: str) -> None:
    words = ["-qq", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *words, f"--python-version={_PYTHON}"]
    command += ["--dest", folder, "-r", os.path.join(folder, _NOTE)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise BuildError(f"pip could not download the packages:\n{done.stderr.strip()}")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
