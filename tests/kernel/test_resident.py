"""What a process keeps open over many calls: a procfs of its own, the node's lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EPERM

import pytest

from cni_plugin.kernel import nodelock, sysctl
from cni_plugin.kernel.nodelock import NodeLock
from cni_plugin.kernel.sysctl import Sysctls
from cni_plugin.spec import CniError, Code


@pytest.fixture
def at_home(node) -> Iterator[None]:
    with node.entered():
        yield


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- sysctls ----------------------------------------------------------------------------------


@pytest.fixture(params=["own procfs", "refused", "of one call"])
def sysctls(request, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sysctls]:
    if request.param == "refused":

        def refuse() -> int:
            raise PermissionError(EPERM, os.strerror(EPERM))

        monkeypatch.setattr(sysctl, "private_root", refuse)
    sysctls = Sysctls(resident=request.param != "of one call")
    yield sysctls
    sysctls.close()


def test_each_thread_sets_those_of_its_namespace(sysctls, topology) -> None:
    pods = [topology.sandbox(f"pod{number}") for number in range(3)]
    for pod in pods:
        pod.run("ip", "link", "add", "eth0", "type", "bridge")
    for pod in pods[:2]:
        with pod.entered():
            sysctls.quieten("eth0", dad=False, ipv6=True)
    values = [
        [pod.sysctl(f"net/ipv6/conf/eth0/{key}") for key in ("accept_ra", "autoconf", "accept_dad")]
        for pod in pods
    ]
    assert values == [["0", "0", "0"], ["0", "0", "0"], ["1", "1", "1"]]


def test_the_announcing_is_switched_back(sysctls, sandbox) -> None:
    sandbox.run("ip", "link", "add", "eth0", "type", "bridge")
    key = "net/ipv4/conf/eth0/arp_notify"
    for before, within in (("0", "1"), ("1", "1"), ("2", "1")):
        sandbox.run("sysctl", "-qw", f"{key}={before}")
        with sandbox.entered(), sysctls.announcing("eth0", 4):
            assert sandbox.sysctl(key) == within
        assert sandbox.sysctl(key) == before


def test_forwarding_is_the_nodes(sysctls, node, sandbox) -> None:
    node.run("sysctl", "-qw", "net/ipv4/ip_forward=0")
    with node.entered():
        sysctls.forward(4)
        sysctls.forward(6)
    assert node.sysctl("net/ipv4/ip_forward") == "1"
    assert node.sysctl("net/ipv6/conf/all/forwarding") == "1"
    assert sandbox.sysctl("net/ipv6/conf/all/forwarding") == "0"


def test_a_link_that_is_not_there(sysctls, at_home) -> None:
    sysctls.quieten("eth9", dad=False, ipv6=False)  # as on a kernel without IPv6
    with pytest.raises(CniError) as refused:
        sysctls.quieten("eth9", dad=False, ipv6=True)
    assert refused.value.code == Code.KERNEL_REFUSED
    assert "net/ipv6/conf/eth9/disable_ipv6" in refused.value.msg


def test_files_stay_few(sysctls, sandbox) -> None:
    sandbox.run("ip", "link", "add", "eth0", "type", "bridge")
    with sandbox.entered():
        sysctls.quieten("eth0", dad=False, ipv6=True)
        before = open_files()
        for _ in range(300):
            sysctls.quieten("eth0", dad=False, ipv6=True)
        assert open_files() == before
        sysctls.close()
        assert open_files() <= before


def test_the_own_procfs_is_in_nobodys_mounts(at_home) -> None:
    def mounts() -> str:
        with open("/proc/self/mountinfo") as f:
            return f.read()

    before = mounts()
    sysctls = Sysctls(resident=True)
    sysctls.forward(4)
    assert sysctls._root is not None
    assert mounts() == before
    sysctls.close()


# --- the node's lock --------------------------------------------------------------------------


def lock_file() -> str:
    return f"{nodelock.FOLDER}/node-{os.stat(nodelock.OWN).st_ino}.lock"


def test_the_file_stays_until_the_end(at_home) -> None:
    lock = NodeLock(resident=True)
    with lock.held(exclusive=False):
        pass
    inode = os.stat(lock_file()).st_ino
    for exclusive in (True, False):
        with lock.held(exclusive):
            assert os.stat(lock_file()).st_ino == inode
    lock.close()
    assert not os.path.exists(lock_file())


def test_it_excludes_calls_of_other_processes_and_threads(at_home, monkeypatch) -> None:
    monkeypatch.setattr(nodelock, "_PATIENCE_S", 0.05)
    resident, other = NodeLock(resident=True), NodeLock(resident=True)
    for holder, exclusive, asked in ((resident, True, False), (resident, False, True)):
        with holder.held(exclusive):
            for late in (other.held(asked), nodelock.node_lock(asked)):
                with pytest.raises(CniError) as refused, late:
                    pass
                assert refused.value.code == Code.TRY_AGAIN_LATER
    with resident.held(False), other.held(False), nodelock.node_lock(False):
        pass
    for lock in (resident, other):
        lock.close()
    assert not os.path.exists(lock_file())


def test_a_file_that_was_removed_is_made_anew(at_home, monkeypatch) -> None:
    monkeypatch.setattr(nodelock, "_PATIENCE_S", 0.05)
    lock = NodeLock(resident=True)
    with lock.held(False):
        pass
    os.unlink(lock_file())
    with lock.held(True), pytest.raises(CniError), nodelock.node_lock(False):
        pass
    lock.close()


def test_whoever_was_last_removes_it_though_an_agent_has_it_open(at_home) -> None:
    lock = NodeLock(resident=True)
    with lock.held(False):
        pass
    with nodelock.node_lock(True):
        pass
    assert not os.path.exists(lock_file())
    with lock.held(False):
        assert os.path.exists(lock_file())
    lock.close()


def test_its_files_stay_few(at_home) -> None:
    lock = NodeLock(resident=True)
    with lock.held(False):
        pass
    before = open_files()
    for _ in range(100):
        with lock.held(False):
            pass
    assert open_files() == before
    lock.close()
    assert open_files() == before - 1
