"""The process that podwire is started as: descriptors, limits, user, environment, stdin."""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess

import pytest

from tests.support import faults
from tests.support.faults import Stage


def shell(script: str) -> list[str]:
    """Words before the executable that run it from a shell script, as "$0"."""
    return ["sh", "-c", script]


def assert_works(stage: Stage, **more) -> faults.Ended:
    """ADD, CHECK and DEL succeed under these conditions, and leave nothing."""
    before = stage.world()
    added = stage.run("ADD", **more)
    assert added.rc == 0, added
    conf = {**stage.conf, "prevResult": added.document()}
    checked = stage.run("CHECK", conf=conf, **more)
    assert (checked.rc, checked.stdout) == (0, b""), checked
    deleted = stage.run("DEL", **more)
    assert (deleted.rc, deleted.stdout) == (0, b""), deleted
    assert faults.difference(before, stage.world()) == []
    return added


# --- descriptors ----------------------------------------------------------------------------------


def test_a_delegate_inherits_no_descriptors(stage, tmp_path):
    script = tmp_path / "fake-ipam"
    answer = {"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.5/29"}]}
    script.write_text(
        f"#!/bin/sh\ncat >/dev/null\nls -l /proc/$$/fd >>{tmp_path}/fds\n"
        f"[ $CNI_COMMAND != ADD ] || echo '{json.dumps(answer)}'\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    conf = {**stage.conf, "ipam": {"type": "fake-ipam"}}
    env = {"CNI_PATH": str(tmp_path)}
    assert stage.run("ADD", conf=conf, env=env).rc == 0
    assert stage.run("DEL", conf=conf, env=env).rc == 0
    lines = [line for line in (tmp_path / "fds").read_text().splitlines() if "->" in line]
    open_fds = {line.partition(" -> ")[0].split()[-1] for line in lines}
    # 10 and up are the shell's own copy of the script.
    assert {fd for fd in open_fds if int(fd) < 10} == {"0", "1", "2"}, lines
    foreign = [line for line in lines if "socket:" in line or "net:[" in line]
    assert not foreign


CLOSED = [c for n in (1, 2, 3) for c in itertools.combinations((0, 1, 2), n)]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_closed_standard_descriptors(stage, closed):
    """The result goes to stdout if that is open, and nothing else ever does."""
    before = stage.world()
    redirections = " ".join(f"{fd}>&-" if fd else "<&-" for fd in closed)
    ended = stage.run("ADD", wrap=shell(f'exec "$0" {redirections}'))
    if 0 in closed:
        assert ended.rc == 1
    if 1 not in closed:
        assert ended.document().get("ips" if ended.rc == 0 else "code")
    if ended.rc == 0:
        conf = {**stage.conf, "prevResult": {"cniVersion": "1.0.0"}}
        deleted = stage.run("DEL", conf=conf, wrap=shell(f'exec "$0" {redirections}'))
        assert (deleted.rc, deleted.stdout) == (0, b""), deleted
    assert faults.difference(before, stage.world()) == []


def test_many_open_descriptors(stage, tmp_path):
    """A careless runtime leaks its own to us."""
    opens = "; ".join(f"exec {n}<>{tmp_path}/leak" for n in (3, 4, 5, 6, 7, 8, 9))
    assert_works(stage, wrap=shell(f'{opens}; exec "$0"'))


# --- limits and surroundings ----------------------------------------------------------------------


def test_an_environment_of_cni_variables_only(stage):
    bare = dict.fromkeys(("PATH", "HOME", "LANG", "PODWIRE_TEST_RUN", "CNI_PATH"))
    assert_works(stage, env=bare)


@pytest.mark.parametrize(
    "script",
    [
        'unset HOME; exec "$0"',
        'umask 0777; exec "$0"',
        'ulimit -n 16; exec "$0"',
        'ulimit -f 0; trap "" XFSZ; exec "$0" || exit',
        'cd "$(mktemp -d)"; rmdir "$PWD"; exec "$0"',
        'trap "" TERM PIPE HUP INT CHLD; exec "$0"',
        'LC_ALL=xx_YY.broken PYTHONIOENCODING=ascii exec "$0"',
    ],
    ids=["no-home", "umask", "nofile", "fsize", "cwd-removed", "signals-ignored", "locale"],
)
def test_surroundings(stage, script):
    if "ulimit -f" in script:  # no file can be written: refused, and cleanly
        before = stage.world()
        ended = stage.run("ADD", wrap=shell(script))
        assert ended.rc == 1
        assert ended.document()["code"] == 5
        assert stage.run("DEL").rc == 0
        assert faults.difference(before, stage.world()) == []
        return
    assert_works(stage, wrap=shell(script))


def test_the_umask_of_a_first_add(stage):
    """Directories and reservations have the modes of the reference whatever the umask is."""
    stage.start_over()
    assert stage.run("ADD", wrap=shell('umask 0; exec "$0"')).rc == 0
    modes = {
        name: stat.S_IMODE(os.stat(f"{stage.data}/{name}").st_mode)
        for name in ("podnet", ".podwire-podnet", "podnet/lock")
    }
    (reservation,) = [n for n in os.listdir(f"{stage.data}/podnet") if n.startswith("10.")]
    modes["reservation"] = stat.S_IMODE(os.stat(f"{stage.data}/podnet/{reservation}").st_mode)
    assert stage.run("DEL").rc == 0
    assert modes["podnet"] == 0o755
    assert modes[".podwire-podnet"] == 0o700
    assert modes["reservation"] == 0o600
    assert modes["podnet/lock"] & 0o022 == 0


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_an_unprivileged_user(stage, command):
    """One clear error, and nothing is changed."""
    added = stage.run("ADD")
    before = stage.world()
    conf = {**stage.conf, "prevResult": added.document()}
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    env = stage.env("another", "eth1") if command == "ADD" else {}
    ended = stage.run(command, conf=conf, env=env, wrap=nobody)
    assert ended.rc == 1, ended
    document = ended.document()
    changed = faults.difference(before, stage.world())
    assert stage.run("DEL").rc == 0
    assert document["code"] == 110, document
    assert "CAP_" in document["msg"] + document.get("details", "")
    assert changed == []


@pytest.mark.parametrize("capability", ["net_admin", "sys_admin"])
def test_root_without_a_capability(stage, capability):
    before = stage.world()
    drop = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]
    ended = stage.run("ADD", wrap=drop)
    assert (ended.rc, ended.document()["code"]) == (1, 110), ended
    assert capability.upper() in ended.document()["msg"]
    assert faults.difference(before, stage.world()) == []


