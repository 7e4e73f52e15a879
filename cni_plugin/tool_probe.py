"""`podwire probe`: the tool's side of it. The executable's front answers it without the tool."""

from __future__ import annotations

import click

from cni_plugin import probing
from cni_plugin.client import FailureError
from cni_plugin.spec import CniError


@click.command()
@click.argument("conflist", required=False, type=click.Path(path_type=bytes))
def probe(conflist: bytes | None) -> None:
    """Ask the agent whether it serves, for a container's probes.

    Exit status 0: it replies; with CONFLIST, a network configuration list, a pod could be added to
    that network now. 1: the reason is printed. `podwire status` says more, and asks no agent.
    """
    try:
        probing.probe(conflist)
    except FailureError as e:
        raise CniError(e.code, e.msg, e.details) from e
