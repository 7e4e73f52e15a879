"""What is put into the runtime's archive, and that it is the same each time."""

from __future__ import annotations

import json
import marshal
import os
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType

import pytest

from launcher import entry, runtime, runtime_contents, runtime_libs, runtime_licenses
from launcher.runtime import File
from launcher.source import BuildError
from tests.support import require
from tests.support.runtimes import make_executable, opened

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python() -> runtime.Interpreter:
    return runtime.interpreter()


# --- the archive ------------------------------------------------------------------------------


def test_the_same_files_make_the_same_bytes() -> None:
    files = {"b/c": File(0o644, b"2" * 300_000), "a": File(0o755, b"1"), "b/a/x": File(0o600, b"")}
    backwards = dict(reversed(files.items()))
    assert runtime.packed(files) == runtime.packed(backwards)


def test_folders_come_before_what_is_in_them(tmp_path: Path) -> None:
    files = {"z": File(0o644, b""), "a/b/c/d": File(0o644, b"d"), "a/e": File(0o644, b"e")}
    with opened(make_executable(tmp_path / "podwire", files)) as archive:
        assert [path for _, _, path in archive.files] == [
            "a",
            "a/b",
            "a/b/c",
            "a/b/c/d",
            "a/e",
            "z",
        ]
        assert b"".join(archive.contents()) == b"de"


# --- the code ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small standard library and a package, compiled as the runtime's is."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "sources" / "pkg").mkdir(parents=True)
    (folder / "sources" / "hot.py").write_text('"""Words."""\nVALUE = 1\nimport pkg.inner\n')
    (folder / "sources" / "cold.py").write_text('"""Words."""\nassert False, VALUE\n')
    (folder / "sources" / "pkg" / "__init__.py").write_text("")
    (folder / "sources" / "pkg" / "inner.py").write_text("SET = {'a', 'b', 'c'}\n")
    (folder / "out").mkdir()
    _compile(folder / "sources", folder / "out")
    return folder / "out"


def _compile(sources: Path, out: Path) -> None:
    modules = [
        ["cold", False, f"{sources}/cold.py", 2, "cold.py"],
        ["hot", False, f"{sources}/hot.py", 0, "hot.py"],
        ["os", False, os.__file__, 2, "os.py"],
        ["pkg", True, f"{sources}/pkg/__init__.py", 2, "pkg/__init__.py"],
        ["pkg.inner", False, f"{sources}/pkg/inner.py", 2, "pkg/inner.py"],
    ]
    plan = {
        "modules": modules,
        "bundle": "import hot",
        "path": [str(sources)],
        "loose": [["lib/cold.pyc", *modules[0][1:]]],
    }
    (out / "plan").write_text(json.dumps(plan))
    script = PROJECT / "launcher" / "runtime_code.py"
    subprocess.run([sys.executable, str(script), str(out / "plan"), str(out)], check=True)


@pytest.fixture
def importer(library: Path) -> entry.CodeImporter:
    return entry.CodeImporter(str(library))


def test_modules_are_found_with_their_places(importer: entry.CodeImporter, library: Path) -> None:
    module = importer.find_spec("hot")
    assert (module.origin, module.submodule_search_locations) == (f"{library}/hot.pyc", None)
    package = importer.find_spec("pkg", [str(library)], None)
    assert package.origin == f"{library}/pkg/__init__.pyc"
    assert package.submodule_search_locations == [f"{library}/pkg"]
    assert sys.path_importer_cache.pop(f"{library}/pkg") is importer
    assert importer.find_spec("missing") is None
    assert importer.find_spec("os") is None  # the interpreter has that one built in


def test_code_comes_from_the_bundle_or_alone(importer: entry.CodeImporter) -> None:
    for name in ("pkg.inner", "hot", "cold"):
        code = importer.get_code(name)
        assert isinstance(code, CodeType)
        assert code.co_filename == name.replace(".", "/") + ".py"
    assert importer.get_code("hot").co_consts[0] == "Words."
    assert "Words." not in importer.get_code("cold").co_consts


def test_code_of_the_bundle_can_be_had_again(importer: entry.CodeImporter) -> None:
    assert importer.get_code("hot") == importer.get_code("hot")


def test_a_loose_file_is_a_pyc(library: Path) -> None:
    data = (library / "lib" / "cold.pyc").read_bytes()
    assert data[4:16] == b"\1" + bytes(11)  # unchecked
    assert isinstance(marshal.loads(data[16:]), CodeType)


def test_code_is_the_same_from_every_folder(
    python: runtime.Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        folder = tmp_path / seed / ("deep" * int(seed))
        folder.parent.mkdir()
        made.append(runtime._code(python, "lib/python3.11", str(folder)))
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]["code"].data
    assert str(PROJECT).encode() not in made[0]["code"].data


# --- what is in it ----------------------------------------------------------------------------


def test_every_module_of_podwire_is_in_it(python: runtime.Interpreter) -> None:
    names = {name for name, *_ in runtime_contents.modules(python.library)}
    for package in ("cni_plugin", "ipam"):
        for path in (PROJECT / package).rglob("*.py"):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            assert ".".join(parts).removesuffix(".__init__") in names


def test_the_bundle_is_what_an_add_imports(python: runtime.Interpreter) -> None:
    """tests/unit/test_imports.py keeps that small."""
    statements = runtime_contents.ADD_IMPORTS
    for name in ("commands", "node", "kernel.attach", "leases", "results"):
        statements += f"\nimport cni_plugin.{name}"
    path = [python.library, python.extensions, *runtime_contents.package_folders()]
    program = f"import sys; sys.path[:] = {path!r}\n{statements}\nprint(*sys.modules)"
    command = [python.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"cni_plugin.commands", "ipam.host_local", "json"} <= loaded
    assert not {"click", "asyncio", "ssl", "traceback"} & loaded


