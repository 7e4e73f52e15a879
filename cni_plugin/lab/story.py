"""The story that podwire comes from, told with real calls of the plugin.

One node and its private network; a second node that claims the same one and is refused; two nodes
with networks of their own, and every pod reaching every other without address translation.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from json import dumps
from types import FrameType

import click

from cni_plugin import executable
from cni_plugin.datapath import ROUTE_PROTOCOL
from cni_plugin.kernel import observe, privileges
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.lab import matrix, nodes, plan, spaces
from cni_plugin.lab.nodes import DEMO, Lab
from cni_plugin.lab.plan import Node
from cni_plugin.lab.runtime import Reply, Runtime
from cni_plugin.spec import Code

_IPV4 = (4,)
_PODS = ("pod-1", "pod-2", "pod-3")
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def tell(pause: Callable[[], None]) -> bool:
    """The whole story; whether everything in it came out right. Leaves nothing behind.

    `pause` is called between the parts, while the lab can be looked at.
    """
    privileges.require()
    begin = time.monotonic()
    nodes.sweep_demos()
    lab = Lab(f"{DEMO}{os.urandom(3).hex()}")
    with _terminable(), _removed(lab):
        lab.create()
        story = _Story(lab)
        parts = (story.one_node, story.same_network_twice, story.two_networks, story.away_again)
        right = [_told(part, pause) for part in parts]
    right.append(not lab.exists())
    took = time.monotonic() - begin
    click.echo()
    _verdict(
        all(right),
        f"All as it should be, in {took:.1f} s. The namespaces are removed.",
        "Something is WRONG, see above.",
    )
    own = _name()
    where = "" if own == "podwire" else f" (podwire is {own} here)"
    click.echo(f"To look around in a lab of your own{where}:")
    for words in ("up", "exec node-1/pod-1", "down"):
        click.echo(f"    $ podwire lab {words}")
    click.echo("To look around in this one, while it stops after each part:")
    click.echo("    $ podwire lab demo --pause")
    return all(right)


def _name() -> str:
    """What a reader types to run this podwire."""
    if shutil.which("podwire"):
        return "podwire"
    command, *rest = executable.path()
    near = os.path.relpath(command)
    return " ".join((command if near.startswith("..") else near, *rest))


def _told(part: Callable[[], bool], pause: Callable[[], None]) -> bool:
    right = part()
    pause()
    return right


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the story as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _removed(lab: Lab) -> Iterator[None]:
    """However the block ends, the lab is gone afterwards; a second Ctrl-C doesn't change that."""
    try:
        yield
    finally:
        numbers = (signal.SIGINT, *_SIGNALS)
        before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
        try:
            lab.remove()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Story:
    """The parts; each prints itself and returns whether all was as it should be."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._runtime = Runtime(lab)
        self._nodes: list[Node] = []

    # --- the parts ---

    def one_node(self) -> bool:
        node = plan.node(1, _IPV4)
        self._nodes = [node]
        _title("1. One node")
        _say(f"{node.name} has the address {_plain(node.addresses[0])}.")
        _say(f"Its pods have a private network, {node.pod_cidrs[0]}.")
        self._lab.add_node(node)
        conf = self._lab.write_conf(node, "bridge", with_inventory=False)
        _say("The network configuration, as podwire gets it on stdin:")
        _code(conf)
        _say("For each pod a runtime makes a sandbox and calls podwire. For the first one:")
        _code(self._runtime.shell("ADD", node.name, _PODS[0]), prompt=True)
        self._add_pods(node)
        _say("They reach each other and the node. Each cell is the source the receiver saw:")
        right = self._matrix()
        _say("The node calls its own pods from 10.244.0.1, its address on their bridge.")
        return right

    def same_network_twice(self) -> bool:
        first, second = self._nodes[0], plan.node(2, _IPV4, subnet=1)
        _title("2. Two nodes that both believe they own 10.244.0.0/24")
        _say(f"{second.name} joins with the address {_plain(second.addresses[0])}.")
        _say("The inventory gives it a pod network that is taken:")
        self._lab.add_node(second)
        _code(self._lab.write_inventory([first, second]))
        self._lab.write_conf(second, "bridge", with_inventory=True)
        _say(f"A pod is to start on {second.name}:")
        _code(self._runtime.shell("ADD", second.name, _PODS[0]), prompt=True)
        self._lab.add_sandbox(second.name, _PODS[0])
        reply = self._runtime.call("ADD", second.name, _PODS[0])
        self._lab.remove_sandbox(second.name, _PODS[0])
        _code(dumps(reply.document, indent=2).splitlines())
        text = str((reply.document or {}).get("msg", ""))
        refused = (
            reply.status != 0
            and (reply.document or {}).get("code") == Code.SUBNET_OVERLAP
            and first.name in text
            and second.name in text
        )
        left = self._left(second.name)
        _verdict(
            refused and not left,
            f"Refused: {first.name} holds that network. Nothing was made on {second.name}.",
            f"WRONG: expected error {Code.SUBNET_OVERLAP} that names both nodes; left: {left}",
        )
        return refused and not left

    def two_networks(self) -> bool:
        first, second = self._nodes[0], plan.node(2, _IPV4)
        self._nodes = [first, second]
        _title("3. Two nodes with networks of their own")
        _say(f"The inventory is corrected: {second.name} gets {second.pod_cidrs[0]}.")
        _code(self._lab.write_inventory(self._nodes))
        for node in self._nodes:
            self._lab.write_conf(node, "bridge", with_inventory=True)
        _say(f"Pods start on {second.name}; the first ADD makes the route to {first.name}:")
        self._add_pods(second)
        _say(f"The pods of {first.name} run on. It learns of {second.name} by:")
        args = ("routes", "sync", "--config", self._lab.conf_path(first.name))
        _code(
            [
                f"podwire lab exec --name {self._lab.name} {first.name} -- \\",
                f"    podwire {' '.join(args)}",
            ],
            prompt=True,
        )
        done = self._runtime.tool(first.name, *args)
        _code((done.stdout + done.stderr).decode().splitlines())
        if done.returncode:
            return False
        _say("The routes of both nodes now (proto 112 marks podwire's own):")
        for node in self._nodes:
            _code([f"{node.name}: {line}" for line in self._routes(node.name)])
        _say("Every pod and every node calls every other:")
        return self._matrix()

    def away_again(self) -> bool:
        _title("And away again")
        deletions = [self._runtime.delete(node.name, pod) for node in self._nodes for pod in _PODS]
        times = ", ".join(f"{reply.milliseconds:.0f}" for reply in deletions)
        _say(f"DEL for {len(deletions)} pods took {times} ms.")
        left = [line for node in self._nodes for line in self._left(node.name)]
        _verdict(
            not left,
            "Left of the pods on both nodes: no link, no address, no reservation.",
            f"WRONG: left behind: {'; '.join(left)}",
        )
        return not left

    # --- steps ---

    def _add_pods(self, node: Node) -> None:
        for pod in _PODS:
            reply = self._runtime.add(node.name, pod)
            _code([_added(f"{node.name}/{pod}", reply)])

    def _matrix(self) -> bool:
        paths = matrix.probe(matrix.endpoints(self._lab, 4))
        _code(matrix.lines(paths))
        right, text = matrix.verdict(paths)
        _verdict(right, f"{text}.", f"WRONG: {text}.")
        return right

    def _routes(self, node: str) -> Iterator[str]:
        with spaces.entered(self._lab.netns(node)), RouteSocket() as route_socket:
            for route in KernelRouteTable(route_socket).owned():
                yield f"{route.dst} via {route.via} proto {ROUTE_PROTOCOL}"

    def _left(self, node: str) -> list[str]:
        """Links and reservations of pods on a node, and bridge ports; [] when all is gone."""
        with spaces.entered(self._lab.netns(node)), RouteSocket() as route_socket:
            found = [
                f"{node}: link {link.name}"
                for link in observe.veths(route_socket)
                if link.name != "eth0"
            ]
        folder = f"{self._lab.data_dir(node)}/{plan.NETWORK}"
        with contextlib.suppress(FileNotFoundError):
            found += [
                f"{node}: reservation {name}"
                for name in os.listdir(folder)
                if name != "lock" and not name.startswith("last_reserved_ip.")
            ]
        return found


def _added(name: str, reply: Reply) -> str:
    return f"{name}  {', '.join(reply.addresses)}  ADD took {reply.milliseconds:.0f} ms"


def _plain(address: str) -> str:
    return address.partition("/")[0]


# --- telling ----------------------------------------------------------------------------------


def _title(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _say(text: str) -> None:
    click.echo(text)


def _code(lines: Sequence[str] | Iterator[str], prompt: bool = False) -> None:
    """Lines of a file, an output or a command, set in."""
    for index, line in enumerate(lines):
        lead = ("$ " if index == 0 else "  ") if prompt else ""
        click.echo(f"    {lead}{line}".rstrip())


def _verdict(right: bool, yes: str, no: str) -> None:
    click.secho(yes if right else no, fg="green" if right else "red")
