"""How podwire is started again: by the agent on demand, by `install`, and by the lab."""

from __future__ import annotations

import os
import sys


def single_file() -> str:
    """The path of the self-contained executable that this process comes from, "" when it comes
    from a wheel. launcher/unpack.py passes it on."""
    path = sys._xoptions.get("podwire", "")
    return path if isinstance(path, str) else ""


def path() -> list[str]:
    """The command line to which arguments can be appended: podwire as it runs now."""
    alone = single_file()
    if alone:
        return [alone]
    scripts = [os.path.join(os.path.dirname(sys.executable), "podwire")]
    if "/" in sys.argv[0]:  # a bare name would be looked for in anybody's current folder
        scripts.insert(0, os.path.abspath(sys.argv[0]))
    for script in scripts:
        if os.path.basename(script) == "podwire" and os.access(script, os.X_OK):
            return [script]
    return [sys.executable, "-P", "-m", "cni_plugin"]
