"""Connections a second through a host port, with few and with many mapped pods on the node.

A client outside the node connects to the node's address and a host port, the pod accepts, both
close, and the next one begins: one thread holds both sockets, so that nothing waits for a
scheduler. The connection is reset in the end: 28,000 ports in TIME_WAIT would be the next limit.

The pod that is measured is a real one, made after all others: it is the worst place in a list.
The others are mappings without links. Those of podwire and the first of Go's are made by calls of
the plugins, which get a result as if another plugin had made the pod. From COPIED on, Go's rules
are copies of those that portmap made for its last pod, put in by iptables-restore: each call of
portmap takes longer than the one before it, and 1,000 would take minutes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter_ns
from typing import Any

from bench import byhand
from bench.chain import STEPS, Chained, asked, installed, step_config, step_of
from bench.contenders import AGENT, PEER, PORTMAP, Contender
from bench.measure import Budget, Call, CallFailedError, execute_all, rotated, succeeded
from bench.nodes import Node, Place
from bench.results import Rates
from bench.sites import UNDERLAY

SIZES = (1, 100, 1_000)
COPIED = 100
EACH = 200  # connections in one sample: short, so that neighbours are alike
PER_RUN = 3  # samples
LEAST = 6
_AT_ONCE = 8
_CONTAINER_PORT = 8080
_TIMEOUT_S = 5.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s
_STEPS = STEPS[:1]
_UNIT = "connections/s"


def connections(sides: Sequence[Contender], place: Place, runs: int) -> list[Rates]:
    """Each side at each of SIZES, in turns, `runs` * PER_RUN samples of EACH."""
    with ExitStack() as stack:
        nodes = [
            (size, _Mapped(side, place, stack, size))
            for side in sides
            if side.name == AGENT or (side.name == PEER and installed(side.cni_path, _STEPS))
            for size in SIZES
        ]
        values: dict[tuple[int, str], list[float]] = {}
        budget = Budget()
        for turn in range(-1, runs * PER_RUN):
            if budget.spent(turn, LEAST):
                break
            for size, node in rotated(nodes, turn + 1):
                rate = node.connect(EACH)
                if turn >= 0:
                    values.setdefault((size, node.name), []).append(rate)
        return [
            Rates("connections", "host port", name, _UNIT, tuple(taken), size)
            for (size, name), taken in sorted(values.items(), key=lambda item: item[0][::-1])
        ]


class _Mapped:
    """A node with `size` pods that have a host port, and a client outside of it."""

    def __init__(self, side: Contender, place: Place, stack: ExitStack, size: int) -> None:
        self.name = AGENT if side.ours else PORTMAP
        node, self._outside = byhand.cabled(stack)
        self._chained = Chained(Node(side, place, stack, pods=2, namespace=node), _STEPS)
        self._fill(range(1, size))
        self._chained.run("ADD", 0, ports=1)
        self._port = asked(0, 1)["portMappings"][0]["hostPort"]
        self._server = self._listen(stack)

    def _listen(self, stack: ExitStack) -> socket.socket:
        with self._chained.node.sandbox(0).entered():
            server = stack.enter_context(socket.socket())
        server.settimeout(_TIMEOUT_S)
        server.bind(("", _CONTAINER_PORT))
        server.listen()
        return server

    def connect(self, count: int) -> float:
        """Connections a second. Raises CallFailedError when one does not arrive at the pod."""
        target = (UNDERLAY[0], self._port)
        with self._outside.entered():
            begin = perf_counter_ns()
            try:
                for _ in range(count):
                    with socket.socket() as client:
                        client.settimeout(_TIMEOUT_S)
                        client.connect(target)
                        self._server.accept()[0].close()
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError as e:
                raise CallFailedError(
                    f"{self.name}: no connection to {target[0]}:{target[1]}: {e}"
                ) from None
            return count * 1e9 / (perf_counter_ns() - begin)

    # --- the other pods -----------------------------------------------------------------------

    def _fill(self, pods: range) -> None:
        """Mappings of pods that have no link."""
        ours = self._chained.node.contender.ours
        called = pods if ours else pods[: COPIED - 1]
        at_once = _AT_ONCE if ours else 1  # portmap's own calls wait for each other
        for start in range(0, len(called), at_once):
            calls = [self._mapping(pod) for pod in called[start : start + at_once]]
            for call, reply in zip(
                calls, execute_all(calls, self._chained.node.namespace), strict=True
            ):
                succeeded(call, reply)
        if len(called) < len(pods):
            self._copy(called[-1], pods[len(called) :])

    def _mapping(self, pod: int) -> Call:
        """ADD of a plugin in a list, behind another one that made the pod."""
        node = self._chained.node
        sandbox = node.sandbox(1).path
        result = _result(address_of(pod), sandbox)
        config = {**step_config(node.config, _STEPS[0], asked(pod, 1)), "prevResult": result}
        plugin = node.contender if node.contender.ours else step_of(node.contender, _STEPS[0])
        return plugin.call("ADD", config, f"filler-{pod}", sandbox)

    def _copy(self, template: int, pods: Sequence[int]) -> None:
        """Rules like those of the pod `template` for `pods`."""
        namespace = self._chained.node.namespace
        saved = byhand.run(namespace, "iptables-save -t nat")
        rules = copies(saved, template, pods)
        byhand.command(namespace, ["iptables-restore", "--noflush"], rules)


def address_of(pod: int) -> str:
    """The address that a pod without a link is said to have; real ones get others."""
    return f"10.244.{100 + pod // 200}.{2 + pod % 200}"


def _result(address: str, sandbox: str) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": sandbox}],
        "ips": [{"address": f"{address}/16", "interface": 0}],
    }


def copies(saved: str, template: int, pods: Sequence[int]) -> str:
    """Input for iptables-restore: the rules of the pod `template` in `saved`, once for each pod.

    `saved` is what iptables-save printed of the table nat, with portmap's chain for the pod.
    Raises ValueError when that is not there.
    """
    name, port = f"filler-{template}", asked(template, 1)["portMappings"][0]["hostPort"]
    lines = saved.splitlines()
    jumps = [line for line in lines if f'\\"{name}\\"' in line]
    if len(jumps) != 1:
        raise ValueError(f"iptables-save tells {len(jumps)} rules of {name}, not 1")
    chain = jumps[0].split()[-1]
    wanted = [line for line in lines if line.startswith(f"-A {chain} ")] + jumps
    text = ["*nat"]
    copied: list[str] = []
    for pod in pods:
        other = f"CNI-COPY-{pod}"
        text.append(f":{other} - [0:0]")
        for line in wanted:
            line = line.replace(chain, other).replace(name, f"filler-{pod}")
            line = line.replace(str(port), str(asked(pod, 1)["portMappings"][0]["hostPort"]))
            copied.append(line.replace(f"{address_of(template)}:", f"{address_of(pod)}:"))
    return "\n".join([*text, *copied, "COMMIT", ""])
