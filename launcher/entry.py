"""main.pyc of the runtime: what the interpreter runs first, and the importer of its code.

launcher/unpack.py starts it: -X podwire=PATH of the executable, -X podwire_lock=DESCRIPTOR of the
runtime's lock; arguments: COUNT of the environment's entries that the dynamic linker was not to
see, these entries, and the command line as it was called.

The Python code is in one file, `code`, written by launcher/runtime_code.py: a look-up in a
dictionary instead of several in folders, one read for all that an ADD imports, and names that
occur in several modules are made once. The file has an index, a bundle and single modules. Its
first 16 bytes are the lengths of index and bundle. The index is a marshalled dictionary {module:
(whether it is a package, offset behind the bundle, bytes)}; what is in the bundle has 0 bytes. The
bundle is a marshalled dictionary {module: code}.

Each millisecond here is one of every ADD without an agent: nothing is imported before the plugin
but what the interpreter has built in. (No `__future__`, which it has not.)
"""

import gc

gc.disable()  # until the modules are there: what they make, stays

import os  # noqa: E402
import sys  # noqa: E402
from _frozen_importlib import ModuleSpec  # noqa: E402
from marshal import loads  # noqa: E402

TYPE_CHECKING = False  # typing has it, which takes two milliseconds
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object


class CodeImporter:
    """Finds and loads the modules of the file `code` below `root`; the finder of every package."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fd = os.open(root + "/code", os.O_RDONLY | os.O_CLOEXEC)
        sizes = os.pread(self._fd, 16, 0)
        index_bytes = int.from_bytes(sizes[:8], "little")
        self._bundle_at = 16 + index_bytes
        self._bundle_bytes = int.from_bytes(sizes[8:], "little")
        self._modules_at = self._bundle_at + self._bundle_bytes
        self._index = self._read(16, index_bytes)
        self._bundle: dict[str, Any] = {}

    def find_spec(self, name: str, *_: object) -> Any:
        """As importlib asks it of sys.meta_path, and of the finder of a folder."""
        found = self._index.get(name)
        if found is None:
            return None
        spec = ModuleSpec(name, self, is_package=found[0])  # type: ignore[arg-type]
        file = self._root + "/" + name.replace(".", "/")
        if found[0]:
            spec.submodule_search_locations = [file]
            sys.path_importer_cache[file] = self
            file += "/__init__"
        spec.origin = spec.cached = file + ".pyc"
        spec.has_location = True
        return spec

    def create_module(self, spec: Any) -> None:
        return None  # the usual kind of module

    def exec_module(self, module: Any) -> None:
        exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102

    def get_code(self, name: str) -> Any:
        _, offset, size = self._index[name]
        if size:
            return self._read(self._modules_at + offset, size)
        if name not in self._bundle:
            self._bundle = self._read(self._bundle_at, self._bundle_bytes)
        return self._bundle.pop(name)

    def _read(self, offset: int, size: int) -> Any:
        return loads(os.pread(self._fd, size, offset))  # noqa: S302 - it is part of podwire

    def get_source(self, name: str) -> None:
        return None  # for tracebacks: there is none

    def is_package(self, name: str) -> bool:
        return bool(self._index[name][0])


def install(root: str) -> None:
    """Import from `root` alone: from `code`, and from the folder of extension modules and of
    packages that read files beside their code."""
    importer = CodeImporter(root)
    folder = f"{root}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    sys.path[:] = [root + "/code", folder]
    sys.path_importer_cache[root + "/code"] = importer
    sys.meta_path.insert(0, importer)


def restore(arguments: list[str]) -> list[str]:
    """Put the caller's environment back; the command line that is left of `arguments`."""
    del os.environ["LC_ALL"]
    count = int(arguments[0])
    for entry in arguments[1 : 1 + count]:
        name, _, value = entry.partition("=")
        os.environ[name] = value
    return arguments[1 + count :] or [""]


def run() -> int:
    install(os.path.dirname(sys.argv[0]))
    sys.argv = restore(sys.argv[1:])
    with open("/proc/self/comm", "w") as name:  # for ps: it would be the linker's
        name.write("podwire")
    # What podwire executes must not keep the runtime locked.
    os.set_inheritable(int(sys._xoptions["podwire_lock"]), False)
    if not os.environ.get("CNI_COMMAND"):
        gc.enable()
    from cni_plugin.__main__ import main

    return main(dial=False)  # the client has tried the agent already


if __name__ == "__main__":
    sys.exit(run())
