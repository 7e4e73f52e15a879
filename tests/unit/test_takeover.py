"""What the Go reference plugins call things, and who has made a pod's link."""

from __future__ import annotations

from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import names, takeover
from cni_plugin.kernel import codec, goplugins, nftrules
from cni_plugin.kernel import expressions as ex
from cni_plugin.kernel import nftmessages as nft
from cni_plugin.kernel.nftview import RuleState
from cni_plugin.node import Node
from cni_plugin.spec import (
    Attachment,
    CniError,
    Code,
    Interface,
    IPConfig,
    Request,
    Result,
)

ATTACHMENT = Attachment("cid1", "eth0")


def test_the_names_are_those_of_the_go_plugins() -> None:
    """As plugins 1.1.1 and 1.9 made them for network "net"."""
    theirs = goplugins.names_of("net", ATTACHMENT)
    assert theirs.chain == "CNI-a4f1c0cea3480fe949fc94f8"
    assert theirs.dnat_chain == "CNI-DN-a4f1c0cea3480fe949fc9"
    assert theirs.link == "bwpa4f1c0cea348"
    assert theirs.masquerading == "a4861f4ae9f7d238-0b65a318f52e521b"
    assert len(theirs.old_snat_chain) == 28


def test_only_the_masquerading_comment_tells_interfaces_apart() -> None:
    one, other = (goplugins.names_of("net", Attachment("c", name)) for name in ("eth0", "net1"))
    assert one.masquerading != other.masquerading
    assert one._replace(masquerading="") == other._replace(masquerading="")


@pytest.mark.parametrize("version", [4, 6, nft.INET])
def test_the_question_for_a_chain_is_pyroute2s(version: int) -> None:
    asked = goplugins.get_chain(version, "nat", "CNI-DN-x")
    cls: Any = nft._MESSAGES["chain"][1]
    message = cls()
    message["nfgen_family"] = nft.protocol(version)
    message["attrs"] = [("NFTA_CHAIN_TABLE", "nat"), ("NFTA_CHAIN_NAME", "CNI-DN-x")]
    message.encode()
    assert bytes(message.data[16:]) == asked.body


# --- rules ------------------------------------------------------------------------------------


def rule(version: int, *expressions: nft.Expression) -> RuleState:
    """The rule as the kernel would give it back."""
    message = nft.add_rule(version, "filter", "X", expressions)
    entry = codec.decode(nft._RAW_RULE, message.body)
    return RuleState(1, "", nft.raw_expressions(expressions), entry)


ADDRESS = {4: bytes((10, 55, 0, 2)), 6: b"\xfd" + bytes(14) + b"\2"}


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_rule_asks_for(version: int) -> None:
    terms = nftrules.terms(
        rule(
            version,
            ex.protocol(),
            ex.compare(b"\x11"),
            ex.destination(version),
            ex.compare(ADDRESS[version]),
            ex.destination_port(),
            ex.compare(b"\x1f\x90"),
            ex.counter(),
            ex.jump("CNI-DN-x"),
        ).entry
    )
    assert (terms.protocol, terms.ports, terms.jump) == (17, (8080,), "CNI-DN-x")
    assert (terms.source, terms.destination) == (b"", ADDRESS[version])
    assert not terms.accepts


def test_what_must_not_be_is_not_asked_for() -> None:
    unequal = ex.compare(ADDRESS[4], equal=False)
    terms = nftrules.terms(rule(4, ex.destination(4), unequal, ex.accept()).entry)
    assert terms.destination == b""
    assert terms.accepts


@pytest.mark.parametrize("version", [4, 6])
def test_only_rules_as_the_firewall_plugin_writes_them_are_its(version: int) -> None:
    own = [ADDRESS[version]]
    source = (ex.source(version), ex.compare(own[0]))
    assert goplugins._is_firewalls(rule(version, *source, ex.counter(), ex.accept()), own)
    others = (
        (*source, ex.drop()),
        (*source, ex.jump("X")),
        (*source, ex.protocol(), ex.compare(b"\6"), ex.accept()),
        (ex.destination(version), ex.compare(own[0]), ex.accept()),
        (ex.source(version), ex.compare(own[0][:-1] + b"\3"), ex.accept()),
    )
    for expressions in others:
        assert not goplugins._is_firewalls(rule(version, *expressions), own)


