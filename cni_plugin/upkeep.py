"""Keeping right what a node has for all of its networks: rules, routes, the overlay.

`keep` is for an ADD and for the agent's upkeep: it remembers the network's record, and makes the
node's rules and the routes to its peers what the records of all networks and the inventories say.

Rules:
- Looking takes no lock. Who has to change the rules reads the records again for the very ruleset
  that is changed: an ADD that wrote a record meanwhile does not lose by it.
- What was verified is not looked at again as long as nobody else moved it (`fabric.Memory`).
- Networks of one node share its peers. If two records name different inventories, or reach the
  peers in different ways, those of the newest record count.
- An inventory that can't be read stops what needs it, and nothing else: the rules keep the
  destinations that were known last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from cni_plugin.fabric import Fabric, Kept, Memory, Stamp, Verified, cluster_of, way_of
from cni_plugin.kernel import tablerepair
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.noderules import Refill, drop_empty, wanted
from cni_plugin.records import NetworkRecord
from cni_plugin.ruleset import NodeRules
from cni_plugin.spec import CniError
from cni_plugin.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_plugin.cluster import Cluster

# --- keeping ----------------------------------------------------------------------------------


def keep_for(
    fabric: Fabric,
    record: NetworkRecord,
    cluster: Cluster | None,
    undo: ExitStack,
    alone: Callable[[], bool],
) -> None:
    """`keep` for one pod: if its ADD fails, the network is left as it was.

    `alone` is asked then, whether no other pod of the network is here: a network's first record
    goes only with its first pod.
    """
    if _is_kept(fabric, record):
        return
    if not fabric.records.holds(record):
        undo.callback(_take_back, fabric, record, fabric.records.of(record.network), alone)
    drop_empty(fabric, record)
    keep(fabric, record, cluster)


def _take_back(
    fabric: Fabric,
    record: NetworkRecord,
    former: NetworkRecord | None,
    alone: Callable[[], bool],
) -> None:
    """Undo of a record that took the former one's place, unless somebody changed it since."""
    if fabric.records.of(record.network) is None or not fabric.records.holds(record):
        return
    if former is not None:
        fabric.records.restore(former)
    elif alone():
        fabric.records.forget(record.network)
    else:
        return
    keep_rules(fabric)
    if former is not None and former.nodes:
        keep_peers(fabric, former)


def drop_gone(fabric: Fabric) -> list[str]:
    """Forget the networks that have no pods here any more and count against others; what was
    done, in words. The rules are the caller's to keep."""
    return [done for record in fabric.records.all() for done in drop_empty(fabric, record)]


def forget(fabric: Fabric, network: str) -> None:
    """A network has no pods here any more: take its rules away. One with peers stays, since the
    node itself reaches their pods."""
    record = fabric.records.of(network)
    if record is not None and not record.nodes:
        fabric.records.forget(network)
        keep_rules(fabric)


def keep(fabric: Fabric, record: NetworkRecord, cluster: Cluster | None = None) -> list[str]:
    """Remember the record, and make true what it and the others say; what was done, in words.

    `cluster` is the record's, if the caller has read the inventory. Raises CniError.
    """
    if _is_kept(fabric, record):
        return []
    epoch, inventory = fabric.memory.epoch, fabric.memory.stamp(record.nodes)
    fabric.given = {} if cluster is None else {way_of(record): cluster}
    try:
        fabric.records.remember(record)
        done = keep_rules(fabric) + (keep_peers(fabric, record) if record.nodes else [])
    finally:
        fabric.given = {}
    _note_kept(fabric, record, inventory, epoch)
    return done


def _is_kept(fabric: Fabric, record: NetworkRecord) -> bool:
    """Whether nothing has moved since this record was kept: the common case, in 40 µs."""
    memory = fabric.memory
    kept = memory.kept.get(record.network)
    return (
        kept is not None
        and memory.watched
        and kept.epoch == memory.epoch
        and kept.verified is memory.verified
        and kept.record == record
        and kept.records == fabric.records.stamp()
        and (not record.nodes or kept.inventory == memory.stamp(record.nodes))
        and _unmoved(fabric, kept.verified)
    )


def _note_kept(fabric: Fabric, record: NetworkRecord, inventory: Stamp, epoch: int) -> None:
    memory, records = fabric.memory, fabric.records.settled()
    if memory.verified is None or not records or (record.nodes and not inventory):
        memory.kept.pop(record.network, None)
        return
    memory.kept[record.network] = Kept(record, records, inventory, epoch, memory.verified)


def keep_rules(fabric: Fabric) -> list[str]:
    """Make the node's rules what the records of all networks want; what was done, in words.

    Host ports are there again with the maps that hold them.
    """
    rules = wanted(fabric)
    if is_verified(fabric, rules):
        return []
    memory, verified = fabric.memory, fabric.memory.verified
    if memory.watched and (changed_sets := _change_sets(fabric)) is not None:
        return changed_sets
    others = verified is not None and verified.rules != rules
    found = fabric.firewall.legacy_differences(rules) if others else _look(fabric, rules)
    if not (found or others):
        return []
    moves, generation = memory.moves, fabric.netfilter.generation()
    read = [rules]

    def reread() -> NodeRules:
        read[0] = wanted(fabric)
        return read[0]

    with Refill(fabric) as refill:
        changed = fabric.firewall.ensure(rules, reread, refill)
    _note_verified(memory, verified, Verified(read[0], generation, moves))
    if others:  # who changes it looks as well
        found += fabric.firewall.said
    return found if changed else []


