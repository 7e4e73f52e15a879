"""The machine that a run was made on, in words: times mean nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime


def describe(folder: str) -> dict[str, str]:
    """What times depend on; `folder` is where the address directories were."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {os.cpu_count()} CPUs",
        "memory": f"{_memory_gib():.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": _system(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "file system": _file_system(folder),
        "load at the start": load(),
    }


def load() -> str:
    """The load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def _processor() -> str:
    return _field("/proc/cpuinfo", "model name") or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", sys.platform)
    except OSError:
        return sys.platform


def _field(path: str, name: str) -> str:
    """The value of the first "name : value" line of a file; "" when there is none."""
    try:
        with open(path) as lines:
            for line in lines:
                key, colon, value = line.partition(":")
                if colon and key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return ""


def _file_system(folder: str) -> str:
    """The type of the mount that holds the folder."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            words = line.split()
            if words[2] == wanted:
                return words[words.index("-") + 1]
    return "unknown"
