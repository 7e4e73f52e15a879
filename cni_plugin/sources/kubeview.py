"""What a source of Kubernetes has heard and told: which changes of Nodes are changes of members."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from cni_plugin.sources import Away, Change, Gone, Listed, Member, Put
from cni_plugin.sources.kubenode import NodeFacts, member_of
from cni_plugin.sources.kubetypes import ApiFailure, Event, NodeApi


class Own:
    """What is known of the own Node; the thread that follows and the one that tells share it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = Lock()
        self._facts: NodeFacts | None = None

    def note(self, facts: NodeFacts) -> None:
        """Take in what a Node is now, if it is the own one."""
        if facts.name == self.name:
            with self._lock:
                self._facts = facts

    def forget(self, name: str) -> None:
        if name == self.name:
            with self._lock:
                self._facts = None

    def known(self) -> NodeFacts:
        """Raises ApiFailure when there is no such Node, or nothing was heard yet."""
        with self._lock:
            if self._facts is None:
                raise ApiFailure(f"the cluster has not told of a node {self.name} yet")
            return self._facts


class View:
    """What was heard and told: members by name, and the version up to which it is complete."""

    def __init__(self, tell: Callable[[Change], None], own: Own) -> None:
        self._tell, self._own = tell, own
        self._members: dict[str, Member] = {}
        self._away = False
        self._heard = False
        self.version = ""

    def member(self, node: NodeFacts) -> Member:
        """The member of a Node; the one that is known when it is equal, not to have two."""
        made = member_of(node)
        known = self._members.get(node.name)
        return known if known == made else made

    def read_list(self, api: NodeApi) -> None:
        """Raises ApiFailure, and nothing has changed then."""
        members: dict[str, Member] = {}
        own: list[NodeFacts] = []

        def take(node: NodeFacts) -> None:
            members[node.name] = self.member(node)
            if node.name == self._own.name:
                own.append(node)

        self.version = api.nodes(take)
        self._members = members
        self._own.forget(self._own.name)
        for node in own:
            self._own.note(node)
        self._away = False
        self._tell_all()

    def opened(self) -> None:
        """A watch goes on from `version`: after a while away, say that what was told holds."""
        if self._away:
            self._away = False
            self._tell_all()

    def apply(self, event: Event) -> None:
        self._heard = True
        node = event.node
        if event.kind == "DELETED":
            self._own.forget(node.name)
            if self._members.pop(node.name, None) is not None:
                self._tell(Gone(node.name))
        elif event.kind in ("ADDED", "MODIFIED"):
            self._own.note(node)
            member = self.member(node)
            if self._members.get(node.name) is not member:
                self._members[node.name] = member
                self._tell(Put(member))
        self.version = event.version or self.version

    def tell_away(self, reason: str) -> None:
        if not self._away:
            self._away = True
            self._tell(Away(reason))

    def take_heard(self) -> bool:
        """Whether any event was heard since the last call."""
        heard, self._heard = self._heard, False
        return heard

    def _tell_all(self) -> None:
        self._tell(Listed(tuple(self._members.values())))
