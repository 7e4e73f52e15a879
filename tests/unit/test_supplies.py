"""launcher.supplies: the folder that an image is built from without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import source, supplies
from launcher.source import BuildError, MissingError


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """MicroPython's source with one file, and no pip: the folders that wheels were wanted in."""
    micropython = tmp_path / "micropython"
    (micropython / "py").mkdir(parents=True)
    (micropython / "py" / "main.c").write_text("int main;")
    wanted: list[str] = []
    monkeypatch.setattr(source, "find", lambda project, cache: str(micropython))
    monkeypatch.setattr(supplies, "_wheels", wanted.append)
    return wanted


def test_it_holds_what_the_executable_needs() -> None:
    names = [line.partition(">=")[0] for line in supplies.requirements().splitlines()]
    assert {"pyroute2", "netaddr", "click", "lightkube"} <= set(names)


def test_the_folder_is_filled_once(tmp_path: Path, downloads: list[str]) -> None:
    folder, cache = str(tmp_path / "made" / "supplies"), str(tmp_path / "cache")
    assert supplies.provide(folder, cache)
    assert (Path(folder) / "micropython" / "py" / "main.c").read_text() == "int main;"
    assert (Path(folder) / "requirements.txt").read_text().startswith(supplies.requirements())
    assert not supplies.provide(folder, cache)
    assert len(downloads) == 1


def test_other_packages_replace_it(
    tmp_path: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = str(tmp_path / "supplies"), str(tmp_path / "cache")
    supplies.provide(folder, cache)
    (Path(folder) / "old.whl").touch()
    monkeypatch.setattr(supplies, "requirements", lambda: "click>=9\n")
    assert supplies.provide(folder, cache)
    assert not (Path(folder) / "old.whl").exists()
    assert len(downloads) == 2


def test_what_is_there_stays_when_pip_fails(
    tmp_path: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: str) -> None:
        raise BuildError("no such package")

    folder, cache = str(tmp_path / "supplies"), str(tmp_path / "cache")
    supplies.provide(folder, cache)
    monkeypatch.setattr(supplies, "requirements", lambda: "click>=9\n")
    monkeypatch.setattr(supplies, "_wheels", fail)
    with pytest.raises(BuildError, match="no such package"):
        supplies.provide(folder, cache)
    assert (Path(folder) / "micropython").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "micropython", "supplies"]


def test_the_command_says_what_it_did(
    tmp_path: Path, downloads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "supplies"), "--cache", str(tmp_path / "cache")]
    assert [supplies.main(words), supplies.main(words)] == [0, 0]
    assert capsys.readouterr().out == f"{words[0]}: filled\n{words[0]}: as it was\n"


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(project: str, cache: str) -> str:
        raise MissingError("MicroPython's source is needed")

    monkeypatch.setattr(source, "find", fail)
    assert supplies.main([str(tmp_path / "supplies"), "--cache", str(tmp_path / "cache")]) == 1
    assert capsys.readouterr().err == "launcher.supplies: MicroPython's source is needed\n"


def test_pip_that_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("not a requirement\n")
    with pytest.raises(BuildError, match=r"could not download the packages:\n.*requirement"):
        supplies._wheels(str(tmp_path))