def test_packages_have_to_be_of_the_versions_that_pyproject_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime_contents.check_versions()
    monkeypatch.setattr(runtime_contents.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(BuildError, match=r"0\.0\.1 is here, and the runtime needs"):
        runtime_contents.check_versions()


def test_the_client_library_is_in_it_without_what_it_does_not_need(
    python: runtime.Interpreter,
) -> None:
    """tests/e2e/test_executable_kubernetes.py holds that it works."""
    names = {name for name, *_ in runtime_contents.modules(python.library)}
    assert {"lightkube.core.client", "lightkube.models.core_v1", "typing_extensions"} <= names
    assert not {"lightkube.models.apps_v1", "httpx2._main", "httpcore2._sync.http2"} & names
    extensions = dict(runtime_contents.package_extensions(python.suffix))
    assert list(extensions) == [f"msgspec/_core{python.suffix}"]
    assert {path.partition("-")[0] for path, _ in runtime_contents.versions()} >= {"httpx2"}


def test_a_package_of_another_python_is_named() -> None:
    with pytest.raises(BuildError, match=r"msgspec is here for another Python, without \*\.wrong"):
        list(runtime_contents.package_extensions(".wrong.so"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_contents, "_PACKAGES", ("nowhere",))
    with pytest.raises(BuildError, match=r"nowhere is not here: pip install -e '\.\[kubernetes\]'"):
        runtime_contents.package_folders()

    def missing(name: str) -> str:
        raise runtime_contents.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(runtime_contents.metadata, "version", missing)
    with pytest.raises(BuildError, match="is not here: pip install"):
        runtime_contents.check_versions()


def test_the_interpreter_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PODWIRE_PYTHON", sys.executable)
    assert runtime.interpreter().executable == os.path.realpath(sys.executable)
    old = tmp_path / "python"
    old.write_text(
        '#!/bin/sh\necho \'{"implementation": "cpython", "version": [3, 9], "executable": ""}\'\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("PODWIRE_PYTHON", str(old))
    with pytest.raises(BuildError, match=r"is not CPython 3\.11 or later"):
        runtime.interpreter()


# --- licences ---------------------------------------------------------------------------------


def test_the_licences_are_in_the_archive(python: runtime.Interpreter, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    files = runtime.collect(python, str(tmp_path / "work"))
    with opened(make_executable(tmp_path / "podwire", files)) as archive:
        index = {path for _, _, path in archive.files}
    texts = runtime_licenses.texts(python.library)
    assert {f"licenses/{name}" for name in texts} <= index
    assert {"podwire", "MicroPython", "CPython", "click-LICENSE.txt"} <= set(texts)
    assert any(name.startswith("pyroute2-") for name in texts)
    assert b"Damien P. George" in texts["MicroPython"]
    assert b"PYTHON SOFTWARE FOUNDATION" in texts["CPython"].upper()
    # every package has a text: none of them forgot to ship its own
    packages = [line for line in texts["README"].decode().splitlines() if "(code)" in line]
    assert len(packages) == len(runtime_licenses._PACKAGES)
    assert [line for line in packages if "no text was found" in line] == []
    # every library that is packed belongs to a component that licenses/README names
    readme = texts["README"].decode()
    libraries = [path for path in index if re.fullmatch(r"lib/[^/]+\.so\.[0-9.]+", path)]
    assert libraries
    assert [path for path in libraries if path not in readme] == []


def test_the_licences_take_little_room(python: runtime.Interpreter) -> None:
    texts = runtime_licenses.texts(python.library)
    assert runtime_licenses.texts(python.library) == texts
    assert len(runtime.packed({name: File(0o644, text) for name, text in texts.items()})) < 150_000


def test_a_text_that_is_not_here_is_named(
    python: runtime.Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_licenses, "_DOC", str(tmp_path))
    texts = runtime_licenses.texts(python.library)
    assert "zlib" not in texts
    assert b"zlib (lib/libz.so.1): no text was found where this was built\n" in texts["README"]


# --- shared libraries -------------------------------------------------------------------------


def test_the_linker_and_the_libraries_of_a_program(python: runtime.Interpreter) -> None:
    linker, libraries = runtime_libs.shared_libraries([python.executable])
    assert os.path.basename(linker).startswith("ld-linux")
    assert "libc.so.6" in libraries
    assert all(os.path.exists(path) for path in libraries.values())


def test_a_library_that_is_not_here_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ldd = tmp_path / "ldd"
    ldd.write_text("#!/bin/sh\nprintf '\\tlibx.so.1 => not found\\n'\n")
    ldd.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(BuildError, match=r"program needs libx\.so\.1"):
        runtime_libs.shared_libraries(["program"])


def test_symbols_for_debuggers_are_left_out(tmp_path: Path) -> None:
    require.program("gcc")
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text("int main(void) { return 7; }\n")
    subprocess.run(["gcc", "-g", "-o", str(program), str(source)], check=True)
    before = program.read_bytes()
    program.write_bytes(runtime_libs.stripped(str(program)))
    assert program.stat().st_size < len(before)
    assert subprocess.run([str(program)]).returncode == 7
    assert runtime_libs.stripped(str(program)) == program.read_bytes()


def test_the_linker_is_made_deaf_to_the_nodes_list(python: runtime.Interpreter) -> None:
    linker, _ = runtime_libs.shared_libraries([python.executable])
    before = Path(linker).read_bytes()
    after = runtime_libs.linker_without_preload(before)
    assert len(after) == len(before)
    assert b"/etc/ld.so.preload" not in after
    with pytest.raises(BuildError):
        runtime_libs.linker_without_preload(after)
