"""The self-contained executable where nothing else is, and where the environment is hostile."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_plugin import runtimefolder
from cni_plugin.version import VERSION
from tests.support.emptyroot import EXECUTABLE, EmptyRoot
from tests.support.executable import executable
from tests.support.netns import Namespace, wait_until
from tests.support.plugin import Config, Plugin

CONF = json.dumps(
    {
        "cniVersion": "1.0.0",
        "name": "podnet",
        "type": "podwire",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/networks",
            "ranges": [[{"subnet": "10.244.0.0/24"}]],
        },
    }
).encode()
NOBODY = 65534


@pytest.fixture(scope="module")
def podwire() -> str:
    return executable()


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose runtime is unpacked once for all tests."""
    return {"PODWIRE_RUNTIME": str(tmp_path_factory.mktemp("runtimes") / "podwire")}


def _run(
    podwire: str, *args: str, env: dict[str, str], **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [podwire, *args], env=env, capture_output=True, text=True, timeout=120, **options
    )


def _attach_and_detach(root: EmptyRoot) -> None:
    """ADD, CHECK and DEL, which leave nothing."""
    result = root.call("ADD", CONF).result
    assert [ip["address"] for ip in result["ips"]] == ["10.244.0.2/24"]
    check = json.dumps(json.loads(CONF) | {"prevResult": result}).encode()
    assert root.call("CHECK", check).ok
    assert root.call("DEL", CONF).ok
    assert not [name for name in root.names("/run/networks/podnet") if name.startswith("10.")]


# --- an empty root ----------------------------------------------------------------------------


def test_an_empty_root_with_run_alone(podwire: str, tmp_path: Path) -> None:
    with EmptyRoot(str(tmp_path), podwire, root_options="ro") as root:
        version = root.call("VERSION", b'{"cniVersion": "1.0.0"}')
        assert "1.1.0" in version.result["supportedVersions"]
        assert root.names("/run") == ["netns"]  # VERSION needs no runtime
        _attach_and_detach(root)
        (runtime,) = [name for name in root.names("/run/podwire") if runtimefolder.is_runtime(name)]
        for folder in ("/run/podwire", f"/run/podwire/{runtime}"):
            assert stat.S_IMODE(os.stat(root.path(folder)).st_mode) == 0o700
        assert root.names("/") == ["podwire", "podwire-ipam", "proc", "run", "sys"]


def test_where_run_is_mounted_noexec_the_runtime_is_elsewhere(podwire: str, tmp_path: Path) -> None:
    with EmptyRoot(str(tmp_path), podwire, run_options="noexec") as root:
        os.makedirs(root.path("/var/lib"))
        _attach_and_detach(root)
        assert any(runtimefolder.is_runtime(name) for name in root.names("/var/lib/podwire"))


def test_without_a_folder_for_the_runtime_all_that_was_tried_is_told(
    podwire: str, tmp_path: Path
) -> None:
    with EmptyRoot(str(tmp_path), podwire, run_options="noexec", root_options="ro") as root:
        error = root.call("ADD", CONF).error
        assert error["code"] == 5
        assert "/run/podwire: mounted noexec; /var/lib/podwire: " in error["msg"]
        assert "PODWIRE_RUNTIME" in error["details"]
        tool = root.run(EXECUTABLE, "status")
        assert tool.returncode == 1
        assert b"/run/podwire: mounted noexec" in tool.stderr
        assert tool.stdout == b""


@pytest.mark.parametrize("stdin", [b"", None])
def test_the_tool_with_no_environment_at_all(
    podwire: str, tmp_path: Path, stdin: bytes | None
) -> None:
    with EmptyRoot(str(tmp_path), podwire) as root:
        assert root.run(EXECUTABLE, "--help", stdin=stdin).stdout.startswith(b"Usage: podwire")
        version = root.run(EXECUTABLE, "--version", stdin=stdin)
        assert version.stdout.startswith(f"podwire {VERSION},".encode())
        status = root.run(EXECUTABLE, "status", stdin=stdin)
        assert status.returncode == 1
        assert b"/etc/cni/net.d" in status.stdout + status.stderr
        assert b"Traceback" not in status.stderr
        about = root.run(EXECUTABLE, stdin=stdin)
        assert about.returncode == 0
        assert about.stderr.startswith(f"podwire {VERSION}: CNI plugin".encode())


def _entering(root: EmptyRoot) -> tuple[str, ...]:
    """The words before a command that is to live on in the root."""
    pid = root.path("").split("/")[2]
    return ("nsenter", f"--target={pid}", "--mount", "--net", f"--root={root.path('')}", "--")


