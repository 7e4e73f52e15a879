"""Where MicroPython's source comes from, what the file is put together of, and that two builds are
the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from launcher import build, source
from launcher.archive import MAGIC, TRAILER
from tests.support import executable

_HEADER = """\
#define MICROPY_VERSION_MAJOR 1
#define MICROPY_VERSION_MINOR {minor}
#define MICROPY_VERSION_MICRO 0
"""


def tarball(path: Path, minor: int = 25, **more: bytes) -> Path:
    """A tarball like MicroPython's, with members of one's own as well."""
    members = {
        "micropython/py/mpconfig.h": _HEADER.format(minor=minor).encode(),
        "micropython/ports/unix/main.c": b"not needed",
        **more,
    }
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A project without anything beside it."""
    monkeypatch.delenv(source.VARIABLE, raising=False)
    (tmp_path / "project").mkdir()
    return str(tmp_path / "project")


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "_URLS", (f"file://{tmp_path}/absent.tar.xz",))


# --- the source -----------------------------------------------------------------------------------


def test_a_chosen_folder_is_used_as_it_is(
    project: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "chosen"
    (chosen / "py").mkdir(parents=True)
    (chosen / "py" / "mpconfig.h").write_text(_HEADER.format(minor=25))
    monkeypatch.setenv(source.VARIABLE, str(chosen))
    assert source.find(project, cache) == str(chosen)


def test_of_a_tarball_what_is_needed_is_unpacked(
    project: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tarball(tmp_path / "any.tar.xz", **{"micropython/tools/../../../evil": b"x"})
    monkeypatch.setenv(source.VARIABLE, str(path))
    folder = source.find(project, cache)
    assert os.listdir(folder) == ["py"]
    assert sorted(os.listdir(tmp_path)) == ["any.tar.xz", "cache", "project"]
    assert source.find(project, cache) == folder


@pytest.mark.parametrize("minor", [24, 26])
def test_another_version_is_refused(
    project: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minor: int
) -> None:
    monkeypatch.setenv(source.VARIABLE, str(tarball(tmp_path / "any.tar.xz", minor)))
    with pytest.raises(source.BuildError, match=rf"is MicroPython 1\.{minor}\.0, not 1\.25\.0"):
        source.find(project, cache)


def test_a_choice_that_does_not_exist(
    project: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(source.VARIABLE, "/proc/nowhere/micropython")
    with pytest.raises(source.MissingError, match=r"\$MICROPYTHON_SRC is /proc/nowhere"):
        source.find(project, cache)


def test_a_file_that_is_no_tarball(
    project: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.tar.xz").write_bytes(b"no tarball")
    monkeypatch.setenv(source.VARIABLE, str(tmp_path / "bad.tar.xz"))
    with pytest.raises(source.BuildError, match="can't unpack"):
        source.find(project, cache)
    assert os.listdir(cache) == []


def test_a_tarball_beside_the_project_has_to_be_a_known_one(
    project: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared" / "src").mkdir(parents=True)
    path = tarball(tmp_path / "shared" / "src" / "micropython_1.25.0.orig.tar.xz")
    with pytest.raises(source.BuildError, match="is no known tarball of MicroPython"):
        source.find(project, cache)
    monkeypatch.setattr(source, "_DEBIAN_SHA256", source.sha256(str(path)))
    assert source.find(project, cache).startswith(cache)


def test_the_release_is_downloaded_and_checked(
    project: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tarball(tmp_path / "release.tar.xz")
    url = f"file://{path}"
    monkeypatch.setattr(source, "_URLS", (f"file://{tmp_path}/absent", url))
    with pytest.raises(source.BuildError, match=f"{url} has the SHA-256 [0-9a-f]{{64}}, expected"):
        source.find(project, cache)
    assert os.listdir(cache) == []
    monkeypatch.setattr(source, "_RELEASE_SHA256", source.sha256(str(path)))
    assert os.listdir(source.find(project, cache)) == ["py"]
    path.unlink()
    source.find(project, cache)  # what was downloaded is kept


@pytest.mark.usefixtures("offline")
def test_no_source_anywhere(project: str, cache: str) -> None:
    with pytest.raises(source.MissingError, match=r"set \$MICROPYTHON_SRC to version 1\.25\.0"):
        source.find(project, cache)


# --- the file -------------------------------------------------------------------------------------


def test_the_trailer_says_where_the_archive_lies(tmp_path: Path) -> None:
    front, archive, output = tmp_path / "front", tmp_path / "archive", tmp_path / "out" / "podwire"
    front.write_bytes(b"F" * 1000)
    archive.write_bytes(b"A" * 77)
    build.assemble(str(front), str(archive), str(output))
    content = output.read_bytes()
    magic, offset, length, digest = struct.unpack(TRAILER, content[-struct.calcsize(TRAILER) :])
    assert (magic, offset, length) == (MAGIC, 1000, 77)
    assert digest == hashlib.sha256(content[offset : offset + length]).digest()
    assert output.stat().st_mode & 0o777 == 0o755
    assert os.listdir(output.parent) == ["podwire"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    output = tmp_path / "podwire"
    output.write_bytes(b"old")
    (tmp_path / "front").write_bytes(b"F")
    with pytest.raises(FileNotFoundError):
        build.assemble(str(tmp_path / "front"), str(tmp_path / "absent"), str(output))
    assert output.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["front", "podwire"]


def test_without_a_compiler_the_packages_are_named(
    cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/proc/nowhere")
    assert build.main(["--cache", cache, "--output", f"{cache}/podwire"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("launcher.build: a C compiler is needed: apt-get install gcc libc6-dev")
    assert len(shown.splitlines()) == 1


def test_what_is_frozen_is_there() -> None:
    names = [os.path.basename(path) for path in build.frozen_modules()]
    assert {"boot.py", "client.py", "probing.py", "unpack.py"} <= set(names)
    assert {"version.py", "wire.py"} <= set(names)
    assert all(os.path.isfile(path) for path in build.frozen_modules())


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    """The project's own, and one from another folder, with another environment and umask."""
    own = executable.front()  # or skip, where nothing can be compiled
    folder = tmp_path / "a" / "longer name"
    (folder / "cache").mkdir(parents=True)
    for compiler in Path(build.CACHE).glob("mpy-cross-*"):  # half of the time
        shutil.copy2(compiler, folder / "cache")
    for part in ("launcher", "cni_plugin"):
        shutil.copytree(f"{build.PROJECT}/{part}", folder / part)
    shutil.copytree(source.find(build.PROJECT, build.CACHE), folder / "micropython")
    environ = {
        "PATH": os.environ["PATH"],
        source.VARIABLE: str(folder / "micropython"),
        "CFLAGS": "-DX=1",
        "TZ": "UTC+3",
    }
    command = [sys.executable, "-m", "launcher.build", "--front"]
    command += ["--output", "front", "--cache", "cache"]
    subprocess.run(command, cwd=folder, env=environ, check=True, umask=0o077)
    assert source.sha256(str(folder / "front")) == source.sha256(own)
