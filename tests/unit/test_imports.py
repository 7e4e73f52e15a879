"""The path of an ADD stays lean: what it imports is part of its duration."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COSTLY = (
    "argparse",
    "asyncio",
    "click",
    "dataclasses",
    "inspect",
    "netaddr",
    "pathlib",
    "pyroute2.iproute",
    "pyroute2.ndb",
    "shutil",
    "subprocess",
    "tempfile",
    "urllib",
)


def _modules(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", _COSTLY)
def test_add_path_does_not_import(module: str) -> None:
    before = _modules("pass")  # what this interpreter's own start imports is not ours
    added = _modules("import cni_plugin.commands") - before
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
