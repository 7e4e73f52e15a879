"""Which network configuration a node goes by: the one that all nodes share, as long as it can be.

A mounted ConfigMap may change under a running agent, and what somebody mistypes there reaches all
nodes at once. So a configuration that can't be used costs no node its pods: the one before it stays
in force, and what is wrong is said.

Rules:
- In this order: what is shared now; what was brought about last; after a start, what the file in
  place was made of.
- What is wrong by itself is found out before anything is touched. What was tried, and failed where
  another one did not, is not tried again for a while: it might cut off pods each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json import loads
from time import monotonic
from typing import Any, TypeVar

from cni_plugin import conflists, wholefiles
from cni_plugin.fabric import Stamp, exact_stamp
from cni_plugin.fields import shown
from cni_plugin.spec import CniError, Code

_AGAIN_S = 300.0
_Found = TypeVar("_Found")
Shared = Mapping[str, Any]
"""A network configuration without subnets: a plugin list, or one plugin."""


class Template:
    """The configuration that all nodes share, in a file that may change at any time."""

    def __init__(self, path: str = "", adapt: Callable[[Shared], Shared] = dict) -> None:
        """`path`: "" for podwire's own configuration; `adapt` adds what the cluster wants of it."""
        self.path = path
        self._adapt = adapt

    def read(self) -> Shared:
        """What the file says now. Raises CniError 5 and 7."""
        if not self.path:
            return self._adapt(conflists.default_template())
        try:
            data = wholefiles.read(self.path)
        except OSError as e:
            raise CniError(Code.IO_FAILURE, f"{self.path}: {e.strerror}") from e
        if data is None:
            raise CniError(Code.IO_FAILURE, f"{self.path}: no such file")
        try:
            found = loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as e:
            raise CniError(Code.INVALID_CONFIG, f"{self.path}: not valid JSON: {e}") from e
        if not isinstance(found, dict):
            wanted = f"expected a JSON object, got {shown(found)}"
            raise CniError(Code.INVALID_CONFIG, f"{self.path}: {wanted}")
        return self._adapt(found)

    def stamp(self) -> Stamp:
        """What changes with the file, or with what a link there leads to."""
        return exact_stamp(self.path) if self.path else ()


class Templates:
    """The choice, for one thread. `placed` is the path of the configuration that was written."""

    def __init__(self, shared: Template, placed: str) -> None:
        self._shared = shared
        self._placed = placed
        self._good: Shared | None = None
        self._failed: tuple[Shared, CniError, float] | None = None
        self.problem = ""  # why it is not what is shared that is in force; "" when it is

    def stamp(self) -> Stamp:
        return self._shared.stamp()

    def use(
        self, check: Callable[[Shared], None], attempt: Callable[[Shared, bool], _Found]
    ) -> _Found:
        """What `attempt` returns for the first that it succeeds with; `check` changes nothing. An
        attempt is told whether it is a trial: another one is at hand when it fails.

        Raises the CniError of the configuration that is shared when no other one can be used
        either.
        """
        try:
            shared = self._read(check)
        except CniError as e:
            failure, former = e, self._good or self._of_placed()
        else:
            former = self._good
            trial = former is not None and former != shared
            try:
                found = _trial(lambda: attempt(shared, True)) if trial else attempt(shared, False)
            except CniError as e:
                failure = e
            else:
                self._good, self._failed, self.problem = shared, None, ""
                return found
            if not trial:
                raise failure
            self._failed = shared, failure, monotonic()
        self.problem = ""
        if former is None:
            raise failure
        try:
            check(former)
            found = attempt(former, False)
        except CniError:
            self._failed = None  # whatever it is, it is not what was changed
            raise failure from None
        self._good = former
        self.problem = f"the network configuration before stays in force: {failure.msg}"
        return found

    def _read(self, check: Callable[[Shared], None]) -> Shared:
        """What is shared now, checked; raises the CniError that it has met when it was tried."""
        shared = self._shared.read()
        try:
            _trial(lambda: check(shared))
        except CniError as e:
            path = self._shared.path
            raise CniError(e.code, f"{path}: {e.msg}" if path else e.msg, e.details) from e
        if self._failed is not None:
            known, failure, since = self._failed
            if known == shared and monotonic() - since < _AGAIN_S:
                raise failure
        return shared

    def _of_placed(self) -> Shared | None:
        """What the configuration in place was made of, if it is one of ours."""
        try:
            data = wholefiles.read(self._placed)
        except OSError:
            return None  # it is said where it is written
        return None if data is None else conflists.template_of(data.decode("utf-8", "replace"))


def _trial(trial: Callable[[], _Found]) -> _Found:
    """What it returns. What nobody has foreseen about a configuration is a failure of that
    configuration too: CniError 199."""
    try:
        return trial()
    except CniError:
        raise
    except Exception as e:
        raise CniError(Code.INTERNAL, f"{type(e).__name__}: {e}") from e
