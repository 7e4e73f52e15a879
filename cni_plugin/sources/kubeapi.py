"""The Kubernetes API: Nodes listed, watched and patched, Events made. With `kubeconnect` the only
module that imports the client library, lightkube (docs/adr/0012-kubernetes-client.md).

- Only what `NodeFacts` holds is decoded of a Node; the rest of its kilobytes never becomes objects.
- A list comes in pages of 250; its memory is one page's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import msgspec
from lightkube import Client
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.core.resource import GlobalResource, GlobalSubResource
from lightkube.resources import core_v1
from lightkube.types import PatchType

from cni_plugin.sources.kubeconnect import (
    RefusedError,
    TooLargeError,
    Transport,
    WatchEndedError,
    configuration,
    tls_context,
)
from cni_plugin.sources.kubenode import ANNOTATIONS, NETWORK_UNAVAILABLE, Condition, NodeFacts
from cni_plugin.sources.kubetypes import Access, ApiFailure, Event

_PAGE = 250  # 500 take 8 MB more for the moment, and 5 MB for good
_WATCH_SECONDS = (300, 600)  # drawn for each watch, so that not all nodes come back at once
_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
_GONE = 410  # the version is too old to go on from


# --- what is decoded of a Node --------------------------------------------------------------------


class _Metadata(msgspec.Struct):
    name: str = ""
    uid: str = ""
    creationTimestamp: str | None = None  # noqa: N815 - the API's name
    resourceVersion: str = ""  # noqa: N815 - lightkube reads it
    annotations: dict[str, str] = {}


class _Address(msgspec.Struct):
    type: str = ""
    address: str = ""


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    lastTransitionTime: str | None = None  # noqa: N815


class _Spec(msgspec.Struct):
    podCIDR: str = ""  # noqa: N815
    podCIDRs: list[str] = []  # noqa: N815


class _Status(msgspec.Struct):
    addresses: list[_Address] = []
    conditions: list[_Condition] = []


class _Fields(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class _Node(GlobalResource, _Fields):
    _api_info = core_v1.Node._api_info


class _NodeStatus(GlobalSubResource, _Fields):
    _api_info = core_v1.NodeStatus._api_info


def _facts(node: _Fields) -> NodeFacts:
    metadata, spec = node.metadata, node.spec
    return NodeFacts(
        name=metadata.name,
        uid=metadata.uid,
        created=metadata.creationTimestamp or "",
        annotations={k: v for k, v in metadata.annotations.items() if k in ANNOTATIONS},
        addresses=tuple((one.type, one.address) for one in node.status.addresses),
        pod_cidrs=tuple(spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else [])),
        network=next(
            (
                Condition(one.status, one.reason, one.message, one.lastTransitionTime or "")
                for one in node.status.conditions
                if one.type == NETWORK_UNAVAILABLE
            ),
            None,
        ),
    )


# --- what is asked of it --------------------------------------------------------------------------


class Api:
    """One client of the API server; used by one thread, but for `interrupt` and `lose`.

    Each method raises ApiFailure.
    """

    def __init__(self, access: Access) -> None:
        self.server = access.server
        with _failures(self.server):
            config, token_file = configuration(access)
            self.server = config.cluster.server
            self._transport = Transport(tls_context(config), token_file)
            self._client = Client(
                config,
                timeout=_TIMEOUT,
                field_manager="podwire",
                trust_env=False,
                transport=self._transport,
            )

    def nodes(self, take: Callable[[NodeFacts], None]) -> str:
        """Hand over all Nodes one after the other: the version of the list."""
        with _failures(self.server):
            found = self._client.list(_Node, chunk_size=_PAGE)
            for node in found:
                take(_facts(node))
            return found.resourceVersion

    def watch(self, version: str, opened: Callable[[], None]) -> Iterator[Event]:
        """What happens to Nodes after `version`, until the server ends it, after some minutes, or
        has been silent for long."""
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311 - to spread, not to hide
        self._transport.expect_watch(opened)
        try:
            with _failures(self.server):
                for kind, node in self._client.watch(
                    _Node, resource_version=version, server_timeout=seconds
                ):
                    yield Event(kind, _facts(node), node.metadata.resourceVersion)
        except WatchEndedError:
            return
        finally:
            self._transport.watch_is_over()

    def patch_status(self, name: str, patch: dict[str, Any]) -> NodeFacts:
        """Merge `patch` into the Node's status and annotations, conditions by their types; its spec
        can't be reached this way: the Node as it is then."""
        with _failures(self.server):
            return _facts(
                self._client.patch(_NodeStatus, name, patch, patch_type=PatchType.STRATEGIC)
            )

    def create_event(self, event: dict[str, Any]) -> None:
        """Create a v1 Event, given as the API has it, in the namespace of its metadata."""
        with _failures(self.server):
            self._client.create(msgspec.convert(event, core_v1.Event))

    def interrupt(self) -> None:
        """Make `watch` end; any thread may call it."""
        self._transport.interrupt()

    def lose(self, address: str) -> None:
        """Break off what comes from this address of the node's; any thread may call it."""
        self._transport.lose(address)

    def close(self) -> None:
        self._client.close()


@contextmanager
def _failures(server: str) -> Iterator[None]:
    try:
        yield
    except RefusedError as e:
        raise ApiFailure(f"{server}: {e}", gone=e.code == _GONE) from e
    except ApiError as e:  # what a watch says in the place of an event
        status = e.status
        code = f" ({status.code})" if status.code else ""
        words = status.message or status.reason or "the watch ends with an error without a word"
        raise ApiFailure(f"{server}: {words}{code}", gone=status.code == _GONE) from e
    except TooLargeError as e:
        raise ApiFailure(f"{server}: {e}") from e
    except (httpx2.HTTPError, httpx2.StreamError) as e:
        raise ApiFailure(f"{server}: {type(e).__name__}: {e}") from e
    except (ConfigError, OSError) as e:
        raise ApiFailure(f"no access to the API server: {e}") from e
    except (
        msgspec.MsgspecError,
        httpx2.InvalidURL,
        ValueError,
        LookupError,
        RecursionError,
    ) as e:
        raise ApiFailure(f"{server}: not what an API server says: {e}") from e
