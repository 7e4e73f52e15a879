"""The node's nftables ruleset, made and kept as `ruleset.NodeRules` says.

Rules:
- One transaction makes all differences good: no packet ever meets half a ruleset.
- A transaction holds only for the ruleset that was looked at: when somebody changes it meanwhile,
  it is looked at again. So any number of processes may do this at once, and none undoes another's.
- What others made is left alone, but for the rules that `forwardaccept` keeps there.
- The elements of the host-port maps belong to others here, and no repair touches them. When
  somebody removed the maps themselves, they are made anew, with what `refill` has for them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from time import sleep

from cni_plugin.kernel import forwardaccept, nftlayout, nftview
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.kernel.nfnetlink import NEEDED, NetfilterSocket
from cni_plugin.kernel.tablerepair import Repair, removal, table_repairs
from cni_plugin.ruleset import TABLE, FamilyRules, NodeRules
from cni_plugin.spec import CniError, Code

_TRIES = 40
_PAUSE_S = 0.0005  # before the second try; grows with each
_MISSING = (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EINVAL)
_IN_THE_WAY = (errno.EBUSY, errno.EEXIST, errno.ENOENT)

Refill = Callable[[int], Sequence[Message]]
"""The messages that fill the host-port maps of an IP version from what is remembered."""


class Firewall:
    """The ruleset of the namespace that the socket was opened in; who calls must be in it too."""

    def __init__(self, socket: NetfilterSocket) -> None:
        self._socket = socket
        self._generation = 0
        self._verified: NodeRules | None = None
        self.said: tuple[str, ...] = ()  # what the last `ensure` put right in nftables, in words
        self._tables: dict[tuple[FamilyRules, int], nftlayout.TableLayout] = {}

    # --- keeping --------------------------------------------------------------------------------

    def ensure(
        self,
        rules: NodeRules,
        reread: Callable[[], NodeRules] | None = None,
        refill: Refill | None = None,
    ) -> bool:
        """Make the ruleset what `rules` say; whether something had to be changed.

        With `reread`, rules that may have become old are read again before anything is changed:
        who writes down a new want before it calls this never sees it undone.

        Raises CniError 104 when the kernel can't, 11 when others change the ruleset all the time.
        """
        generation = self._current()
        if generation == self._generation and rules == self._verified:
            self.said = ()
            return bool(forwardaccept.keep_legacy(rules.accept))
        for attempt in range(_TRIES):
            if attempt:
                sleep(_PAUSE_S * attempt)
                generation = self._current()
            if reread is not None:
                rules = reread()
            done = self._try(rules, generation, refill)
            if done is not None:
                return bool(forwardaccept.keep_legacy(rules.accept)) or done
        raise CniError(
            Code.TRY_AGAIN_LATER,
            "somebody changes the nftables ruleset all the time",
            "see with `nft monitor` who it is",
        )

    def _try(
        self, rules: NodeRules, generation: int, refill: Refill | None, rebuild: bool = False
    ) -> bool | None:
        """Whether something was changed; None when the ruleset moved meanwhile.

        What somebody put into podwire's table may hold on to parts of it that have to go, or the
        kernel may not find what has to go: then the table is made anew.
        """
        repairs = self._repairs(rules, rebuild)
        emptied = {version for repair in repairs for version in repair.emptied}
        messages = [message for repair in repairs for message in repair.messages]
        if refill is not None:
            messages += (message for version in sorted(emptied) for message in refill(version))
        if messages:
            try:
                self._socket.transaction(messages, generation)
            except KernelError as e:
                if e.errno == errno.ERESTART:
                    return None
                if e.errno in _IN_THE_WAY and not rebuild:
                    return self._try(rules, generation, refill, rebuild=True)
                raise _explained(e) from e
            generation = _next(generation)
        self._generation, self._verified = generation, rules
        self.said = tuple(repair.words for repair in repairs)
        return bool(messages)

    def transaction(self, messages: Sequence[Message]) -> None:
        """A transaction of this process's own, which leaves the ruleset as `ensure` knows it:
        elements of the host-port maps."""
        if self._generation:
            try:
                self._socket.transaction(messages, self._generation)
            except KernelError as e:
                if e.errno != errno.ERESTART:
                    raise
            else:
                self._generation = _next(self._generation)
                return
        self._socket.transaction(messages)

    def remove(self) -> bool:
        """Take away all that podwire has in nftables; whether there was something."""
        return self.ensure(NodeRules((), ()))

    # --- looking --------------------------------------------------------------------------------

    def differences(self, rules: NodeRules) -> list[str]:
        """What `ensure` would change, in words."""
        found = self.legacy_differences(rules)
        if self._current() != self._generation or rules != self._verified:
            found += [repair.words for repair in self._repairs(rules)]
        return found

    def legacy_differences(self, rules: NodeRules) -> list[str]:
        """Those of them that the ruleset's generation says nothing about: iptables-legacy's."""
        return [
            f"iptables-legacy's IPv{version} chain FORWARD is not as the pods need it"
            for version in forwardaccept.keep_legacy(rules.accept, change=False)
        ]

    def _repairs(self, rules: NodeRules, rebuild: bool = False) -> list[Repair]:
        chains = nftview.chains(self._socket)
        tables = {family.version: self._table(family, rules.mark) for family in rules.families}
        found: list[Repair] = []
        for version in (4, 6):
            wanted = tables.get(version)
            own = {c.name: c for c in chains if c.table == TABLE and c.version == version}
            seen = nftview.table(self._socket, version, wanted)
            if wanted is not None:
                found += table_repairs(wanted, seen, own, rebuild)
            elif seen is not None:
                found.append(removal(version))
        found += forwardaccept.repairs(self._socket, chains, rules.accept)
        return found

    def _table(self, family: FamilyRules, mark: int) -> nftlayout.TableLayout:
        key = (family, mark)
        if key not in self._tables:
            if len(self._tables) > 1:
                self._tables.clear()
            self._tables[key] = nftlayout.table(family, mark)
        return self._tables[key]

    def _current(self) -> int:
        try:
            return self._socket.generation()
        except KernelError as e:
            raise _explained(e) from e


def _next(generation: int) -> int:
    """The number after a transaction: 0 is left out (net/netfilter/nf_tables_api.c)."""
    return (generation + 1) & 0xFFFF_FFFF or 1


def _explained(error: KernelError) -> CniError:
    """The error, with what the kernel lacks when that is the reason."""
    if error.errno not in _MISSING:
        return error
    return CniError(Code.KERNEL_REFUSED, error.msg, NEEDED)
