"""Large and endless configurations, full and read-only disks, a sandbox that goes, by the agent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from cni_plugin import wire
from tests.support import faults, netns
from tests.support.agent import AgentStage

pytestmark = pytest.mark.unmeasured

IO_FAILURE, INVALID_CONFIG, DECODING = 5, 7, 6

# The client, with a second's patience for its stdin.
IMPATIENT = (
    "import sys; from cni_plugin import client, __main__; client.STDIN_MS = 1000; "
    "sys.argv[0] = 'podwire'; sys.exit(__main__.main())"
)


@pytest.fixture
def there(agent_stages) -> Iterator[AgentStage]:
    """A node in use with an agent that has to survive the test."""
    (stage,) = agent_stages(1, hooked=False)
    stage.use()
    before = stage.world()
    yield stage
    stage.use()
    assert faults.difference(before, stage.world()) == []
    stage.agent.terminate()


def served(stage: AgentStage) -> int:
    """The number of calls in the agent's log."""
    return len(stage.agent.log("served"))


def assert_served(stage: AgentStage, number: int) -> None:
    netns.wait_until(lambda: served(stage) == number, what=f"{number} calls in the agent's log")


# --- stdin --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64 * 1024, 10_000_000], ids=["64 KiB", "10 MB"])
def test_a_large_configuration(there, size):
    """It is served like any other, by the agent."""
    already = served(there)
    conf = there.conf | {"comment": "x" * size}
    assert there.run("ADD", conf=conf).document()["ips"]
    assert there.run("DEL", conf=conf).rc == 0
    assert_served(there, already + 2)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_one_byte_too_many(there, command):
    """16 MiB and one byte: refused with one error, by the agent as without one."""
    text = json.dumps(there.conf)[:-1] + ', "comment": "'
    text += "x" * (wire.LARGEST_STDIN - len(text) - 2) + '"}'
    assert len(text) == wire.LARGEST_STDIN
    codes = [
        plugin.call(command, text, there.env()).error["code"]
        for plugin in (there.plugin, there.alone)
    ]
    assert codes[0] == codes[1]
    assert codes[0] in (DECODING, INVALID_CONFIG)


def start_impatient(stage: AgentStage, command: str = "ADD") -> subprocess.Popen:
    return subprocess.Popen(
        [*stage.node.prefix(), sys.executable, "-c", IMPATIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=stage.plugin.environ(command, stage.env()),
    )


@pytest.mark.parametrize("sent", ["nothing", "a part", "a byte at a time"])
def test_stdin_that_never_ends(there, sent):
    """Error 5 after a bounded time, and no agent is bothered."""
    already = served(there)
    began = time.monotonic()
    process = start_impatient(there)
    over = threading.Event()

    def feed() -> None:
        with suppress(BrokenPipeError):
            while sent == "a byte at a time" and not over.wait(0.1):
                process.stdin.write(b" ")
                process.stdin.flush()

    if sent == "a part":
        process.stdin.write(json.dumps(there.conf).encode())
        process.stdin.flush()
    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        assert process.wait(15) == 1
        assert time.monotonic() - began < 6
        document = json.loads(process.stdout.read())
        assert (document["code"], process.stderr.read()) == (IO_FAILURE, b""), document
    finally:
        over.set()
        feeding.join()
        process.stdout.close()
        process.stderr.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
    assert served(there) == already


def test_endless_data_on_stdin(there):
    """It stops reading after 16 MiB and a byte, and refuses."""
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            there.plugin.argv(),
            stdin=endless,
            capture_output=True,
            check=False,
            timeout=30,
            env=there.plugin.environ("ADD", there.env()),
        )
    ended = faults.Ended(done.returncode, done.stdout, done.stderr)
    assert (ended.rc, ended.stderr) == (1, b""), ended
    assert ended.document()["code"] in (DECODING, INVALID_CONFIG), ended


# --- the disk -----------------------------------------------------------------------------------