def test_an_agent_in_an_empty_root(podwire: str, tmp_path: Path) -> None:
    """It serves the executable's calls there, and at SIGTERM leaves nothing but its runtime."""
    with EmptyRoot(str(tmp_path), podwire, root_options="ro") as root:
        said = tmp_path.parent / f"{tmp_path.name}.log"
        with open(said, "wb") as log:
            words = (*_entering(root), EXECUTABLE, "agent", "--log-format=json")
            agent = subprocess.Popen(words, env={}, stdin=subprocess.DEVNULL, stderr=log)
        try:
            ready = Path(root.path("/run/podwire/agent.ready"))
            wait_until(lambda: ready.exists() or agent.poll() is not None, 30, "agent.ready")
            assert agent.poll() is None, said.read_text()
            _attach_and_detach(root)
            agent.terminate()
            assert agent.wait(timeout=30) == 0
        finally:
            agent.kill()
            agent.wait()
        records = [json.loads(line) for line in said.read_text().splitlines()]
        served = [(r["command"], r["outcome"]) for r in records if r["msg"] == "served"]
        assert served == [("ADD", "ok"), ("CHECK", "ok"), ("DEL", "ok")]
        left = [name for name in root.names("/run/podwire") if not name.startswith("runtime")]
        assert [name for name in left if not name.startswith("node-")] == []
        assert root.names("/") == ["podwire", "podwire-ipam", "proc", "run", "sys"]


def test_podwire_ipam_by_its_name(podwire: str, tmp_path: Path) -> None:
    with EmptyRoot(str(tmp_path), podwire) as root:
        ipam = json.loads(CONF) | {"type": "podwire", "ipam": json.loads(CONF)["ipam"]}
        ipam["ipam"]["type"] = "podwire-ipam"
        conf = json.dumps(ipam).encode()
        own = root.call("ADD", conf, name="/podwire-ipam").result
        assert [ip["address"] for ip in own["ips"]] == ["10.244.0.2/24"]
        assert root.call("DEL", conf, name="/podwire-ipam").ok
        delegated = root.call("ADD", conf).result  # by way of CNI_PATH
        assert [ip["address"] for ip in delegated["ips"]] == ["10.244.0.3/24"]
        assert root.call("DEL", conf).ok


def test_closed_stdin_is_an_error_of_its_own(podwire: str, tmp_path: Path) -> None:
    with EmptyRoot(str(tmp_path), podwire) as root:
        done = root.run(EXECUTABLE, env={"CNI_COMMAND": "ADD"}, stdin=None)
        assert done.returncode == 1
        assert json.loads(done.stdout)["code"] in (4, 5, 6)


def test_a_user_without_privileges(podwire: str, tmp_path: Path) -> None:
    with EmptyRoot(str(tmp_path), podwire) as root:
        refused = root.call("ADD", CONF, uid=NOBODY).error
        assert refused["code"] == 110
        assert f"/tmp/podwire-{NOBODY}: " in refused["msg"]
        assert "as root" in refused["details"]
        os.mkdir(root.path("/tmp"))
        os.chmod(root.path("/tmp"), 0o1777)
        error = root.call("ADD", CONF, uid=NOBODY).error
        assert error["code"] == 110
        assert "CAP_" in error["msg"] + error["details"]
        help_text = root.run(EXECUTABLE, "--help", uid=NOBODY)
        assert help_text.stdout.startswith(b"Usage: podwire")
        private = os.stat(root.path(f"/tmp/podwire-{NOBODY}"))
        assert (private.st_uid, stat.S_IMODE(private.st_mode)) == (NOBODY, 0o700)
        # Somebody else's folder is nobody's to use.
        os.chown(root.path(f"/tmp/podwire-{NOBODY}"), 1000, 1000)
        stolen = root.call("ADD", CONF, uid=NOBODY).error
        assert stolen["code"] == 110
        assert f"/tmp/podwire-{NOBODY} is a folder of user 1000" in stolen["msg"]


# --- the environment --------------------------------------------------------------------------


