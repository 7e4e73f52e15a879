"""`podwire lab`: nodes in network namespaces of this machine, to look into and to try things in."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from cni_plugin import executable, tool_output
from cni_plugin.kernel import privileges
from cni_plugin.lab import cables, matrix, nodes, plan, spaces, story
from cni_plugin.lab.nodes import Lab
from cni_plugin.lab.plan import FAMILIES
from cni_plugin.lab.runtime import Runtime
from cni_plugin.netconf import MODES
from cni_plugin.spec import CniError

_NOT_FOUND = 127  # as shells say that there is no such command
_MOST_NODES = 200
_MOST_PODS = 200


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in nodes.labs() if name.startswith(incomplete)]


def _name_option(command: Any) -> Any:
    return click.option(
        "--name",
        metavar="NAME",
        default=nodes.DEFAULT,
        show_default=True,
        shell_complete=_complete_name,
        help="Which lab, if there are several.",
    )(command)


@click.group()
def lab() -> None:
    """Nodes in network namespaces, with real pods' networks.

    The machine's own network is not touched. Needs root.
    """


@lab.command()
@_name_option
@click.option(
    "--nodes",
    "count",
    type=click.IntRange(1, _MOST_NODES),
    default=2,
    show_default=True,
    help="How many nodes.",
)
@click.option(
    "--pods",
    type=click.IntRange(0, _MOST_PODS),
    default=3,
    show_default=True,
    help="Pods on each node.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="bridge",
    show_default=True,
    help="How pods are linked to their node: a shared bridge, or a routed link for each.",
)
@click.option(
    "--family",
    type=click.Choice(list(FAMILIES)),
    default="ipv4",
    show_default=True,
    help="The addresses of nodes and pods; dual is both.",
)
def up(name: str, count: int, pods: int, mode: str, family: str) -> None:
    """Make a lab and leave it running.

    Node N has the address 192.168.1.<N+1> and the pod network 10.244.<N-1>.0/24; IPv6 alike in
    fd00:1::/64 and fd00:10:244:<N-1>::/64.
    """
    privileges.require()
    if name.startswith(nodes.DEMO):
        raise click.UsageError(f"--name: {nodes.DEMO}* are the demos' own")
    new = Lab(name)
    try:
        _build(new, count, pods, mode, family)
    except nodes.LabIsUpError:
        raise
    except BaseException:
        new.remove()
        raise
    finally:
        new.release_lock()
    title = new.title[0].upper() + new.title[1:]
    tool_output.say(f"{title} is up; it stays until `podwire lab down{new.option}`. Look around:")
    first = "node-1/pod-1" if pods else "node-1"
    for words in (
        f"lab exec{new.option} {first}",
        f"lab exec{new.option} node-1 podwire status --config {new.conf_path('node-1')}",
        f"lab status{new.option} --matrix",
    ):
        tool_output.say(f"  podwire {words}")


def _build(new: Lab, count: int, pods: int, mode: str, family: str) -> None:
    planned = [plan.node(number, FAMILIES[family]) for number in range(1, count + 1)]
    new.create()
    new.write_inventory(planned)
    runtime = Runtime(new)
    for node in planned:
        new.add_node(node)
        new.write_conf(node, mode, with_inventory=True)
        addresses = ", ".join(node.addresses)
        tool_output.say(f"{node.name}  {addresses}, pods {', '.join(node.pod_cidrs)}")
        for number in range(1, pods + 1):
            reply = runtime.add(node.name, f"pod-{number}")
            tool_output.say(f"  pod-{number}  {', '.join(reply.addresses)}")
        if not pods and count > 1:
            done = runtime.tool(node.name, "routes", "sync", "--config", new.conf_path(node.name))
            click.echo(done.stderr, nl=False, err=True)


@lab.command()
@_name_option
def down(name: str) -> None:
    """Take the lab away, whatever is left of it.

    What killed demos left behind goes as well.
    """
    privileges.require()
    old = Lab(name)
    removed = old.remove()
    nodes.sweep_demos()
    if removed:
        tool_output.say(f"{old.title}: {tool_output.count(removed, 'namespace')} removed")
    else:
        tool_output.say(f"{old.title} is not up")


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    try:
        found = Lab(ctx.params.get("name") or nodes.DEFAULT).members()
    except (CniError, OSError):
        return []
    return [member.name for member in found if member.name.startswith(incomplete)]


@lab.command(name="exec", context_settings={"allow_interspersed_args": False})
@_name_option
@click.argument("target", metavar="NODE[/POD]", shell_complete=_complete)
@click.argument("command", metavar="[COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def exec_(name: str, target: str, command: Sequence[str]) -> int:
    """Run a command on a node or in a pod; a shell when none is given.

    For example: podwire lab exec node-1/pod-1 cat /proc/net/route

    What follows NODE is the command's own, its options as well.
    """
    privileges.require()
    argv = list(command[1:] if command[:1] == ("--",) else command)
    argv = argv or [os.environ.get("SHELL") or "/bin/sh"]
    spaces.enter(Lab(name).member(target).netns)
    own = os.path.dirname(executable.path()[0])  # so that `podwire` in there is this one
    os.environ["PATH"] = f"{own}:{os.environ.get('PATH', os.defpath)}"
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - what was asked for
    except OSError as e:
        tool_output.say(f"error: {argv[0]}: {e.strerror}", err=True)
        return _NOT_FOUND


@lab.command(cls=tool_output.JsonCommand)
@_name_option
@click.option("--matrix", "connect", is_flag=True, help="Connect everything with everything.")
@tool_output.json_option
def status(name: str, connect: bool, as_json: bool) -> int:
    """List the nodes and pods of a lab.

    With --matrix the exit status is 1 if any of them does not reach another, or not with its own
    address.
    """
    privileges.require()
    found = Lab(name)
    members = found.members()
    if not members:
        raise found.down()
    if connect:
        return _matrix(found, as_json)
    listed = [(member, cables.addresses_in(member.netns)) for member in members]
    if as_json:
        tool_output.show_json(
            [
                {
                    "name": member.name,
                    "addresses": [{"link": link, "address": str(a)} for link, a in addresses],
                    "netns": spaces.path_of(member.netns),
                }
                for member, addresses in listed
            ]
        )
        return 0
    rows = []
    for member, addresses in listed:
        texts = [f"{link} {address}" for link, address in addresses]
        rows.append((member.name, ", ".join(texts) or "-", spaces.path_of(member.netns)))
    tool_output.show_table(("NAME", "ADDRESSES", "NAMESPACE"), rows, "")
    return 0


def _matrix(found: Lab, as_json: bool) -> int:
    paths = [p for version in (4, 6) for p in matrix.probe(matrix.endpoints(found, version))]
    right, text = matrix.verdict(paths)
    if as_json:
        tool_output.show_json([_document(path) for path in paths])
        return 0 if right else 1
    for version in (4, 6):
        of_family = [path for path in paths if path.receiver.address.version == version]
        for line in matrix.lines(of_family) if of_family else ():
            tool_output.say(line)
    tool_output.say(text)
    return 0 if right else 1


def _document(path: matrix.Path) -> dict[str, Any]:
    return {
        "from": path.sender.member.name,
        "to": path.receiver.member.name,
        "address": str(path.receiver.address),
        "source": path.source or None,
        "failure": path.failure or None,
        "right": path.right,
    }


@lab.command()
@click.option("--pause", is_flag=True, help="Wait for Enter after each part, to look around.")
def demo(pause: bool) -> int:
    """Tell podwire's story with real nodes and pods.

    It takes some seconds and leaves nothing behind.

    Exit status 1 if anything came out wrong.
    """
    try:
        return 0 if story.tell(_wait if pause else _go_on) else 1
    except CniError as e:
        raise CniError(e.code, f"the demo stopped: {e.msg}", e.details) from e


def _go_on() -> None:
    pass


def _wait() -> None:
    click.prompt("Enter goes on", default="", show_default=False, prompt_suffix=" ")
