"""`podwire agent`: run the resident process that serves the plugin's calls."""

from __future__ import annotations

import os
from typing import Any

import click

from cni_plugin import tool_follow
from cni_plugin.agent import log
from cni_plugin.client import DEFAULT_SOCKET, SOCKET_VARIABLE


@click.command()
@click.option(
    "--socket",
    "path",
    envvar=SOCKET_VARIABLE,
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The UNIX socket to listen at.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="Threads at start."
)
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="End after so long without a call; 0 for never (the default).",
)
@click.option(
    "--log-level",
    type=click.Choice(log.LEVELS),
    default="info",
    show_default=True,
    help="What to log.",
)
@click.option(
    "--log-format",
    type=click.Choice(log.FORMATS),
    default="logfmt",
    show_default=True,
    help="How to write it.",
)
@click.option("--log-file", default="", metavar="PATH", help="Log there instead of to stderr.")
@click.option("--lock-fd", type=int, default=-1, hidden=True, help="The socket's lock, if held.")
@tool_follow.options
def agent(
    path: str,
    workers: int,
    idle: float,
    log_level: str,
    log_format: str,
    log_file: str,
    lock_fd: int,
    **cluster: Any,
) -> None:
    """Serve the plugin's calls: faster than a process each, and with the same results.

    The agent keeps nothing that is lost with it: it may be killed and started at any time.
    SIGTERM and SIGINT let it finish what has begun.

    With --kubernetes or --etcd it makes this node a part of a cluster: it keeps the routes and the
    overlay to the other nodes, and writes the network configuration when pods can come.
    """
    from cni_plugin.agent.life import live
    from cni_plugin.agent.listener import Listener
    from cni_plugin.agent.server import Options

    os.umask(0o022)
    logger = log.opened(log_level, log_format, log_file)
    follow = tool_follow.following(logger, cluster)
    live(Listener(path, lock_fd), logger, Options(workers=workers, idle_s=idle, follow=follow))
