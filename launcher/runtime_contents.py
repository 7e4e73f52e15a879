"""What is in the runtime, and what is left out: modules, packages, extension modules, data."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

from launcher.source import BuildError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What an ADD imports, besides what the interpreter has at its start.
ADD_IMPORTS = """
import cni_plugin.__main__, cni_plugin.commands, cni_plugin.node
import ctypes, ipam.host_local, signal
"""

# With --kubernetes: lightkube and what it needs of its requirements. It does without the others:
# HTTP/2, web sockets and asyncio's streams are for uses that are not ours, and the authorities that
# certifi would bring are not those of a cluster.
_CLIENT = ("h11", "httpcore2", "httpx2", "idna", "lightkube", "msgspec", "truststore", "yaml")
_CLIENT_MODULES = ("typing_extensions",)  # of one file each
_PACKAGES = ("click", "cni_plugin", "ipam", "netaddr", "pyroute2", *_CLIENT)
_NAMES_OF_VERSIONS = ("httpcore2", "httpx2")  # which look for their own version in their metadata
_WITH_DOCSTRINGS = ("click.", "cni_plugin.cli", "cni_plugin.tool_")  # they are the tool's help
# netaddr: registries of vendors and of the IANA, 9 MB; we want its sets. yaml: an extension module
# of 2.6 MB, which it can do without.
_WITHOUT_DATA = ("netaddr", "yaml")
_STRIPPED, _WHOLE = 2, 0  # levels of optimization: without docstrings and assertions, with both

# Parts of the standard library that podwire has no use for: other programs, other platforms,
# development, and formats and protocols of other fields. bz2, lzma, curses, sqlite3 and readline
# would bring a shared library each; pyroute2 wants sqlite3 for NDB, which podwire does not use.
_NOT_STANDARD = _words("""
__hello__ __phello__ _aix_support _bootsubprocess _compression _distutils_system_mod _osx_support
_pydecimal _pyio aifc antigravity asynchat asyncore audioop bdb bz2 cProfile cgi cgitb chunk cmd
code codeop colorsys compileall config crypt curses dbm distutils doctest ensurepip filecmp
fileinput fractions ftplib idlelib imaplib imghdr imp lib2to3 lib-dynload lzma mailbox mailcap
modulefinder msilib netrc nntplib nturl2path optparse pdb pickletools pipes plistlib poplib profile
pstats pty py_compile pyclbr pydoc pydoc_data rlcompleter sched shelve site sitecustomize
smtpd smtplib sndhdr sqlite3 statistics sunau symtable sysconfig tabnanny telnetlib test this timeit
tkinter trace tracemalloc tty turtle turtledemo unittest uu venv wave webbrowser wsgiref xdrlib
xmlrpc zipapp zoneinfo
""")
_ENCODINGS = _words("""
__init__ aliases ascii base64_codec charmap cp437 hex_codec idna iso8859_1 latin_1 punycode
raw_unicode_escape undefined unicode_escape utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le
utf_8 utf_8_sig
""")
_NOT_EXTENSIONS = _words("""
_bz2 _crypt _ctypes_test _curses _curses_panel _dbm _gdbm _lsprof _lzma _multibytecodec
_sqlite3 _tkinter _uuid _xxsubinterpreters _xxtestfuzz _zoneinfo audioop nis ossaudiodev readline
spwd xxlimited xxlimited_35
""")
_NOT_EXTENSION_PREFIXES = ("_test", "_codecs_")
_NOT_IN_PACKAGES = _words("""
httpcore2._async.http2 httpcore2._backends.anyio httpcore2._backends.trio httpcore2._sync.http2
httpx2._main httpx2.websockets netaddr.tests pyroute2.bsd pyroute2.dhcp pyroute2.fixtures
pyroute2.ndb pyroute2.plan9
""")
# Of these packages, which have a module for each API of Kubernetes, what lightkube.Client imports.
_ONLY_OF_PACKAGES = {
    "lightkube.models": _words("""