def test_the_callers_python_and_linker_do_not_matter(podwire: str, environ: dict[str, str]) -> None:
    garbage = {
        "PYTHONHOME": "/proc/nowhere",
        "PYTHONPATH": "/proc/nowhere",
        "PYTHONSTARTUP": "/proc/nowhere",
        "PYTHONWARNINGS": "error",
        "PYTHONMALLOC": "nonsense",
        "LD_PRELOAD": "/proc/nowhere/preload.so",
        "LD_LIBRARY_PATH": "/proc/nowhere",
        "LD_AUDIT": "/proc/nowhere/audit.so",
        "LD_DEBUG": "all",
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
        "LC_ALL": "xx_XX.ISO-8859-1",
        "LANG": "xx_XX",
        "MICROPYPATH": "/proc/nowhere",
    }
    done = _run(podwire, "--version", env=environ | garbage)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"podwire {VERSION},")


def test_a_delegate_gets_the_callers_environment(
    podwire: str, environ: dict[str, str], node: Namespace, sandbox: Namespace, tmp_path: Path
) -> None:
    """Byte for byte, and no descriptor of ours."""
    delegate = tmp_path / "spy"
    delegate.write_text(
        "#!/bin/sh\n"
        f"cat /proc/self/environ > {tmp_path}/environ\n"
        f"ls -l /proc/self/fd > {tmp_path}/descriptors\n"
        'echo \'{"cniVersion": "1.0.0", "code": 100, "msg": "seen"}\'\nexit 1\n'
    )
    delegate.chmod(0o755)
    given: dict[str, str | None] = {
        **environ,
        "PATH": os.environ["PATH"],
        "HOME": None,
        "LD_BIND_NOW": "",
        "LD_LIBRARY_PATH": "/proc/nowhere",
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
        "PYTHONPATH": "/proc/nowhere",
        "LC_ALL": "POSIX",
        "MALLOC_ARENA_MAX": "1",
        "ODD": "a=b\tc\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"),
        "EMPTY": "",
        "CNI_CONTAINERID": "pod",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": sandbox.path,
        "CNI_PATH": str(tmp_path),
    }
    plugin = Plugin(podwire).on(node)
    conf: Config = json.loads(CONF) | {"ipam": {"type": "spy"}}
    assert "seen" in plugin.call("ADD", conf, given).error["msg"]
    entries = (tmp_path / "environ").read_bytes().split(b"\0")[:-1]
    seen = dict(entry.split(b"=", 1) for entry in entries)
    for name, value in given.items():
        if value is not None:
            assert seen[name.encode()] == value.encode("utf-8", "surrogateescape")
    expected = {name for name, value in plugin.environ("ADD", given).items() if value is not None}
    added = {name.decode() for name in seen} - expected
    # What podwire tells a nested call of itself, and what the shell adds.
    assert not [name for name in added if not name.startswith("PODWIRE") and name != "PWD"]
    descriptors = (tmp_path / "descriptors").read_text()
    assert "runtime" not in descriptors
    assert "podwire " not in descriptors


def test_the_environment_gains_nothing(podwire: str, environ: dict[str, str]) -> None:
    """CPython would set LC_CTYPE in the locale C: whoever podwire executes would have it."""
    done = _run(podwire, "lab", "exec", "--help", env=environ)
    assert done.returncode == 0
    probe = (
        "import os, sys; sys._xoptions; from cni_plugin import executable;"
        "print(sorted(os.environ), executable.path())"
    )
    assert "LC_" not in _inside(podwire, environ, probe)


