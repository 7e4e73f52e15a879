"""The agent's reaper: it is back when the link is gone, not when the kernel is done with it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cni_plugin.agent.reaper import Reaper
from cni_plugin.kernel import device
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.spec import Code
from tests.support import netns


@pytest.fixture
def at_home(node) -> Iterator[None]:
    """The test's thread, and the threads that it starts, are on the node."""
    with node.entered():
        yield


@pytest.fixture
def reaper(at_home: None) -> Iterator[Reaper]:
    reaper = Reaper()
    reaper.start()
    yield reaper
    reaper.stop()


@pytest.fixture
def looking(at_home: None) -> Iterator[RouteSocket]:
    with RouteSocket() as route_socket:
        yield route_socket


def add_veth(node, name: str, sandbox=None) -> None:
    peer = ("netns", sandbox.path) if sandbox is not None else ()
    node.run(
        *("ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"p{name}"[:15], *peer)
    )


def test_both_ends_are_gone_when_it_returns(reaper, looking, node, sandbox) -> None:
    with sandbox.entered():
        inside = RouteSocket()
    with inside:
        for number in range(30):
            add_veth(node, "veth0", sandbox)
            indexes = device.index(looking, "veth0"), device.index(inside, "pveth0")
            assert all(indexes), number
            began = time.monotonic()
            reaper.remove("veth0")
            took = time.monotonic() - began
            assert not device.present(looking, indexes[0]), number
            assert list(sandbox.links()) == ["lo"], number  # by netlink, as an ADD looks
            assert not device.present(inside, indexes[1]), number
            assert took < 5


def test_the_name_is_free_at_once(reaper, node, sandbox) -> None:
    for _ in range(10):
        add_veth(node, "veth0", sandbox)
        reaper.remove("veth0")
    assert "veth0" not in node.links()


def test_several_links_at_once(reaper, looking, node, sandbox) -> None:
    for number in range(10):
        add_veth(node, "veth0", sandbox)
        node.run("ip", "link", "add", "pwi0", "up", "type", "ifb")
        indexes = [device.index(looking, name) for name in ("pwi0", "veth0")]
        assert all(indexes), number
        reaper.remove("pwi0", "veth0")
        assert [index for index in indexes if device.present(looking, index)] == [], number
        assert list(sandbox.links()) == ["lo"], number


def test_of_several_links_those_that_are_there(reaper, node) -> None:
    for missing in (0, 1):
        add_veth(node, "veth0")
        names = ["veth0"]
        names.insert(missing, "pwi0")
        reaper.remove(*names)
        assert "veth0" not in node.links()


def test_of_several_links_one_refused(reaper, node) -> None:
    add_veth(node, "veth0")
    with pytest.raises(KernelError) as refused:
        reaper.remove("lo", "veth0")
    assert "delete link lo" in refused.value.msg
    netns.wait_until(lambda: "veth0" not in node.links(), what="the other one to go")


def test_what_is_not_there_is_no_error(reaper) -> None:
    reaper.remove("veth0")
    reaper.remove("pwi0", "veth0")
    reaper.remove()


def test_routes_through_the_link_are_gone(reaper, node, sandbox) -> None:
    for _ in range(10):
        add_veth(node, "veth0", sandbox)
        node.run("ip", "route", "add", "10.244.0.9/32", "dev", "veth0")
        reaper.remove("veth0")
        assert [r for r in node.routes() if r["dst"] == "10.244.0.9"] == []


def test_what_the_kernel_refuses_is_raised(reaper, node) -> None:
    with pytest.raises(KernelError) as refused:
        reaper.remove("lo")
    assert refused.value.code == Code.KERNEL_REFUSED
    assert "delete link lo" in refused.value.msg
    add_veth(node, "veth0")
    reaper.remove("veth0")  # and the next one works
    assert "veth0" not in node.links()


@pytest.mark.parametrize("callers", [4, 40])
def test_many_at_once(reaper, looking, node, callers) -> None:
    names = [f"veth{number}" for number in range(80)]
    script = "".join(f"link add {n} up type veth peer name p{n}\n" for n in names)
    netns.run([*node.prefix(), "ip", "-batch", "-"], stdin=script)

    indexes = {name: device.index(looking, name) for name in names}

    def remove(name: str) -> bool:
        with node.entered():
            reaper.remove(name)
            return not device.present(looking, indexes[name])

    with ThreadPoolExecutor(callers) as pool:
        assert all(pool.map(remove, names))
    assert not [name for name in node.links() if "veth" in name]
    assert sum(thread.name.startswith("reaper-") for thread in threading.enumerate()) <= 32


def test_nothing_of_it_stays(at_home, node) -> None:
    def run() -> None:
        reaper = Reaper()
        reaper.start()
        for number in range(3):
            add_veth(node, f"veth{number}")
        for number in range(3):
            reaper.remove(f"veth{number}")
        reaper.stop()

    run()
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    run()
    assert (sorted(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_stop_waits_for_what_was_begun(at_home, node) -> None:
    reaper = Reaper()
    reaper.start()
    add_veth(node, "veth0")
    reaper.remove("veth0")
    reaper.stop()
    assert not any(thread.name.startswith("reaper-") for thread in threading.enumerate())


def test_without_room_for_another_thread_the_ones_there_do_it(
    reaper, looking, node, monkeypatch
) -> None:
    def refuse(self: Reaper) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Reaper, "_add_thread", refuse)
    names = [f"veth{number}" for number in range(6)]
    for name in names:
        add_veth(node, name)

    def remove(name: str) -> None:
        with node.entered():
            reaper.remove(name)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(remove, names))
    assert not set(names) & set(node.links())


def test_without_a_start_it_is_a_mistake() -> None:
    with pytest.raises(RuntimeError):
        Reaper().remove("veth0")
