"""What `kubernetes` and `kubeapi` tell each other, without the client library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from cni_plugin.sources.kubenode import NodeFacts

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Access(NamedTuple):
    """By the kubeconfig, else by the token and the ca.crt in the folder `account`.

    `server`, a URL, goes before the kubeconfig's.
    """

    server: str = ""
    kubeconfig: str = ""
    account: str = SERVICE_ACCOUNT


class ApiFailure(Exception):  # noqa: N818 - not an error of ours
    """The API server does not answer, or refuses; `gone`: what was asked for is too long ago."""

    def __init__(self, reason: str, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone


class Event(NamedTuple):
    """Of a watch: `kind` is ADDED, MODIFIED, DELETED or BOOKMARK, the last with a version only."""

    kind: str
    node: NodeFacts
    version: str


class NodeApi(Protocol):
    """The API as a source uses it; `kubeapi.Api` says what each does. All raise ApiFailure."""

    def nodes(self, take: Callable[[NodeFacts], None]) -> str: ...

    def watch(self, version: str, opened: Callable[[], None]) -> Iterator[Event]: ...

    def patch_status(self, name: str, patch: dict[str, Any]) -> NodeFacts: ...

    def create_event(self, event: dict[str, Any]) -> None: ...

    def interrupt(self) -> None: ...

    def lose(self, address: str) -> None: ...

    def close(self) -> None: ...
