"""Connections to a cluster whose own end has gone: they are broken off at once.

A node that changes its address hears nothing by the connections of the former one, and TCP would
take half a minute to give them up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from logging import Logger
from threading import Thread

from cni_plugin.kernel.lostaddresses import ANY, LostAddresses


@contextmanager
def heeded(lose: Callable[[str], None], logger: Logger) -> Iterator[None]:
    """For the block, `lose` is called by a thread with each address that this network namespace
    loses. When the kernel can't be heard, that is logged and TCP has to notice by itself."""
    try:
        lost = LostAddresses()
    except OSError as e:
        logger.warning("lost addresses are not heard of: %s", e)
        yield
        return
    thread = Thread(target=_heed, args=(lost, lose, logger), name="lost-addresses", daemon=True)
    try:
        thread.start()
        yield
    finally:
        if thread.ident is not None:
            lost.stop()
            thread.join()
        lost.close()


def _heed(lost: LostAddresses, lose: Callable[[str], None], logger: Logger) -> None:
    try:
        for address in lost:
            if address == ANY or not _is_there(address):
                lose(address)
    except OSError as e:
        logger.warning("lost addresses are heard of no longer: %s", e)


def _is_there(address: str) -> bool:
    """Whether another link still has it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.bind((address, 0))
        return True
    return False


def of(address: str, connections: Iterable[socket.socket]) -> list[socket.socket]:
    """Those of the connections that come from the address."""
    return [each for each in connections if address == ANY or _own_end(each) == address]


def _own_end(connection: socket.socket) -> str:
    """Its own address, "" when it has none, and of a socket of another kind."""
    with suppress(OSError):
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            return str(connection.getsockname()[0]).partition("%")[0]
    return ""