@pytest.mark.parametrize("name", ["", "x;reboot", "-", "a" * 64, "ä b", "node\tb"])
def test_a_weird_hostname(stage, tmp_path, name):
    """It matters only where an inventory is searched for this node, and there it is not found."""
    script = f'printf "%s" "{name}" >/proc/sys/kernel/hostname; exec "$0"'
    wrap = ["unshare", "--uts", "sh", "-c", script]
    assert_works(stage, wrap=wrap)
    nodes = tmp_path / "nodes.json"
    node = {"name": "n", "addresses": ["192.168.77.1"], "podCIDRs": ["10.244.0.0/24"]}
    nodes.write_text(json.dumps({"nodes": [node]}))
    before = stage.world()
    ended = stage.run("ADD", conf={**stage.conf, "nodes": str(nodes)}, wrap=wrap)
    assert (ended.rc, ended.document()["code"]) == (1, 7), ended
    assert faults.difference(before, stage.world()) == []


# --- stdin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 16, 10_000_000])
def test_a_huge_configuration(stage, size):
    padded = {**stage.conf, "padding": "x" * (size // 2), "list": [0] * (size // 6)}
    assert stage.run("ADD", conf=padded).rc == 0
    assert stage.run("DEL", conf=padded).rc == 0


@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS", "VERSION"])
def test_a_configuration_that_is_too_large(stage, command):
    before = stage.world()
    ended = stage.run(command, conf={**stage.conf, "padding": "x" * 20_000_000})
    assert (ended.rc, ended.document()["code"]) == (1, 6), ended
    assert faults.difference(before, stage.world()) == []


DEEP = {
    "lists": '"x": ' + "[" * 100_000 + "]" * 100_000,
    "objects": '"x": ' + '{"a":' * 100_000 + "1" + "}" * 100_000,
    "unclosed": '"x": ' + "[" * 100_000,
    "number": '"x": ' + "9" * 100_000,
    "surrogate": r'"x": "\ud800", "mtu": "\udfff"',
    "repeated": '"name": "../..", "name": "podnet/../.."',
    "not UTF-8": '"x": "\udcff"',
}


@pytest.mark.parametrize("kind", DEEP)
def test_hostile_json(stage, kind):
    """Refused with one document that is JSON itself; never a traceback, never a hang."""
    before = stage.world()
    text = json.dumps(stage.conf)[:-1] + ", " + DEEP[kind] + "}"
    for command in ("ADD", "DEL"):
        done = subprocess.run(
            stage.plugin.argv(),
            input=text.encode("utf-8", "surrogateescape"),
            capture_output=True,
            check=False,
            env=stage.plugin.environ(command, stage.env()),
            timeout=30,
        )
        ended = faults.Ended(done.returncode, done.stdout, done.stderr)
        assert b"Traceback" not in ended.stderr, ended
        if ended.rc:
            assert ended.document()["code"] in (6, 7), ended
    assert stage.run("DEL").rc == 0
    assert faults.difference(before, stage.world()) == []