def test_the_ports_of_iptables_multiport() -> None:
    def info(flags: int, ports: list[int], ranged: bool = False, inverted: bool = False) -> bytes:
        listed, ranges = ports + [0] * (15 - len(ports)), [int(ranged)] + [0] * 14
        return nftrules._MULTIPORT.pack(flags, len(ports), *listed, *ranges, int(inverted))

    assert nftrules._multiport(info(1, [80, 8080])) == (80, 8080)
    assert nftrules._multiport(info(1, [80]).hex(":")) == (80,)
    for other in (info(0, [80]), info(1, [80, 90], ranged=True), info(1, [80], inverted=True)):
        assert nftrules._multiport(other) == ()


# --- whose pod it is --------------------------------------------------------------------------


def request(folder: Path, ipam: str = "host-local") -> Request:
    conf = {"name": "net", "ipam": {"type": ipam, "dataDir": str(folder)} if ipam else {}}
    return Request("DEL", ATTACHMENT, "", {}, (), b"", conf, "1.0.0", "net")


def reserve(folder: Path, address: str, container_id: str, ifname: str = "eth0") -> None:
    (folder / "net").mkdir(exist_ok=True)
    (folder / "net" / address).write_text(f"{container_id}\r\n{ifname}")


def made(*links: str, address: str = "10.55.0.2/24") -> Result:
    """A prevResult with these links of the node, and the pod's."""
    pod = Interface("eth0", sandbox="/run/netns/x")
    ips = (IPConfig(ip_interface(address)),)
    return Result(interfaces=(*map(Interface, links), pod), ips=ips)


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The addresses of each attachment whose rules were to be removed."""
    found: list[list[str]] = []

    def remove(node: Node, network: str, attachment: Attachment, addresses: list[Any]) -> None:
        assert (network, attachment) == ("net", ATTACHMENT)
        found.append([str(address) for address in addresses])

    monkeypatch.setattr(takeover, "_remove", remove)
    return found


NODE = Node({})
OWN = names.host_veth_name("net", ATTACHMENT)


def test_a_reservation_proves_an_add(tmp_path: Path, removed: list[list[str]]) -> None:
    for address, holder in {"10.55.0.2": "cid1", "fd00::2": "cid1", "10.55.0.3": "other"}.items():
        reserve(tmp_path, address, holder)
    reserve(tmp_path, "10.55.0.4", "cid1", "net1")
    assert takeover.forget(NODE, request(tmp_path), ATTACHMENT, None) is None
    assert removed == [["10.55.0.2", "fd00::2"]]


def test_an_address_that_is_not_reserved_is_not_its(
    tmp_path: Path, removed: list[list[str]]
) -> None:
    reserve(tmp_path, "10.55.0.2", "other")
    assert takeover.forget(NODE, request(tmp_path), ATTACHMENT, made("veth1")) is None
    assert removed == [[]]


def test_another_plugins_addresses_are_those_of_prev_result(
    tmp_path: Path, removed: list[list[str]]
) -> None:
    asked = request(tmp_path, "whereabouts")
    assert takeover.forget(NODE, asked, ATTACHMENT, made("veth1")) is None
    assert removed == [["10.55.0.2"]]


@pytest.mark.parametrize("previous", [None, Result()], ids=["none", "empty"])
def test_without_proof_nothing_is_looked_for(
    tmp_path: Path, removed: list[list[str]], previous: Result | None
) -> None:
    assert takeover.forget(NODE, request(tmp_path), ATTACHMENT, previous) is None
    assert removed == []


def test_podwires_own_pods_and_those_of_its_chain_are_left_alone(
    tmp_path: Path, removed: list[list[str]]
) -> None:
    reserve(tmp_path, "10.55.0.2", "cid1")
    assert takeover.forget(NODE, request(tmp_path), ATTACHMENT, made("cni0", OWN)) is None
    chained = request(tmp_path, ipam="")
    assert takeover.forget(NODE, chained, ATTACHMENT, made("cni0", "veth1")) is None
    assert removed == []


def test_what_goes_wrong_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(*_: object) -> None:
        raise CniError(Code.KERNEL_REFUSED, "no")

    monkeypatch.setattr(takeover, "_remove", remove)
    failure = takeover.forget(NODE, request(tmp_path), ATTACHMENT, made("veth1"))
    assert failure is not None
    assert failure.code == Code.KERNEL_REFUSED
