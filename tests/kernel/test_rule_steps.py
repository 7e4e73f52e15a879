"""Rules after a change of the inventory: what changed goes into the kernel's sets, and no more; the
outcome is that of working all of it out and comparing all of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cni_plugin import cluster as clusters
from cni_plugin import noderules, upkeep
from cni_plugin.agent.coverage import Coverage
from cni_plugin.agent.joining import Joining
from cni_plugin.agent.rulesteps import RuleSteps
from cni_plugin.cluster import Cluster
from cni_plugin.crossnode import CrossNode
from cni_plugin.fabric import Fabric, Memory, cluster_of, exact_stamp
from cni_plugin.kernel import nftview
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.records import NetworkRecord
from cni_plugin.ruleset import NodeRules
from cni_plugin.spec import CniError
from ipam import inventory as inventories
from ipam.claims import Claims
from ipam.inventory import Inventory
from ipam.nodes import Node
from tests.support.netns import Namespace

OWN = Node("own", (ip_address("192.168.1.2"),), (), (ip_network("10.0.200.0/24"),))
DIRECT = "the set direct of the nftables table ip podwire has other elements than it should"
NODES = "the set nodes of the nftables table ip podwire has other elements than it should"


def peer(number: int, subnet: int = -1, **more: object) -> Node:
    """Its subnet touches those of its neighbours."""
    subnets = (ip_network(f"10.0.{number if subnet < 0 else subnet}.0/24"),)
    return Node(f"n{number:03}", (ip_address(f"192.168.1.{number}"),), (), subnets)._replace(**more)


class Agent:
    """What an agent knows of its node, and the inventory that it writes."""

    def __init__(self, folder: Path, fabric: Fabric, looks: list[int]) -> None:
        self.path = str(folder / "nodes.json")
        self.fabric, self.memory = fabric, fabric.memory
        self.steps = RuleSteps()
        self.memory.watched = True
        self.joining = Joining()
        self.memory.join, self.memory.work_out = self.joining.join, self.steps.work_out
        self.looks = looks  # at the tables in the kernel, and for overlaps in all of the inventory

    def record(self, network: str = "pods", **more: object) -> NetworkRecord:
        made = NetworkRecord(network, OWN.pod_cidrs, True, nodes=self.path, node_name=OWN.name)
        return made._replace(cross_node=CrossNode(backend="vxlan"))._replace(**more)

    def write(self, nodes: dict[str, Node]) -> None:
        known = tuple(sorted((OWN, *nodes.values())))
        inventories.write(self.path, known)
        written = exact_stamp(self.path), Inventory(self.path, known)
        self.memory.written = {self.path: written}

    def keep(self, nodes: dict[str, Node]) -> list[str]:
        self.write(nodes)
        self.looks.clear()
        return upkeep.keep_rules(self.fabric)

    def refuse_wrong(self) -> None:
        """By somebody who knows nothing, and looks at everything."""
        with RouteSocket() as socket, closing(Fabric(socket)) as anew:
            wanted = noderules.wanted(anew)
            assert self.verified() == wanted
            assert anew.firewall.differences(wanted) == []

    def verified(self) -> NodeRules | None:
        return self.memory.verified.rules if self.memory.verified else None


@pytest.fixture
def agent(node: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    looks: list[int] = []
    table = nftview.table

    def counted(*args: object) -> object:
        looks.append(1)
        return table(*args)  # type: ignore[arg-type]

    def swept(*args: object) -> None:
        looks.append(1)
        sweep(*args)  # type: ignore[arg-type]

    sweep = clusters.refuse_overlaps
    monkeypatch.setattr(nftview, "table", counted)
    monkeypatch.setattr(clusters, "refuse_overlaps", swept)
    with node.entered(), RouteSocket() as socket, closing(Fabric(socket, Memory())) as fabric:
        yield Agent(tmp_path, fabric, looks)


def test_one_peer_is_its_own_elements(agent: Agent) -> None:
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 60))}
    agent.keep(nodes)
    for name, changed in (
        ("n060", peer(60)),
        ("n030", None),
        ("n031", peer(31, 231)),
        ("n010", peer(10, overlay_address=ip_address("203.0.113.10"))),
        ("n030", peer(30)),
    ):
        nodes.pop(name, None)
        if changed is not None:
            nodes[name] = changed
        found = agent.keep(nodes)
        assert DIRECT in found
        assert (NODES in found) == (name != "n031")
        assert not agent.looks
        agent.refuse_wrong()
    nodes["n050"] = nodes["n050"]._replace(vtep_mac="0a:00:00:00:00:01")
    assert agent.keep(nodes) == []


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_ends_where_all_of_it_would(agent: Agent, seed: int) -> None:
    """Subnets that touch, lie within each other's addresses, come back; a second network."""
    chance = random.Random(seed)
    agent.fabric.records.remember(agent.record())
    if seed % 2:
        other = agent.record("more", subnets=(ip_network("10.99.0.0/24"),), bridge="cni1")
        agent.fabric.records.remember(other)
    nodes = {each.name: each for each in map(peer, range(10, 30))}
    agent.keep(nodes)
    looks = 0
    for _ in range(40):
        for _ in range(chance.choice((1, 1, 3))):
            number = chance.randrange(10, 40)
            nodes.pop(f"n{number:03}", None)
            if chance.random() < 0.7:
                subnets = (number, number, number + 50)
                made = peer(number, chance.choice(subnets))
                if chance.random() < 0.2:
                    far = chance.choice(("192.168.2.9", "203.0.113.9", "10.0.12.9"))
                    made = made._replace(overlay_address=ip_address(far))
                nodes[made.name] = made
        agent.keep(nodes)
        looks += len(agent.looks)
        agent.refuse_wrong()
    assert looks == 0


