"""nftables messages by our own packing against pyroute2's objects, byte for byte; the expressions
of all rules; and what is read from replies."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import ruleset
from cni_plugin.kernel import codec, netlink, nftlayout, nftsets, nftview, tablerepair
from cni_plugin.kernel import expressions as ex
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel.firewall import Firewall
from cni_plugin.kernel.netlink import KernelError
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftsets import Element
from cni_plugin.spec import CniError

# --- pyroute2's way of saying the same --------------------------------------------------------


def translated(cls: Any, value: Any) -> dict[str, Any]:
    """A message's value as pyroute2's own classes take it: sets of flags by their names, comments
    as text. Everything else is the same."""
    kinds = dict(cls.nla_map)
    given = dict(value.get("attrs", ()))
    attrs = [(name, _content(cls, kinds[name], content, given)) for name, content in given.items()]
    return {**value, "attrs": attrs}


def _content(cls: Any, kind: str, content: Any, beside: dict[str, Any]) -> Any:
    inner = getattr(cls, kind.lstrip("*"), None)
    if kind == "expr":
        inner = getattr(cls, f"nft_{beside['NFTA_EXPR_NAME']}")
    if kind.startswith("*"):
        return [translated(inner, each) for each in content]
    if isinstance(content, dict):
        return translated(inner, content)
    if kind == "comment":
        return content[2:-1].decode()
    if any(base.__name__ == "nft_flags_be32" for base in getattr(inner, "__mro__", ())):
        return {name for bit, name in enumerate(inner.ops) if content & 1 << bit}
    return content


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, codec.Value, bytes]]:
    """Each encoded message, with its class and value."""
    found: list[tuple[Any, codec.Value, bytes]] = []
    encode = codec.encode

    def recorded(cls: Any, value: codec.Value) -> bytes:
        found.append((cls, value, encode(cls, value)))
        return found[-1][2]

    monkeypatch.setattr(codec, "encode", recorded)
    return found


FULL = ruleset.node_rules(
    [
        ruleset.NetworkRules(
            (ip_network("10.244.0.0/24"), ip_network("fd00:10:244::/64")),
            masquerade=True,
            direct=(ip_network("10.244.0.0/16"), ip_network("fd00::/8")),
            bridge="cni0",
            ingress_policy="same-bridge",
            overlay_port=8472,
            nodes=(ip_address("192.168.1.2"), ip_address("fd00:1::2")),
        ),
        ruleset.NetworkRules((ip_network("10.245.0.0/24"),)),
    ]
)
TABLES = [nftlayout.table(family, FULL.mark) for family in FULL.families]
PORT = Element(b"\6\0\0\0\x1f\x90\0\0", b"\x0a\xf4\0\5\0\x50\0\0", "podnet web eth0")
IN_NETWORK = [
    (*ex.of_family(network.version), *ex.in_network(network, source), ex.counter(), ex.accept())
    for network in map(ip_network, ("10.0.0.0/8", "10.4.0.0/14", "0.0.0.0/0", "fd00::/50", "::/0"))
    for source in (True, False)
]

REQUESTS: dict[str, Any] = {
    "get_generation": nft.get_generation,
    "add_table": lambda: nft.add_table(4, "podwire"),
    "get_table": lambda: nft.get_table(6, "podwire"),
    "delete_table": lambda: nft.delete_table(6, "podwire"),
    "dump_tables": lambda: nft.dump_tables(nft.ANY),
    "add_chain": lambda: nft.add_chain(4, "podwire", "host_ports"),
    "add_chain at a hook": lambda: nft.add_chain(6, "podwire", "guard", "filter", 0, -300),
    "delete_chain": lambda: nft.delete_chain(nft.INET, "podwire", "forward"),
    "dump_chains": lambda: nft.dump_chains(nft.ANY),
    "delete_rule": lambda: nft.delete_rule(4, "podwire", "forward", 2**40 + 7),
    "delete all rules": lambda: nft.delete_rule(4, "podwire", "forward"),
    "dump_rules": lambda: nft.dump_rules(4, "filter", "FORWARD"),
    "dump all rules": lambda: nft.dump_rules(6),
    "get_set": lambda: nftsets.get_set(4, "podwire", "pods"),
    "dump_sets": lambda: nftsets.dump_sets(4, "podwire"),
    "flush_elements": lambda: nftsets.flush_elements(4, "podwire", "pods"),
    "get_element": lambda: nftsets.get_element(4, "podwire", "host_ports", PORT.key),
    "dump_elements": lambda: nftsets.dump_elements(4, "podwire", "pods"),
    "add_elements": lambda: nftsets.add_elements(4, "podwire", "host_ports", [PORT])[0],
    "delete_elements": lambda: nftsets.delete_elements(4, "podwire", "host_ports", [PORT])[0],
    "a rule with a comment": lambda: nft.add_rule(4, "t", "c", [ex.accept()], "Käse", first=True),
    **{
        f"in_network {number}": lambda rule=rule: nft.add_rule(nft.INET, "t", "c", rule, "n")
        for number, rule in enumerate(IN_NETWORK)
    },
    **{
        f"add_set {table.version} {each.name}": lambda table=table, each=each: nftsets.add_set(
            table.version, "podwire", each.name, each.attributes
        )
        for table in TABLES
        for each in table.sets
    },
    **{
        f"elements of {table.version} {each.name}": lambda table=table, each=each: (
            nftsets.add_elements(table.version, "podwire", each.name, each.elements)[0]
        )
        for table in TABLES
        for each in table.sets
        if each.elements
    },
    **{
        f"add_rule {table.version} {chain.name} {number}": (
            lambda table=table, chain=chain, rule=rule: nft.add_rule(
                table.version, "podwire", chain.name, rule
            )
        )
        for table in TABLES
        for chain in table.chains
        for number, rule in enumerate(chain.rules)
    },
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_pyroute2s_byte_for_byte(name: str, sent: Any) -> None:
    message = REQUESTS[name]()
    [(cls, value, data)] = sent
    assert message.body == data == codec.encode_by_pyroute2(cls, translated(cls, value))
    assert codec.layout(cls).encode(value) == data  # and it was our own packing


RULES = [rule for table in TABLES for chain in table.chains for rule in chain.rules] + IN_NETWORK


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_known_by_the_bytes_it_was_made_with(rule: Any) -> None:
    message = nft.add_rule(4, "podwire", "forward", rule, "note")
    entry = codec.decode(nft.REPLIES[message.type], message.body)
    assert entry.get_attr("NFTA_RULE_EXPRESSIONS") == nft.raw_expressions(rule)
    assert nft.comment_of(entry.get_attr("NFTA_RULE_USERDATA")) == "note"


def state_of(rule: Any, *more: Any) -> nftview.RuleState:
    message = nft.add_rule(4, "podwire", "forward", [*rule, *more])
    entry = codec.decode(nft.REPLIES[message.type], message.body)
    return nftview.RuleState(1, "", entry.get_attr("NFTA_RULE_EXPRESSIONS"), entry)


def with_more(expression: Any) -> Any:
    """The expression as a kernel might give it that tells more than it was told."""
    name, attributes = expression
    extra = {"masq": ("NFTA_MASQ_REG_PROTO_MIN", 9), "payload": ("NFTA_PAYLOAD_CSUM_TYPE", 0)}
    return (name, (*attributes, extra[name])) if name in extra else expression


@pytest.mark.parametrize("rule", RULES)
def test_a_kernel_may_tell_more_of_a_rule_but_nothing_else(rule: Any) -> None:
    assert nftview.is_rule(state_of(rule), rule)
    assert nftview.is_rule(state_of(map(with_more, rule)), rule)
    assert not nftview.is_rule(state_of(rule[:-1]), rule)
    assert not nftview.is_rule(state_of(rule, ex.counter()), rule)
    for position, (name, attributes) in enumerate(rule):
        for number, (attribute, value) in enumerate(attributes):
            if not isinstance(value, int) or name == "counter":
                continue
            changed = list(attributes)
            changed[number] = (attribute, value + 1)
            other = [*rule[:position], (name, tuple(changed)), *rule[position + 1 :]]
            assert not nftview.is_rule(state_of(other), rule), attribute


# --- elements and comments --------------------------------------------------------------------


@given(key=st.binary(min_size=1, max_size=32), data=st.binary(max_size=16), end=st.booleans())
def test_elements_are_read_as_they_were_written(key: bytes, data: bytes, end: bool) -> None:
    element = Element(key, data, "podnet web eth0", end)
    [message] = nftsets.add_elements(4, "podwire", "m", [element])
    entry = codec.decode(nft.REPLIES[message.type], message.body)
    assert nftsets.decode_elements([entry]) == [element]


def test_many_elements_go_in_several_messages() -> None:
    elements = [Element(number.to_bytes(4, "big")) for number in range(1234)]
    messages = nftsets.add_elements(4, "podwire", "s", elements)
    assert len(messages) == 3
    entries = [codec.decode(nft.REPLIES[message.type], message.body) for message in messages]
    assert nftsets.decode_elements(entries) == elements


def test_a_long_comment_is_cut() -> None:
    assert nft.comment_of(nft.comment("x" * 300)) == "x" * 127
    assert nft.comment_of(b"\5\1x" + nft.comment("mine")) == "mine"
    assert nft.comment_of(b"") == nft.comment_of(b"\0") == ""


@pytest.mark.parametrize("version", [4, 6, nft.INET, nft.ANY])
def test_families(version: int) -> None:
    assert nft.version_of(nft.protocol(version)) == version
    assert nft.version_of(7) == -1  # NFPROTO_BRIDGE


# --- the table's repair -----------------------------------------------------------------------


def test_a_table_that_is_not_there_is_made_with_all_in_it() -> None:
    for table in TABLES:
        [repair] = tablerepair.table_repairs(table, None, {})
        assert repair.emptied == (table.version,)
        assert "is missing" in repair.words
        rules = sum(len(chain.rules) for chain in table.chains)
        filled = sum(1 for each in table.sets if each.elements)
        assert len(repair.messages) == 1 + len(table.sets) + filled + len(table.chains) + rules


class Kernel:
    """A socket to a kernel that lacks something: `failures` are errno values by the call."""

    def __init__(self, **failures: int) -> None:
        self._failures = failures

    def _fail(self, call: str) -> None:
        if call in self._failures:
            raise KernelError(self._failures[call], "add chain ip6 podwire postrouting")

    def generation(self) -> int:
        self._fail("generation")
        return 1

    def batch(self, messages: list[Any]) -> list[None]:
        return [None] * len(messages)

    def dump(self, message: Any) -> list[Any]:
        return []

    def dump_with(self, message: Any, *patterns: bytes) -> list[Any]:
        return []

    def transaction(self, messages: Any, generation: int = 0) -> None:
        self._fail("transaction")


@pytest.mark.parametrize(
    "failure",
    [
        {"generation": errno.EINVAL},  # no nftables
        {"transaction": errno.EOPNOTSUPP},
        {"transaction": errno.ENOENT},  # no NAT for IPv6
        {"transaction": errno.EAFNOSUPPORT},
    ],
)
def test_a_kernel_that_lacks_something_is_told_so(failure: dict[str, int]) -> None:
    with pytest.raises(CniError) as caught:
        Firewall(Kernel(**failure)).ensure(FULL)  # type: ignore[arg-type]
    assert caught.value.code == 104
    assert "CONFIG_NF_TABLES" in caught.value.details


def test_other_refusals_are_told_as_they_are() -> None:
    with pytest.raises(CniError) as caught:
        Firewall(Kernel(transaction=errno.EPERM)).ensure(FULL)  # type: ignore[arg-type]
    assert caught.value.code == 110


def test_a_kernel_without_netfilter_by_netlink_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(netlink, "socket", refused)
    with pytest.raises(CniError) as caught:
        NetfilterSocket()
    assert caught.value.code == 104
    assert "CONFIG_NF_TABLES" in caught.value.details
