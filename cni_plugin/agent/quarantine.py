"""Peers that the kernel refuses: found, left out, and let in again; the others have their ways.

Rules:
- Nobody who was all right loses its way to the search for who is not.
- What can be seen (others' routes in the way) is seen in one look, for any number of peers; the
  rest is found by trial, some of them each time.
- Who was seen is looked at again when the kernel has told of a change here. Who was found by trial
  is tried again after a while, sooner after such a change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import shuffle
from time import monotonic
from typing import NamedTuple

from cni_plugin.agent import fitting
from cni_plugin.fabric import Memory
from cni_plugin.membership import Refusal
from cni_plugin.spec import CniError, Code
from ipam.inventory import Node

_AGAIN_S = 300.0
_SOON_S = 10.0  # after something has changed here; twice as long each time that it was of no use
_OWN = (Code.IO_FAILURE, Code.TRY_AGAIN_LATER, Code.PERMISSION_DENIED)  # no peer is at fault
_MOST = 16  # peers that one search finds by trial


class _Out(NamedTuple):
    """A node that is left out, and why; "" while it has not been tried. `here` says that it is for
    something of this node's, `seen` that it was seen without a trial."""

    node: Node
    why: str
    here: bool = False
    seen: bool = False


class Quarantine:
    """Peers that the kernel, or something of this node's, stands in the way of.

    `own` is this node's name. `look` tells in one go which of some nodes can't be peers of the
    first one, and why. `memory` tells when something has happened here.
    """

    def __init__(
        self,
        own: str,
        memory: Memory,
        look: Callable[[Node, Sequence[Node]], Mapping[str, str]],
    ) -> None:
        self._own = own
        self._memory = memory
        self._look = look
        self._out: dict[str, _Out] = {}
        self._looked_epoch = self._tried_epoch = -1
        self._looked_at = self._since = 0.0  # when nodes were seen, and tried, the last time
        self._pause_s = _SOON_S
        self._tried: frozenset[Node] = frozenset()  # those that were found by it
        self._good: tuple[Node, ...] = ()

    @property
    def refusals(self) -> list[Refusal]:
        """Of which only this node knows: `holder` says so."""
        what = f"has to do without ways from node {self._own}"
        return [
            Refusal(name, fitting.UNFIT, f"node {name} {what}: {each.why}", self._own)
            for name, each in sorted(self._out.items())
            if each.why
        ]

    @property
    def is_waiting(self) -> bool:
        """Whether a change of this node's routes may let somebody in."""
        return any(each.here for each in self._out.values())

    @property
    def is_done(self) -> bool:
        """Whether all were tried."""
        return all(each.why for each in self._out.values())

    def isolated(self, nodes: Sequence[Node]) -> str:
        """Why no other node with pods could be reached for what is wrong here, in words; "" when
        one can be, when there is none, and when it is they who are wrong.

        A node can't know that for sure of one peer alone, unless it sees what is in the way. Of
        several with the same failure, or of very many, it is not they.
        """
        if not self._out:
            return ""
        peers = [node for node in nodes if node.name != self._own and node.pod_cidrs]
        still = set(self._still_out(nodes))
        if not peers or any(node.name not in still for node in peers):
            return ""
        out = [self._out[node.name] for node in peers]
        first = next((each for each in out if each.here), out[0])
        alike = len(out) > 1 and len({each.why for each in out}) == 1
        if not (first.here or alike or len(out) > _MOST):
            return ""
        return f"pods would reach no other node ({len(peers)} are left out): {first.why}"

    def trust(self, nodes: Sequence[Node]) -> None:
        """These were all right the last time."""
        self._good = tuple(nodes)

    def admitted(self, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """Those that nothing was found to stand in the way of; sorted by their names."""
        return fitting.without(nodes, self._still_out(nodes))

    def _still_out(self, nodes: Sequence[Node]) -> list[str]:
        return [
            name for name, each in self._out.items() if fitting.of_name(nodes, name) == each.node
        ]

    def bring(
        self,
        nodes: tuple[Node, ...],
        attempt: Callable[[tuple[Node, ...]], None],
        search: bool = True,
    ) -> None:
        """Have `attempt` succeed with as many of the nodes as can be; raises CniError when it does
        not even with this node alone, when very many fail and none succeeds, and without a
        `search` for whoever stands in the way.

        Who was all right goes first, so that nobody loses its way to the search.
        """
        if search:
            self._release(nodes)
        held = self.admitted(nodes)
        try:
            attempt(held)
        except CniError as e:
            if e.code in _OWN or not search:
                raise
            held = self._search(held, attempt)
        self._out = {name: self._out[name] for name in self._still_out(nodes)}
        self.trust(held)

    def _release(self, nodes: tuple[Node, ...]) -> None:
        """Let those out for whom it may be another thing now."""
        if not self._out:
            return
        memory = self._memory
        epoch, waited = memory.epoch, monotonic() - self._since
        is_due = waited > _AGAIN_S or (epoch != self._tried_epoch and waited > self._pause_s)
        found = {
            name: each for name, each in self._out.items() if each.why and (each.seen or not is_due)
        }
        seen = [each.node for each in found.values() if each.seen]
        is_old = monotonic() - self._looked_at > _AGAIN_S or not memory.watched
        if seen and (is_old or epoch != self._looked_epoch):
            still = self._seen(nodes, seen)
            found = {name: still.get(name, each) for name, each in found.items()}
            found = {name: each for name, each in found.items() if name in still or not each.seen}
        self._out = found

    def _seen(self, nodes: Sequence[Node], some: Sequence[Node]) -> dict[str, _Out]:
        """Those of some nodes for which it takes no trial."""
        self._looked_epoch, self._looked_at = self._memory.epoch, monotonic()
        own = fitting.of_name(nodes, self._own)
        whys = self._look(own, some) if own is not None else {}
        return {n.name: _Out(n, whys[n.name], True, True) for n in some if n.name in whys}

    def _search(
        self, nodes: tuple[Node, ...], attempt: Callable[[tuple[Node, ...]], None]
    ) -> tuple[Node, ...]:
        seen = self._seen(nodes, nodes)
        self._out |= seen
        nodes = fitting.without(nodes, seen)
        try:
            attempt(nodes)
        except CniError as e:
            if e.code in _OWN:
                raise
            return self._try_each(nodes, attempt, e)
        return nodes

    def _try_each(
        self,
        nodes: tuple[Node, ...],
        attempt: Callable[[tuple[Node, ...]], None],
        failure: CniError,
    ) -> tuple[Node, ...]:
        """Whoever is not tried in the end is the next time. In no order that others could know:
        so that whoever fits is found soon, however many don't."""
        self._tried_epoch = self._memory.epoch
        good = self._base(nodes, attempt)
        known = set(good)
        groups = [[node for node in nodes if node not in known]]
        shuffle(groups[0])
        found: dict[str, _Out] = {}
        while groups and len(found) <= _MOST:
            group = groups.pop()
            try:
                if group:
                    attempt(tuple(sorted((*good, *group), key=_name)))
                good = tuple(sorted((*good, *group), key=_name))
            except CniError as e:
                if e.code in _OWN:
                    raise
                if len(group) == 1:
                    here = e.code == Code.LINK_CONFLICT
                    found[group[0].name] = _Out(group[0], e.msg, here)
                else:
                    groups += [group[len(group) // 2 :], group[: len(group) // 2]]
        self._out |= found
        self._note(frozenset(each.node for each in found.values()))
        untried = [node for group in groups for node in group]
        if untried and len(good) < 2:
            raise failure
        attempt(good)
        self._out |= {node.name: _Out(node, "") for node in untried}
        return good

    def _base(
        self, nodes: tuple[Node, ...], attempt: Callable[[tuple[Node, ...]], None]
    ) -> tuple[Node, ...]:
        """This node, and those that were all right if they still are."""
        trusted = {node.name: node for node in self._good}
        alone = tuple(node for node in nodes if node.name == self._own)
        good = tuple(n for n in nodes if n.name == self._own or trusted.get(n.name) == n)
        try:
            attempt(good)
        except CniError as e:
            if e.code in _OWN or good == alone:
                raise
            attempt(alone)
            return alone
        return good

    def _note(self, found: frozenset[Node]) -> None:
        again = found == self._tried
        self._pause_s = min(2 * self._pause_s, _AGAIN_S) if again else _SOON_S
        self._tried, self._since = found, monotonic()


def _name(node: Node) -> str:
    return node.name
