"""Where the time of one ADD or DEL goes: start of the interpreter, imports, work, system calls.

The numbers find what to improve; they are no results. Tracing slows down what it traces, so stages
are timed without it, and a profile counts relative to itself.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from time import perf_counter_ns
from typing import NamedTuple

from bench import contenders
from bench.contenders import Contender
from bench.measure import Call, execute, rotated
from bench.namespaces import Namespace, memory
from bench.tables import milliseconds, table
from cni_plugin.dispatch import serve

_TOP = 15
_WARM_UPS = 2
_IMPORTS = "import cni_plugin.__main__, cni_plugin.commands"


class Import(NamedTuple):
    """A line of -X importtime: a module, and the time that it alone took, in µs."""

    module: str
    own: int


class _Rig:
    """A node and a sandbox, and podwire's calls in them."""

    def __init__(self, contender: Contender, node: Namespace, pod: Namespace, folder: str) -> None:
        self.contender = contender
        self.node = node
        self._pod = pod
        self._config = contenders.bridge_config(f"{folder}/networks", (4,))
        self.trace = f"{folder}/strace"

    def call(self, command: str, pod: str = "pod") -> Call:
        return self.contender.call(command, self._config, pod, self._pod.path)

    @contextmanager
    def around(self, command: str) -> Iterator[Call]:
        """The call of `command`, with the other one before or after it."""
        if command == "DEL":
            execute(self.call("ADD"), self.node)
        yield self.call(command)
        if command == "ADD":
            execute(self.call("DEL"), self.node)

    def traced(self, call: Call, *prefix: str) -> str:
        """Run the call behind `prefix`; what was written to stderr."""
        with self.node.entered():
            done = subprocess.run(
                [*prefix, call.executable],
                input=json.dumps(call.config).encode(),
                env=dict(call.environ),
                capture_output=True,
                check=True,
            )
        return done.stderr.decode()


def run(command: str, runs: int) -> int:
    """Print the profile of "add" or "del"; needs root."""
    if os.geteuid() != 0:
        print("bench: --profile makes network namespaces, which needs root", file=sys.stderr)
        return 1
    command = command.upper()
    with ExitStack() as stack:
        folder = stack.enter_context(memory())
        node, pod = Namespace(node=True), Namespace()
        stack.callback(node.close)
        stack.callback(pod.close)
        side = contenders.podwires()[-1].at(f"{folder}/no-agent.sock")
        rig = _Rig(side, node, pod, folder)
        python = _interpreter(rig.contender.executable)
        sections = {
            f"Stages of {command}, whole processes": _stages(rig, python, command, runs),
            "Imports": _imports(rig, python, command),
            f"{command} in a process that has everything imported": _in_process(rig, command, runs),
            "System calls": _system_calls(rig, command),
        }
    for title, body in sections.items():
        print(f"{title}\n{body}\n")
    return 0


def _interpreter(executable: str) -> str:
    """The Python that the console script names in its first line."""
    with open(executable, "rb") as script:
        line = script.readline().decode(errors="replace").strip()
    return line[2:].strip() if line.startswith("#!/") and "python" in line else sys.executable


# --- stages -----------------------------------------------------------------------------------


def _stages(rig: _Rig, python: str, command: str, runs: int) -> str:
    """Processes that do more and more of a call, interleaved."""

    def plain(*flags: str) -> Callable[[], int]:
        return lambda: _timed([python, *flags])

    def whole() -> int:
        with rig.around(command) as call:
            return execute(call, rig.node)[0].wall

    stages: dict[str, Callable[[], int]] = {
        "interpreter (-I -S -c pass)": plain("-I", "-S", "-c", "pass"),
        "and its site-packages (-c pass)": plain("-c", "pass"),
        "and VERSION": lambda: execute(rig.contender.version())[0].wall,
        "or all imports, no work": plain("-c", _IMPORTS),
        f"and the work: {command}": whole,
    }
    taken: dict[str, list[int]] = {name: [] for name in stages}
    for turn in range(-_WARM_UPS, runs):
        for name in rotated(tuple(stages), turn):
            wall = stages[name]()
            if turn >= 0:
                taken[name].append(wall)
    rows = [(n, milliseconds(min(w)), milliseconds(median(w))) for n, w in taken.items()]
    return table(("ms", "min", "median"), rows)


