"""The module of system calls: in Python for CPython, in C for the executable, and both alike.

A trial program calls every function under each and reports what they returned or raised
(tests/support/sysio_trial); the reports are held to be right, and to be equal.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cni_plugin import sysio
from tests.support import executable

_PROJECT = Path(__file__).parents[2]


class Server(threading.Thread):
    """Answers the trial, each connection by its first 8 bytes; a descriptor may come with them."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def run(self) -> None:
        kept = []
        while True:
            connection, _ = self._listener.accept()
            data, fds, _, _ = socket.recv_fds(connection, 8, 4)
            if data == b"the end.":
                return
            if data == b"silence!":
                kept.append(connection)
                continue
            self._answer(connection, data, fds)
            connection.close()

    def _answer(self, connection: socket.socket, data: bytes, fds: list[int]) -> None:
        if data == b"reverse!":
            assert len(fds) == 1
            connection.sendall(os.read(fds[0], 100)[::-1])
            os.close(fds[0])
        elif data == b"count.!!":
            assert not fds
            connection.sendall(str(len(_until_dot(connection))).encode())
        elif data == b"signal!!":
            reader = int(_until_dot(connection))
            time.sleep(0.1)  # it reads by now; a socket with a timeout is interrupted by these
            os.kill(reader, signal.SIGSTOP)
            time.sleep(0.05)
            os.kill(reader, signal.SIGCONT)
            time.sleep(0.1)
            connection.sendall(b"still here")

    def close(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"the end.")
        self.join(10)
        self._listener.close()


def _until_dot(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"."):
        data += connection.recv(1 << 20)
    return data[:-1]


def _interpreter(implementation: str) -> list[str]:
    if implementation == "C":
        return [executable.sysio_trial()]
    code = (
        "import os, sys; from tests.support.sysio_trial import boot;"
        "sys.exit(boot.run([b'', *map(os.fsencode, sys.argv[1:])]))"
    )
    return [sys.executable, "-c", code]


def _run(
    implementation: str, *arguments: str | bytes, **given: object
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*_interpreter(implementation), *arguments],
        capture_output=True,
        check=False,
        timeout=60,
        cwd=_PROJECT,
        **given,  # type: ignore[call-overload]
    )


