"""Compile the runtime's Python code; run by the runtime's own interpreter, with nothing but its
standard library: python -X no_debug_ranges runtime_code.py PLAN FOLDER.

PLAN is a JSON document: `modules`, each [name, whether it is a package, source file, optimization,
file name for tracebacks]; `bundle`, statements whose imports make the bundle, and `path`, sys.path
for them; `loose`, the same as `modules`, with the path below FOLDER in place of the name. FOLDER
gets `code` (launcher/entry.py has the format) and a .pyc for each that is loose.
"""

import _imp
import importlib.util
import json
import marshal
import os
import subprocess
import sys
from types import CodeType
from typing import Any

_UNCHECKED = (1).to_bytes(4, "little") + bytes(8)  # PEP 552: by a hash that nobody compares


def compiled(source: str, optimize: int, file: str) -> CodeType:
    with open(source, "rb") as stream:
        return compile(stream.read(), file, "exec", dont_inherit=True, optimize=optimize)


def imported(path: list[str], statements: str) -> set[str]:
    """The modules that the statements import, in a process of its own."""
    program = f"import sys; sys.path[:] = {path!r}\n{statements}\nprint(' '.join(sys.modules))"
    command = [sys.executable, "-I", "-S", "-B", "-c", program]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def code_file(modules: list[Any], hot: set[str]) -> bytes:
    index = {}
    bundle = {}
    rest = b""
    for name, package, source, optimize, file in modules:
        if _imp.is_frozen(name):
            continue  # the interpreter has it built in
        code = compiled(source, optimize, file)
        if name in hot:
            bundle[name] = code
            index[name] = (package, 0, 0)
        else:
            data = marshal.dumps(code)
            index[name] = (package, len(rest), len(data))
            rest += data
    parts = [marshal.dumps(index), marshal.dumps(bundle)]
    return b"".join([*(len(part).to_bytes(8, "little") for part in parts), *parts, rest])


def main(plan_path: str, folder: str) -> None:
    with open(plan_path) as stream:
        plan = json.load(stream)
    with open(f"{folder}/code", "wb") as file:
        hot = imported(plan["path"], plan["bundle"]) - imported(plan["path"], "pass")
        file.write(code_file(plan["modules"], hot))
    for path, _, source, optimize, name in plan["loose"]:
        os.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
        with open(f"{folder}/{path}", "wb") as file:
            code = marshal.dumps(compiled(source, optimize, name))
            file.write(importlib.util.MAGIC_NUMBER + _UNCHECKED + code)


if __name__ == "__main__":
    main(*sys.argv[1:])
