"""A store of reservations in memory, as `ipam.allocator` wants one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cni_plugin.spec import Attachment, IPAddress


class MemoryStore:
    """Addresses in `unreadable` are taken and nobody's until `reclaim`."""

    def __init__(self, unreadable: Iterable[IPAddress] = ()) -> None:
        self.reserved: dict[IPAddress, Attachment] = {}
        self.cursors: dict[int, IPAddress] = {}
        self.unreadable = set(unreadable)
        self.asked = 0
        self.listed = 0

    def held(self, attachment: Attachment) -> list[IPAddress]:
        return self._of(attachment) or self._of(attachment._replace(ifname=""))

    def _of(self, attachment: Attachment) -> list[IPAddress]:
        return [address for address, holder in self.reserved.items() if holder == attachment]

    def holder(self, address: IPAddress) -> Attachment | None:
        return self.reserved.get(address)

    def taken(self, address: IPAddress) -> bool:
        self.asked += 1
        return address in self.reserved or address in self.unreadable

    def names(self) -> Collection[str]:
        self.listed += 1
        return [str(address) for address in (*self.reserved, *self.unreadable)]

    def cursor(self, range_set: int) -> IPAddress | None:
        return self.cursors.get(range_set)

    def reserve(self, address: IPAddress, attachment: Attachment, range_set: int | None) -> bool:
        if address in self.reserved or address in self.unreadable:
            return False
        self.reserved[address] = attachment
        if range_set is not None:
            self.cursors[range_set] = address
        return True

    def release(self, address: IPAddress, attachment: Attachment) -> bool:
        if self.reserved.get(address) != attachment:
            return False
        del self.reserved[address]
        return True

    def reclaim(self) -> None:
        self.unreadable.clear()
