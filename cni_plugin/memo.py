"""What a configuration says, remembered by its bytes.

The pods of a node come with the same configuration, and reading it, with its addresses and its
checks, is a tenth of an ADD's work. Only functions of their key go through here, so a process that
remembers gives the answers of one that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from cni_plugin.typed import Any

_ENTRIES = 16
_LARGEST = 16 * 1024  # bytes of a configuration: one that is larger holds a pod's own matters


class Memo:
    """The last few results of one function."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def of(self, make: Callable[[], Any], config: bytes, *more: Hashable) -> Any:
        """`make()`, or what it gave for this configuration and `more`, which is all it looks at.

        What raises is not remembered, and neither is anything of a request without bytes.
        """
        if not 0 < len(config) <= _LARGEST:
            return make()
        key = (config, *more)
        found = self._known.get(key)
        if found is None:
            found = make()
            if len(self._known) >= _ENTRIES:
                self._known.clear()
            self._known[key] = found
        return found
