"""GC: what belongs to attachments that the runtime no longer knows.

GC goes on after an error, and reports them all (specification, GC).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cni_plugin import additions, leases, names, takeover, upkeep
from cni_plugin.fields import Fields, invalid
from cni_plugin.kernel import detach
from cni_plugin.node import Node
from cni_plugin.spec import Attachment, CniError, Code, Request

_VALID_ATTACHMENTS = "cni.dev/valid-attachments"


def collect(request: Request, node: Node) -> bytes:
    """Remove what belongs to attachments that are not valid; without a list of them nothing."""
    valid = valid_attachments(request)
    source = leases.of(request, node.environ, strict=False)
    if valid is None:
        source.collect(None)
        return b""
    sweep = _Sweep(request, node, source, valid)
    sweep.run()
    if sweep.failures:
        first = sweep.failures[0]
        raise CniError(
            first.code if len(sweep.failures) == 1 else Code.GC_INCOMPLETE,
            "; ".join(failure.msg for failure in sweep.failures),
            first.details,
        )
    return b""


class _Sweep:
    """One GC: it goes on after an error, and what is still in use keeps its addresses."""

    def __init__(
        self, request: Request, node: Node, source: leases.Leases, valid: frozenset[Attachment]
    ) -> None:
        self._request = request
        self._node = node
        self._source = source
        self._valid = valid
        self._kept = set(valid)
        self.failures: list[CniError] = []

    def run(self) -> None:
        self._attempt(self._close_ports)
        self._attempt(self._unlimit)
        self._attempt(self._forget_others)
        self._attempt(self._remove_links)
        self._attempt(lambda: self._source.collect(frozenset(self._kept)))
        if not self._kept:
            self._attempt(lambda: upkeep.forget(self._node.fabric, self._request.network))

    def _attempt(self, step: Callable[[], object], attachment: Attachment | None = None) -> None:
        try:
            step()
        except CniError as e:
            self.failures.append(e)
            if attachment is not None:
                self._kept.add(attachment)

    def _close_ports(self) -> None:
        node, network = self._node, self._request.network
        self._attempt(lambda: additions.collect_ports(node, network, self._valid))
        for attachment in additions.port_strays(node, network, self._valid).values():
            self._attempt(partial(additions.close_ports, node, network, attachment), attachment)

    def _unlimit(self) -> None:
        node, network = self._node, self._request.network
        for attachment in additions.limit_strays(node, network, self._valid):
            self._attempt(partial(additions.unlimit, node, network, attachment))

    def _forget_others(self) -> None:
        """What the Go plugins left for pods that they made."""
        node, network = self._node, self._request.network
        for attachment in self._source.stale(self._valid):
            if not takeover.is_own(node, network, attachment):
                failure = takeover.forget(node, self._request, attachment, None)
                self.failures += [failure] if failure is not None else []

    def _remove_links(self) -> None:
        strays = _stray_links(self._request, self._node, self._source, self._valid)
        for name, attachment in strays.items():
            self._attempt(partial(self._node.remove_links, name), attachment)


def _stray_links(
    request: Request, node: Node, source: leases.Leases, valid: frozenset[Attachment]
) -> dict[str, Attachment]:
    """Links of attachments that are not valid, by name: host veths, and what limits their traffic.

    Found by their aliases, and by the names that the reservations imply: an ADD that was killed
    early has a link without an alias.
    """
    aliases = frozenset(names.alias(request.network, attachment) for attachment in valid)
    prefix = names.alias_prefix(request.network)
    strays = {
        name: names.attachment_of(alias)
        for name, alias in detach.strays(node.route_socket, prefix, aliases)
    }
    for attachment in source.stale(valid):
        strays.setdefault(names.host_veth_name(request.network, attachment), attachment)
        strays.setdefault(names.ifb_name(request.network, attachment), attachment)
    return strays


def valid_attachments(request: Request) -> frozenset[Attachment] | None:
    """cni.dev/valid-attachments; None when absent or null, and then nothing may be removed."""
    fields = Fields(request.conf)
    if not fields.has(_VALID_ATTACHMENTS):
        return None
    return frozenset(_attachment_of(entry) for entry in fields.children(_VALID_ATTACHMENTS))


def _attachment_of(entry: Fields) -> Attachment:
    container_id, ifname = entry.text("containerID"), entry.text("ifname")
    if not container_id or not ifname:
        raise invalid(entry.path, dict(entry.obj), "expected containerID and ifname")
    return Attachment(container_id, ifname)
