"""The front of the self-contained executable, in a hostile process: what a caller may hand it.

What is behind the front is unpacked once, into a folder of this module's own.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cni_plugin.skel import MAX_CONFIG_BYTES
from cni_plugin.spec import SUPPORTED_VERSIONS
from tests.support import executable

_CONF = b'{"cniVersion": "1.0.0"}'
_PT_DYNAMIC, _PT_INTERP = 2, 3
_PROJECT = str(Path(__file__).parents[2])
_TRAPS = ("boot", "client", "sysio", "unpack", "wire", "json", "main", "sitecustomize")

Call = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def podwire() -> str:
    return executable.executable()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o700)
    return str(folder)


@pytest.fixture
def call(podwire: str, runtime: str) -> Call:
    """call(*words, environ, stdin=, cwd=, ...): one run of the executable."""

    def run(
        *words: bytes,
        environ: Mapping[bytes, bytes] | None = None,
        stdin: bytes = b"",
        **more: object,
    ) -> subprocess.CompletedProcess[bytes]:
        env = {b"PODWIRE_RUNTIME": os.fsencode(runtime)} if environ is None else dict(environ)
        options = {"capture_output": True, "timeout": 60, "check": False, "input": stdin} | more
        return subprocess.run([podwire, *words], env=env, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture
def plugin(call: Call, runtime: str) -> Call:
    """plugin(command, stdin=, environ=...): a call as a plugin."""

    def run(
        command: bytes, environ: Mapping[bytes, bytes] | None = None, **more: object
    ) -> subprocess.CompletedProcess[bytes]:
        env = {b"PODWIRE_RUNTIME": os.fsencode(runtime), b"CNI_COMMAND": command}
        return call(environ=env | dict(environ or {}), **({"stdin": _CONF} | more))

    return run


def document(done: subprocess.CompletedProcess[bytes]) -> dict[str, object]:
    """The one document of a call that failed as a plugin has to."""
    assert done.returncode == 1, done
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert found["msg"]
    return found


def is_version_reply(done: subprocess.CompletedProcess[bytes], version: str = "1.0.0") -> bool:
    assert done.returncode == 0, done
    expected = {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}
    return bool(json.loads(done.stdout) == expected)


# --- the file -------------------------------------------------------------------------------------


def test_the_file_asks_for_no_library_and_no_loader(podwire: str) -> None:
    with open(podwire, "rb") as file:
        header = file.read(64)
        start, size, count = (
            struct.unpack_from("<Q", header, 32)[0],
            *struct.unpack_from("<HH", header, 54),
        )
        file.seek(start)
        kinds = [struct.unpack("<I", file.read(size)[:4])[0] for _ in range(count)]
    assert header[:5] == b"\x7fELF\x02"
    assert kinds
    assert not {_PT_DYNAMIC, _PT_INTERP} & set(kinds)  # and so neither RPATH nor RUNPATH


def test_the_file_is_small_enough_to_copy(podwire: str) -> None:
    assert os.path.getsize(podwire) <= 25_000_000


def test_the_file_names_no_folder_of_the_machine_that_built_it(podwire: str) -> None:
    content = Path(podwire).read_bytes()
    assert _PROJECT.encode() not in content
    assert b"/build/.launcher" not in content


# --- VERSION, which the front answers itself ------------------------------------------------------


def test_version_is_answered_without_a_runtime(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    environ = {b"CNI_COMMAND": b"VERSION", b"PODWIRE_RUNTIME": bytes(folder)}
    assert is_version_reply(call(environ=environ, stdin=_CONF))
    assert not folder.exists()


def test_version_in_an_environment_with_nothing_else(call: Call) -> None:
    done = call(environ={b"CNI_COMMAND": b"VERSION"}, stdin=b"")
    assert is_version_reply(done, SUPPORTED_VERSIONS[-1])


@pytest.mark.parametrize("stdin", [b"{", b"[]", b'{"cniVersion": 1}', b"\xff", b'{"cniVersion":'])
def test_version_with_a_malformed_configuration(plugin: Call, stdin: bytes) -> None:
    assert document(plugin(b"VERSION", stdin=stdin))["code"] in (6, 7)


# --- nothing outside the file is run --------------------------------------------------------------


def test_modules_in_the_working_folder_are_not_imported(
    call: Call, runtime: str, tmp_path: Path
) -> None:
    (tmp_path / ".frozen").mkdir()
    for name in _TRAPS:
        for folder in (tmp_path, tmp_path / ".frozen"):
            (folder / f"{name}.py").write_text("print('trapped'); raise SystemExit(77)")
            (folder / f"{name}.mpy").write_bytes(b"M\x06\x00\x1f")
    here = bytes(tmp_path)
    environ = {
        b"PODWIRE_RUNTIME": os.fsencode(runtime),
        b"HOME": here,
        b"MICROPYPATH": here,
        b"MICROPYINSPECT": b"1",
        b"PYTHONPATH": here,
        b"PYTHONSTARTUP": here + b"/boot.py",
        b"PYTHONINSPECT": b"1",
    }
    version = call(environ=environ | {b"CNI_COMMAND": b"VERSION"}, stdin=_CONF, cwd=tmp_path)
    assert is_version_reply(version)
    served = call(environ=environ | {b"CNI_COMMAND": b"ADD"}, stdin=_CONF, cwd=tmp_path)
    assert document(served)["code"] == 4
    tool = call(b"--version", environ=environ, stdin=b"print('trapped')\n", cwd=tmp_path)
    assert (tool.returncode, b"trapped" in tool.stdout + tool.stderr) == (0, False)


@pytest.mark.parametrize("option", [b"-c", b"-m", b"-X", b"-i", b"-"])
def test_options_of_an_interpreter_mean_nothing(plugin: Call, call: Call, option: bytes) -> None:
    as_plugin = call(option, b"print(1)", environ={b"CNI_COMMAND": b"VERSION"}, stdin=_CONF)
    assert is_version_reply(as_plugin)
    as_tool = call(option, b"print(1)")
    assert (as_tool.returncode, as_tool.stdout) == (2, b"")
    assert b"Traceback" not in as_tool.stderr


# --- bytes that are no text -----------------------------------------------------------------------


def test_an_environment_that_is_no_text(plugin: Call) -> None:
    odd = {b"ODD\xff": b"\xfe", b"CNI_ARGS": b"A=\xff", b"PODWIRE_SOCKET": b"/\xff"}
    assert is_version_reply(plugin(b"VERSION", odd))
    assert document(plugin(b"ADD", odd))["code"] == 4


def test_a_command_that_is_no_text(plugin: Call) -> None:
    assert document(plugin(b"\xff"))["code"] == 4


def test_arguments_that_are_no_text(call: Call) -> None:
    done = call(b"\xff\xc3")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


# --- standard streams -----------------------------------------------------------------------------


def _closing(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None  # type: ignore[func-returns-value]


def test_closed_stdin_is_an_empty_configuration(plugin: Call) -> None:
    assert is_version_reply(plugin(b"VERSION", preexec_fn=_closing(0)), SUPPORTED_VERSIONS[-1])
    assert document(plugin(b"ADD", preexec_fn=_closing(0)))["code"] in (4, 6)


def test_closed_stderr_changes_nothing(plugin: Call) -> None:
    assert is_version_reply(plugin(b"VERSION", preexec_fn=_closing(2)))
    assert document(plugin(b"ADD", preexec_fn=_closing(2)))["code"] == 4


@pytest.mark.parametrize("command", [b"VERSION", b"ADD"])
def test_a_reply_that_nobody_gets_is_a_failure(plugin: Call, command: bytes) -> None:
    done = plugin(command, preexec_fn=_closing(1))
    assert done.returncode == 1
    assert b"can't write the reply to stdout: Bad file descriptor" in done.stderr
    with open("/dev/full", "wb") as full:
        done = plugin(command, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"No space left" in done.stderr


def test_a_reader_that_has_gone_is_no_signal(plugin: Call) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = plugin(b"VERSION", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 1
    assert b"Broken pipe" in done.stderr


def test_all_streams_closed(plugin: Call) -> None:
    assert plugin(b"VERSION", preexec_fn=_closing(0, 1, 2)).returncode == 1
    assert plugin(b"ADD", preexec_fn=_closing(0, 1, 2)).returncode == 1


# --- size -----------------------------------------------------------------------------------------


def _padded(size: int) -> bytes:
    before, after = b'{"cniVersion": "1.0.0", "name": "n", "pad": "', b'"}'
    return before + b"x" * (size - len(before) - len(after)) + after


def test_a_configuration_of_megabytes_is_read(plugin: Call) -> None:
    for size in (10_000_000, MAX_CONFIG_BYTES):
        assert document(plugin(b"ADD", stdin=_padded(size)))["code"] == 4
        assert is_version_reply(plugin(b"VERSION", stdin=_padded(size)))


def test_a_larger_configuration_is_refused(plugin: Call) -> None:
    refused = document(plugin(b"VERSION", stdin=_padded(MAX_CONFIG_BYTES + 1)))
    assert refused["code"] == 6
    assert "larger than" in str(refused["msg"])


def test_stdin_without_an_end_is_not_read_for_ever(podwire: str, runtime: str) -> None:
    environ = {"CNI_COMMAND": "VERSION", "PODWIRE_RUNTIME": runtime}
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [podwire], stdin=endless, capture_output=True, env=environ, timeout=60, check=False
        )
    assert document(done)["code"] == 6


def test_too_little_memory_is_one_error_document(plugin: Call) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12_000_000, 12_000_000))

    refused = document(plugin(b"ADD", stdin=_padded(MAX_CONFIG_BYTES), preexec_fn=limit))
    assert refused["code"] == 199


# --- without CNI_COMMAND --------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, b""])
def test_called_for_nothing_it_says_what_it_is(call: Call, runtime: str, command: bytes) -> None:
    environ = {b"PODWIRE_RUNTIME": os.fsencode(runtime)}
    if command is not None:
        environ[b"CNI_COMMAND"] = command
    done = call(environ=environ)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"podwire ")


def test_another_name_makes_it_the_ipam_plugin(podwire: str, runtime: str, tmp_path: Path) -> None:
    link = tmp_path / "podwire-ipam"
    link.symlink_to(podwire)
    environ = {"PODWIRE_RUNTIME": runtime}
    done = subprocess.run([link], capture_output=True, env=environ, timeout=60, check=True)
    assert done.stderr.startswith(b"podwire-ipam ")
