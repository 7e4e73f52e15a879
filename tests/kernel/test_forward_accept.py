"""Pods on nodes whose FORWARD policy is DROP, as Docker, ufw and careful people set it."""

from __future__ import annotations

import fcntl

import pytest

from cni_plugin.kernel import nftmessages, xtables
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.ruleset import NOTE
from cni_plugin.spec import CniError
from tests.support import packetfilter, probe

SUBNETS = ("10.244.0.0/24", "fd00:10:244::/64")
RULES = packetfilter.rules(*SUBNETS, masquerade=True, bridge="cni0")
TOOLS = ("iptables-nft", "ip6tables-nft")
LEGACY = ("iptables-legacy", "ip6tables-legacy")


def iptables(node, *rules: str, tools: tuple[str, ...] = TOOLS) -> None:
    """The same commands for IPv4 and IPv6."""
    for tool in tools:
        for rule in rules:
            node.run(tool, *rule.split())


def saved(node, tools: tuple[str, ...] = TOOLS, *, counters: bool = False) -> list[str]:
    """What the two tools save, without comments, podwire's rules and, if not asked for, the
    numbers of packets."""
    return [
        line if counters else line.split(" [")[0]
        for tool in tools
        for line in node.run(f"{tool}-save", *(["-c"] if counters else [])).stdout.splitlines()
        if not line.startswith("#") and NOTE not in line
    ]


def own_rules(node, tools: tuple[str, ...] = TOOLS) -> list[str]:
    return [
        line
        for tool in tools
        for line in node.run(f"{tool}-save").stdout.splitlines()
        if NOTE in line
    ]


WANTED = [
    f'-A FORWARD -{side} {subnet} -m comment --comment "{NOTE}" -j ACCEPT'
    for subnet in SUBNETS
    for side in "sd"
]

DOCKER = (
    "-P FORWARD DROP",
    *(f"-N {name}" for name in ("DOCKER-USER", "DOCKER-FORWARD", "DOCKER")),
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -j DOCKER-FORWARD",
    "-A DOCKER-FORWARD -o docker0 -j DOCKER",
    "-A DOCKER-FORWARD -i docker0 -j ACCEPT",
    "-A DOCKER ! -i docker0 -o docker0 -j DROP",
)
UFW = (
    *(f"-N ufw-{name}-forward" for name in ("before", "after", "reject", "track")),
    "-A FORWARD -j ufw-before-forward",
    "-A FORWARD -j ufw-after-forward",
    "-A FORWARD -j ufw-reject-forward",
    "-A FORWARD -j ufw-track-forward",
    "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-P FORWARD DROP",
)
NFTABLES = """
add table inet filter
add chain inet filter forward { type filter hook forward priority 0; policy drop; }
add rule inet filter forward ct state invalid drop
"""


@pytest.fixture
def two_nodes(make_cluster, podwire, topology):
    """Two nodes with a pod each, which reach each other; the plugin's calls are over."""
    cluster = make_cluster(2)
    pods = [topology.sandbox(f"pod{number}") for number in range(2)]
    for number, node in enumerate(cluster.nodes):
        assert podwire.on(node).add(cluster.conf(number), pods[number]).ok
    assert probe.tcp(pods[0], pods[1], "10.244.1.2").source == "10.244.0.2"
    return cluster.nodes, pods