_schema apiextensions_v1 authentication_v1 autoscaling_v1 core_v1 meta_v1 policy_v1 resource runtime
util_intstr
"""),
    "lightkube.resources": _words("apiextensions_v1 core_v1"),
}

_INSTALL = "pip install -e '.[kubernetes]'"

Module = tuple[str, bool, str, int, str]
"""Name, whether it is a package, source file, level of optimization, file name for tracebacks."""


def check_versions() -> None:
    """Raises BuildError unless the packages are of versions that pyproject.toml allows."""
    with open(os.path.join(_project(), "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["kubernetes"]:
        name = requirement.partition(">=")[0]
        found = _version(name)
        lowest, _, limit = requirement.removeprefix(name + ">=").partition(",<")
        if not _numbers(lowest) <= _numbers(found) < _numbers(limit):
            raise BuildError(f"{name} {found} is here, and the runtime needs {requirement}")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as e:
        raise BuildError(f"the package {distribution} is not here: {_INSTALL}") from e


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _project() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def package_folders() -> list[str]:
    """The folders that the packages are in, as for sys.path."""
    return sorted({os.path.dirname(_folder_of(name)) for name in _PACKAGES})


def _folder_of(package: str) -> str:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"the package {package} is not here: {_INSTALL}")
    return os.path.abspath(next(iter(spec.submodule_search_locations)))


def modules(library: str) -> list[Module]:
    """The modules of the file `code`."""
    found = list(_standard(library))
    for package in _PACKAGES:
        if not _reads_files(package):
            found += _of_package(package)
    return sorted([*found, *_single_modules()])


def loose_modules(library: str) -> list[Module]:
    """Modules in files of their own, by the path of the .pyc in place of the name: what the
    interpreter needs before it can import from `code`, and packages that read files."""
    early = ("encodings", "encodings.aliases", "encodings.utf_8")
    found = [module for module in _standard(library) if module[0] in early]
    for package in _PACKAGES:
        if _reads_files(package):
            found += _of_package(package)
    return [(_pyc(name, is_package), is_package, *rest) for name, is_package, *rest in found]  # type: ignore[misc]


def _pyc(name: str, is_package: bool) -> str:
    return name.replace(".", "/") + ("/__init__.pyc" if is_package else ".pyc")


def _standard(library: str) -> Iterator[Module]:
    for name, is_package, path in _sources(library, ""):
        top, _, rest = name.partition(".")
        if top in _NOT_STANDARD or top.startswith(("config-", "_sysconfigdata")):
            continue
        if top == "encodings" and rest and rest not in _ENCODINGS:
            continue
        yield name, is_package, path, _STRIPPED, os.path.relpath(path, library)


def _of_package(package: str) -> Iterator[Module]:
    folder = _folder_of(package)
    for name, is_package, path in _sources(folder, package):
        level = _WHOLE if name.startswith(_WITH_DOCSTRINGS) else _STRIPPED
        if _is_wanted(name):
            yield name, is_package, path, level, os.path.relpath(path, os.path.dirname(folder))


def _is_wanted(module: str) -> bool:
    """Whether a module of a package is not among those that are left out."""
    if any(module == left or module.startswith(left + ".") for left in _NOT_IN_PACKAGES):
        return False
    package, _, name = module.rpartition(".")
    return package not in _ONLY_OF_PACKAGES or name in _ONLY_OF_PACKAGES[package]


def _single_modules() -> Iterator[Module]:
    for name in _CLIENT_MODULES:
        spec = find_spec(name)
        if spec is None or not spec.origin:
            raise BuildError(f"the module {name} is not here: {_INSTALL}")
        yield name, False, spec.origin, _STRIPPED, os.path.basename(spec.origin)


def _sources(folder: str, package: str) -> Iterator[tuple[str, bool, str]]:
    """(name, whether it is a package, path) of the modules below a folder."""
    if package:
        yield package, True, os.path.join(folder, "__init__.py")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{package}.{entry.name}" if package else entry.name
        if entry.is_dir() and os.path.exists(os.path.join(entry.path, "__init__.py")):
            yield from _sources(entry.path, name)
        elif entry.name.endswith(".py") and entry.name != "__init__.py":
            yield name.removesuffix(".py"), False, entry.path


def extension_modules(folder: str) -> list[str]:
    """The paths of the extension modules that are kept."""
    found = []
    for name in sorted(os.listdir(folder)):
        module = name.partition(".")[0]
        left_out = module in _NOT_EXTENSIONS or module.startswith(_NOT_EXTENSION_PREFIXES)
        if name.endswith(".so") and not left_out:
            found.append(os.path.join(folder, name))
    return found


def package_extensions(suffix: str) -> Iterator[tuple[str, str]]:
    """(path in the runtime's library, path here) of the packages' extension modules.

    `suffix`: of the interpreter's extension modules. Raises BuildError when a package has none for
    it: it was installed for another interpreter.
    """
    for package in _CLIENT:
        folder = _folder_of(package)
        found = [path for path in _data_of(folder) if path.endswith(".so")]
        if found and not any(path.endswith(suffix) for path in found):
            raise BuildError(
                f"{package} is here for another Python, without *{suffix}: build in an environment"
                " of the interpreter that is packed, or set PODWIRE_PYTHON to the environment's"
            )
        for path in found:
            if path.endswith(suffix):
                yield os.path.relpath(path, os.path.dirname(folder)), path


def versions() -> Iterator[tuple[str, bytes]]:
    """(path in the runtime's library, content) of the metadata that packages want to find."""
    for name in _NAMES_OF_VERSIONS:
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {_version(name)}\n"
        yield f"{name}-{_version(name)}.dist-info/METADATA", text.encode()


def data_files() -> Iterator[tuple[str, str]]:
    """(path in the runtime's library, path here) of the files that packages read."""
    for package in _PACKAGES:
        if _reads_files(package):
            folder = _folder_of(package)
            for path in _data_of(folder):
                if path.endswith(".so"):
                    continue  # see `package_extensions`
                yield os.path.relpath(path, os.path.dirname(folder)), path


def _reads_files(package: str) -> bool:
    return any(_data_of(_folder_of(package)))


def _data_of(folder: str) -> Iterator[str]:
    if os.path.basename(folder) in _WITHOUT_DATA:
        return
    for below, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", "tests"))
        for name in sorted(names):
            if not name.endswith((".py", ".pyc", ".typed", ".pyi")):
                yield os.path.join(below, name)
