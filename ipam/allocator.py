"""Which address next: the strategy, which is pure, and `allocate`, which carries it out.

The first half decides and knows no store. The second half drives one: it reserves what was chosen,
and gives it back when the rest of the attachment fails.

Round robin: the search starts behind the address that was handed out last, runs to the end of its
range, through the other ranges of the set and around. So an address that became free is not
handed out again until the whole set has been run through, and a pod that crashes in a loop does
not get the address that its neighbours still have in their caches.

Cost: the first `PROBES` candidates are asked for one by one; on a node with free addresses the
first is nearly always free. Only when all of them are taken are the names of the reservations
listed, once, and the rest is membership in that set. So the usual cost does not depend on how
many reservations exist, nor on the size of the range, and the worst is one listing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from itertools import islice

from cni_plugin.fields import shown
from cni_plugin.spec import Attachment, CniError, Code, IPAddress, IPConfig
from cni_plugin.typed import Protocol
from ipam.ranges import RangeSet, describe, find, withheld

PROBES = 64


class Store(Protocol):
    """Reservations of one network, under a lock that its owner holds."""

    def held(self, attachment: Attachment) -> list[IPAddress]:
        """The addresses of the attachment; if none, those that name only its container."""

    def holder(self, address: IPAddress) -> Attachment | None:
        """Who holds the address; None when it is free, or taken by something unreadable."""

    def taken(self, address: IPAddress) -> bool:
        """Whether the address can't be reserved."""

    def names(self) -> Collection[str]:
        """The texts of all addresses that can't be reserved."""

    def cursor(self, range_set: int) -> IPAddress | None:
        """The address of the range set that was reserved last."""

    def reserve(self, address: IPAddress, attachment: Attachment, range_set: int | None) -> bool:
        """Reserves the address and moves the cursor of the range set; False when it is taken."""

    def release(self, address: IPAddress, attachment: Attachment) -> bool:
        """Frees the address; False when the attachment does not hold it."""

    def reclaim(self) -> None:
        """Frees what nobody can hold: reservations that died before they were written."""


def candidates(range_set: RangeSet, last: IPAddress | None) -> Iterator[IPAddress]:
    """Every address that may be handed out, once, in round-robin order behind `last`.

    `last` counts only when it lies in the set; otherwise the order starts at the first range.
    """
    make = IPv4Address if range_set[0].subnet.version == 4 else IPv6Address
    skipped = withheld(range_set)
    for low, high in _spans(range_set, last):
        number = low
        while number <= high:  # not range(): an IPv6 span may be longer than a C integer
            if number not in skipped:
                yield make(number)
            number += 1


def _spans(range_set: RangeSet, last: IPAddress | None) -> Iterator[tuple[int, int]]:
    """The stretches of the set in the order of the search, bounds included."""
    at = next((i for i, r in enumerate(range_set) if last is not None and r.contains(last)), None)
    if at is None or last is None:
        for entry in range_set:
            yield int(entry.start), int(entry.end)
        return
    yield int(last) + 1, int(range_set[at].end)
    for entry in range_set[at + 1 :] + range_set[:at]:
        yield int(entry.start), int(entry.end)
    yield int(range_set[at].start), int(last)


def vacant(
    range_set: RangeSet,
    last: IPAddress | None,
    taken: Callable[[IPAddress], bool],
    names: Callable[[], Collection[str]],
) -> Iterator[IPAddress]:
    """The free addresses of the set, in round-robin order behind `last`.

    `taken` asks for one address; `names` lists the texts of all that are taken, and is called
    once at most.
    """
    order = candidates(range_set, last)
    for address in islice(order, PROBES):
        if not taken(address):
            yield address
    listed: Collection[str] | None = None
    for address in order:
        if listed is None:
            listed = frozenset(names())
        if str(address) not in listed:
            yield address


