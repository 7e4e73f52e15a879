"""How the Kubernetes API is reached: kubeconfig or ServiceAccount, TLS, and connections that do not
hang.

- A connection that dies in silence is noticed: TCP asks after 15 s without a word whether the other
  end is there and gives up after 30 s. A server that hangs keeps its connections: a watch that has
  said nothing for a while ends, and the next one is asked for, to which a server that lives agrees
  at once. Among more than a few nodes there is news more often: kubelets' heartbeats.
- One whose own address this node loses is broken off when the owner of the client says so (`lose`).
- What an answer takes of memory has a bound.
- A page of a list may take as long as the server itself allows: it comes late when many nodes start
  at once, and who gives it up begins again with the first.
- A ServiceAccount's token is read anew for each request: the kubelet replaces it.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import httpx2
import msgspec
from lightkube import KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import Cluster, Context, User
from lightkube.core.exceptions import ConfigError
from yaml import YAMLError

from cni_plugin.fields import invalid
from cni_plugin.sources import ownends
from cni_plugin.sources.kubetypes import Access

_LARGEST = 128 << 20  # bytes of a page, unpacked, or of a watch's line; 250 Nodes take 5 to 10 MB
_LIST_SECONDS = 65.0  # for a page: the server itself gives a request up after 60 s
_AGREEMENT_SECONDS = 30.0  # until a watch begins
_SILENCE_SECONDS = 90.0  # of a watch
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),  # ms
)


class WatchEndedError(Exception):
    """The server has ended the watch, and lightkube asks for the next one; or it was silent."""


class RefusedError(Exception):
    """The server has answered with an error, or with a redirect, which is not followed."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"{words} ({code})")
        self.code = code


class TooLargeError(Exception):
    """There is no end to what the server says."""

    def __init__(self) -> None:
        super().__init__(
            f"an answer of more than {_LARGEST >> 20} MB; does the server heed limit=?"
        )


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""


class _Lines(httpx2.SyncByteStream):
    """What a watch says: no line of it is without an end, and no silence too long."""

    def __init__(self, response: httpx2.Response) -> None:
        self._inner = cast("httpx2.SyncByteStream", response.stream)

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in self._inner:
                size = size + len(chunk) if b"\n" not in chunk else len(chunk)
                if size > _LARGEST:
                    raise TooLargeError
                yield chunk
        except httpx2.ReadTimeout:
            raise WatchEndedError from None

    def close(self) -> None:
        self._inner.close()


