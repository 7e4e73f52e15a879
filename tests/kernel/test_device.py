"""One system call about a link, against what `ip link` shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from errno import EPERM

import pytest

from cni_plugin.kernel import attach, device, messages, observe
from cni_plugin.kernel.netlink import RouteSocket


@pytest.fixture
def route_socket(sandbox) -> Iterator[RouteSocket]:
    """Of the sandbox, while the thread is elsewhere."""
    with sandbox.entered():
        opened = RouteSocket()
    with opened:
        yield opened


@pytest.fixture
def link(sandbox):
    sandbox.run("ip", "link", "add", "some-bridge-123", "mtu", "1337", "type", "bridge")
    return sandbox.links()["some-bridge-123"]


def test_a_link_that_is_there(route_socket, link) -> None:
    name = link["ifname"]
    assert device.index(route_socket, name) == link["ifindex"]
    assert device.mtu(route_socket, name) == 1337
    assert device.present(route_socket, link["ifindex"])
    assert device.exists(route_socket, name)


def test_a_link_that_has_gone(route_socket, sandbox, link) -> None:
    sandbox.run("ip", "link", "del", link["ifname"])
    assert device.index(route_socket, link["ifname"]) == 0
    assert device.mtu(route_socket, link["ifname"]) == 0
    assert device.runs(route_socket, link["ifname"])
    assert not device.present(route_socket, link["ifindex"])
    assert not device.exists(route_socket, link["ifname"])


@pytest.fixture
def port(sandbox, link) -> str:
    """The bridge's only port, up, and so is its other end."""
    sandbox.run("ip", "link", "add", "port", "type", "veth", "peer", "name", "pod")
    for words in (f"{link['ifname']} up", "pod up", f"port up master {link['ifname']}"):
        sandbox.run("ip", "link", "set", *words.split())
    return "port"


def test_with_its_first_port_a_bridge_runs_once_that_was_waited_for(
    route_socket, sandbox, link, port
) -> None:
    name, index = link["ifname"], device.index(route_socket, port)
    for _ in range(50):
        sandbox.run("ip", "link", "set", port, "down")
        assert observe.link(route_socket, name) is not None  # the kernel catches up
        assert not device.runs(route_socket, name)
        route_socket.batch([messages.link_up(index, port)])
        attach._await_bridge(route_socket, name, time.monotonic() + 5)
        assert device.runs(route_socket, name)


def test_a_bridge_that_does_not_run_is_waited_for_so_long(
    route_socket, sandbox, link, port
) -> None:
    sandbox.run("ip", "link", "set", port, "down")
    assert observe.link(route_socket, link["ifname"]) is not None
    begun = time.monotonic()
    attach._await_bridge(route_socket, link["ifname"], begun + 0.1)
    assert time.monotonic() - begun >= 0.1
    assert not device.runs(route_socket, link["ifname"])
    sandbox.run("ip", "link", "del", link["ifname"])
    attach._await_bridge(route_socket, link["ifname"], time.monotonic() + 600)  # returns at once


def test_asking_for_what_is_not_there_may_be_repeated(route_socket, link) -> None:
    assert [device.exists(route_socket, f"no-such-{n}") for n in range(3)] == [False] * 3
    assert device.exists(route_socket, link["ifname"])


def test_the_socket_still_serves_netlink(route_socket, sandbox, link) -> None:
    assert device.exists(route_socket, link["ifname"])
    route_socket.batch([messages.delete_link(link["ifname"])])
    assert link["ifname"] not in sandbox.links()
    assert route_socket.get(messages.get_link("lo")) is not None


def test_where_binding_is_not_allowed_netlink_answers(route_socket, link, monkeypatch) -> None:
    def refuse(self: RouteSocket, name: str) -> None:
        raise PermissionError(EPERM, "Operation not permitted")

    monkeypatch.setattr(RouteSocket, "bind_to_device", refuse)
    assert device.exists(route_socket, link["ifname"])
    assert not device.exists(route_socket, "no-such")
