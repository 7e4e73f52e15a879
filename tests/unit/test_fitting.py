"""Which nodes fit together: after any changes what a look at all of them says."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.agent.fitting import Fitting, deciding, of_name, without
from cni_plugin.crossnode import CrossNode
from ipam.inventory import Inventory, Node
from ipam.peers import underlay_version

_nodes = st.builds(
    Node,
    st.sampled_from("abcdef"),
    st.lists(st.sampled_from(["192.168.1.1", "fd00::1"]), unique=True, min_size=1).map(
        lambda texts: tuple(map(ip_address, texts))
    ),
    pod_cidrs=st.lists(st.sampled_from(["10.0.0.0/24", "fd00:1::/64"]), unique=True).map(
        lambda texts: tuple(map(ip_network, texts))
    ),
)
_lists = st.lists(_nodes, unique_by=lambda node: node.name).map(
    lambda nodes: tuple(sorted(nodes, key=lambda node: node.name))
)


@given(st.lists(st.tuples(_lists, st.sampled_from(["host-gw", "auto", "vxlan"])), max_size=5))
@settings(deadline=None)
def test_what_fits_is_a_matter_of_the_nodes_alone(
    turns: list[tuple[tuple[Node, ...], str]],
) -> None:
    fitting = Fitting()
    for nodes, backend in turns:
        found, refusals = fitting.fit(nodes, backend)
        assert (found, refusals) == Fitting().fit(nodes, backend)
        versions = {node.name: {a.version for a in node.addresses} for node in nodes}
        if backend == "host-gw":
            assert [node.name for node in found] == [node.name for node in nodes]
            assert all(c.version in versions[node.name] for node in found for c in node.pod_cidrs)
            lost = sum(len(node.pod_cidrs) for node in nodes) - sum(len(n.pod_cidrs) for n in found)
            assert lost == len(refusals)
            continue
        counts = {v: sum(v in each for each in versions.values()) for v in (4, 6)}
        version = 4 if counts[4] >= counts[6] else 6
        assert found == tuple(node for node in nodes if version in versions[node.name])
        assert len(refusals) == len(nodes) - len(found)
        assert {each.name for each in refusals}.isdisjoint(node.name for node in found)


@given(_lists, st.lists(st.sampled_from("abcdefg")))
@settings(deadline=None)
def test_whoever_is_left_out_the_family_of_the_overlay_stays(
    nodes: tuple[Node, ...], names: list[str]
) -> None:
    nodes, _ = Fitting().fit(nodes, "auto")
    some = without(nodes, names)
    found = deciding(some, nodes)
    if some:  # this node is never left out
        version = underlay_version(Inventory("nodes.json", nodes), CrossNode())
        assert underlay_version(Inventory("nodes.json", found), CrossNode()) == version
    assert [node for node in found if node in some] == list(some)
    assert len(found) <= len(some) + 1
    assert not any(node.pod_cidrs for node in found if node not in some)
    assert list(found) == sorted(found, key=lambda node: node.name)


@given(_lists, st.lists(st.sampled_from("abcdefg")))
def test_some_of_many(nodes: tuple[Node, ...], names: list[str]) -> None:
    assert without(nodes, names) == tuple(node for node in nodes if node.name not in names)
    for name in names:
        assert of_name(nodes, name) == next((node for node in nodes if node.name == name), None)