def assign(
    range_sets: tuple[RangeSet, ...], requested: tuple[IPAddress, ...]
) -> tuple[IPAddress | None, ...]:
    """For each range set the address that was requested of it, None for any.

    Raises CniError 101 for an address that no set can give: outside of all ranges, withheld, or
    the second one of a set.
    """
    chosen: list[IPAddress | None] = [None] * len(range_sets)
    for address in dict.fromkeys(requested):
        index = next((i for i, s in enumerate(range_sets) if find(s, address)), None)
        if index is None:
            ranges = "; ".join(describe(range_set) for range_set in range_sets)
            raise _unavailable(address, "is outside of all ranges", f"the ranges are {ranges}")
        if int(address) in withheld(range_sets[index]):
            raise _unavailable(
                address,
                "is a gateway, network or broadcast address",
                f"request another of {describe(range_sets[index])}",
            )
        if chosen[index] is not None:
            raise _unavailable(
                address,
                f"is the second one of its range set, beside {chosen[index]}",
                "a pod gets one address from each range set: request one, or add a range set",
            )
        chosen[index] = address
    return tuple(chosen)


def _unavailable(address: IPAddress, why: str, details: str) -> CniError:
    return CniError(Code.ADDRESS_UNAVAILABLE, f"requested address {address} {why}", details)


# --- in a store -------------------------------------------------------------------------------


def allocate(
    store: Store,
    range_sets: tuple[RangeSet, ...],
    attachment: Attachment,
    wanted: tuple[IPAddress | None, ...],
) -> tuple[IPConfig, ...]:
    """One address from each set, all or none; `wanted` holds the one requested of each set."""
    _refuse_duplicate(store, range_sets, attachment)
    ips = []
    with ExitStack() as undo:
        for index, (range_set, requested) in enumerate(zip(range_sets, wanted, strict=True)):
            if requested is None:
                address = _next(store, range_set, attachment, index)
            else:
                address = _requested(store, requested, attachment, index)
            undo.callback(store.release, address, attachment)
            ips.append(_ip_config(address, range_set))
        undo.pop_all()
    return tuple(ips)


def _refuse_duplicate(
    store: Store, range_sets: tuple[RangeSet, ...], attachment: Attachment
) -> None:
    for address in store.held(attachment):
        if any(find(range_set, address) for range_set in range_sets):
            raise CniError(
                Code.DUPLICATE_ALLOCATION,
                f"{who(attachment)} holds {address} already",
                "an attachment is added once: DEL it before it is added again",
            )


def _next(store: Store, range_set: RangeSet, attachment: Attachment, index: int) -> IPAddress:
    address = _take(store, range_set, attachment, index)
    if address is None:
        store.reclaim()
        address = _take(store, range_set, attachment, index)
    if address is None:
        raise exhausted(range_set, index, Code.POOL_EXHAUSTED)
    return address


def _take(
    store: Store, range_set: RangeSet, attachment: Attachment, index: int
) -> IPAddress | None:
    for address in vacant(range_set, store.cursor(index), store.taken, store.names):
        if store.reserve(address, attachment, index):
            return address
    return None


def exhausted(range_set: RangeSet, index: int, code: int) -> CniError:
    """The error for a range set without a free address: 100 from ADD, 50 from STATUS."""
    return CniError(
        code,
        f"no free address in range set {index}: {describe(range_set)}",
        "every address is reserved: run GC or free stale ones, or configure a larger range",
    )


def _requested(store: Store, address: IPAddress, attachment: Attachment, index: int) -> IPAddress:
    if store.reserve(address, attachment, index):
        return address
    holder = store.holder(address)
    raise CniError(
        Code.ADDRESS_UNAVAILABLE,
        f"requested address {address} is reserved"
        + ("" if holder is None else f" for {who(holder)}"),
        "request another address, or free this one when its pod is gone",
    )


def _ip_config(address: IPAddress, range_set: RangeSet) -> IPConfig:
    entry = next(entry for entry in range_set if entry.contains(address))
    number = int(address), entry.subnet.prefixlen
    made = IPv4Interface(number) if address.version == 4 else IPv6Interface(number)
    return IPConfig(address=made, gateway=entry.gateway)


def who(attachment: Attachment) -> str:
    """The attachment as messages name it."""
    name = shown(attachment.container_id).strip('"')
    return f"container {name} {attachment.ifname}".rstrip()
