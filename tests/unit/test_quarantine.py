"""Which peers are left out: those that stand in the way, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest

from cni_plugin.agent import quarantine
from cni_plugin.agent.quarantine import Quarantine
from cni_plugin.fabric import Memory
from cni_plugin.spec import CniError, Code
from ipam.inventory import Node


def made(name: str, number: int) -> Node:
    cidr = ip_network(f"10.{number // 250}.{number % 250}.0/24")
    return Node(name, (ip_address("192.168.1.2") + number,), pod_cidrs=(cidr,))


OWN = made("own", 0)


class Kernel:
    """What refuses some nodes, by their names: `routes` can be seen, `bad` has to be tried."""

    def __init__(self) -> None:
        self.routes: set[str] = set()
        self.bad: set[str] = set()
        self.code = Code.KERNEL_REFUSED
        self.what = "no way to {}"
        self.holds: tuple[Node, ...] = ()
        self.looks = 0
        self.lost: set[str] = set()  # names that went, in the meantime as well
        self.attempts = 0
        self.memory = Memory()
        self.memory.watched = True
        self.quarantine = Quarantine("own", self.memory, self.look)

    def look(self, own: Node, nodes: Sequence[Node]) -> Mapping[str, str]:
        assert own == OWN
        self.looks += 1
        return {node.name: "another route" for node in nodes if node.name in self.routes}

    def attempt(self, nodes: tuple[Node, ...]) -> None:
        self.attempts += 1
        assert [node.name for node in nodes] == sorted(node.name for node in nodes)
        for node in nodes:
            if node.name in self.routes:
                raise CniError(Code.LINK_CONFLICT, f"another route for {node.name}")
            if node.name in self.bad:
                raise CniError(self.code, self.what.format(node.name))
        self.lost |= {node.name for node in self.holds} - {node.name for node in nodes}
        self.holds = nodes

    def bring(self, nodes: Sequence[Node]) -> set[str]:
        """The names of the peers that there are ways to."""
        self.quarantine.bring(tuple(sorted(nodes, key=lambda node: node.name)), self.attempt)
        return {node.name for node in self.holds} - {"own"}


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def some(word: str, count: int, first: int = 1) -> list[Node]:
    return [made(f"{word}{number}", number) for number in range(first, first + count)]


def test_what_can_be_seen_is_not_tried(kernel: Kernel) -> None:
    """However many they are."""
    bad = some("bad", 100)
    kernel.routes = {node.name for node in bad}
    assert kernel.bring([OWN, *bad, *some("good", 3, 200)]) == {"good200", "good201", "good202"}
    assert (kernel.looks, kernel.attempts) == (1, 2)
    assert {each.name for each in kernel.quarantine.refusals} == kernel.routes
    assert {each.holder for each in kernel.quarantine.refusals} == {"own"}


@pytest.mark.parametrize("count", [16, 17, 100])
def test_many_that_have_to_be_tried_keep_nobody_out(kernel: Kernel, count: int) -> None:
    """Those that are left over are tried the next time."""
    bad, good = some("bad", count), some("good", 40, 200)
    kernel.bad = {node.name for node in bad}
    nodes = [OWN, *bad, *good]
    kernel.bring(nodes)
    assert kernel.holds
    for _ in range(20):
        if kernel.quarantine.is_done:
            break
        kernel.bring(nodes)
    assert {node.name for node in kernel.holds} == {"own", *(node.name for node in good)}
    assert {each.name for each in kernel.quarantine.refusals} == kernel.bad
    assert kernel.lost == set()
    assert kernel.quarantine.isolated(tuple(sorted(nodes))) == ""


def test_none_of_very_many_is_a_failure_of_this_node(kernel: Kernel) -> None:
    bad = some("bad", 60)
    kernel.bad = {node.name for node in bad}
    nodes = tuple(sorted([OWN, *bad]))
    with pytest.raises(CniError, match="no way to bad"):
        kernel.bring(nodes)
    while not kernel.quarantine.isolated(nodes):
        with pytest.raises(CniError, match="no way to bad"):
            kernel.bring(nodes)
        assert kernel.attempts < 1000
        if len(kernel.quarantine.refusals) > 40:  # few enough are left
            assert kernel.bring(nodes) == set()
    assert {each.name for each in kernel.quarantine.refusals} == kernel.bad


def test_a_route_that_goes_lets_a_peer_in_at_once(kernel: Kernel) -> None:
    nodes = [OWN, *some("peer", 2)]
    kernel.routes = {"peer1", "peer2"}
    assert kernel.bring(nodes) == set()
    assert kernel.quarantine.is_waiting
    kernel.routes = {"peer2"}
    for _ in range(3):
        assert kernel.bring(nodes) == set()  # the kernel has told nothing
    assert kernel.looks == 1
    kernel.memory.happened()
    assert kernel.bring(nodes) == {"peer1"}
    kernel.routes = set()
    kernel.memory.happened()
    assert kernel.bring(nodes) == {"peer1", "peer2"}
    assert not kernel.quarantine.is_waiting


def test_who_was_tried_is_tried_again_less_and_less(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(quarantine, "monotonic", lambda: now[0])
    nodes = [OWN, *some("peer", 2)]
    kernel.bad = {"peer1"}
    kernel.bring(nodes)
    tried = []
    for second in range(400):
        now[0] += 1
        kernel.memory.happened()
        before = kernel.attempts
        kernel.bring(nodes)
        if kernel.attempts > before + 1:
            tried.append(second)
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert tried[0] < 30
    assert len(tried) < 8
    assert gaps == sorted(gaps)
    kernel.bad = set()
    now[0] += 301
    assert kernel.bring(nodes) == {"peer1", "peer2"}


@pytest.mark.parametrize(
    ("count", "code", "what", "isolated"),
    [
        (1, Code.KERNEL_REFUSED, "no way to {}", False),  # it may be the peer that is wrong
        (1, Code.KERNEL_REFUSED, "no such module", False),
        (1, Code.LINK_CONFLICT, "port 8472 is taken", True),
        (2, Code.KERNEL_REFUSED, "no way to {}", False),
        (2, Code.KERNEL_REFUSED, "no such module", True),
        (2, Code.LINK_CONFLICT, "port 8472 is taken", True),
    ],
)
def test_whose_fault_it_is(
    kernel: Kernel, count: int, code: Code, what: str, isolated: bool
) -> None:
    peers = some("peer", count)
    nodes = tuple(sorted([OWN, *peers]))
    kernel.bad, kernel.code, kernel.what = {node.name for node in peers}, code, what
    assert kernel.bring(nodes) == set()
    assert bool(kernel.quarantine.isolated(nodes)) == isolated
    good = made("good", 99)
    nodes = tuple(sorted([*nodes, good]))
    assert kernel.bring(nodes) == {"good"}
    assert kernel.quarantine.isolated(nodes) == ""
    without_pods = made("zero", 98)._replace(pod_cidrs=())
    assert kernel.quarantine.isolated(tuple(sorted([OWN, without_pods]))) == ""


@pytest.mark.parametrize("code", [Code.IO_FAILURE, Code.TRY_AGAIN_LATER, Code.PERMISSION_DENIED])
def test_what_is_no_peer_s_fault_is_searched_for_in_none(kernel: Kernel, code: Code) -> None:
    kernel.bad, kernel.code = {"peer1"}, code
    with pytest.raises(CniError):
        kernel.bring([OWN, *some("peer", 2)])
    assert kernel.attempts == 1
    assert kernel.quarantine.refusals == []