@pytest.fixture(params=["C", "CPython"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What the trial reports, by implementation."""
    found = {}
    for name in ("C", "CPython"):
        folder = tmp_path_factory.mktemp("sysio")
        server = Server(folder / "socket")
        server.start()
        try:
            environ = {**os.environb, b"TRIAL": b"\xff=1"}
            done = _run(name, "cases", str(folder), input=b"stdin", env=environ)
        finally:
            server.close(folder / "socket")
        assert done.returncode == 0, done.stderr.decode()
        found[name] = json.loads(done.stdout)
    return found


@pytest.fixture
def report(reports: dict[str, dict[str, object]], implementation: str) -> dict[str, object]:
    return reports[implementation]


# --- the two are one ------------------------------------------------------------------------------


def test_both_have_the_same_functions() -> None:
    in_python = {
        name
        for name, function in vars(sysio).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }
    text = (_PROJECT / "launcher" / "sysio" / "modsysio.c").read_text()
    in_c = set(re.findall(r"^    FUNCTION\((\w+)\),$", text, re.MULTILINE))
    assert in_python == in_c


def test_both_take_the_same_number_of_arguments() -> None:
    text = (_PROJECT / "launcher" / "sysio" / "modsysio.c").read_text()
    counts = {
        name: (int(count), int(count))
        for count, name in re.findall(r"CONST_FUN_OBJ_([0-3])\(sysio_(\w+)_obj", text)
    }
    between = re.findall(r"CONST_FUN_OBJ_VAR_BETWEEN\(sysio_(\w+)_obj, (\d), (\d)", text)
    counts |= {name: (int(least), int(most)) for name, least, most in between}
    for name, (least, most) in counts.items():
        parameters = inspect.signature(getattr(sysio, name)).parameters.values()
        required = [one for one in parameters if one.default is inspect.Parameter.empty]
        assert (len(required), len(parameters)) == (least, most), name


def test_both_report_the_same(reports: dict[str, dict[str, object]]) -> None:
    assert reports["C"] == reports["CPython"]


def test_the_trial_calls_every_function() -> None:
    text = (_PROJECT / "tests" / "support" / "sysio_trial" / "boot.py").read_text()
    for name, function in vars(sysio).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            assert f"sysio.{name}" in text


# --- and right ------------------------------------------------------------------------------------


def test_process(report: dict[str, object]) -> None:
    texts = ["No such file or directory", "Unknown error 99999"]
    assert report["process"] == [os.geteuid(), True, True, True, *texts, True]


def test_standard_streams(report: dict[str, object]) -> None:
    assert report["standard_streams"] == [True, list(b"stdin"), "OSError 29"]


def test_files(report: dict[str, object]) -> None:
    assert report["files"] == [
        "OSError 17",
        [7, "789", ""],
        "ab23",
        [],
        "OSError 22",
        "OSError 22",
        True,
    ]


def test_no_such_descriptor(report: dict[str, object]) -> None:
    found = report["no_such_descriptor"]
    assert isinstance(found, list)
    assert found.pop(3) is None  # there is nothing to write
    assert found.pop(8) is True  # poll(2): what is closed does not block
    assert found == ["OSError 9"] * 10


def test_paths_are_refused(report: dict[str, object]) -> None:
    found = report["paths_are_refused"]
    assert isinstance(found, list)
    connecting = found.pop()
    missing, empty, zero, long = "OSError 2", "OSError 2", "OSError 22", "OSError 36"
    linking = found.pop()
    assert linking == [missing, empty, zero, zero, missing]  # the target may be anything
    assert found == [[missing, empty, zero, zero, long]] * len(found)
    assert connecting == [missing, "OSError 22", zero, zero, long]


def test_execve_that_fails(report: dict[str, object]) -> None:
    assert report["execve_fails"] == ["OSError 2", "OSError 22", "OSError 22", "OSError 13"]


def test_memfd(report: dict[str, object]) -> None:
    assert report["memfd"] == [10000, True, True, True, None]


def test_dup2(report: dict[str, object]) -> None:
    assert report["dup2"] == [[True, False, "memory"], [False, False], "OSError 9"]


def test_inherit(report: dict[str, object]) -> None:
    assert report["inherit"] == [True, False]


def test_lock(report: dict[str, object]) -> None:
    assert report["lock"] == [[True, True], False, True, True]


def test_connect_that_fails(report: dict[str, object]) -> None:
    assert report["connect_fails"] == ["OSError 111", "OSError 2", "OSError 36"]


def test_a_round_trip_with_a_descriptor(report: dict[str, object]) -> None:
    assert report["round_trip"] == [False, True, "reward", True, True, None]


def test_more_than_a_socket_holds_is_sent(report: dict[str, object]) -> None:
    assert report["a_lot_is_sent"] == "3000000"


def test_silence_is_eagain(report: dict[str, object]) -> None:
    assert report["silence"] == ["OSError 11", True]


def test_a_signal_does_not_interrupt(report: dict[str, object]) -> None:
    assert report["a_signal_does_not_interrupt"] == "still here"


def test_a_peer_that_has_gone_is_epipe(report: dict[str, object]) -> None:
    assert report["the_peer_has_gone"] == [[], "OSError 32"]


def test_folders_and_links(report: dict[str, object]) -> None:
    details = [0o40711, True, 8, True, "OSError 2", "OSError 21", "OSError 22"]
    assert report["a_file_of_a_folder"] == [
        "OSError 17",
        "OSError 39",
        3,
        [0, None],
        details,
        None,
    ]


def test_times(report: dict[str, object]) -> None:
    assert report["times"] == [True, 1000]


def test_mount_flags(report: dict[str, object], tmp_path: Path) -> None:
    assert report["mounts"] == [os.statvfs("/proc").f_flag, os.statvfs(tmp_path).f_flag]


def test_open_path_opens_nothing(report: dict[str, object]) -> None:
    assert report["open_path"] == ["OSError 9", True, None]


def test_execve_passes_bytes(implementation: str) -> None:
    environ = {b"ODD": b"\xff\xfe=\xc3", b"EMPTY": b"", b"PATH": os.environb[b"PATH"]}
    script = b'printf "%s|%s|" "$1" "$2"; env -0'
    words = [b"exec", b"/bin/sh", b"-c", script, b"sh", b"\xe9t\xe9", b""]
    done = _run(implementation, *words, env=environ)
    arguments, *entries = done.stdout.split(b"|", 2)
    assert (arguments, entries[0]) == (b"\xe9t\xe9", b"")
    assert {b"ODD=\xff\xfe=\xc3", b"EMPTY="} <= set(entries[1].split(b"\0"))
