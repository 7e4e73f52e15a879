"""The agent as conf/podwire-agent.service runs it: with no more rights than that says."""

from __future__ import annotations

import configparser
import os
import shutil
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket

import pytest

from tests.support import netns

_UNIT = Path(__file__).parents[2] / "conf" / "podwire-agent.service"
_BITS = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


# Those of systemd.unit(5), systemd.service(5), systemd.exec(5) and systemd.kill(5) that it uses.
_KEYS = {
    "Unit": {"Description", "Documentation", "Before", "StartLimitIntervalSec"},
    "Service": {
        *("Type", "ExecStart", "Restart", "RestartSec", "TimeoutStopSec", "KillMode"),
        *("OOMScoreAdjust", "LimitNOFILE", "CapabilityBoundingSet", "NoNewPrivileges"),
        *("RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"),
        *("ProtectSystem", "ReadWritePaths", "ProtectClock", "ProtectKernelLogs"),
        *("ProtectKernelModules", "ProtectControlGroups", "RestrictRealtime", "RestrictSUIDSGID"),
        *("LockPersonality", "SystemCallArchitectures"),
    },
    "Install": {"WantedBy"},
}
_VALUES = {
    "Type": ("notify",),
    "Restart": ("always", "on-failure"),
    "KillMode": ("mixed", "process"),
    "ProtectSystem": ("yes", "full", "no"),  # not "strict": a call names its files
    "RestartSec": ("1",),
    "SystemCallArchitectures": ("native",),
}


@pytest.fixture
def unit() -> configparser.RawConfigParser:
    read = configparser.RawConfigParser(strict=True)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(_UNIT)
    return read


@pytest.fixture
def service(unit) -> configparser.SectionProxy:
    return unit["Service"]


@pytest.fixture
def capabilities(service) -> list[str]:
    return service["CapabilityBoundingSet"].split()


@pytest.fixture
def limited(capabilities, make_agent, podwire_executable):
    """An agent with the unit's capabilities alone."""
    allowed = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)
    words = ["setpriv", f"--bounding-set=-all,{allowed}", "--inh-caps=-all", "--no-new-privs"]
    agent = make_agent([*words, podwire_executable])
    with open(f"/proc/{agent.pid}/status") as f:
        status = dict(line.split(":", 1) for line in f)
    held = sum(1 << _BITS[name] for name in capabilities)
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {held}
    assert status["NoNewPrivs"].strip() == "1"
    yield agent
    agent.terminate()


def test_the_unit_is_one_that_systemd_takes(unit, tmp_path):
    """Its keys and values are known ones; where systemd is, that says so too.

    A misspelt key is one that systemd only warns of, and its restriction would be missing.
    """
    assert [key for name, keys in _KEYS.items() for key in unit[name] if key not in keys] == []
    assert set(unit.sections()) == set(_KEYS)
    assert unit["Service"]["ExecStart"].split() == ["/opt/cni/bin/podwire", "agent"]
    assert int(unit["Service"]["TimeoutStopSec"]) > 110  # the longest call
    assert int(unit["Service"]["RuntimeDirectoryMode"], 8) == 0o700
    for name, values in _VALUES.items():
        assert unit["Service"][name] in values, name
    switches = [key for key in unit["Service"] if key.startswith(("Protect", "Restrict", "Lock"))]
    found = {key: unit["Service"][key] for key in switches if key not in _VALUES}
    assert found == dict.fromkeys(found, "yes")
    if shutil.which("systemd-analyze"):
        copy = tmp_path / _UNIT.name
        copy.write_text(_UNIT.read_text().replace("/opt/cni/bin/podwire", "/bin/true"))
        done = netns.run(["systemd-analyze", "verify", str(copy)], check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_keeps_what_others_have_below_its_folder(service):
    """Runtimes that the executable has unpacked, and the node's lock."""
    assert service["Type"] == "notify"
    assert service["RuntimeDirectory"] == "podwire"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["NoNewPrivileges"] == "yes"


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_every_command_works(limited, podwire_executable, topology, make_conf, dual, mode):
    plugin = limited.plugin(podwire_executable)
    conf = make_conf(cniVersion="1.1.0", mode=mode, ipam={"ranges": dual.ranges})
    pods = [topology.sandbox(name) for name in ("a", "b")]
    assert plugin.status(conf).ok
    first, second = [plugin.add(conf, pod) for pod in pods]
    assert plugin.check(conf, pods[0], prev=first.result).ok
    assert plugin.delete(conf, pods[0], prev=first.result).ok
    assert plugin.check(conf, pods[1], prev=second.result).ok
    assert plugin.gc(conf, []).ok
    assert "eth0" not in pods[1].links()
    outcomes = [outcome for _, outcome in limited.served()]
    assert outcomes == ["ok"] * 6  # a STATUS that succeeds is for --log-level=debug


def test_a_sandbox_of_another_users_process(limited, podwire_executable, sandbox, make_conf):
    """Its path leads through /proc/PID, which the agent may not look into: it gets the file."""
    words = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", "sleep", "60"]
    process = sandbox.popen(*words)
    path = f"/proc/{process.pid}/ns/net"
    wanted = os.stat(sandbox.path).st_ino
    netns.wait_until(lambda: os.stat(path).st_ino == wanted, what="the process is inside")
    plugin, conf = limited.plugin(podwire_executable), make_conf()
    assert plugin.add(conf, path, cid="other").ok
    assert "eth0" in sandbox.links()
    assert plugin.delete(conf, path, cid="other").ok
    assert "eth0" not in sandbox.links()


def test_a_delegate_works_with_them(
    limited, podwire_executable, sandbox, make_conf, fake_ipam, bin_folder
):
    result = '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24"}]}'
    fake = fake_ipam(f"[ $CNI_COMMAND = ADD ] && echo '{result}' || :")
    plugin = limited.plugin(podwire_executable, str(bin_folder))
    conf = make_conf()
    conf["ipam"] = {"type": fake.name}
    assert plugin.add(conf, sandbox).addresses() == ["10.9.0.2/24"]
    assert plugin.delete(conf, sandbox).ok
    assert fake.calls() == ["ADD", "DEL"]


@pytest.mark.parametrize("lost", sorted(_BITS))
def test_each_of_them_is_needed(
    lost, capabilities, make_agent, podwire_executable, sandbox, make_conf
):
    kept = [name for name in capabilities if name != lost]
    allowed = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in kept)
    words = ["setpriv", f"--bounding-set=-all,{allowed}", "--inh-caps=-all"]
    agent = make_agent([*words, podwire_executable])
    refused = agent.plugin(podwire_executable).add(make_conf(), sandbox)
    assert refused.code == 110
    assert lost in refused.error["msg"]
    agent.terminate()


def test_systemd_is_told(make_agent, podwire_executable, tmp_path):
    """As sd_notify(3) says; systemd-notify's own environment variable leads there."""
    with socket(AF_UNIX, SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        agent = make_agent(["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", podwire_executable])
        assert f"READY=1\nMAINPID={agent.pid}\n" in manager.recv(1000).decode()
        agent.terminate()
        assert manager.recv(1000).startswith(b"STOPPING=1\n")