class Transport(httpx2.HTTPTransport):
    """What lightkube leaves open: timeouts of a watch, a token that is replaced, an end from
    another thread, and whether there is to be another watch: it would ask again without a pause."""

    def __init__(self, context: ssl.SSLContext, token_file: str) -> None:
        super().__init__(verify=context, trust_env=False, socket_options=_KEEPALIVE)
        self._token_file = token_file
        self._opened: Callable[[], None] | None = None
        self._watch: httpx2.Response | None = None
        self._lock = Lock()
        self._interrupted = False
        self._connections: WeakSet[socket.socket] = WeakSet()

    def expect_watch(self, opened: Callable[[], None]) -> None:
        """The next watch is wanted; `opened` is called when the server has agreed to it."""
        self._opened = opened

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._interrupted:
            raise httpx2.ConnectError("interrupted")
        if self._token_file:
            with open(self._token_file, encoding="utf-8") as file:
                request.headers["Authorization"] = f"Bearer {file.read().strip()}"
        request.extensions["trace"] = self._note_connection
        timeout = request.extensions["timeout"]
        if "watch" not in request.url.params:
            if request.method == "GET":
                timeout["read"] = _LIST_SECONDS
            return _whole(_agreed(super().handle_request(request)))
        opened, self._opened = self._opened, None
        if opened is None:
            raise WatchEndedError
        request.url = request.url.copy_merge_params({"allowWatchBookmarks": "true"})
        timeout["read"] = _AGREEMENT_SECONDS  # lightkube has none for watches
        self._watch = _agreed(super().handle_request(request))
        self._watch.stream = _Lines(self._watch)
        timeout["read"] = _SILENCE_SECONDS
        opened()
        return self._watch

    def watch_is_over(self) -> None:
        """Close its connection; lightkube leaves that to the garbage collector."""
        over, self._watch = self._watch, None
        if over is not None:
            over.close()

    def interrupt(self) -> None:
        """End what is going on and refuse all requests to come; from any thread."""
        with self._lock:
            self._interrupted = True
            for connection in self._connections:
                _shut(connection)

    def lose(self, address: str) -> None:
        """Break off the connections that come from this address; from any thread."""
        with self._lock:
            for connection in ownends.of(address, self._connections):
                _shut(connection)

    def _note_connection(self, event: str, info: dict[str, Any]) -> None:
        """Called by the HTTP client at each step of a request."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            connection = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._connections.add(connection)
                if self._interrupted:
                    _shut(connection)


def _shut(connection: socket.socket) -> None:
    """Make whoever reads there find the end."""
    with suppress(OSError):  # it is closed, or one of TLS has taken its place
        # Past SSLSocket's own, which would take away what the other thread reads by.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _agreed(response: httpx2.Response) -> httpx2.Response:
    """The same, if it is an answer to what was asked. Raises RefusedError."""
    if response.is_success:
        return response
    whole = _whole(response)
    code, words = whole.status_code, whole.reason_phrase or "an error without a word"
    if whole.has_redirect_location:
        words = f"{words}, to {whole.headers['Location']}, which is not followed"
    with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):  # then it is a proxy's
        said = msgspec.json.decode(whole.content, type=_Status)
        words = said.message or said.reason or words
    raise RefusedError(code, words)


def _whole(response: httpx2.Response) -> httpx2.Response:
    """The same, read to its end. Raises TooLargeError."""
    parts, size = [], 0
    try:
        for part in response.iter_bytes():
            size += len(part)
            if size > _LARGEST:
                raise TooLargeError
            parts.append(part)
    finally:
        response.close()
    of_the_wire = ("content-encoding", "content-length", "transfer-encoding")
    return httpx2.Response(
        response.status_code,
        headers=[(k, v) for k, v in response.headers.multi_items() if k not in of_the_wire],
        content=b"".join(parts),
        extensions=response.extensions,
    )


# --- how to get there -----------------------------------------------------------------------------


class _Found(NamedTuple):
    config: SingleConfig
    token_file: str


def refuse_wrong(kubeconfig: str, option: str) -> None:
    """Raises CniError 7, naming the option, for a file that is no kubeconfig, or can't be read, or
    names certificates that can't."""
    try:
        tls_context(configuration(Access(kubeconfig=kubeconfig)).config)
    except (ConfigError, OSError) as e:
        wanted = f"expected a kubeconfig that can be used ({e})"
        raise invalid(option, kubeconfig, wanted) from e


def configuration(access: Access) -> _Found:
    """Raises ConfigError, OSError."""
    if access.kubeconfig:
        return _from_kubeconfig(access)
    if not access.server:
        raise ConfigError("neither its address nor KUBERNETES_SERVICE_HOST is known")
    cluster = Cluster(server=access.server, certificate_auth=os.path.join(access.account, "ca.crt"))
    config = SingleConfig("pod", Context(cluster="pod"), cluster, User())
    return _Found(config, os.path.join(access.account, "token"))


def _from_kubeconfig(access: Access) -> _Found:
    try:
        config = KubeConfig.from_file(access.kubeconfig).get()
    except (
        YAMLError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
    ) as e:  # whatever the file holds
        raise ConfigError(f"{access.kubeconfig}: not a kubeconfig: {e!r}") from e
    if config is None:
        raise ConfigError(f"{access.kubeconfig}: no current context")
    cluster, user = config.cluster, config.user or User()
    if not (cluster.certificate_auth or cluster.certificate_auth_data or cluster.insecure):
        raise ConfigError(f"{access.kubeconfig}: names no certificate authority of the API server")
    token_file = str(config.abs_file(user.token_file)) if user.token_file else ""
    cluster = msgspec.structs.replace(cluster, server=access.server or cluster.server)
    user = msgspec.structs.replace(user, token_file=None)
    return _Found(config._replace(cluster=cluster, user=user), token_file)


def tls_context(config: SingleConfig) -> ssl.SSLContext:
    """Raises ConfigError, OSError (ssl.SSLError is one)."""
    return verify_cluster(config.cluster, config.user or User(), config.abs_file, trust_env=False)