@pytest.mark.parametrize("seed", range(3))
def test_this_node_is_found_as_by_who_reads_all_of_it(agent: Agent, seed: int) -> None:
    """Overlaps come and go, with peers, with this node's links, with what this node is."""
    chance, record = random.Random(seed), agent.record()
    joining = Joining()
    nodes = {each.name: each for each in map(peer, range(10, 20))}
    own, refused = OWN, 0
    with RouteSocket() as socket:
        for _ in range(60):
            name = f"n{chance.randrange(10, 24):03}"
            nodes.pop(name, None)
            if chance.random() < 0.8:
                nodes[name] = made = peer(int(name[1:]))
                if chance.random() < 0.2:
                    wrong = ("192.168.1.128/25", "10.0.0.0/26", "10.0.11.0/24", "10.0.200.128/25")
                    subnets = (*made.pod_cidrs, ip_network(chance.choice(wrong)))
                    nodes[name] = made._replace(pod_cidrs=subnets)
            if chance.random() < 0.1:
                subnet = chance.choice(("10.0.200.0/24", "10.0.201.0/24"))
                own = OWN._replace(pod_cidrs=(ip_network(subnet),))
            known = Inventory(agent.path, tuple(sorted((own, *nodes.values()))))
            found = attempted(joining.join, socket, record, known)
            cross = record.cross_node
            assert found == attempted(clusters.join, agent.path, OWN.name, cross, socket, known)
            if isinstance(found, str):
                refused += 1
                nodes.pop(name)
    assert 0 < refused < 30


def attempted(join: Callable[..., Cluster], *args: object) -> Cluster | str:
    """What comes of it, or why nothing does."""
    try:
        return join(*args)
    except CniError as e:
        return e.msg


def test_one_of_thousands_costs_what_one_of_a_few_does(agent: Agent) -> None:
    """Working all of it out takes ten times as long at so many more. The file is left out."""
    agent.fabric.records.remember(agent.record())

    def many(count: int) -> dict[str, Node]:
        return {f"m{i:04}": numbered(i) for i in range(count)}

    def numbered(i: int, more: int = 0) -> Node:
        address, subnet = (
            ip_address(0xC0A80200 + i),
            ip_network((0x0B000000 + 512 * (i + more), 24)),
        )
        return Node(f"m{i:04}", (address,), (), (subnet,))

    spent: dict[int, float] = {}
    for count in (100, 3000):
        nodes = many(count)
        agent.keep(nodes)
        taken = []
        for turn in range(7):
            nodes[f"m{17 * turn:04}"] = numbered(17 * turn, more=5000)
            agent.write(nodes)
            begun = time.process_time()
            assert upkeep.keep_rules(agent.fabric)
            taken.append(time.process_time() - begun)
        spent[count] = min(taken)
    assert spent[3000] < 8 * spent[100], spent


def test_another_network_s_record_is_looked_at_as_a_whole(agent: Agent) -> None:
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 15))}
    agent.keep(nodes)
    agent.fabric.records.remember(
        agent.record("more", subnets=(ip_network("10.99.0.0/24"),), bridge="cni1")
    )
    nodes["n020"] = peer(20)
    agent.keep(nodes)
    agent.refuse_wrong()
    nodes["n021"] = peer(21)
    agent.keep(nodes)
    assert not agent.looks
    agent.refuse_wrong()


