"""From an open socket to the end of the agent: readiness, signals, drain."""

from __future__ import annotations

import os
import signal
from logging import Logger

from cni_plugin import commands  # noqa: F401  loaded now rather than by the first call
from cni_plugin.agent import readiness
from cni_plugin.agent.listener import Listener
from cni_plugin.agent.server import Options, Server
from cni_plugin.kernel import conntrack, shaping  # noqa: F401  likewise: only some calls need them
from cni_plugin.spec import CniError, Code
from cni_plugin.version import VERSION

_ENDING = (signal.SIGTERM, signal.SIGINT)


def live(listener: Listener, logger: Logger, options: Options) -> None:
    """Serve until SIGTERM or SIGINT arrives, or the idle time is over; call in the main thread."""
    about = {"socket": listener.path, "pid": os.getpid(), "version": VERSION}
    server = Server(listener, logger, options)
    try:
        for number in _ENDING:
            signal.signal(number, lambda received, frame: server.stop())
        # As the first process of a container it was started with these held (launcher/port/main.c).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        server.start()
        try:
            readiness.announce(listener.path, os.environ)
        except OSError as e:
            raise CniError(
                Code.IO_FAILURE,
                f"can't write {readiness.ready_path(listener.path)}: {e.strerror}",
            ) from e
        logger.info("serving", extra={"fields": about})
        server.run(lambda: readiness.retract(listener.path, os.environ))
    finally:
        listener.withdraw()
        listener.close()
    logger.info("ended", extra={"fields": about})