def _timed(argv: list[str]) -> int:
    start = perf_counter_ns()
    pid = os.posix_spawn(argv[0], argv, {"PATH": os.defpath})
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"{argv}: status {status}")
    return perf_counter_ns() - start


# --- imports ----------------------------------------------------------------------------------


def _imports(rig: _Rig, python: str, command: str) -> str:
    with rig.around(command) as call:
        found = parse_importtime(rig.traced(call, python, "-X", "importtime"))
    packages: Counter[str] = Counter()
    for entry in found:
        packages[entry.module.partition(".")[0]] += entry.own
    total = sum(packages.values())
    largest = sorted(found, key=lambda entry: -entry.own)[:_TOP]
    by_package = [(name, milliseconds(us * 1e3)) for name, us in packages.most_common(_TOP)]
    by_module = [(entry.module, milliseconds(entry.own * 1e3)) for entry in largest]
    return "\n".join(
        (
            f"{len(found)} modules, {milliseconds(total * 1e3)} ms under -X importtime",
            table(("package or module", "own ms"), by_package),
            table(("module", "own ms"), by_module),
        )
    )


def parse_importtime(text: str) -> list[Import]:
    """The modules of -X importtime's output, in the order in which they were finished."""
    found = []
    for line in text.splitlines():
        head, _, rest = line.partition(":")
        cells = rest.split("|")
        if head == "import time" and len(cells) == 3 and cells[0].strip().isdigit():
            found.append(Import(cells[2].strip(), int(cells[0])))
    return found


# --- work -------------------------------------------------------------------------------------


def _in_process(rig: _Rig, command: str, runs: int) -> str:
    """Medians without a profiler, and then a profile of podwire's own functions."""
    profile = cProfile.Profile()
    walls = []
    with rig.node.entered():
        for turn in range(-_WARM_UPS, runs):
            for one in ("ADD", "DEL"):
                wall = _serve(rig.call(one))
                if one == command and turn >= 0:
                    walls.append(wall)
        for _ in range(runs):
            for one in ("ADD", "DEL"):
                _serve(rig.call(one), profile if one == command else None)
    head = f"median {milliseconds(median(walls))} ms, min {milliseconds(min(walls))} ms"
    return f"{head}; under the profiler, per call:\n{_functions(profile, runs)}"


def _serve(call: Call, profile: cProfile.Profile | None = None) -> int:
    stdin = json.dumps(call.config).encode()
    if profile:
        profile.enable()
    start = perf_counter_ns()
    status, said = serve(call.environ, lambda: stdin)
    wall = perf_counter_ns() - start
    if profile:
        profile.disable()
    if status:
        raise RuntimeError(said.decode())
    return wall


def _functions(profile: cProfile.Profile, runs: int) -> str:
    rows = []
    for (path, _, name), (_, calls, own, total, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for package in ("cni_plugin", "ipam", "pyroute2"):
            _, found, module = path.rpartition(f"/{package}/")
            if found:
                rows.append((total, f"{package}/{module} {name}", calls, own))
    rows.sort(reverse=True)
    return table(
        ("function", "calls", "ms in all", "ms its own"),
        [
            (where, f"{calls / runs:g}", f"{1e3 * total / runs:.2f}", f"{1e3 * own / runs:.2f}")
            for total, where, calls, own in rows[: 2 * _TOP]
        ],
    )


# --- system calls -----------------------------------------------------------------------------


def _system_calls(rig: _Rig, command: str) -> str:
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    with rig.around(command) as call:
        rig.traced(call, strace, "-f", "-c", "-S", "calls", "-o", rig.trace)
    with open(rig.trace) as file:
        lines = [line.split() for line in file]
    counted = [(line[-1], line[3]) for line in lines if len(line) >= 5 and line[3].isdigit()]
    return table(("system call", "calls"), counted[: _TOP + 1])
