"""`python -m bench.clusterwatchers KUBECONFIG COUNT`: so many watches of all Nodes at once, as
agents have them, in one process.

It prints "ready" when all are there, and how many events they have heard at the end, on SIGTERM.
The list comes once for all: what one costs is measured with a real agent.
"""

from __future__ import annotations

import signal
import sys
import threading
from threading import Semaphore, Thread

from cni_plugin.sources.kubeapi import Api
from cni_plugin.sources.kubetypes import Access, ApiFailure

_STACK_BYTES = 512 * 1024


class _Watcher(Thread):
    """One agent's watch, from `version` on."""

    def __init__(self, access: Access, version: str, opened: Semaphore) -> None:
        super().__init__(daemon=True)
        self._api = Api(access)
        self._version, self._opened = version, opened
        self.heard = 0

    def run(self) -> None:
        for kind, _, version in self._api.watch(self._version, self._opened.release):
            self._version = version or self._version
            self.heard += kind != "BOOKMARK"


def main(kubeconfig: str, number: int) -> None:
    access = Access(kubeconfig=kubeconfig)
    api = Api(access)
    version = api.nodes(lambda _: None)
    api.close()
    opened = Semaphore(0)
    watchers = [_Watcher(access, version, opened) for _ in range(number)]
    for watcher in watchers:
        watcher.start()
        opened.acquire()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    print(sum(watcher.heard for watcher in watchers), flush=True)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.stack_size(_STACK_BYTES)
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except ApiFailure as e:
        sys.exit(f"bench: {e}")