def _change_sets(fabric: Fabric) -> list[str] | None:
    """`keep_rules` where the kernel holds what it was seen to hold last and only addresses in sets
    are others now: it costs what they cost. None where more is to be done, and nothing was."""
    memory, verified = fabric.memory, fabric.memory.verified
    moves, generation = memory.moves, fabric.netfilter.generation()
    if verified is None or not _unmoved(fabric, verified):
        return None
    rules = wanted(fabric)  # behind the generation, as by `Firewall.ensure`
    repairs = tablerepair.address_changes(verified.rules, rules)
    if repairs is None:
        return None
    try:
        messages = [message for repair in repairs for message in repair.messages]
        fabric.netfilter.transaction(messages, generation)
    except KernelError:  # somebody was faster: who looks at all of it finds out, and says so
        return None
    _note_verified(memory, verified, Verified(rules, generation, moves))
    return [repair.words for repair in repairs]


def _note_verified(memory: Memory, before: Verified | None, now: Verified) -> None:
    """What the kernel holds now, unless another thread has said so meanwhile: then neither knows
    whose transaction came last, and the next one looks."""
    memory.verified = now if memory.verified is before else None


def is_verified(fabric: Fabric, rules: NodeRules) -> bool:
    """Whether only this process has changed the ruleset since it held `rules`."""
    verified = fabric.memory.verified
    if verified is None or (verified.rules is not rules and verified.rules != rules):
        return False
    return _unmoved(fabric, verified)


def _unmoved(fabric: Fabric, verified: Verified) -> bool:
    moves = fabric.memory.moves  # before the generation: what is counted has been done
    if fabric.netfilter.generation() - verified.generation != moves - verified.moves:
        return False
    # iptables-legacy has tables of its own, and no generation: 11 µs where there are none.
    return not fabric.firewall.legacy_differences(verified.rules)


def are_verified(fabric: Fabric) -> bool:
    """The same of the rules that are wanted now. Raises nothing: who can't tell looks."""
    try:
        return is_verified(fabric, wanted(fabric))
    except CniError:
        return False


def _look(fabric: Fabric, rules: NodeRules) -> list[str]:
    """What differs; when nothing does, it is noted."""
    moves, generation = fabric.memory.moves, fabric.netfilter.generation()
    found = fabric.firewall.differences(rules)
    if not found:
        fabric.memory.verified = Verified(rules, generation, moves)
    return found


def keep_peers(fabric: Fabric, record: NetworkRecord) -> list[str]:
    """Make the paths to the peers what the record's inventory says; what was done, in words."""
    memory = fabric.memory
    mark, epoch = memory.stamp(record.nodes), memory.epoch
    if memory.watched and mark and memory.synced.get(way_of(record)) == (mark, epoch):
        return []
    if way_of(record) not in {way_of(known) for known in peering(fabric)}:  # whatever its subnets
        return []
    if memory.watched and memory.keep_peers is not None:
        return memory.keep_peers(fabric, record).words()
    from cni_plugin import cluster as clusters

    # A peer without a way costs its own pods theirs, and no other: who needs its MTU has asked.
    cluster = cluster_of(fabric, record)
    done = clusters.sync(cluster, fabric.route_socket, patient=True).words()
    memory.synced[way_of(record)] = (mark, epoch)
    return done


def are_reached(fabric: Fabric, record: NetworkRecord) -> bool:
    """Whether the paths to the peers were seen to be right, and nothing has happened since."""
    memory, way = fabric.memory, way_of(record)
    now = memory.stamp(record.nodes), memory.epoch
    sized = memory.mtus.get(way, ((), 0, 0))[:2]  # by who has looked for what is missing as well
    return memory.watched and now[0] != () and memory.synced.get(way) == now == sized


def peering(fabric: Fabric) -> list[NetworkRecord]:
    """The records whose peers this node is to have: those that agree with the newest of them."""
    found = [record for record in fabric.records.all() if record.nodes]
    if len({way_of(record) for record in found}) < 2:
        return found
    newest = max(found, key=fabric.records.age_key)
    return [record for record in found if way_of(record) == way_of(newest)]


# --- looking ----------------------------------------------------------------------------------


def differences(fabric: Fabric, record: NetworkRecord) -> list[str]:
    """For CHECK: what of the network's is not as it should be on this node. Changes nothing."""
    found = []
    if not fabric.records.holds(record):
        found.append(f"the node's record of network {record.network} is missing or another")
    elif not are_verified(fabric):
        found += rule_differences(fabric)
    if record.nodes:
        from cni_plugin import cluster as clusters

        found += clusters.missing(cluster_of(fabric, record), fabric.route_socket)
    return found


def rule_differences(fabric: Fabric) -> list[str]:
    """What of the rules is not as the records want it."""
    return fabric.firewall.differences(wanted(fabric))


def pod_mtu(fabric: Fabric, record: NetworkRecord) -> int:
    """The MTU of the network's new pods by the paths to the peers, as `cluster.pod_mtu`: asked for
    when something changed."""
    memory = fabric.memory
    mark, epoch = memory.stamp(record.nodes), memory.epoch
    known = memory.mtus.get(way_of(record))
    if known is not None and mark and known[:2] == (mark, epoch) and memory.watched:
        return known[2]
    from cni_plugin import cluster as clusters

    found = clusters.pod_mtu(cluster_of(fabric, record), fabric.route_socket)
    memory.mtus[way_of(record)] = (mark, epoch, found)
    return found
