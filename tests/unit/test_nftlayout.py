"""Which rules guard the overlay: where nothing is masqueraded, where something is, and what they
compare where there is one of a kind and where there are several."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from sys import byteorder
from typing import Any

import pytest

from cni_plugin.kernel import codec, nftlayout, tablerepair
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel.nftlayout import TableLayout
from cni_plugin.kernel.nftview import ChainState, RuleState, TableState
from cni_plugin.ruleset import FamilyRules, NetworkRules, node_rules

OWN, PEER, FURTHER = (ip_address(f"192.168.1.{last}") for last in (2, 3, 9))
OWN_6, PEER_6 = ip_address("fd00:1::2"), ip_address("fd00:1::3")

# --- rules in words ---------------------------------------------------------------------------

_LOADED = {
    "payload": lambda d: {
        (1, 12): "saddr",
        (1, 8): "saddr",
        (1, 16): "daddr",
        (1, 24): "daddr",
    }.get((d["NFTA_PAYLOAD_BASE"], d["NFTA_PAYLOAD_OFFSET"]), "dport"),
    "meta": lambda d: {6: "iifname", 16: "l4proto", 4: "iif"}[d["NFTA_META_KEY"]],
    "fib": lambda d: {(1, 9): "way back", (3, 10): "type at iif"}[
        (d["NFTA_FIB_RESULT"], d["NFTA_FIB_FLAGS"])
    ],
}


def words(rule: Any) -> str:
    """A rule of the overlay's guard, as a person would say it."""
    said: list[str] = []
    for name, attributes in rule:
        data = dict(attributes)
        if name in _LOADED:
            said.append(_LOADED[name](data))
        elif name == "cmp":
            said.append(_compared(said[-1], data))
        elif name == "lookup":
            said.append("not " * data["NFTA_LOOKUP_FLAGS"] + "@" + data["NFTA_LOOKUP_SET"])
        else:
            [(_, verdict)] = data["NFTA_IMMEDIATE_DATA"]
            code = dict(verdict)
            said.append({0: "drop", 1: "accept", -3: "jump"}[code["NFTA_VERDICT_CODE"]])
            said += [code["NFTA_VERDICT_CHAIN"]] if "NFTA_VERDICT_CHAIN" in code else []
    return " ".join(said)


def _compared(what: str, data: dict[str, Any]) -> str:
    value: bytes = dict(data["NFTA_CMP_DATA"])["NFTA_DATA_VALUE"]
    if what in ("saddr", "daddr") and len(value) > 1:
        text = str(ip_address(value))
    elif what == "iifname":
        text = value.rstrip(b"\0").decode() + "*" * (len(value) < 16)
    else:
        text = str(int.from_bytes(value, "big" if what in ("dport", "l4proto") else byteorder))
    return f"{'not ' * data['NFTA_CMP_OP']}{text}"


def chains(family: FamilyRules) -> dict[str, list[str]]:
    table = nftlayout.table(family, 0x2000)
    return {
        chain.name: list(map(words, chain.rules))
        for chain in table.chains
        if chain.name in ("input", "overlay", "guard")
    }


def network(subnet: str = "10.1.0.0/24", **keys: Any) -> NetworkRules:
    plain: dict[str, Any] = {
        "bridge": "cni0",
        "host_ports": False,
        "overlay_port": 8472,
        "nodes": (OWN, PEER),
        "own": (OWN,),
    }
    return NetworkRules((ip_network(subnet),), **{**plain, **keys})


def family_of(*networks: NetworkRules, version: int = 4) -> FamilyRules:
    [found] = [f for f in node_rules(networks).families if f.version == version]
    return found


PORT = "l4proto 17 dport 8472"
INPUT = [
    f"{PORT} daddr 192.168.1.2 saddr @nodes iifname not cni0 accept",
    f"{PORT} daddr 192.168.1.2 saddr @nodes type at iif 2 accept",
    f"{PORT} drop",
]
OVERLAY = [
    "iifname not cni0 saddr @nodes accept",
    "saddr @nodes way back 0 drop",
    "daddr @nodes saddr not @nodes drop",
]


def changed(rules: list[str], old: str, new: str) -> list[str]:
    """All rules with one word of theirs as another."""
    assert any(old in rule for rule in rules)
    return [rule.replace(old, new) for rule in rules]


# --- each case --------------------------------------------------------------------------------


def test_without_nat_only_what_the_node_takes_is_looked_at() -> None:
    table = nftlayout.table(family_of(network()), 0x2000)
    assert [(chain.name, chain.hook) for chain in table.chains] == [("input", 1)]
    assert [each.name for each in table.sets] == ["nodes"]
    assert chains(family_of(network())) == {"input": INPUT}


@pytest.mark.parametrize("keys", [{"masquerade": True}, {"host_ports": True}])
def test_where_sources_change_what_passes_through_is_looked_at_too(keys: dict[str, bool]) -> None:
    found = chains(family_of(network(**keys)))
    assert found["input"] == INPUT
    assert found["overlay"] == OVERLAY
    assert found["guard"][-1] == f"{PORT} daddr not 192.168.1.2 jump overlay"
    assert len(found["guard"]) == 1 + 2 * ("host_ports" in keys)  # 127.0.0.0/8 belongs to the node


