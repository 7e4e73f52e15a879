"""An HTTP server that answers in place of an API server, as badly as a test wants; and a client."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("lightkube", reason="lightkube is missing: pip install '.[kubernetes]'")

from cni_plugin.sources.kubeapi import Api
from cni_plugin.sources.kubenode import Condition, NodeFacts
from cni_plugin.sources.kubetypes import Access, Event

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "n1",
        "uid": "u1",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "resourceVersion": "7",
        "annotations": {"podwire.io/backend": "host-gw", "another/one": "x"},
    },
    "spec": {"podCIDR": "10.244.0.0/24", "taints": [{"key": "x"}]},
    "status": {
        "addresses": [{"type": "InternalIP", "address": "192.168.1.2"}],
        "conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "NetworkUnavailable", "status": "False", "reason": "R", "message": "m"},
        ],
    },
}
FACTS = NodeFacts(
    name="n1",
    uid="u1",
    created="2024-01-01T00:00:00Z",
    annotations={"podwire.io/backend": "host-gw"},
    addresses=(("InternalIP", "192.168.1.2"),),
    pod_cidrs=("10.244.0.0/24",),
    network=Condition("False", "R", "m"),
)
EXPIRED = {
    "kind": "Status",
    "status": "Failure",
    "code": 410,
    "reason": "Expired",
    "message": "old",
}
EMPTY = {"items": [], "metadata": {"resourceVersion": "5"}}


class Server(ThreadingHTTPServer):
    """Answers each request by `answer(handler)`; `seen` has (method, path, parameters, token)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler], None] = lambda handler: handler.say(EMPTY)
        self.seen: list[tuple[str, str, dict[str, str], str]] = []
        self.bodies: list[Any] = []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has had enough is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _take(self) -> None:
        parts = urlsplit(self.path)
        parameters = {key: values[0] for key, values in parse_qs(parts.query).items()}
        token = self.headers.get("Authorization", "")
        self.server.seen.append((self.command, parts.path, parameters, token))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if body:
            self.server.bodies.append((self.headers["Content-Type"], json.loads(body)))
        self.server.answer(self)

    do_GET = do_PATCH = do_POST = _take  # noqa: N815 - as the library has it

    def log_message(self, *_: object) -> None:
        pass

    def say(self, body: object, status: int = 200, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, *lines: object, whole: bool = True) -> None:
        """What a watch says, a chunk for each line; without its end when it is not `whole`."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            data = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def hang(self, *lines: object) -> None:
        self.stream(*lines, whole=False)
        self.server.released.wait(30)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.released.set()
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Access]:
    """write(**keys) is access by a kubeconfig; keywords go to its cluster, `user` to its user."""

    def make(user: dict[str, str] | None = None, **cluster: Any) -> Access:
        path = tmp_path / "kubeconfig"
        content = {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user or {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        }
        path.write_text(json.dumps(content))
        return Access(kubeconfig=str(path))

    return make


@pytest.fixture
def api(server: Server, write: Callable[..., Access]) -> Iterator[Api]:
    made = Api(write(server=server.url, **{"insecure-skip-tls-verify": True}))
    yield made
    made.close()


def watch(api: Api, version: str = "5") -> list[Event]:
    return list(api.watch(version, lambda: None))
