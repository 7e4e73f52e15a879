"""What the benchmark leaves on a machine: nothing, wherever its files are."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import netns

_PROJECT = Path(__file__).parents[2]
# The machine's /run for the benchmark: empty, so that nobody else's files are there.
_SCRIPT = 'mount -t tmpfs tmpfs /run; "$@" >&2; find /run -mindepth 1'


@pytest.mark.parametrize(
    "options",
    [
        ("--runs=1", "--only=pod"),
        ("--runs=1", "--only=pod", "--dir=files"),
        ("--runs=1", "--profile=add"),
    ],
    ids=["in memory", "in a folder", "profile"],
)
def test_nothing_is_left(options: tuple[str, ...]) -> None:
    bench = (sys.executable, "-m", "bench", *options)
    # The path of an agent's socket has room for 107 bytes: no tmp_path.
    with tempfile.TemporaryDirectory(prefix=f"pwt-{os.getpid()}-", dir="/var/tmp") as folder:
        os.mkdir(f"{folder}/files")
        done = netns.run(
            ["unshare", "--mount", "bash", "-euc", _SCRIPT, "-", *bench],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(_PROJECT), "TMPDIR": folder},
            timeout=120,
        )
        assert "ADD" in done.stderr
        assert done.stdout == ""
        assert [str(path) for path in Path(folder).rglob("*")] == [f"{folder}/files"]
