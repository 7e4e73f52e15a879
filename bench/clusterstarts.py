"""`python -m bench.clusterstarts KUBECONFIG COUNT`: so many agents that start at the same moment.

Each lists all Nodes in pages, as an agent does, and then watches. What they are told is not
decoded, so that it is the API server that is measured and not this process; what an agent pays
itself is measured with a real one. Prints the seconds until half of them, and until all of them
watch.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import sys
import threading
import zlib
from threading import Barrier, Thread
from time import monotonic
from urllib.parse import urlencode, urlsplit

_STACK_BYTES = 512 * 1024
_PAGE = "250"
_SECONDS = 65
_BEGINNING = 4096  # bytes; the list's own metadata comes before its items
_CONTINUE = re.compile(rb'"continue":"([^"]+)"')
_VERSION = re.compile(rb'"resourceVersion":"(\d+)"')


class _Starter(Thread):
    """`watching` is when its watch was open, by time.monotonic; 0 if it never was."""

    def __init__(self, kubeconfig: str, together: Barrier) -> None:
        super().__init__(daemon=True)
        with open(kubeconfig, encoding="utf-8") as file:
            content = json.load(file)
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        server = urlsplit(cluster["server"])
        self._connection = http.client.HTTPSConnection(
            server.hostname or "",
            server.port,
            context=ssl.create_default_context(cadata=ca),
            timeout=_SECONDS,
        )
        self._headers = {
            "Authorization": f"Bearer {user['token']}",
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",
        }
        self._together = together
        self.watching = 0.0

    def run(self) -> None:
        self._together.wait()
        version, more = self._page("")
        while more:
            version, more = self._page(more)
        self._ask(watch="true", resourceVersion=version, timeoutSeconds="600")
        self.watching = monotonic()

    def _page(self, after: str) -> tuple[str, str]:
        """The list's version, and what its next page is asked for with, "" after the last."""
        response = self._ask(limit=_PAGE, **({"continue": after} if after else {}))
        beginning = response.read(_BEGINNING)
        response.read()
        if response.getheader("Content-Encoding") == "gzip":
            beginning = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(beginning)
        version, more = _VERSION.search(beginning), _CONTINUE.search(beginning)
        if version is None:
            raise ValueError(f"no list of Nodes: {beginning[:200]!r}")
        return version[1].decode(), more[1].decode() if more else ""

    def _ask(self, **parameters: str) -> http.client.HTTPResponse:
        self._connection.request(
            "GET", f"/api/v1/nodes?{urlencode(parameters)}", None, self._headers
        )
        response = self._connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"{response.status}: {response.read(200)!r}")
        return response


def main(kubeconfig: str, number: int) -> None:
    together = Barrier(number + 1)
    starters = [_Starter(kubeconfig, together) for _ in range(number)]
    for starter in starters:
        starter.start()
    begun = monotonic()
    together.wait()
    for starter in starters:
        starter.join()
    ready = sorted(starter.watching - begun for starter in starters if starter.watching)
    if len(ready) < number:
        sys.exit(f"bench: {number - len(ready)} of {number} never watched")
    print(ready[number // 2], ready[-1])


if __name__ == "__main__":
    threading.stack_size(_STACK_BYTES)
    main(sys.argv[1], int(sys.argv[2]))