@pytest.fixture
def disk(there) -> Iterator[str]:
    """The stage's data directory is a file system of 64 KiB."""
    shutil.rmtree(there.data)
    os.mkdir(there.data)
    options = ["-t", "tmpfs", "-o", "size=64k,nr_inodes=64", "tmpfs", there.data]
    subprocess.run(["mount", *options], check=True)
    try:
        yield there.data
    finally:
        subprocess.run(["umount", "--lazy", there.data], check=True)
        there.repair()


def fill(folder: str) -> str:
    """Use up all inodes and all bytes; the name of the ballast's folder."""
    ballast = os.path.join(folder, "ballast")
    os.mkdir(ballast)
    with suppress(OSError):
        for number in range(1000):
            with open(os.path.join(ballast, str(number)), "wb", buffering=0) as f:
                f.write(b"x" * 4096)
    with suppress(OSError):
        for number in range(1000):
            open(os.path.join(ballast, f"empty-{number}"), "w").close()
    return ballast


@pytest.mark.parametrize("used", [True, False], ids=["in use", "fresh"])
def test_a_full_disk(there, disk, used):
    """ADD is refused and leaves nothing, DEL works, and with room again ADD does too."""
    other = there.env("other", sandbox=there.others[0].path)
    if used:
        assert there.plugin.call("ADD", there.conf, other).ok
    ballast = fill(disk)
    before = there.world(there.others[0])
    ended = there.run("ADD")
    assert (ended.rc, ended.document()["code"], ended.stderr) == (1, IO_FAILURE, b""), ended
    assert faults.difference(before, there.world(there.others[0])) == []
    if used:
        assert there.plugin.call("DEL", there.conf, other).ok
        assert set(there.others[0].links()) == {"lo"}
        assert not [name for name in os.listdir(f"{disk}/podnet") if name.startswith("10.")]
    assert there.run("DEL").rc == 0
    shutil.rmtree(ballast)
    assert there.run("ADD").rc == 0
    assert there.run("DEL").rc == 0


def test_a_read_only_disk(there, disk):
    """Refused, nothing made; what was there can be deleted when it is writable again."""
    assert there.run("ADD").rc == 0
    other = there.env("other", sandbox=there.others[0].path)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = there.world(there.others[0])
    refused = there.plugin.call("ADD", there.conf, other)
    assert refused.error["code"] == IO_FAILURE
    assert faults.difference(before, there.world(there.others[0])) == []
    ended = there.run("DEL")
    assert (ended.rc, ended.document()["code"]) == (1, IO_FAILURE), ended
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert there.run("DEL").rc == 0
    assert set(there.sandbox.links()) == {"lo"}
    assert not [name for name in os.listdir(f"{disk}/podnet") if name.startswith("10.")]


# --- the sandbox --------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["while the delegate runs", "any moment"])
def test_the_sandbox_goes_during_an_add(
    agent, plugin, topology, fake_ipam, bin_folder, make_conf, node, reservations, when
):
    """A result or one error; the DEL after it leaves nothing on the node."""
    served_by = agent.plugin(cni_path=str(bin_folder))
    assert plugin.add(make_conf(), topology.sandbox("first"), cid="first").ok
    assert plugin.delete(make_conf(), None, cid="first").ok
    slow = fake_ipam(
        "exec 3<>/dev/null; [ $CNI_COMMAND != ADD ] || { sleep 0.4;"
        """ echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.9/24"}]}'; }"""
    )
    conf = make_conf()
    delays = [0.03 + number / 200 for number in range(10)]
    if when == "while the delegate runs":
        conf |= {"ipam": {"type": slow.name}, "isGateway": False, "isDefaultGateway": False}
        delays = [0.25]
    for delay in delays:
        pod = topology.sandbox("pod")
        env = {"CNI_CONTAINERID": "pod", "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path}
        process = served_by.start("ADD", conf, env)
        time.sleep(delay)
        pod.delete()
        out, err = process.communicate(timeout=20)
        ended = faults.Ended(process.returncode, out, err)
        assert ended.rc in (0, 1), ended
        assert ended.document().get("ips" if ended.rc == 0 else "code"), ended
        assert err == b""
        assert served_by.call("DEL", conf, env).ok
        netns.wait_until(
            lambda: not [name for name in node.links() if name.startswith("veth")],
            what="no link of a pod",
        )
        assert reservations() == {}
