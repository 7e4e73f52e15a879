"""The path of an ADD stays lean: what it imports is part of its duration."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

# Not among them: ctypes, without which Python 3.11 has no setns.
_COSTLY = (
    "argparse",
    "asyncio",
    "click",
    "dataclasses",
    "importlib",
    "inspect",
    "logging",
    "multiprocessing",
    "netaddr",
    "pathlib",
    "pickle",
    "pkgutil",
    "platform",
    "pyroute2",
    "shutil",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "tokenize",
    "traceback",
    "typing",
    "urllib",
    "weakref",
)


_ADD = """
import json
from cni_plugin.__main__ import serve
environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0",
           "CNI_NETNS": "/proc/nowhere", "CNI_PATH": "/opt/cni/bin"}
config = {"cniVersion": "1.0.0", "name": "pods", "type": "podwire",
          "ipam": {"type": "host-local", "subnet": "10.244.0.0/24"}}
assert serve(environ, lambda: json.dumps(config).encode())[0] == 1
"""  # comes as far as the sandbox, which is not there


@cache
def _modules(statement: str) -> frozenset[str]:
    """All modules of a process that has run it, in an interpreter like the executable's."""
    code = f"import sys\nsys.path[:] = sys.argv[1:]\n{statement}\nprint('\\n'.join(sys.modules))"
    argv = [sys.executable, "-ISE", "-c", code, *sys.path]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return frozenset(done.stdout.split())


@pytest.mark.parametrize("statement", ["import cni_plugin.commands", _ADD], ids=["import", "ADD"])
@pytest.mark.parametrize("module", _COSTLY)
def test_add_path_does_not_import(module: str, statement: str) -> None:
    added = _modules(statement) - _modules("pass")  # this interpreter's own start is not ours
    assert module not in added


def test_version_needs_neither_kernel_nor_ipam() -> None:
    added = _modules(
        "import cni_plugin.__main__ as m; m.serve({'CNI_COMMAND': 'VERSION'}, lambda: b'')"
    )
    assert not any(name.split(".")[0] in ("pyroute2", "ipam") for name in added)
    assert "cni_plugin.kernel" not in added


def test_pyroute2_is_whole_for_whoever_imports_it_later() -> None:
    statement = "import cni_plugin.kernel.messages; import pyroute2; pyroute2.IPRoute"
    assert "pyroute2.iproute" in _modules(statement)


def test_messages_work_when_pyroute2_was_imported_before() -> None:
    statement = "import pyroute2; import cni_plugin.kernel.messages as m; m.link_up(1, 'lo')"
    assert "cni_plugin.kernel.messages" in _modules(statement)