def _inside(podwire: str, environ: dict[str, str], code: str) -> str:
    """stdout of Python code in the runtime of the executable."""
    _run(podwire, "--version", env=environ)
    folder = Path(environ["PODWIRE_RUNTIME"])
    (runtime,) = [path for path in folder.iterdir() if runtimefolder.is_runtime(path.name)]
    start = f"import sys; sys.argv = [{str(runtime)!r} + '/main.pyc', '0', 'podwire']\n"
    load = "import marshal; main = {'__name__': 'entry'}\n"
    load += "exec(marshal.loads(open(sys.argv[0], 'rb').read()[16:]), main)\n"
    load += f"main['install']({str(runtime)!r}); main['restore'](['0'])\n"
    command = [f"{runtime}/ld.so", "--inhibit-cache", "--library-path", f"{runtime}/lib"]
    command += [f"{runtime}/python", "-I", "-S", "-X", "utf8", "-X", f"podwire={podwire}"]
    done = subprocess.run(
        [*command, "-c", start + load + code],
        env=environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the runtime ------------------------------------------------------------------------------


def test_every_module_of_podwire_can_be_imported(podwire: str, environ: dict[str, str]) -> None:
    """What was left out of the standard library is missed by nothing."""
    project = Path(__file__).parents[2]
    names = [
        ".".join(path.relative_to(project).with_suffix("").parts).removesuffix(".__init__")
        for package in ("cni_plugin", "ipam")
        for path in sorted((project / package).rglob("*.py"))
    ]
    assert len(names) > 50
    others = ["asyncio", "ssl", "http.client", "urllib.request", "logging.handlers", "ctypes.util"]
    others += ["concurrent.futures", "netaddr", "click.shell_completion", "datetime"]
    code = f"import importlib\nfor name in {[*names, *others]!r}: importlib.import_module(name)\n"
    code += "print(len([m for m in sys.modules.values() if 'site-packages' in str(m)]))"
    assert _inside(podwire, environ, code) == "0\n"


def test_sets_of_addresses_need_no_registries(podwire: str, environ: dict[str, str]) -> None:
    """netaddr's registries of vendors, 9 MB, are left out; its sets, which podwire uses, work."""
    code = "from netaddr import IPRange, IPSet\n"
    code += "print((IPSet(IPRange('10.0.0.1', '10.0.0.9')) - IPSet(['10.0.0.5'])).size)"
    assert _inside(podwire, environ, code) == "8\n"


def test_encrypted_connections_can_be_made(podwire: str, environ: dict[str, str]) -> None:
    code = "import ssl; print(ssl.create_default_context().verify_mode.name)"
    assert _inside(podwire, environ, code) == "CERT_REQUIRED\n"


def test_a_traceback_names_files_and_lines(podwire: str, environ: dict[str, str]) -> None:
    code = (
        "import traceback\ntry:\n from cni_plugin import skel; skel.parse_request(None, None)\n"
        "except Exception: print(traceback.format_exc())"
    )
    assert 'File "cni_plugin/skel.py", line ' in _inside(podwire, environ, code)


def test_completion_and_the_lab(podwire: str, environ: dict[str, str]) -> None:
    script = _run(podwire, "completion", "bash", env=environ)
    assert "_PODWIRE_COMPLETE=bash_complete" in script.stdout
    words = {"COMP_WORDS": "podwire st", "COMP_CWORD": "1", "_PODWIRE_COMPLETE": "bash_complete"}
    assert "status" in _run(podwire, env=environ | words).stdout
    path = {"PATH": os.environ["PATH"]}
    demo = _run(podwire, "lab", "demo", env=environ | path)
    assert demo.returncode == 0, demo.stdout + demo.stderr


def test_a_process_keeps_its_runtime_until_it_ends(
    podwire: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """An upgrade while the old version's agent runs: its runtime stays until that has ended."""
    agent = subprocess.Popen(
        [podwire, "agent", "--socket", f"{tmp_path}/agent.sock"],
        env=environ,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "agent.ready").exists():
            assert time.monotonic() < deadline
            assert agent.poll() is None
            time.sleep(0.02)
        folder = environ["PODWIRE_RUNTIME"]
        assert runtimefolder.remove_stale(folder, "", -10) == []
        assert Path(f"/proc/{agent.pid}/comm").read_text() == "podwire\n"
    finally:
        agent.terminate()
        agent.wait(timeout=30)
    assert len(runtimefolder.remove_stale(folder, "", -10)) == 1


@pytest.fixture
def together(podwire: str, tmp_path: Path) -> Callable[[int], list[subprocess.Popen[str]]]:
    def start(number: int) -> list[subprocess.Popen[str]]:
        env = {"PODWIRE_RUNTIME": str(tmp_path / "podwire")}
        return [
            subprocess.Popen([podwire, "--version"], env=env, stdout=subprocess.PIPE, text=True)
            for _ in range(number)
        ]

    return start


def test_first_calls_at_once(
    together: Callable[[int], list[subprocess.Popen[str]]], tmp_path: Path
) -> None:
    for process in together(16):
        assert process.communicate(timeout=120)[0].startswith(f"podwire {VERSION},")
    assert len(list((tmp_path / "podwire").iterdir())) == 2  # one runtime, one lock


def test_first_calls_that_are_killed(
    together: Callable[[int], list[subprocess.Popen[str]]], tmp_path: Path
) -> None:
    for delay in (0.002, 0.01, 0.05, 0.1, 0.2, 0.4):
        (process,) = together(1)
        time.sleep(delay)
        process.kill()
        process.communicate()
    (process,) = together(1)
    assert process.communicate(timeout=120)[0].startswith(f"podwire {VERSION},")
    assert len(list((tmp_path / "podwire").iterdir())) == 2
