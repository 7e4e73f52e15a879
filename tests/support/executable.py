"""The self-contained executable, for tests: $PODWIRE_EXECUTABLE, or built as build/podwire.

It is built once in a run of pytest, by the first worker that needs it. What can't be built for want
of a compiler or of MicroPython's source skips the test; any other failure fails it.
"""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from launcher import build as launcher
from launcher.source import BuildError, MissingError

VARIABLE = "PODWIRE_EXECUTABLE"
_TRIAL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sysio_trial", "manifest.py")


def executable() -> str:
    """The path of the executable, or skip."""
    return _given() or _or_skip(_built())


def front() -> str:
    """The path of the executable's front, as it is built here, or skip."""
    return _or_skip(_front_built())


def sysio_trial() -> str:
    """The path of the executable's front with tests/support/sysio_trial frozen in, or skip."""
    return _or_skip(_trial_built())


def _given() -> str:
    path = os.environ.get(VARIABLE, "")
    if path and not os.access(path, os.X_OK):
        pytest.fail(f"${VARIABLE} is {path}, which is no executable")
    return os.path.abspath(path) if path else ""


def _or_skip(built: str | BuildError) -> str:
    if isinstance(built, MissingError):
        pytest.skip(f"the executable can't be built: {built}")
    if isinstance(built, BuildError):
        pytest.fail(f"the executable can't be built: {built}")
    return built


@functools.cache
def _built() -> str | BuildError:
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")  # the same for all workers
    with _note() as note:
        if run and note.read() == run:
            return launcher.OUTPUT
        try:
            launcher.build(launcher.OUTPUT)
        except BuildError as e:
            return e
        note.seek(0)
        note.truncate()
        note.write(run)
    return launcher.OUTPUT


@contextmanager
def _note() -> Iterator[TextIO]:
    """A file that says which run has built it, while no other worker has it."""
    os.makedirs(launcher.CACHE, exist_ok=True)
    with open(f"{launcher.CACHE}/tested-by", "a+") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        yield note


@functools.cache
def _front_built() -> str | BuildError:
    try:
        with launcher.locked(launcher.CACHE):
            return launcher.build_front(launcher.CACHE)
    except BuildError as e:
        return e


@functools.cache
def _trial_built() -> str | BuildError:
    try:
        with launcher.locked(launcher.CACHE):
            return launcher.build_front(launcher.CACHE, "trial", _TRIAL)
    except BuildError as e:
        return e
