"""Functions of the C library that Python's `os` does not have (yet)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from cni_plugin.typed import Any


def call(name: str, *args: Any) -> int:
    """Call a function that returns -1 and an errno when it fails: that is raised as OSError."""
    function, errno_of = _function(name)
    result = function(*args)
    if result == -1:
        errno = errno_of()
        raise OSError(errno, os.strerror(errno))
    return result


def syscall(number: int, *args: Any) -> int:
    """A system call that the C library has no function for."""
    from ctypes import c_long

    return call("syscall", c_long(number), *(c_long(a) if isinstance(a, int) else a for a in args))


@cache
def _function(name: str) -> tuple[Callable[..., int], Callable[[], int]]:
    """The function, and the way to its errno: making them anew takes longer than the call."""
    from ctypes import CDLL, get_errno

    return getattr(CDLL(None, use_errno=True), name), get_errno
