"""How the Kubernetes API is reached: kubeconfig or ServiceAccount, TLS, and connections that do not
hang.

- A connection that dies in silence is noticed: TCP asks after 15 s without a word whether the other
  end is there and gives up after 30 s, and a watch that says nothing beyond the time that the
  server was asked to end it after is given up as well.
- A ServiceAccount's token is read anew for each request: the kubelet replaces it.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakSet

import httpx2
import msgspec
from lightkube import KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import Cluster, Context, User
from lightkube.core.exceptions import ConfigError
from yaml import YAMLError

from cni_plugin.sources.kubetypes import Access

_SPARE_SECONDS = 20.0  # beyond which a watch should have ended
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),  # ms
)


class WatchEndedError(Exception):
    """The server has ended the watch, and lightkube asks for the next one."""


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
        if "watch" not in request.url.params:
            return super().handle_request(request)
        opened, self._opened = self._opened, None
        if opened is None:
            raise WatchEndedError
        patience = float(request.url.params["timeoutSeconds"]) + _SPARE_SECONDS
        request.extensions["timeout"]["read"] = patience
        request.url = request.url.copy_merge_params({"allowWatchBookmarks": "true"})
        self._watch = super().handle_request(request)
        if self._watch.status_code == httpx2.codes.OK:
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


# --- how to get there -----------------------------------------------------------------------------


class _Found(NamedTuple):
    config: SingleConfig
    token_file: str


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