def test_another_network_of_the_node_is_enough_for_that() -> None:
    other = network("10.2.0.0/24", overlay_port=0, nodes=(), own=(), masquerade=True)
    assert set(chains(family_of(network(), other))) == {"input", "overlay", "guard"}


def test_it_counts_in_the_family_that_carries() -> None:
    """Masquerading of IPv4 alone changes no source of an overlay over IPv6."""
    both = network(masquerade=True, nodes=(OWN, PEER, OWN_6, PEER_6), own=(OWN, OWN_6))
    assert set(chains(family_of(both))) == {"input", "overlay", "guard"}
    assert chains(family_of(both, version=6)) == {
        "input": [rule.replace("192.168.1.2", "fd00:1::2") for rule in INPUT]
    }


def test_several_bridges_are_a_set() -> None:
    other = network("10.2.0.0/24", bridge="other0", masquerade=True)
    found = chains(family_of(network(), other))
    assert found["input"] == changed(INPUT, "not cni0", "not @pod_links")
    assert found["overlay"] == changed(OVERLAY, "not cni0", "not @pod_links")


def test_pods_with_links_of_their_own() -> None:
    own_links = network(bridge="", masquerade=True)
    found = chains(family_of(own_links))
    assert found["input"] == changed(INPUT, "not cni0", "not veth*")
    assert found["overlay"] == changed(OVERLAY, "not cni0", "not veth*")
    both = chains(family_of(own_links, network("10.2.0.0/24")))
    assert both["input"] == changed(INPUT, "not cni0", "not veth* iifname not cni0")


def test_several_ports_are_a_set() -> None:
    found = chains(family_of(network(masquerade=True), network("10.2.0.0/24", overlay_port=4789)))
    assert found["input"] == changed(INPUT, "dport 8472", "dport @overlay_ports")
    assert found["guard"] == ["l4proto 17 dport @overlay_ports daddr not 192.168.1.2 jump overlay"]


@pytest.mark.parametrize("own", [(), (OWN, FURTHER)])
def test_unless_the_node_has_one_address_all_nodes_are_asked_for(own: Any) -> None:
    found = chains(family_of(network(nodes=(OWN, PEER, FURTHER), own=own, masquerade=True)))
    assert found["input"] == changed(INPUT, "daddr 192.168.1.2", "daddr @nodes")
    assert found["guard"] == [f"{PORT} jump overlay"]


# --- from one form to another -----------------------------------------------------------------


def as_seen(table: TableLayout) -> tuple[TableState, dict[str, ChainState]]:
    """The table as the kernel shows it when it is as it was made."""
    rules: dict[str, list[RuleState]] = {}
    for chain in table.chains:
        for rule in chain.rules:
            message = nft.add_rule(table.version, "podwire", chain.name, rule)
            entry = codec.decode(nft.REPLIES[message.type], message.body)
            raw = entry.get_attr("NFTA_RULE_EXPRESSIONS")
            rules.setdefault(chain.name, []).append(RuleState(1, "", raw, entry))
    states = {
        chain.name: ChainState(
            table.version, "podwire", chain.name, chain.kind, chain.hook, chain.priority, 1
        )
        for chain in table.chains
    }
    elements = {each.name: list(each.elements) for each in table.sets if each.elements is not None}
    sets = {each.name: each.attributes for each in table.sets}
    return TableState(0, rules, sets, elements), states


FORMS = {
    "plain": [network()],
    "two bridges": [network(), network("10.2.0.0/24", bridge="other0")],
    "two ports": [network(), network("10.2.0.0/24", overlay_port=4789)],
    "masquerading": [network(masquerade=True)],
    "two addresses": [network(nodes=(OWN, PEER, FURTHER), own=(OWN, FURTHER))],
}


@pytest.mark.parametrize("after", FORMS)
@pytest.mark.parametrize("before", FORMS)
def test_each_form_becomes_any_other(before: str, after: str) -> None:
    """Sets come before the rules that name them, and chains that nobody wants any more go."""
    old, new = (nftlayout.table(family_of(*FORMS[form]), 1) for form in (before, after))
    seen, states = as_seen(old)
    present = {each.name: seen.sets.get(each.name) for each in new.sets}
    repairs = list(tablerepair.table_repairs(new, seen._replace(sets=present), states))
    assert bool(repairs) is (before != after)
    done = [message.what for repair in repairs for message in repair.messages]
    rules = [number for number, what in enumerate(done) if what.startswith("add a rule")]
    sets = [number for number, what in enumerate(done) if what.startswith("add set")]
    assert not sets or max(sets) < min(rules)
    missing = {each.name for each in new.sets} - {each.name for each in old.sets}
    assert [what.split()[-1] for what in done if what.startswith("add set")] == sorted(
        missing, key=[each.name for each in new.sets].index
    )
    gone = {chain.name for chain in old.chains} - {chain.name for chain in new.chains}
    deleted = {what.split()[-1] for what in done if what.startswith("delete chain")}
    assert deleted == gone


def test_own_addresses_of_one_inventory_say_nothing_of_another_s() -> None:
    silent = network("10.2.0.0/24", own=())
    assert family_of(network(), silent).own == ()
    elsewhere = network("10.2.0.0/24", nodes=(OWN_6, PEER_6), own=(OWN_6,))
    assert family_of(network(), elsewhere).own == (int(OWN),)
