"""Unpacking the runtime and starting it, under CPython; tests/e2e has the executable itself."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from cni_plugin import installation, runtimefolder, runtimes
from launcher import unpack
from launcher.archive import Archive, DamagedError
from launcher.runtime import File
from tests.support import require
from tests.support.runtimes import FILES, contents, finished, make_executable, opened, start

PREPARE = """
import os, sys
from cni_plugin import installation, runtimes, runtimefolder
from launcher import unpack
from launcher.archive import Archive
archive = Archive(os.open(sys.argv[1], os.O_RDONLY))
"""


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    return make_executable(tmp_path / "podwire")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runtimes"


def _prepare(executable: Path, folder: Path) -> tuple[Path, int]:
    """The folder of the runtime, and the descriptor of its lock."""
    with opened(executable) as archive:
        held = runtimes.prepare(str(folder), archive)
        return folder / runtimes.name_of(archive.digest), held


def _refusal(executable: Path, environ: dict[str, str]) -> unpack.FailureError:
    packed = b"".join(f"{name}={value}\0".encode() for name, value in environ.items())
    with opened(executable) as archive, pytest.raises(unpack.FailureError) as raised:
        unpack.prepare(archive, packed)
    return raised.value


# --- unpacking --------------------------------------------------------------------------------


def test_files_are_as_packed_and_private(executable: Path, folder: Path) -> None:
    before = os.umask(0o777)
    try:
        runtime, held = _prepare(executable, folder)
    finally:
        os.umask(before)
    os.close(held)
    assert contents(runtime) == FILES
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [runtime.name, "runtime.lock"]


def test_the_second_call_finds_it_and_marks_its_use(executable: Path, folder: Path) -> None:
    runtime, held = _prepare(executable, folder)
    os.close(held)
    inode = runtime.stat().st_ino
    os.utime(runtime / "lock", (1, 1))
    again, held = _prepare(executable, folder)
    os.close(held)
    assert (again, again.stat().st_ino) == (runtime, inode)
    assert (runtime / "lock").stat().st_mtime > time.time() - 60


def test_the_lock_is_no_standard_stream(executable: Path, folder: Path) -> None:
    code = PREPARE + (
        "said = os.dup(1)\n"
        "for fd in 0, 1, 2: os.close(fd)\n"
        "held = runtimes.prepare(sys.argv[2], archive)\n"
        "os.write(said, str(held).encode())\n"
    )
    assert int(finished(start(code, str(executable), str(folder)))) > 2


@pytest.mark.parametrize("harm", ["missing", "truncated", "open to others"])
def test_a_runtime_that_is_not_whole_is_replaced(executable: Path, folder: Path, harm: str) -> None:
    runtime, held = _prepare(executable, folder)
    os.close(held)
    if harm == "missing":
        (runtime / "lib/libc.so.6").unlink()
    elif harm == "truncated":
        os.truncate(runtime / "main.pyc", 10)
    else:
        runtime.chmod(0o755)
    again, held = _prepare(executable, folder)
    os.close(held)
    assert contents(again) == FILES
    assert stat.S_IMODE(again.stat().st_mode) == 0o700


def test_sixteen_processes_at_once_unpack_once(executable: Path, folder: Path) -> None:
    code = PREPARE + (
        "unpack_now = runtimes._unpack\n"
        "def counted(*args): print('unpacked'); unpack_now(*args)\n"
        "runtimes._unpack = counted\n"
        "sys.stdin.read()\n"  # all of them begin when the pipe is closed
        "runtimes.prepare(sys.argv[2], archive)\n"
        "print(os.stat(sys.argv[2] + '/' + runtimes.name_of(archive.digest)).st_ino)\n"
    )
    source, gate = os.pipe()
    processes = [start(code, str(executable), str(folder), stdin=source) for _ in range(16)]
    os.close(source)
    os.close(gate)
    words = [word for process in processes for word in finished(process).split()]
    assert words.count("unpacked") == 1
    assert len(words) == 17
    assert len(set(words)) == 2


@pytest.mark.parametrize("step", range(0, 24, 2))
def test_killed_at_any_step_it_leaves_nothing_that_counts(
    executable: Path, folder: Path, step: int
) -> None:
    code = PREPARE + (
        "left = int(sys.argv[3])\n"
        "def killing(call):\n"
        "    def counted(*args):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os.kill(os.getpid(), 9)\n"
        "        return call(*args)\n"
        "    return counted\n"
        "for name in 'mkdir', 'open_file', 'write', 'chmod', 'rename':\n"
        "    setattr(runtimes.sysio, name, killing(getattr(runtimes.sysio, name)))\n"
        "runtimes.prepare(sys.argv[2], archive)\n"
    )
    process = start(code, str(executable), str(folder), str(step))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    runtime, held = _prepare(executable, folder)
    os.close(held)
    assert contents(runtime) == FILES
    assert sorted(path.name for path in folder.iterdir()) == [runtime.name, "runtime.lock"]


# --- damaged executables ----------------------------------------------------------------------


@pytest.mark.parametrize("where", [len(b"x"), 5000, 300_000, -200, -40, -1])
def test_a_changed_byte_is_noticed(executable: Path, folder: Path, where: int) -> None:
    data = bytearray(executable.read_bytes())
    if where == 1:
        where = len(data) - 57  # the last byte of the archive
    data[where] ^= 0x40
    executable.write_bytes(data)
    with pytest.raises(DamagedError):
        _prepare(executable, folder)
    assert not folder.exists() or [path.name for path in folder.iterdir()] == ["runtime.lock"]


@pytest.mark.parametrize("length", [0, 10, 3300, 100_000])
def test_a_copy_that_stopped_is_noticed(executable: Path, folder: Path, length: int) -> None:
    os.truncate(executable, length)
    with pytest.raises(DamagedError):
        _prepare(executable, folder)
    assert not folder.exists()


def test_damage_is_told_with_the_path(executable: Path) -> None:
    os.truncate(executable, 5000)
    with pytest.raises(unpack.FailureError) as raised:
        unpack.execute([b"podwire"], None, str(executable))
    assert raised.value.code == 5
    assert str(executable) in raised.value.msg


def test_the_tool_knows_an_executable_by_its_trailer(executable: Path, tmp_path: Path) -> None:
    assert installation.is_executable_of_ours(str(executable))
    (tmp_path / "script").write_text("#!/usr/bin/python3\n" * 10)
    for name in ("script", "missing", "."):
        assert not installation.is_executable_of_ours(str(tmp_path / name))


def test_an_archive_ends_with_its_files(tmp_path: Path) -> None:
    with opened(make_executable(tmp_path / "empty", {})) as archive:
        assert archive.files == []
        assert list(archive.contents()) == []


# --- the folder -------------------------------------------------------------------------------


def test_the_folders_of_root_and_of_others() -> None:
    assert runtimes.folders(0, "/run/user/0") == ["/run/podwire", "/var/lib/podwire"]
    assert runtimes.folders(7, "") == ["/run/user/7/podwire", "/tmp/podwire-7"]
    assert runtimes.folders(7, "/session/")[0] == "/session/podwire"


@pytest.mark.parametrize("path", ["relative", "/with:colon", "/with$ORIGIN", "/a;b", "/line\nend"])
def test_a_folder_that_the_linker_would_misread_is_refused(executable: Path, path: str) -> None:
    failure = _refusal(executable, {unpack.VARIABLE: path})
    assert failure.code == 4
    assert path in failure.msg


def test_a_symbolic_link_is_refused(executable: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    failure = _refusal(executable, {unpack.VARIABLE: str(tmp_path / "link")})
    assert failure.code == 110
    assert f"{tmp_path}/link is no folder" in failure.msg
    assert unpack.VARIABLE in failure.details
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_others_can_write_to_is_refused(executable: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    failure = _refusal(executable, {unpack.VARIABLE: str(tmp_path / "open")})
    assert failure.code == 110
    assert "mode 1777" in failure.msg


@pytest.mark.root
def test_a_folder_of_somebody_else_is_refused(executable: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 4711, 4711)
    failure = _refusal(executable, {unpack.VARIABLE: str(tmp_path / "theirs")})
    assert failure.code == 110
    assert f"{tmp_path}/theirs is a folder of user 4711" in failure.msg
    assert "user 0" in failure.msg
    assert "remove it" in failure.details


def test_all_reasons_are_told(
    executable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    folders = [f"{tmp_path}/missing/podwire", f"{tmp_path}/file/podwire"]
    monkeypatch.setattr(runtimes, "folders", lambda uid, session: folders)
    failure = _refusal(executable, {})
    assert failure.code == (110 if os.geteuid() else 5)
    assert f"{folders[0]}: No such file or directory" in failure.msg
    assert f"{folders[1]}: Not a directory" in failure.msg
    assert unpack.VARIABLE in failure.details


def _mounted(options: str, code: str, *args: str) -> str:
    """stdout of `code`, run where a tmpfs with these options is mounted at its first argument."""
    require.root()
    script = f'mount -t tmpfs -o {options} tmpfs "$1" && shift && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh", args[0]]
    return finished(start(code, *args, prefix=prefix))


@pytest.mark.root
def test_a_folder_mounted_noexec_is_passed_over(executable: Path, tmp_path: Path) -> None:
    code = PREPARE.replace("argv[1]", "argv[2]") + (
        "noexec = sys.argv[1] + '/podwire'\n"
        "runtimes.folders = lambda uid, session: [noexec, sys.argv[3]]\n"
        "print(unpack.prepare(archive, b'')[0], os.path.exists(noexec))\n"
        "try: unpack.prepare(archive, b'PODWIRE_RUNTIME=' + noexec.encode())\n"
        "except unpack.FailureError as e: print(e.code, e)\n"
    )
    (tmp_path / "mount").mkdir()
    other = f"{tmp_path}/other"
    said = _mounted("noexec", code, f"{tmp_path}/mount", str(executable), other)
    assert said.splitlines()[0] == f"{other} False"
    assert said.splitlines()[1].startswith("5 ")
    assert "podwire: mounted noexec" in said


@pytest.mark.root
def test_a_full_disk_leaves_nothing_and_is_told(executable: Path, tmp_path: Path) -> None:
    code = PREPARE.replace("argv[1]", "argv[2]") + (
        "folder = sys.argv[1] + '/podwire'\n"
        "environ = b'PODWIRE_RUNTIME=' + folder.encode()\n"
        "try: unpack.prepare(archive, environ)\n"
        "except unpack.FailureError as e: print(e.code, e)\n"
        "print(os.listdir(folder))\n"
        "os.system(f'mount -o remount,size=10M {sys.argv[1]}')\n"
        "print(unpack.prepare(archive, environ)[0] == folder)\n"
    )
    (tmp_path / "mount").mkdir()
    said = _mounted("size=256k", code, f"{tmp_path}/mount", str(executable)).splitlines()
    assert said[0].startswith("5 ")
    assert f"{tmp_path}/mount/podwire: No space left on device" in said[0]
    assert said[1:] == ["['runtime.lock']", "True"]


@pytest.mark.root
def test_a_runtime_on_a_read_only_file_system_is_used(executable: Path, tmp_path: Path) -> None:
    code = PREPARE.replace("argv[1]", "argv[2]") + (
        "folder = sys.argv[1] + '/podwire'\n"
        "os.close(runtimes.prepare(folder, archive))\n"
        "assert os.system(f'mount -o remount,ro {sys.argv[1]}') == 0\n"
        "print(runtimes.prepare(folder, archive) > 2)\n"
    )
    (tmp_path / "mount").mkdir()
    assert _mounted("size=10M", code, f"{tmp_path}/mount", str(executable)) == "True\n"


# --- stale runtimes ---------------------------------------------------------------------------


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return make_executable(tmp_path / "newer", FILES | {"code": File(0o644, b"2")})


def _age(runtime: Path, seconds: float) -> None:
    used = time.time() - seconds
    os.utime(runtime / "lock", (used, used))


def test_two_versions_lie_side_by_side(executable: Path, newer: Path, folder: Path) -> None:
    first, held = _prepare(executable, folder)
    second, held_too = _prepare(newer, folder)
    os.close(held)
    os.close(held_too)
    assert contents(first) == FILES
    assert contents(second)["code"] == File(0o644, b"2")


def test_an_old_runtime_goes_when_nobody_runs_it(
    executable: Path, newer: Path, folder: Path
) -> None:
    old, held = _prepare(executable, folder)
    _age(old, runtimefolder.UNUSED_S + 10)
    current, in_use = _prepare(newer, folder)
    assert old.exists()  # it is held
    os.close(held)
    os.close(in_use)
    os.close(_prepare(newer, folder)[1])
    assert sorted(path.name for path in folder.iterdir()) == [current.name, "runtime.lock"]


def test_a_runtime_that_was_used_just_now_stays(
    executable: Path, newer: Path, folder: Path
) -> None:
    old, held = _prepare(executable, folder)
    os.close(held)
    _age(old, runtimefolder.UNUSED_S - 60)
    os.close(_prepare(newer, folder)[1])
    assert contents(old) == FILES


def test_a_lock_outlives_execve_and_ends_with_the_process(
    executable: Path, newer: Path, folder: Path
) -> None:
    code = PREPARE + (
        "held = runtimes.prepare(sys.argv[2], archive)\n"
        "runtimes.sysio.inherit(held)\n"
        "os.execv('/bin/cat', ['cat'])\n"
    )
    process = start(code, str(executable), str(folder), stdin=subprocess.PIPE)
    with opened(executable) as archive:
        old = folder / runtimes.name_of(archive.digest)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process.pid}/comm").read_text() != "cat\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _age(old, runtimefolder.UNUSED_S + 10)
    os.close(_prepare(newer, folder)[1])
    assert old.exists()
    finished(process)
    os.close(_prepare(newer, folder)[1])
    assert not old.exists()


def test_a_remover_and_a_user_do_not_meet(executable: Path, newer: Path, folder: Path) -> None:
    """One keeps removing the runtime, as stale at once, while another keeps using it."""
    code = PREPARE + (
        "import time\n"
        "end = time.monotonic() + 2\n"
        "removed = 0\n"
        "while time.monotonic() < end:\n"
        "    try: removed += len(runtimefolder.remove_stale(sys.argv[2], '', -5))\n"
        "    except FileNotFoundError: pass\n"  # the folder is not there yet
        "print(removed)\n"
    )
    process = start(code, str(executable), str(folder))
    users = 0
    while process.poll() is None:
        runtime, held = _prepare(executable, folder)
        assert contents(runtime) == FILES
        os.close(held)
        users += 1
    assert users > 3
    assert int(finished(process)) > 3


# --- execution --------------------------------------------------------------------------------

_REPORT = b"""#!/bin/sh
printf '%s\\n' "$@"
echo ---
env
echo ---
cat
"""


def _executed(executable: Path, folder: Path, env: dict[str, str], stdin: str) -> list[list[str]]:
    code = "import sys\nfrom launcher import unpack\n" + (
        f"unpack.execute([b'./podwire', b'\\xff', b''], {stdin}, sys.argv[1])\n"
    )
    environ = {"PATH": os.environ["PATH"], unpack.VARIABLE: str(folder)} | env
    process = start(code, str(executable), env=environ, stdin=subprocess.PIPE)
    stdout, stderr = process.communicate(b"from the caller", timeout=60)
    assert process.returncode == 0, stderr.decode()
    text = stdout.decode("utf-8", "surrogateescape")
    return [part.removesuffix("\n").split("\n") for part in text.split("---\n")]


def test_the_interpreter_gets_the_command_line_and_stdin(tmp_path: Path, folder: Path) -> None:
    executable = make_executable(tmp_path / "podwire", FILES | {"ld.so": File(0o755, _REPORT)})
    arguments, _, stdin = _executed(executable, folder, {}, "b'as read'")
    with opened(executable) as archive:
        runtime = f"{folder}/{runtimes.name_of(archive.digest)}"
    expected = ["--inhibit-cache", "--library-path", f"{runtime}/lib", f"{runtime}/python"]
    assert arguments[: len(expected)] == expected
    assert f"podwire={executable}" in arguments
    assert arguments[-5:] == [f"{runtime}/main.pyc", "0", "./podwire", "\udcff", ""]
    assert stdin == ["as read"]


def test_stdin_that_was_not_read_is_passed_on(tmp_path: Path, folder: Path) -> None:
    executable = make_executable(tmp_path / "podwire", FILES | {"ld.so": File(0o755, _REPORT)})
    assert _executed(executable, folder, {}, "None")[2] == ["from the caller"]


def test_what_is_meant_for_the_nodes_linker_does_not_reach_ours(
    tmp_path: Path, folder: Path
) -> None:
    executable = make_executable(tmp_path / "podwire", FILES | {"ld.so": File(0o755, _REPORT)})
    held_back = {
        "LD_BIND_NOW": "1",  # harmless to the shell that stands in for the linker
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
        "LC_ALL": "POSIX",
        "MALLOC_ARENA_MAX": "2",
    }
    passed = {"LANG": "de_DE.UTF-8", "PYTHONNOUSERSITE": "1", "CNI_COMMAND": "ADD"}
    arguments, environ, _ = _executed(executable, folder, held_back | passed, "None")
    for name, value in passed.items():
        assert f"{name}={value}" in environ
    for name, value in held_back.items():
        assert f"{name}={value}" not in environ
        assert f"{name}={value}" in arguments
    assert "LC_ALL=C" in environ
    count = arguments.index(str(len(held_back)))
    assert arguments[count + 1 : -3] == [f"{name}={value}" for name, value in held_back.items()]


def test_a_runtime_without_its_linker_is_an_error(tmp_path: Path, folder: Path) -> None:
    files = {name: file for name, file in FILES.items() if name != "ld.so"}
    executable = make_executable(tmp_path / "podwire", files)
    code = "import sys\nfrom launcher import unpack\nunpack.execute([], None, sys.argv[1])\n"
    environ = {"PATH": os.environ["PATH"], unpack.VARIABLE: str(folder)}
    process = start(code, str(executable), env=environ)
    assert b"FileNotFoundError" in process.communicate(timeout=60)[1]


def test_an_archive_needs_a_whole_index(tmp_path: Path) -> None:
    path = make_executable(tmp_path / "podwire")
    with opened(path) as archive:
        assert isinstance(archive, Archive)
        assert {entry[2] for entry in archive.files if entry[0]} == set(FILES)
        assert [entry[2] for entry in archive.files if not entry[0]] == ["lib", "lib/python3.11"]


def test_errors_of_the_system_keep_their_number(executable: Path, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "runtime.lock").symlink_to("elsewhere")
    with pytest.raises(OSError) as raised:
        _prepare(executable, folder)
    assert raised.value.errno == errno.ELOOP
