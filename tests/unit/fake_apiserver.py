"""An HTTP server that answers in place of an API server, as badly as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

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
