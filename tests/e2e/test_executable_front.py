"""The front of the self-contained executable, in a hostile process: what a caller may hand it.

What is behind the front is unpacked once, into a folder of this module's own.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from cni_plugin import wire
from cni_plugin.skel import MAX_CONFIG_BYTES
from cni_plugin.spec import SUPPORTED_VERSIONS
from tests.support import executable
from tests.support.agent import Agent
from tests.support.netns import Namespace
from tests.unit.fake_agent import FakeAgent, says

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


# --- podwire probe --------------------------------------------------------------------------------

_PROBE_CPU_S = 0.03  # measured 0.001, 0.003 with nsenter; a command of the runtime's takes 0.1
# What JSON writes as escapes, and some is no text; numbers that small machines don't have.
_ODD = [
    '\U0001f600 \ud800\u00fc\ud7a3 \n\0\x01\x7f"\\/',
    2**70,
    -(2**63),
    1500,
    0.5,
    True,
    None,
    {},
]


@pytest.fixture
def agent(node: Namespace, podwire: str, runtime: str, tmp_path: Path) -> Iterator[Agent]:
    words = ("env", f"PODWIRE_RUNTIME={runtime}", podwire)
    started = Agent(node, words, str(tmp_path)).start()
    try:
        yield started
    finally:
        if started.lives():
            started.terminate()


@pytest.fixture
def probe(node: Namespace, podwire: str, tmp_path: Path) -> Call:
    """probe(words..., socket=): where a runtime would be unpacked there is no folder, ever."""

    def run(*words: str, socket: str) -> subprocess.CompletedProcess[bytes]:
        absent = tmp_path / "no-runtime"
        env = {"PODWIRE_RUNTIME": str(absent), "PODWIRE_SOCKET": socket}
        command = [*node.prefix(), podwire, "probe", *words]
        done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
        assert not absent.exists()
        return done

    return run


def _conflist(folder: Path, **keys: object) -> str:
    plugin = {"type": "podwire", "bridge": "cni0", "comment": _ODD}
    ipam = {"type": "host-local", "subnet": "10.244.0.0/24", "dataDir": str(folder / "networks")}
    document = {
        "cniVersion": "1.0.0",
        "name": "podnet",
        "plugins": [{**plugin, "ipam": ipam, **keys}, {"type": "portmap"}],
    }
    path = folder / "05-podwire.conflist"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_probe_of_an_agent(probe: Call, agent: Agent, node: Namespace, tmp_path: Path) -> None:
    path = _conflist(tmp_path)
    for words in ((), (path,)):
        done = probe(*words, socket=agent.socket)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert agent.log("served") == []  # what is well is not worth a line every ten seconds
    node.run("ip", "link", "add", "cni0", "type", "veth", "peer", "name", "veth0")  # no bridge
    refused = probe(path, socket=agent.socket)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert refused.stderr.startswith(b"error 50: ")
    assert b"cni0" in refused.stderr
    assert probe(socket=agent.socket).returncode == 0  # which is no reason to restart the agent
    assert agent.served() == [("STATUS", "error")]


@pytest.mark.parametrize("escaped", [True, False])
def test_a_probe_hands_on_what_the_file_holds(probe: Call, tmp_path: Path, escaped: bool) -> None:
    """Read and written again by MicroPython's JSON."""
    comment = _ODD if escaped else ["\U0001f600\u00fc\ud7a3"]
    path = Path(_conflist(tmp_path, comment=comment))
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document, ensure_ascii=escaped))
    fake = FakeAgent(str(tmp_path / "fake.sock"))
    try:
        fake.script = says(wire.reply(wire.SERVED, 0, b""))
        assert probe(str(path), socket=fake.path).returncode == 0
    finally:
        fake.close()
    wanted = {**document["plugins"][0], "name": "podnet", "cniVersion": "1.1.0"}
    assert [json.loads(request.stdin) for request in fake.requests] == [wanted]


def test_a_probe_without_an_agent(probe: Call, tmp_path: Path) -> None:
    for words in ((), (_conflist(tmp_path),)):
        done = probe(*words, socket="/proc/nowhere/agent.sock")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"error 11: no agent serves at /proc/nowhere/agent.sock: ")


def test_a_probe_of_an_agent_whose_cluster_is_away(
    probe: Call, node: Namespace, podwire: str, runtime: str, tmp_path: Path
) -> None:
    """Nor does it become ready without a configuration."""
    path = tmp_path / "net.d" / "05-podwire.conflist"
    away = ("--kubernetes", "--node-name=node-1", "--api-server=https://192.0.2.1:6443")
    own = (f"--inventory={tmp_path}/nodes.json", f"--conf-dir={path.parent}")
    words = ("env", f"PODWIRE_RUNTIME={runtime}", podwire)
    agent = Agent(node, words, str(tmp_path), options=(*away, *own)).start()
    try:
        for _ in range(3):
            assert probe(socket=agent.socket).returncode == 0
            done = probe(str(path), socket=agent.socket)
            assert done.returncode == 1
            assert b"No such file or directory" in done.stderr
    finally:
        agent.terminate()


def test_probes_are_cheap(probe: Call, agent: Agent, tmp_path: Path) -> None:
    path = _conflist(tmp_path)
    for words in ((), (path,)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(10):
            assert probe(*words, socket=agent.socket).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert used / 10 < _PROBE_CPU_S


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", b"can't read "),
        ("", b'can\'t read "": No such file'),
        ("folder", b"Is a directory"),
        ("large", b"is larger than 256 KiB"),
        ("deep", b"is not JSON"),
        ("other", b"none of those in "),
    ],
)
def test_a_probe_by_a_file_that_is_none(
    probe: Call, tmp_path: Path, name: str, words: bytes
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b" " * 3_000_000)
    (tmp_path / "deep").write_bytes(b"[" * 100_000)
    (tmp_path / "other").write_bytes(b'{"plugins": [{"type": "bridge"}]}')
    done = probe(str(tmp_path / name) if name else "", socket="/proc/nowhere/agent.sock")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error ")
    assert words in done.stderr


def test_help_and_mistakes_of_a_probe_are_the_tools(call: Call) -> None:
    usage = call(b"probe", b"--help")
    assert usage.returncode == 0
    assert usage.stdout.startswith(b"Usage: podwire probe [OPTIONS] [CONFLIST]")
    two = call(b"probe", b"a", b"b")
    assert (two.returncode, two.stdout) == (2, b"")
    assert b"unexpected extra argument" in two.stderr