def test_what_somebody_changed_is_looked_at_as_a_whole(agent: Agent, node: Namespace) -> None:
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 15))}
    agent.keep(nodes)
    node.run("nft", "delete element ip podwire nodes { 192.168.1.12 }")
    nodes.pop("n012")
    agent.keep(nodes)
    assert agent.looks
    agent.refuse_wrong()


def test_who_was_not_seen_to_be_faster(agent: Agent, node: Namespace) -> None:
    """The transaction holds only for the generation that was looked at."""
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 15))}
    agent.keep(nodes)
    asked = agent.memory.work_out
    assert asked is not None

    def disturbed(*args: object) -> NodeRules | None:
        agent.memory.work_out = asked
        node.run("nft", "flush set ip podwire nodes")
        return asked(*args)  # type: ignore[arg-type]

    nodes["n020"] = peer(20)
    agent.write(nodes)
    agent.memory.wanted = None
    noderules.wanted(agent.fabric)
    agent.memory.wanted, agent.memory.work_out = None, disturbed
    upkeep.keep_rules(agent.fabric)
    agent.refuse_wrong()


def test_two_threads_that_meet_trust_neither(agent: Agent) -> None:
    """Whose transaction came last is not known: the next one looks."""
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 15))}
    agent.keep(nodes)
    before, transaction = agent.memory.verified, agent.fabric.netfilter.transaction
    assert before is not None

    def met(*args: object) -> None:
        transaction(*args)  # type: ignore[arg-type]
        agent.memory.verified = before._replace()

    agent.fabric.netfilter.transaction = met  # type: ignore[method-assign]
    nodes["n020"] = peer(20)
    agent.keep(nodes)
    assert agent.memory.verified is None


def test_an_inventory_that_is_replaced_while_it_is_taken_in(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of one reading beside the networks of another would never be right again."""
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 15))}
    later = nodes | {"n020": peer(20)}
    del later["n012"]
    networks_of = noderules.networks_of

    def replaced(fabric: Fabric, records: Sequence[NetworkRecord]) -> object:
        agent.write(later)
        return networks_of(fabric, records)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(noderules, "networks_of", replaced)
        agent.keep(nodes)
    agent.keep(later)
    agent.refuse_wrong()
    del later["n020"]
    agent.keep(later)
    agent.refuse_wrong()
    assert agent.steps.look_again(agent.fabric) == []


def test_what_is_written_down_follows(agent: Agent) -> None:
    """It counts when the inventory can't be read; now and then is enough, and before that day."""
    folder = StateFolder(agent.fabric.key, "direct")
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 15))}
    agent.keep(nodes)
    first = folder.read("pods")
    nodes["n020"] = peer(20)
    agent.keep(nodes)
    assert folder.read("pods") == first
    assert agent.steps.look_again(agent.fabric) == []
    assert b"192.168.1.20" in (folder.read("pods") or b"")
    nodes["n021"] = peer(21)
    agent.keep(nodes)
    rules = agent.verified()
    Path(agent.path).write_text("{}")  # by somebody else
    agent.memory.happened()
    with pytest.raises(CniError):
        inventories.load(agent.path)
    known = noderules.wanted(agent.fabric)
    assert rules is not None
    assert [f.direct for f in known.families] == [f.direct for f in rules.families]


def test_what_went_wrong_on_the_way_is_found(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The periodic look works all of it out."""
    agent.fabric.records.remember(agent.record())
    nodes = {each.name: each for each in map(peer, range(10, 15))}
    agent.keep(nodes)
    with monkeypatch.context() as broken:
        broken.setattr(Coverage, "add", lambda *_: None)
        broken.setattr(Claims, "_meets_pods", lambda *_: False)
        nodes["n020"] = peer(20)
        agent.keep(nodes)
    (word,) = agent.steps.look_again(agent.fabric)
    assert "not what the inventory says" in word
    agent.keep(nodes)
    agent.refuse_wrong()
    assert agent.steps.look_again(agent.fabric) == []
    assert agent.joining.look_again(agent.fabric.route_socket) == []
    with monkeypatch.context() as broken:
        broken.setattr(Claims, "_meets_pods", lambda *_: False)
        nodes["n021"] = peer(21, 20)
        agent.keep(nodes)
    (word,) = agent.joining.look_again(agent.fabric.route_socket)
    assert "overlaps 10.0.20.0/24 of node n02" in word
    agent.memory.joined.clear()
    agent.memory.happened()
    with pytest.raises(CniError, match=r"10\.0\.20\.0/24 of node n02. overlaps"):
        cluster_of(agent.fabric, agent.record())
