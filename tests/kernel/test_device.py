"""One system call about a link, against what `ip link` shows."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EPERM

import pytest

from cni_plugin.kernel import device, messages
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
    assert not device.present(route_socket, link["ifindex"])
    assert not device.exists(route_socket, link["ifname"])


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
