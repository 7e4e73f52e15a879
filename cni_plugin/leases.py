"""Who hands out the addresses of a request: podwire's own IPAM, another plugin, or nobody.

`host-local` and `podwire-ipam` are served in process by `ipam`; any other type is executed
(`delegate`); no type means layer 2 only. To `commands` they all look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from cni_plugin.delegate import Delegate
from cni_plugin.netconf import ipam_type
from cni_plugin.spec import Attachment, IPAddress, IPInterface, IPNetwork, Request, Result
from cni_plugin.typed import Protocol
from ipam import config, host_local

IN_PROCESS = ("host-local", "podwire-ipam")


class Leases(Protocol):
    """The leases of one request."""

    def add(self) -> Result: ...
    def delete(self) -> None: ...
    def check(self, addresses: Collection[IPAddress]) -> None: ...
    def collect(self, valid: frozenset[Attachment] | None) -> None:
        """GC. None for `valid`: the runtime did not say, so nothing of ours may go."""
        ...

    def stale(self, valid: frozenset[Attachment]) -> Collection[Attachment]:
        """The attachments that hold addresses here and are not valid."""
        ...

    def status(self) -> None: ...
    def holds(self) -> bool:
        """Whether the attachment is known to hold an address here."""
        ...

    def gateways(self) -> tuple[IPInterface, ...]:
        """The gateways of all ranges, as far as they are known here."""
        ...


class _HostLocal:
    """podwire's own IPAM, in this process.

    `conf` is None for DEL and GC, which need only know where the reservations are.
    """

    def __init__(self, request: Request, conf: config.HostLocalConf | None) -> None:
        self._request = request
        self._place = config.locate(request)
        self._conf = conf

    @property
    def _strict(self) -> config.HostLocalConf:
        if self._conf is None:
            raise RuntimeError("this request was read for DEL or GC only")
        return self._conf

    def add(self) -> Result:
        return host_local.add(self._strict, self._request.attachment)

    def delete(self) -> None:
        host_local.release(self._place, self._request.attachment)

    def check(self, addresses: Collection[IPAddress]) -> None:
        host_local.check(self._strict, self._request.attachment, addresses)

    def collect(self, valid: frozenset[Attachment] | None) -> None:
        if valid is not None:
            host_local.collect(self._place, valid)

    def stale(self, valid: frozenset[Attachment]) -> Collection[Attachment]:
        return host_local.stale(self._place, valid)

    def status(self) -> None:
        host_local.status(self._strict)

    def holds(self) -> bool:
        return host_local.holds(self._place, self._request.attachment)

    def gateways(self) -> tuple[IPInterface, ...]:
        return self._strict.gateways


class _Delegated:
    def __init__(self, delegate: Delegate) -> None:
        self._delegate = delegate

    def add(self) -> Result:
        return self._delegate.add()

    def delete(self) -> None:
        self._delegate.delete()

    def check(self, addresses: Collection[IPAddress]) -> None:
        self._delegate.check()

    def collect(self, valid: frozenset[Attachment] | None) -> None:
        self._delegate.collect()

    def stale(self, valid: frozenset[Attachment]) -> Collection[Attachment]:
        return ()

    def status(self) -> None:
        self._delegate.status()

    def holds(self) -> bool:
        return False

    def gateways(self) -> tuple[IPInterface, ...]:
        return ()


class _Nobody:
    """Layer 2 only: no addresses, nothing to release."""

    def add(self) -> Result:
        return Result()

    def delete(self) -> None:
        pass

    def check(self, addresses: Collection[IPAddress]) -> None:
        pass

    def collect(self, valid: frozenset[Attachment] | None) -> None:
        pass

    def stale(self, valid: frozenset[Attachment]) -> Collection[Attachment]:
        return ()

    def status(self) -> None:
        pass

    def holds(self) -> bool:
        return False

    def gateways(self) -> tuple[IPInterface, ...]:
        return ()


def of(
    request: Request,
    environ: Mapping[str, str],
    subnets: tuple[IPNetwork, ...] | None = None,
    refuse_foreign: Callable[[IPNetwork], None] = lambda subnet: None,
    interrupted: Callable[[], bool] = lambda: False,
    strict: bool = True,
) -> Leases:
    """The leases of a request. `subnets` are the node's podCIDRs, from an inventory if any;
    `refuse_foreign` raises CniError for a range that is another node's.

    `strict` reads the whole ipam section now, and raises CniError 7 for what is wrong in it; DEL
    and GC need only know where the reservations are.
    """
    kind = ipam_type(request.conf)
    if not kind:
        return _Nobody()
    if kind in IN_PROCESS:
        conf = config.parse(request, subnets, refuse_foreign) if strict else None
        return _HostLocal(request, conf)
    return _Delegated(Delegate(kind, request, environ, interrupted))


def own(request: Request, strict: bool = True) -> Leases:
    """The leases of a request to `podwire-ipam` itself, whatever name it was called by."""
    return _HostLocal(request, config.parse(request) if strict else None)
