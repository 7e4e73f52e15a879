"""The harness itself: it sees leaks, cleans up after a test, and reads every answer on stdout."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support import leaks, netns
from tests.support.netns import Namespaces
from tests.support.plugin import hold_to_specification, read_reply


def test_a_link_a_process_and_a_mount_are_seen_as_leaks(tmp_path):
    before = leaks.snapshot()
    made = Namespaces()
    process = subprocess.Popen(["sleep", "100"])
    try:
        made.make("left")
        netns.run(["ip", "link", "add", "left0", "type", "veth", "peer", "name", "left1"])
        found = "\n".join(leaks.leaked(before, patience=0))
    finally:
        netns.run(["ip", "link", "del", "left0"], check=False)
        made.close()
        netns.end(process)
    assert "link left: " in found
    assert "left0" in found
    assert f"processes left: {process.pid} sleep 100" in found
    assert "mounts left: " in found
    assert leaks.leaked(before) == []


def test_a_namespace_goes_with_the_processes_in_it():
    made = Namespaces()
    namespace = made.make("busy")
    started = namespace.popen("sleep", "100")
    # One that the namespace did not start itself.
    other = subprocess.Popen([*namespace.prefix(), "sleep", "100"])
    netns.wait_until(lambda: len(namespace.processes()) == 2, what="two processes inside")
    made.close()
    assert started.poll() is not None
    assert other.wait(5) != 0
    assert not os.path.exists(namespace.path)


def test_addresses_and_sockets_belong_to_the_namespace(topology):
    node = topology.node("node", "192.168.1.2/24")
    assert node.addresses("eth0") == ["192.168.1.2/24"]
    with node.entered():
        assert os.stat("/proc/thread-self/ns/net").st_ino == os.stat(node.path).st_ino
    assert os.stat("/proc/thread-self/ns/net").st_ino != os.stat(node.path).st_ino


@pytest.mark.parametrize(
    ("command", "rc", "stdout"),
    [
        ("ADD", 0, b""),
        ("ADD", 1, b""),
        ("ADD", 1, b'{"code": 7}'),
        ("ADD", 1, b'{"msg": "no code"}'),
        ("DEL", 0, b"{}"),
        ("CHECK", 0, b"fine"),
        ("ADD", 1, b'{"code": 7, "msg": "a"}{"code": 7, "msg": "b"}'),
    ],
)
def test_an_answer_that_breaks_the_specification_fails_the_test(command, rc, stdout):
    with pytest.raises(AssertionError):
        hold_to_specification(command, read_reply(rc, stdout, b""))
