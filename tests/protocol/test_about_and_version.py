"""What the executables say of themselves: the about text and VERSION."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping

import pytest

from tests.support.plugin import Plugin

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.fixture(params=["podwire", "podwire-ipam"])
def executable(
    request: pytest.FixtureRequest, podwire_executable: str, podwire_ipam_executable: str
) -> Plugin:
    """Each of the two executables."""
    path = podwire_executable if request.param == "podwire" else podwire_ipam_executable
    return Plugin(path)


def bare(
    plugin: Plugin, redirections: str = "", env: Mapping[str, str | None] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The executable without CNI_COMMAND, unless `env` sets it, under a shell's redirections."""
    environ = plugin.environ("", {"CNI_COMMAND": None, "CNI_PATH": None, **(env or {})})
    return subprocess.run(
        ["sh", "-c", f'exec "$0" {redirections}', plugin.executable],
        env=environ,
        capture_output=True,
        check=False,
        timeout=20,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("redirections", ["", "<&-", "</dev/null"])
def test_without_a_command_it_says_what_it_is(executable: Plugin, redirections: str) -> None:
    done = bare(executable, redirections)
    assert done.returncode == 0
    assert done.stdout == b""
    text = done.stderr.decode()
    assert os.path.basename(executable.executable) in text
    assert "CNI" in text
    for version in VERSIONS:
        assert version in text


def test_an_empty_command_is_none(executable: Plugin) -> None:
    done = bare(executable, env={"CNI_COMMAND": ""})
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr


def test_it_does_not_wait_for_stdin_to_say_what_it_is(executable: Plugin) -> None:
    process = subprocess.Popen(
        [executable.executable],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=executable.environ("", {"CNI_COMMAND": None}),
    )
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("version", [*VERSIONS, "9.9.9", "0.0.1"])
def test_version_echoes(executable: Plugin, version: str) -> None:
    reply = executable.version(version)
    assert reply.result == {"cniVersion": version, "supportedVersions": VERSIONS}
    assert reply.stderr == ""


@pytest.mark.parametrize("redirections", ["<&-", "</dev/null"])
def test_version_with_nothing_on_stdin(executable: Plugin, redirections: str) -> None:
    done = bare(executable, redirections, env={"CNI_COMMAND": "VERSION"})
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["supportedVersions"] == VERSIONS
    assert document["cniVersion"] in VERSIONS
    assert done.stderr == b""


def test_version_needs_no_other_variable(executable: Plugin) -> None:
    reply = executable.call("VERSION", {"cniVersion": "0.4.0"}, {"CNI_PATH": None})
    assert reply.result["cniVersion"] == "0.4.0"


def test_version_of_no_json(executable: Plugin) -> None:
    assert executable.call("VERSION", "{").code == 6


def test_a_reply_that_cannot_be_written_is_a_failure(executable: Plugin) -> None:
    done = bare(executable, "</dev/null >/dev/full", env={"CNI_COMMAND": "VERSION"})
    assert done.returncode != 0
    assert done.stderr
    assert b"Traceback" not in done.stderr
