"""Host ports, decided: what a configuration may say, which port leads where, what is remembered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import hostports, portrecord
from cni_plugin.fields import Fields
from cni_plugin.hostports import HostPort, PortMapping, PortOptions
from cni_plugin.spec import Attachment, CniError, Code
from tests.unit import strategies

V4, V6 = ip_address("10.244.0.5"), ip_address("fd00:10:244::5")
POD = Attachment("web", "eth0")


def mapping(host: Any = 8080, inner: Any = 80, **more: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": inner, **more}


def parsed(*mappings: Any, **keys: Any) -> PortOptions:
    return hostports.parse(Fields({"runtimeConfig": {"portMappings": list(mappings)}, **keys}))


def refused(*mappings: Any, **keys: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        parsed(*mappings, **keys)
    return caught.value


def record(options: PortOptions, link: str = "cni0", pod: Attachment = POD) -> Any:
    return hostports.record(options, "podnet", pod, link, (V4, V6))


# --- the configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"runtimeConfig": None},
        {"runtimeConfig": {"portMappings": None}},
        {"runtimeConfig": {"portMappings": []}, "snat": None, "markMasqBit": None},
        {"conditionsV4": [], "conditionsV6": None, "externalSetMarkChain": "", "masqAll": False},
    ],
)
def test_nothing_asked(conf: dict[str, Any]) -> None:
    assert hostports.parse(Fields(conf)) == PortOptions((), snat=True, mark_bit=13)


def test_everything_asked() -> None:
    one = mapping(53, 5353, protocol="UDP", hostIP="192.168.1.2")
    assert parsed(one, mapping(), snat=False, markMasqBit=0) == PortOptions(
        mappings=(
            PortMapping(53, 5353, "udp", ip_address("192.168.1.2")),
            PortMapping(8080, 80, "tcp", None),
        ),
        snat=False,
        mark_bit=0,
    )


@pytest.mark.parametrize("change", [str.upper, str.lower, str.capitalize])
def test_keys_in_any_mixture_of_cases(change: Callable[[str], str]) -> None:
    """As Go reads them."""
    entry = mapping(53, 5353, protocol="UDP", hostIP="192.168.1.2")
    options = {"snat": False, "markMasqBit": 5}
    conf = {change(key): value for key, value in options.items()}
    entries = [{change(key): value for key, value in entry.items()}]
    found = hostports.parse(Fields({**conf, "runtimeConfig": {"portMappings": entries}}))
    assert found == parsed(entry, **options)


@pytest.mark.parametrize("text", ["tcp", "TCP", "Tcp", "", None])
def test_protocol_is_tcp(text: str | None) -> None:
    assert parsed(mapping(protocol=text)).mappings[0].protocol == "tcp"


def test_an_ipv4_address_written_as_ipv6_is_one() -> None:
    assert parsed(mapping(hostIP="::ffff:192.168.1.2")).mappings[0].host_ip == IPv4Address(
        "192.168.1.2"
    )


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (mapping(0), "hostPort"),
        (mapping(-1), "hostPort"),
        (mapping(65536), "hostPort"),
        (mapping(70000), "hostPort"),
        (mapping("8080"), "hostPort"),
        (mapping(True), "hostPort"),
        (mapping(8080.0), "hostPort"),
        (mapping(None), "hostPort"),
        ({"containerPort": 80}, "hostPort"),
        (mapping(inner=0), "containerPort"),
        (mapping(inner=70000), "containerPort"),
        ({"hostPort": 80}, "containerPort"),
        (mapping(protocol="icmp"), "protocol"),
        (mapping(protocol=6), "protocol"),
        (mapping(protocol="tcp "), "protocol"),
        (mapping(hostIP="localhost"), "hostIP"),
        (mapping(hostIP="192.168.1.2/24"), "hostIP"),
        (mapping(hostIP="fe80::1%eth0"), "hostIP"),
        (mapping(hostIP="224.0.0.1"), "hostIP"),
        (mapping(hostIP="255.255.255.255"), "hostIP"),
        (mapping(hostIP="fe80::1"), "hostIP"),
        (mapping(hostIP="::ffff:255.255.255.255"), "hostIP"),
        (mapping(hostIP="::1"), "hostIP"),
        (mapping(hostIP=5), "hostIP"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(entry: dict[str, Any], field: str) -> None:
    error = refused(mapping(9090), entry)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith(f"runtimeConfig.portMappings[1].{field}: expected ")


@pytest.mark.parametrize(
    ("conf", "field"),
    [
        ({"runtimeConfig": []}, "runtimeConfig"),
        ({"runtimeConfig": {"portMappings": {}}}, "runtimeConfig.portMappings"),
        ({"runtimeConfig": {"portMappings": [80]}}, "runtimeConfig.portMappings[0]"),
        ({"snat": "yes"}, "snat"),
        ({"markMasqBit": 32}, "markMasqBit"),
        ({"markMasqBit": -1}, "markMasqBit"),
    ],
)
def test_a_wrong_option_is_named(conf: dict[str, Any], field: str) -> None:
    with pytest.raises(CniError) as caught:
        hostports.parse(Fields(conf))
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith(f"{field}: expected ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conditionsV4", ["-s", "10.0.0.0/8"]),
        ("conditionsV6", ["-s", "fd00::/8"]),
        ("externalSetMarkChain", "KUBE-MARK-MASQ"),
        ("masqAll", True),
    ],
)
def test_what_the_reference_can_and_podwire_cannot(key: str, value: object) -> None:
    error = refused(**{key: value})
    assert error.code == Code.UNSUPPORTED_FIELD
    assert error.msg.startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {}),
        ({}, {"protocol": "TCP", "containerPort": 81}),
        ({"hostIP": "192.168.1.2"}, {"hostIP": "192.168.1.2"}),
        ({"hostIP": "192.168.1.2"}, {}),
        ({"hostIP": "0.0.0.0"}, {"hostIP": "192.168.1.2"}),
        ({"hostIP": "::"}, {}),
    ],
)
def test_one_port_mapped_twice(one: dict[str, Any], other: dict[str, Any]) -> None:
    for first, second in ((one, other), (other, one)):
        error = refused(mapping() | first, mapping() | second)
        assert error.code == Code.INVALID_CONFIG
        assert "runtimeConfig.portMappings[1].hostPort: 8080/tcp" in error.msg
        assert "runtimeConfig.portMappings[0]" in error.msg


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"protocol": "udp"}),
        ({}, {"hostPort": 8081}),
        ({"hostIP": "192.168.1.2"}, {"hostIP": "192.168.1.3"}),
        ({"hostIP": "0.0.0.0"}, {"hostIP": "::"}),
        ({"hostIP": "0.0.0.0"}, {"hostIP": "fd00::2"}),
    ],
)
def test_different_ports_are_not_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert len(parsed(mapping() | one, mapping() | other).mappings) == 2


_ALL = ("0.0.0.0", "::")
_SOME_HOST_IP = st.sampled_from(["", "0.0.0.0", "::", "10.0.0.1", "10.0.0.2", "fd00::1"])


@given(st.lists(st.tuples(st.integers(1, 2), _SOME_HOST_IP), max_size=6))
def test_the_first_of_two_that_overlap_is_named(entries: list[tuple[int, str]]) -> None:
    """As each mapping is compared with each."""

    def overlap(one: str, other: str) -> bool:
        if not one or not other:
            return True
        same_family = (":" in one) == (":" in other)
        return same_family and (one == other or one in _ALL or other in _ALL)

    clashes = [
        (index, earlier)
        for index, (port, ip) in enumerate(entries)
        for earlier, (other_port, other) in enumerate(entries[:index])
        if port == other_port and overlap(ip, other)
    ]
    mappings = [mapping(port, hostIP=ip) for port, ip in entries]
    if not clashes:
        assert len(parsed(*mappings).mappings) == len(entries)
        return
    message = refused(*mappings).msg
    index, earlier = clashes[0]
    assert message.startswith(f"runtimeConfig.portMappings[{index}].hostPort: ")
    assert f"by runtimeConfig.portMappings[{earlier}] already" in message


def test_many_mappings_take_a_time_that_grows_with_their_number() -> None:
    begun = time.process_time()
    assert len(parsed(*(mapping(port + 1) for port in range(20_000))).mappings) == 20_000
    assert time.process_time() - begun < 5  # each compared with each: 40 s


@given(
    st.dictionaries(
        st.sampled_from(["runtimeConfig", "snat", "markMasqBit"]), strategies.json_values
    )
)
def test_nothing_but_cni_errors(conf: dict[str, Any]) -> None:
    try:
        hostports.parse(Fields(conf))
    except CniError as e:
        assert e.code in (Code.INVALID_CONFIG, Code.UNSUPPORTED_FIELD)


# --- the plan -----------------------------------------------------------------------------------


def ports_of(options: PortOptions, *addresses: Any) -> list[tuple[Any, ...]]:
    return [tuple(port) for port in hostports.plan(options, addresses)]


@pytest.mark.parametrize("addresses", [(V4,), (V6,), (V4, V6), (V6, V4)])
def test_no_host_ip_means_the_families_of_the_pod(addresses: tuple[Any, ...]) -> None:
    assert ports_of(parsed(mapping()), *addresses) == [
        (address.version, "tcp", None, 8080, address, 80)
        for address in sorted(addresses, key=lambda a: a.version)
    ]


@pytest.mark.parametrize(
    ("host_ip", "wanted"),
    [
        ("0.0.0.0", (4, "tcp", None, 8080, V4, 80)),
        ("::", (6, "tcp", None, 8080, V6, 80)),
        ("192.168.1.2", (4, "tcp", ip_address("192.168.1.2"), 8080, V4, 80)),
        ("169.254.0.9", (4, "tcp", ip_address("169.254.0.9"), 8080, V4, 80)),
        ("127.0.0.1", (4, "tcp", ip_address("127.0.0.1"), 8080, V4, 80)),
        ("fd00::2", (6, "tcp", ip_address("fd00::2"), 8080, V6, 80)),
    ],
)
def test_a_host_ip_means_its_family(host_ip: str, wanted: tuple[Any, ...]) -> None:
    assert ports_of(parsed(mapping(hostIP=host_ip)), V4, V6) == [wanted]


def test_of_several_addresses_the_first_of_a_family_counts() -> None:
    other = ip_address("10.244.1.5")
    assert [port[4] for port in ports_of(parsed(mapping()), other, V4)] == [other]


@pytest.mark.parametrize(("host_ip", "pod"), [("fd00::2", V4), ("::", V4), ("192.168.1.2", V6)])
def test_a_family_that_the_pod_lacks(host_ip: str, pod: Any) -> None:
    with pytest.raises(CniError) as caught:
        ports_of(parsed(mapping(9090), mapping(hostIP=host_ip)), pod)
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith("runtimeConfig.portMappings[1].hostIP: expected an IPv")
    assert f"got {json.dumps(host_ip)}" in caught.value.msg


def test_a_pod_without_addresses() -> None:
    assert hostports.plan(parsed(), ()) == ()
    with pytest.raises(CniError, match=r"portMappings\[0\]: the pod has no address"):
        hostports.plan(parsed(mapping()), ())


# --- conflicts ------------------------------------------------------------------------------------


def port(**more: Any) -> HostPort:
    given_ip = more.pop("ip", "")
    base = HostPort(4, "tcp", ip_address(given_ip) if given_ip else None, 8080, V4, 80)
    return base._replace(**more)


@pytest.mark.parametrize(
    ("other", "clashes"),
    [
        (port(), True),
        (port(ip="192.168.1.2"), True),
        (port(pod=ip_address("10.244.0.9"), container_port=1), True),
        (port(protocol="udp"), False),
        (port(host_port=8081), False),
        (port(version=6), False),
    ],
)
def test_what_clashes_with_every_address(other: HostPort, clashes: bool) -> None:
    assert port().clashes(other) is other.clashes(port()) is clashes


def test_two_addresses_do_not_clash() -> None:
    one, other = port(ip="192.168.1.2"), port(ip="192.168.1.3")
    assert one.clashes(one)
    assert not one.clashes(other)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (port(), "0.0.0.0:8080/tcp"),
        (port(version=6), "[::]:8080/tcp"),
        (port(version=6, ip="fd00::2", protocol="udp"), "[fd00::2]:8080/udp"),
    ],
)
def test_how_a_port_is_written(shown: HostPort, text: str) -> None:
    assert shown.where == text


# --- records --------------------------------------------------------------------------------------


def test_a_record_says_whose_it_is() -> None:
    made = record(parsed(mapping()))
    assert made.comment == "web eth0 podnet"
    assert made.name == record(parsed()).name  # by the attachment alone
    assert made.name != record(parsed(), pod=Attachment("web", "eth1")).name
    assert "web" in made.holder


def test_a_long_name_is_cut_and_still_its_own() -> None:
    pods = [Attachment("c" * 200 + end, "eth0") for end in "ab"]
    comments = {record(parsed(mapping()), pod=pod).comment for pod in pods}
    assert len(comments) == 2
    assert all(len(comment.encode()) == 127 for comment in comments)


def test_a_name_beyond_ascii_is_written_in_ascii() -> None:
    comment = record(parsed(mapping()), pod=Attachment("web", "é\udc80")).comment
    assert comment.isascii()
    assert comment.startswith("web ")


@pytest.mark.parametrize(
    ("options", "link"),
    [
        (parsed(mapping()), "cni0"),
        (parsed(mapping(hostIP="::")), ""),
        (parsed(mapping(), snat=False), ""),
        (parsed(), ""),
    ],
)
def test_the_link_that_carries_127_0_0_1(options: PortOptions, link: str) -> None:
    assert record(options).localnet == link


@given(
    st.text(),
    st.booleans(),
    st.lists(
        st.builds(
            mapping,
            st.integers(1, 65535),
            st.integers(1, 65535),
            protocol=st.sampled_from(["tcp", "UDP", "sctp"]),
            hostIP=st.sampled_from(["", "0.0.0.0", "192.168.1.2", "fd00::2"]),
        ),
        max_size=4,
        unique_by=lambda entry: entry["hostPort"],
    ),
)
def test_what_is_written_is_read(name: str, snat: bool, mappings: list[dict[str, Any]]) -> None:
    made = record(parsed(*mappings, snat=snat), pod=Attachment(name, "eth0"))
    assert portrecord.decode(portrecord.encode(made), made.name) == made


@given(strategies.json_values)
def test_what_is_no_record(document: Any) -> None:
    with pytest.raises(ValueError):
        portrecord.decode(json.dumps(document).encode(), "veth00000000000")


SOUND = {
    "containerID": "web",
    "ifname": "eth0",
    "network": "podnet",
    "localnet": "cni0",
    "snat": True,
    "ports": [["tcp", "", 8080, "10.244.0.5", 80]],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("containerID", {}),
        ("ifname", []),
        ("network", 5),
        ("localnet", {"a": 1}),
        ("localnet", None),
        ("localnet", "../../all"),
        ("snat", 1),
        ("snat", "yes"),
        ("ports", {}),
        ("ports", ["tcp"]),
        ("ports", [["tcp", "", 8080, "10.244.0.5"]]),
        ("ports", [["tcp", "", 70000, "10.244.0.5", 80]]),
        ("ports", [["tcp", "", 0, "10.244.0.5", 80]]),
        ("ports", [["tcp", "", True, "10.244.0.5", 80]]),
        ("ports", [["tcp", "", "8080", "10.244.0.5", 80]]),
        ("ports", [["tcp", "", 8080, "10.244.0.5", 65536]]),
        ("ports", [["foo", "", 8080, "10.244.0.5", 80]]),
        ("ports", [[[], "", 8080, "10.244.0.5", 80]]),
        ("ports", [["tcp", "", 8080, 5, 80]]),
        ("ports", [["tcp", "", 8080, "", 80]]),
        ("ports", [["tcp", 0, 8080, "10.244.0.5", 80]]),
        ("ports", [["tcp", "fd00::2", 8080, "10.244.0.5", 80]]),
        ("containerID", "other"),  # whose file has another name
    ],
    ids=str,
)
def test_a_record_with_one_thing_wrong(key: str, value: object) -> None:
    name = record(parsed()).name
    assert portrecord.decode(json.dumps(SOUND).encode(), name).ports[0].host_port == 8080
    with pytest.raises(ValueError):
        portrecord.decode(json.dumps({**SOUND, key: value}).encode(), name)


@pytest.mark.parametrize("data", [b"", b"\xff{]", b"[" * 200_000, b"9" * 5000])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(ValueError):
        portrecord.decode(data, "veth00000000000")
