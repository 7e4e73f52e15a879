"""Starting an agent: what is asked for, who gets to do it, and with what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import agentconf
from cni_plugin.agent import lock
from cni_plugin.fields import Fields
from cni_plugin.spec import CniError, Code

_PROJECT = Path(__file__).parents[2]

# --- what a configuration says -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "wanted"),
    [
        ({}, ("", "", 300)),
        ({"agent": None, "agentSocket": None, "agentIdle": None}, ("", "", 300)),
        ({"agent": "auto", "agentSocket": "/a", "agentIdle": 1}, ("auto", "/a", 1)),
        ({"agent": "never", "agentIdle": 86_400}, ("never", "", 86_400)),
    ],
)
def test_what_a_configuration_says(conf: dict[str, Any], wanted: tuple[str, str, int]) -> None:
    assert agentconf.parse(Fields(conf)) == wanted


@pytest.mark.parametrize("value", [0, -1, 86_401, 1.5, "60", True, [], {}])
def test_an_idle_time_that_is_refused(value: object) -> None:
    with pytest.raises(CniError) as caught:
        agentconf.parse(Fields({"agentIdle": value}))
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith("agentIdle: ")


# --- who may start it ----------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "below" / "agent.sock")


def test_a_lock_is_had_once(path: str) -> None:
    held = lock.take(path)
    with pytest.raises(lock.BusyError) as caught:
        lock.take(path)
    assert (caught.value.code, path in caught.value.msg) == (Code.TRY_AGAIN_LATER, True)
    os.close(held)
    os.close(lock.take(path))  # what is left of it is nobody's


def test_a_lock_is_handed_on(path: str) -> None:
    """It stays held when the one who took it closes its own descriptor."""
    held = lock.take(path)
    passed = os.dup(held)
    os.set_inheritable(passed, True)
    assert lock.inherited(passed, path) == passed
    assert not os.get_inheritable(passed)
    os.close(held)
    with pytest.raises(lock.BusyError):
        lock.take(path)
    os.close(passed)


def test_a_lock_that_was_removed_meanwhile_is_nobodys(path: str) -> None:
    held = lock.take(path)
    os.unlink(lock.lock_path(path))
    with pytest.raises(lock.BusyError):
        lock.inherited(held, path)
    another = lock.take(path)
    with pytest.raises(lock.BusyError):
        lock.inherited(held, path)
    os.close(another)
    os.close(held)


@pytest.mark.parametrize("wrong", ["", "agent.sock", "./agent.sock", "/" + "x" * 107])
def test_what_is_no_path_of_a_socket(wrong: str) -> None:
    with pytest.raises(CniError) as caught:
        lock.take(wrong)
    assert caught.value.code == Code.INVALID_CONFIG


def test_a_folder_where_others_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(CniError) as caught:
        lock.take(str(tmp_path / "agent.sock"))
    assert caught.value.code == Code.PERMISSION_DENIED
    assert list(tmp_path.iterdir()) == []


# --- with what -----------------------------------------------------------------------------------

_SPAWN = """
import json, os, sys
from cni_plugin import on_demand
def spawn(path, argv, environ, **more):
    more["setsigdef"] = len(more["setsigdef"])
    fds = {name: os.get_inheritable(int(name)) for name in ("0", "1", "2", sys.argv[3])}
    print(json.dumps([path, argv, environ, more, os.getcwd(), fds]))
os.posix_spawn = spawn
on_demand.start_if_wanted(sys.argv[1].encode(), json.loads(sys.argv[2]))
"""


def spawned(conf: str, environ: dict[str, str] | None = None) -> tuple[Any, str]:
    """What posix_spawn was called with in a process of its own, None if it was not; its stderr."""
    watched, held = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", _SPAWN, conf, json.dumps(environ or {}), str(held)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=_PROJECT,
        pass_fds=(held,),
        env={"PATH": "/bin", "CNI_COMMAND": "ADD", "PODWIRE_RUNTIME": "/r"},
    )
    os.close(watched)
    os.close(held)
    return json.loads(done.stdout) if done.stdout else None, done.stderr


def test_what_it_is_started_with(path: str) -> None:
    call, said = spawned(json.dumps({"agent": "auto", "agentSocket": path, "agentIdle": 7}))
    program, argv, environ, more, folder, inheritable = call
    log_file = path.removesuffix(".sock") + ".log"
    assert os.path.isabs(program)
    assert program == argv[0]
    start = argv.index("agent")
    assert argv[start:] == [
        *("agent", "--socket", path, "--idle", "7"),
        *("--log-file", log_file, "--lock-fd", "3"),
    ]
    assert environ == {"PATH": "/bin", "PODWIRE_RUNTIME": "/r"}
    assert (more["setsid"], more["setsigmask"]) == (True, [])
    assert more["setsigdef"] > 60
    assert folder == "/"
    assert set(inheritable.values()) == {False}
    assert os.stat(log_file).st_mode & 0o777 == 0o600
    assert said == ""


@pytest.mark.parametrize("conf", [{}, {"agent": ""}, {"agent": "never"}, {"x": {"agent": "auto"}}])
def test_nobody_asked(conf: dict[str, Any], path: str) -> None:
    assert spawned(json.dumps({**conf, "agentSocket": path})) == (None, "")
    assert not os.path.exists(os.path.dirname(path))


def test_the_environment_names_the_socket(path: str) -> None:
    call, _ = spawned('{"agent": "auto"}', {"PODWIRE_SOCKET": path})
    assert path in call[1]


def test_another_has_the_lock(path: str) -> None:
    held = lock.take(path)
    assert spawned(json.dumps({"agent": "auto", "agentSocket": path})) == (None, "")
    os.close(held)


@pytest.mark.parametrize(
    "conf", ["[]", "{", '{"agent": 5}', '{"agent": "auto", "agentSocket": "a.sock"}']
)
def test_what_can_not_be_read_is_told_and_no_more(conf: str) -> None:
    """podwire-ipam does not look at these keys before."""
    call, said = spawned(conf)
    assert call is None
    assert said.startswith("podwire: no agent could be started: ")
    assert said.count("\n") == 1


def test_it_costs_the_call_little() -> None:
    """What the first call imports for it, beyond what an ADD has imported anyway."""
    added = loaded("cni_plugin.on_demand") - loaded("cni_plugin.commands, cni_plugin.__main__")
    lock_and_path = {"cni_plugin.executable", "cni_plugin.agent", "cni_plugin.agent.lock"}
    assert added - {"signal", "enum"} <= {"cni_plugin.on_demand", *lock_and_path}


def loaded(modules: str) -> set[str]:
    code = f"import {modules}; import sys; print(*sys.modules)"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=_PROJECT)
    return set(done.stdout.split())
