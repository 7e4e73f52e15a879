"""One worker leads: calls that wait must not keep others waiting (cni_plugin/agent/lead.py)."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.agent import Agent
from tests.support.plugin import Config, read_reply
from tests.support.topology import Topology

pytestmark = pytest.mark.root

WAITING = 6


def test_calls_that_wait_for_a_lock_hold_up_no_other_network(
    agent: Agent, topology: Topology, make_conf: Callable[..., Config], tmp_path: Path
) -> None:
    plugin = agent.plugin()
    conf, other = make_conf(), make_conf(name="other")
    sandboxes = [topology.sandbox(f"pod{number}") for number in range(WAITING + 1)]
    assert plugin.add(other, sandboxes[-1]).ok  # the bridge is made, and everything is warm
    assert plugin.delete(other, sandboxes[-1]).ok
    folder = tmp_path / "networks" / "podnet"
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        calls = [
            plugin.start(
                "ADD",
                conf,
                {
                    "CNI_CONTAINERID": sandbox.name,
                    "CNI_IFNAME": "eth0",
                    "CNI_NETNS": sandbox.path,
                },
            )
            for sandbox in sandboxes[:-1]
        ]
        assert plugin.add(other, sandboxes[-1]).ok
        # While the lock is held none of the six can have ended: the ADD did not wait for them.
        assert [call.poll() for call in calls] == [None] * WAITING
    for call in calls:
        stdout, stderr = call.communicate(timeout=30)
        assert read_reply(call.returncode, stdout, stderr).ok
    for sandbox, network in zip(sandboxes, [conf] * WAITING + [other], strict=True):
        assert plugin.delete(network, sandbox).ok


def test_clients_that_say_nothing_hold_up_nobody(
    agent: Agent, make_conf: Callable[..., Config]
) -> None:
    plugin = agent.plugin()
    with ExitStack() as stack:
        for _ in range(12):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(agent.socket)
            os.set_inheritable(silent.fileno(), False)
        assert plugin.status(make_conf(cniVersion="1.1.0")).ok
        assert "error" not in [outcome for _, outcome in agent.served()]