def rules_of(number: int):
    own = (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")
    return packetfilter.rules(*own, masquerade=True, direct=("10.244.0.0/16", "fd00:10:244::/56"))


@pytest.mark.parametrize("owner", ["plain", "docker", "ufw", "nftables", "legacy"])
def test_pods_talk_across_nodes_and_to_the_world(two_nodes, topology, owner):
    nodes, pods = two_nodes
    for node in nodes:
        if owner == "nftables":
            packetfilter.nft(node, NFTABLES)
        elif owner == "legacy":
            iptables(node, *DOCKER, tools=LEGACY)
        else:
            iptables(node, *{"plain": ("-P FORWARD DROP",), "docker": DOCKER, "ufw": UFW}[owner])
    assert not probe.reaches(pods[0], pods[1], "10.244.1.2", 0.3)
    for number, node in enumerate(nodes):
        own = packetfilter.firewall(node)
        assert own.ensure(rules_of(number)) is True
        assert own.ensure(rules_of(number)) is False
        assert packetfilter.firewall(node).differences(rules_of(number)) == []
    assert probe.tcp(pods[0], pods[1], "10.244.1.2").source == "10.244.0.2"
    assert probe.udp(pods[1], pods[0], "fd00:10:244::2").source == "fd00:10:244:1::2"
    assert probe.tcp(pods[0], nodes[1], "192.168.1.3").source == "192.168.1.2"  # masqueraded
    packetfilter.firewall(nodes[0]).remove()
    assert NOTE not in packetfilter.listing(nodes[0])
    assert own_rules(nodes[0], LEGACY) == []
    assert not probe.reaches(pods[0], pods[1], "10.244.1.2", 0.3)


def test_iptables_shows_saves_and_restores_them(node):
    iptables(node, *DOCKER)
    before = saved(node)
    own = packetfilter.firewall(node)
    assert own.differences(RULES)[-2:] == [
        f"chain {family} filter FORWARD drops what it has no rule for, and pods' packets too"
        for family in ("ip", "ip6")
    ]
    own.ensure(RULES)
    assert saved(node) == before  # nothing of the others' is touched
    assert own_rules(node) == WANTED
    assert "/* podwire acceptForwarding */" in node.run("iptables-nft", "-L", "FORWARD").stdout
    for tool in TOOLS:
        text = node.run(f"{tool}-save").stdout
        assert "incompatible" not in text
        node.run(f"{tool}-restore", stdin=text)
    # As iptables writes them they are still known for podwire's.
    assert own.differences(RULES) == []
    assert own_rules(node) == WANTED
    own.remove()
    assert saved(node) == before
    assert own_rules(node) == []


def test_a_drop_rule_of_the_owners_is_not_overridden(two_nodes):
    """DOCKER-USER is where Docker's users are told to write theirs."""
    nodes, pods = two_nodes
    iptables(nodes[0], *DOCKER)
    nodes[0].run("iptables-nft", *["-A", "DOCKER-USER", "-d", "10.244.1.2", "-j", "DROP"])
    packetfilter.firewall(nodes[0]).ensure(rules_of(0))
    assert not probe.reaches(pods[0], pods[1], "10.244.1.2", 0.3)
    assert probe.tcp(pods[0], pods[1], "fd00:10:244:1::2").source == "fd00:10:244::2"


def test_they_are_there_only_while_the_policy_drops(node):
    own = packetfilter.firewall(node)
    own.ensure(RULES)
    iptables(node, "-A FORWARD -i docker0 -j ACCEPT")
    assert own.ensure(RULES) is False
    iptables(node, "-P FORWARD DROP")
    assert own.ensure(RULES) is True
    assert own_rules(node) == WANTED
    iptables(node, "-P FORWARD ACCEPT")
    assert own.ensure(RULES) is True
    assert own_rules(node) == []


def test_networks_that_do_not_want_them_have_none(node):
    iptables(node, "-P FORWARD DROP")
    own = packetfilter.firewall(node)
    own.ensure(packetfilter.rules(*SUBNETS, masquerade=True, accept_forwarding=False))
    assert own_rules(node) == []
    networks = [
        packetfilter.network(*SUBNETS, accept_forwarding=False),
        packetfilter.network("10.99.0.0/22", accept_forwarding=True),
    ]
    own.ensure(packetfilter.node_rules(networks))
    assert [line.split()[2:4] for line in own_rules(node)] == [
        ["-s", "10.99.0.0/22"],
        ["-d", "10.99.0.0/22"],
    ]


def test_rules_of_another_time_are_replaced(node):
    iptables(node, "-P FORWARD DROP")
    own = packetfilter.firewall(node)
    own.ensure(packetfilter.rules("10.99.0.0/21", "fd00:99::/50"))
    assert [line.split()[3] for line in own_rules(node)] == 2 * ["10.99.0.0/21"] + 2 * [
        "fd00:99::/50"
    ]
    own.ensure(RULES)
    assert own_rules(node) == WANTED


def test_a_rule_too_many_and_a_changed_one_are_put_right(node):
    iptables(node, "-P FORWARD DROP")
    own = packetfilter.firewall(node)
    own.ensure(RULES)
    again = ["-A", "FORWARD", "-s", SUBNETS[0], "-m", "comment", "--comment", NOTE, "-j", "ACCEPT"]
    node.run("iptables-nft", *again)
    node.run("iptables-nft", "-R", "FORWARD", "2", *again[2:-1], "DROP")
    assert len(own.differences(RULES)) == 2
    own.ensure(RULES)
    assert sorted(own_rules(node)) == sorted(WANTED)


def test_a_chain_that_is_not_at_the_forward_hook_is_left_alone(node):
    packetfilter.nft(
        node,
        "add table ip mine",
        "add chain ip mine input { type filter hook input priority 0; policy drop; }",
        "add chain ip mine FORWARD",
        "add table bridge mine",
        "add chain bridge mine forward { type filter hook forward priority 0; policy drop; }",
    )
    before = packetfilter.listing(node)
    own = packetfilter.firewall(node)
    own.ensure(RULES)
    own.remove()
    assert packetfilter.listing(node) == before
    own.ensure(RULES)
    assert NOTE not in packetfilter.listing(node)


def test_a_table_of_the_family_inet_with_podwire_s_name_is_another_s(node):
    packetfilter.nft(
        node,
        "add table inet podwire",
        "add chain inet podwire f { type filter hook forward priority 0; policy drop; }",
    )
    own = packetfilter.firewall(node)
    assert own.ensure(RULES) is True
    assert packetfilter.listing(node, "table inet podwire").count(NOTE) == len(WANTED)
    assert own.ensure(RULES) is False
    assert packetfilter.firewall(node).differences(RULES) == []
    own.remove()
    assert packetfilter.tables(node) == {("inet", "podwire")}
    assert NOTE not in packetfilter.listing(node)


def test_a_flush_by_the_owner_is_followed(node):
    iptables(node, "-P FORWARD DROP")
    own = packetfilter.firewall(node)
    own.ensure(RULES)
    iptables(node, "-F FORWARD")
    assert own_rules(node) == []
    assert own.ensure(RULES) is True
    assert own_rules(node) == WANTED


def test_a_table_that_a_program_has_for_itself_is_left_alone(node):
    """The kernel would refuse the whole transaction, and with it all ADDs of the node."""
    with node.entered():
        owner = NetfilterSocket()
    with owner:
        attrs = [("NFTA_TABLE_NAME", "mine"), ("NFTA_TABLE_FLAGS", 2)]  # NFT_TABLE_F_OWNER
        table = nftmessages.request("table", 0, 4, attrs, nftmessages.ADD, "add a table")
        chain = nftmessages.add_chain(4, "mine", "forward", "filter", 2, 0)
        owner.transaction([table, chain, _dropping(chain)])
        shown = packetfilter.listing(node, "table ip mine")
        assert "policy drop" in shown
        own = packetfilter.firewall(node)
        assert own.ensure(RULES) is True
        assert packetfilter.listing(node, "table ip mine") == shown
        assert own.differences(RULES) == []


def _dropping(chain):
    """The message that makes the chain with the policy drop."""
    attrs = [
        ("NFTA_CHAIN_TABLE", "mine"),
        ("NFTA_CHAIN_NAME", "forward"),
        ("NFTA_CHAIN_POLICY", nftmessages.DROP),
    ]
    return nftmessages.request("chain", 0, 4, attrs, chain.flags, "change a chain")


# --- iptables-legacy ----------------------------------------------------------------------------

MANY_KINDS = (
    *(f"-N {name}" for name in ("A", "B", "EMPTY")),
    "-A FORWARD -j A",
    "-A FORWARD -p tcp --dport 80",  # no target: on to the next rule, as is the last one
    "-A A -p udp -j B",
    "-A A -m conntrack --ctstate NEW -j RETURN",
    "-A A -j LOG --log-prefix x",
    "-A B -p tcp -g EMPTY",
    "-A B -j REJECT",
    "-A INPUT -i lo -j ACCEPT",
    "-A OUTPUT -p tcp --dport 9999 -j B",
    "-A FORWARD",
    "-P FORWARD DROP",
)


@pytest.fixture
def legacy(node):
    """A node whose firewall is iptables-legacy's, with rules of many kinds that have counted."""
    iptables(node, *MANY_KINDS, tools=LEGACY)
    assert probe.tcp(node, node, "127.0.0.1").data
    assert probe.tcp(node, node, "::1").data
    return node


def test_legacy_rules_and_counters_of_others_stay(legacy):
    before = saved(legacy, LEGACY, counters=True)
    assert any(not line.startswith("[0:0]") and "-i lo" in line for line in before)
    own = packetfilter.firewall(legacy)
    own.ensure(packetfilter.rules("10.99.0.0/21", "fd00:99::/50"))
    assert own.ensure(RULES) is True
    assert own.ensure(RULES) is False
    assert saved(legacy, LEGACY, counters=True) == before
    assert own_rules(legacy, LEGACY) == WANTED
    assert own.differences(RULES) == packetfilter.firewall(legacy).differences(RULES) == []
    for tool in LEGACY:
        text = legacy.run(f"{tool}-save").stdout
        legacy.run(f"{tool}-restore", stdin=text)
    assert own.ensure(RULES) is False
    # The empty places are gone as well, the first of the chain and the last.
    assert own.remove() is True
    assert own_rules(legacy, LEGACY) == []
    without = [line.partition("] ")[2] or line.split(" [")[0] for line in before]
    assert saved(legacy, LEGACY) == without


def test_a_legacy_chain_that_changes_is_followed_without_a_change_of_nftables(legacy):
    own = packetfilter.firewall(legacy)
    own.ensure(RULES)
    iptables(legacy, "-F FORWARD", tools=LEGACY)
    assert own.differences(RULES) == [
        f"iptables-legacy's IPv{version} chain FORWARD is not as the pods need it"
        for version in (4, 6)
    ]
    assert own.ensure(RULES) is True
    assert own_rules(legacy, LEGACY) == WANTED
    iptables(legacy, "-P FORWARD ACCEPT", tools=LEGACY)
    assert own.ensure(RULES) is True
    assert own_rules(legacy, LEGACY) == []


def test_a_legacy_table_is_not_called_into_being(node):
    packetfilter.firewall(node).ensure(RULES)
    assert node.run("cat", "/proc/net/ip_tables_names", check=False).stdout == ""


def test_who_holds_the_lock_of_iptables_is_waited_for(legacy, monkeypatch):
    monkeypatch.setattr(xtables, "_LOCK_WAIT_S", 0.2)
    own = packetfilter.firewall(legacy)
    with open(xtables._LOCK, "a") as lock, legacy.entered():
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CniError) as caught:
            own.ensure(RULES)
        assert caught.value.code == 11
        assert "xtables.lock" in caught.value.msg
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert own.ensure(RULES) is True
    assert own_rules(legacy, LEGACY) == WANTED
