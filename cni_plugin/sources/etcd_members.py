"""The members that a range of keys tells of, kept as events come. Pure.

Several keys may tell of one member: the subnets of both families of a node, and, for a while, the
one that a host had before. What the youngest key says counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cni_plugin.sources import Gone, Member, Put
from cni_plugin.sources.etcd_messages import Event, KeyValue

Reader = Callable[[KeyValue], Member]
"""The member that a key tells of."""


class Members:
    """What the keys say, and what of it was told."""

    def __init__(self, read: Reader, kvs: Iterable[KeyValue]) -> None:
        self._read = read
        self._keys: dict[str, tuple[int, Member]] = {}
        self._of: dict[str, set[str]] = {}
        for kv in kvs:
            self._hold(kv)
        self._told = {name: self._youngest(name) for name in self._of}

    def all(self) -> tuple[Member, ...]:
        """As last told."""
        return tuple(self._told.values())

    def keys(self, name: str) -> frozenset[str]:
        """Those that tell of the member of that name."""
        return frozenset(self._of.get(name, ()))

    def apply(self, events: Iterable[Event]) -> list[Put | Gone]:
        """What is other than told, after all of the events."""
        touched: dict[str, None] = {}
        for event in events:
            touched |= dict.fromkeys(self._release(event.kv.key))
            if not event.deleted:
                touched[self._hold(event.kv)] = None
        changes: list[Put | Gone] = []
        for name in touched:
            if name not in self._of:
                if self._told.pop(name, None) is not None:
                    changes.append(Gone(name))
                continue
            member = self._youngest(name)
            if self._told.get(name) != member:
                self._told[name] = member
                changes.append(Put(member))
        # An address, or a subnet, may go from one to another.
        return sorted(changes, key=lambda change: isinstance(change, Put))

    def _hold(self, kv: KeyValue) -> str:
        member = self._read(kv)
        self._keys[kv.key] = (kv.create_revision, member)
        self._of.setdefault(member.name, set()).add(kv.key)
        return member.name

    def _release(self, key: str) -> list[str]:
        if key not in self._keys:
            return []
        name = self._keys.pop(key)[1].name
        self._of[name].discard(key)
        if not self._of[name]:
            del self._of[name]
        return [name]

    def _youngest(self, name: str) -> Member:
        key = max(self._of[name], key=lambda key: (self._keys[key][0], key))
        return self._keys[key][1]
