"""The configuration of the main plugin: every option, and every error names its field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given

from cni_plugin import netconf, skel
from cni_plugin.crossnode import CrossNode
from cni_plugin.hostports import PortOptions
from cni_plugin.netconf import NetConf
from cni_plugin.shaping import Bandwidth
from cni_plugin.spec import DNS, SUPPORTED_VERSIONS, CniError, Code
from tests.unit import strategies

IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}
ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
}


def parsed(cni_args: str = "", /, version: str = "1.1.0", **keys: object) -> NetConf:
    """The configuration that ADD would work from."""
    conf = {"cniVersion": version, "name": "podnet", "type": "podwire", "ipam": IPAM} | keys
    request = skel.parse_request({**ENV, "CNI_ARGS": cni_args}, json.dumps(conf).encode())
    return netconf.parse(request)


def refused(cni_args: str = "", /, **keys: object) -> CniError:
    with pytest.raises(CniError) as caught:
        parsed(cni_args, **keys)
    return caught.value


# --- the agent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "auto", "never"])
def test_agent(value: str | None) -> None:
    assert parsed(agent=value) == parsed()


@pytest.mark.parametrize("value", ["Auto", "always", "on", True, False, 0, 1, [], {}])
def test_another_agent_is_refused(value: object) -> None:
    error = refused(agent=value)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("agent: ")


@pytest.mark.parametrize("path", [None, "", "/run/podwire/agent.sock", "/" + "x" * 106])
def test_agent_socket(path: str | None) -> None:
    assert parsed(agentSocket=path) == parsed()


@pytest.mark.parametrize(
    "path",
    ["agent.sock", "./a", "@abstract", "/" + "x" * 107, "/" + "é" * 54, "/a\0b", "/\ud800", 5, []],
    ids=repr,
)
def test_another_agent_socket_is_refused(path: object) -> None:
    error = refused(agentSocket=path)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("agentSocket: ")


# --- defaults and simple options ----------------------------------------------------------------


def test_defaults() -> None:
    assert parsed() == NetConf(
        network="podnet",
        mode="bridge",
        bridge="cni0",
        is_gateway=False,
        is_default_gateway=False,
        force_address=False,
        hairpin=False,
        promisc=False,
        port_isolation=False,
        enable_dad=False,
        mtu=0,
        mac="",
        dns=None,
        ipam_type="host-local",
        nodes="",
        ip_masq=False,
        non_masquerade=(),
        ingress_policy="open",
        accept_forwarding=True,
        node_name="",
        cross_node=CrossNode(),
        bandwidth=Bandwidth(),
        ports=PortOptions((), True, 13),
        maps_ports=False,
        prev_result=None,
    )


FLAGS = {
    "isGateway": "is_gateway",
    "isDefaultGateway": "is_default_gateway",
    "forceAddress": "force_address",
    "hairpinMode": "hairpin",
    "promiscMode": "promisc",
    "portIsolation": "port_isolation",
    "enabledad": "enable_dad",
    "ipMasq": "ip_masq",
}


@pytest.mark.parametrize(("key", "field"), FLAGS.items())
def test_flags(key: str, field: str) -> None:
    assert getattr(parsed(**{key: True}), field) is True
    assert getattr(parsed(**{key: False}), field) is False
    assert getattr(parsed(**{key: None}), field) is False
    for value in ("true", 1, 0, [], {}):
        error = refused(**{key: value})
        assert error.code == Code.INVALID_CONFIG
        assert error.msg.startswith(f"{key}:")


def test_a_default_gateway_is_a_gateway() -> None:
    assert parsed(isDefaultGateway=True, isGateway=False).is_gateway


@pytest.mark.parametrize("keys", [{"mode": "ptp"}, {"nodes": "/etc/podwire/nodes.json"}])
def test_routed_pods_have_a_default_gateway_unless_told_otherwise(keys: dict[str, str]) -> None:
    assert parsed(**keys).is_default_gateway
    assert parsed(**keys).is_gateway
    assert not parsed(**keys, isDefaultGateway=False).is_default_gateway


@pytest.mark.parametrize("mode", ["", "Bridge", "host-gw", "macvlan", 5])
def test_unknown_modes(mode: object) -> None:
    error = refused(mode=mode)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("mode:")


@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_modes(mode: str) -> None:
    assert parsed(mode=mode).mode == mode


@pytest.mark.parametrize("name", ["br0", "a" * 15, "k8s-pods.1"])
def test_bridge_names(name: str) -> None:
    assert parsed(bridge=name).bridge == name


@pytest.mark.parametrize(
    "name", ["a" * 16, "é" * 8, "..", ".", "a/b", "a b", "a:b", "a%d", "a\n", "\ud800", "\0", 5, []]
)
def test_bad_bridge_names(name: object) -> None:
    error = refused(bridge=name)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("bridge:")


def test_an_empty_bridge_name_is_the_default() -> None:
    assert parsed(bridge="").bridge == "cni0"


@pytest.mark.parametrize("mtu", [0, 68, 1280, 1500, 9000, 65535])
def test_mtus(mtu: int) -> None:
    assert parsed(mtu=mtu).mtu == mtu


@pytest.mark.parametrize("mtu", [-1, 1, 67, 65536, 10**30, "1500", 1500.0, True, [], {}])
def test_bad_mtus(mtu: object) -> None:
    error = refused(mtu=mtu)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("mtu:")


def test_unknown_keys_are_nobodys_business() -> None:
    assert parsed(capabilities={"bandwidth": True}, whatever={"a": [1]}) == parsed()


def test_a_network_maps_ports_when_its_runtime_may_ask_for_them() -> None:
    assert parsed(capabilities={"portMappings": True}) == parsed()._replace(maps_ports=True)


# --- what is not built --------------------------------------------------------------------------

UNSUPPORTED = [
    ("vlan", 100),
    ("vlanTrunk", [{"id": 100}]),
    ("vlanTrunk", [{"minID": 10, "maxID": 20}]),
    ("macspoofchk", True),
    ("disableContainerInterface", True),
]


@pytest.mark.parametrize(("key", "value"), UNSUPPORTED)
@pytest.mark.parametrize("mode", ["bridge", "ptp"])
def test_an_option_that_is_not_built_is_refused_with_key_and_value(
    mode: str, key: str, value: object
) -> None:
    error = refused(mode=mode, **{key: value})
    assert error.code == Code.UNSUPPORTED_FIELD
    assert key in error.msg
    assert json.dumps(value) in error.msg


@pytest.mark.parametrize(
    "keys",
    [
        {"vlan": 0},
        {"vlan": None},
        {"vlanTrunk": []},
        {"vlanTrunk": None},
        {"macspoofchk": False},
        {"ipMasq": False},
        {"ipMasq": None},
        {"ipMasq": False, "ipMasqBackend": "nftables"},
        {"disableContainerInterface": False},
        {"preserveDefaultVlan": True},
        {"preserveDefaultVlan": False},
        {"runtimeConfig": {"portMappings": []}},
        {"runtimeConfig": {"portMappings": None}},
        {"runtimeConfig": {"bandwidth": {}}},
        {"runtimeConfig": {"bandwidth": None}},
        {
            "runtimeConfig": {
                "bandwidth": {
                    "ingressRate": 0,
                    "ingressBurst": 0,
                    "egressRate": 0,
                    "egressBurst": 0,
                }
            }
        },
        {"runtimeConfig": {"cgroupPath": "/kubepods/x", "aliases": ["a"]}},
        {"runtimeConfig": None},
    ],
)
def test_the_off_values_of_what_is_not_built_are_accepted(keys: dict[str, object]) -> None:
    assert parsed(**keys) == parsed()


def test_unsupported_wins_over_the_pods_life_but_not_over_deletion() -> None:
    """DEL and GC never read these options: a pod has to go whatever the configuration says."""
    conf = {"cniVersion": "1.1.0", "name": "n", "vlan": 7, "mtu": "x", "ipam": IPAM}
    request = skel.parse_request({**ENV, "CNI_COMMAND": "DEL"}, json.dumps(conf).encode())
    assert netconf.ipam_type(request.conf) == "host-local"


# --- combinations -------------------------------------------------------------------------------


def test_hairpin_and_promisc_exclude_each_other() -> None:
    error = refused(hairpinMode=True, promiscMode=True)
    assert error.code == Code.INVALID_CONFIG
    assert "hairpinMode" in error.msg
    assert "promiscMode" in error.msg
    assert parsed(hairpinMode=True, promiscMode=False).hairpin
    assert parsed(hairpinMode=False, promiscMode=True).promisc


@pytest.mark.parametrize("key", ["hairpinMode", "promiscMode", "portIsolation"])
def test_what_needs_a_bridge_is_refused_without_one(key: str) -> None:
    error = refused(mode="ptp", **{key: True})
    assert error.code == Code.INVALID_CONFIG
    assert key in error.msg


def test_ptp_needs_addresses() -> None:
    for ipam in (None, {}, {"type": ""}):
        assert refused(mode="ptp", ipam=ipam).code == Code.INVALID_CONFIG


# --- ipam ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ipam", [None, {}, {"type": ""}, {"type": None}])
def test_layer_two_only(ipam: object) -> None:
    assert parsed(ipam=ipam).ipam_type == ""


@pytest.mark.parametrize("kind", ["host-local", "podwire-ipam", "static", "dhcp", "my.ipam_2"])
def test_ipam_types(kind: str) -> None:
    assert parsed(ipam={"type": kind}).ipam_type == kind


@pytest.mark.parametrize(
    "kind", ["/bin/sh", "../sh", "a/b", "a/", "/", ".", "..", "a\\b", "..\\x", "a\0b"]
)
def test_an_ipam_type_is_never_a_path(kind: str) -> None:
    error = refused(ipam={"type": kind})
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("ipam.type:")


@pytest.mark.parametrize("ipam", [5, "host-local", [], True])
def test_ipam_is_an_object(ipam: object) -> None:
    error = refused(ipam=ipam)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("ipam:")


# --- mac ----------------------------------------------------------------------------------------

ARGS_MAC, CNI_MAC, RUNTIME_MAC = (f"02:00:00:00:00:0{n}" for n in "123")


@pytest.mark.parametrize(
    ("args", "keys", "chosen"),
    [
        ("", {}, ""),
        (f"MAC={ARGS_MAC}", {}, ARGS_MAC),
        ("", {"args": {"cni": {"mac": CNI_MAC}}}, CNI_MAC),
        ("", {"runtimeConfig": {"mac": RUNTIME_MAC}}, RUNTIME_MAC),
        (f"MAC={ARGS_MAC}", {"args": {"cni": {"mac": CNI_MAC}}}, CNI_MAC),
        (f"MAC={ARGS_MAC}", {"runtimeConfig": {"mac": RUNTIME_MAC}}, RUNTIME_MAC),
        (
            f"MAC={ARGS_MAC}",
            {"args": {"cni": {"mac": CNI_MAC}}, "runtimeConfig": {"mac": RUNTIME_MAC}},
            RUNTIME_MAC,
        ),
        (f"MAC={ARGS_MAC}", {"args": {"cni": {"mac": ""}}, "runtimeConfig": {}}, ARGS_MAC),
        ("MAC=02:AB:CD:EF:00:01", {}, "02:ab:cd:ef:00:01"),
        ("", {"runtimeConfig": {"mac": "02-AB-cd-ef-00-01"}}, "02:ab:cd:ef:00:01"),
    ],
)
def test_precedence_of_macs(args: str, keys: Mapping[str, Any], chosen: str) -> None:
    assert parsed(args, **keys).mac == chosen


BAD_MACS = [
    *("x", "02:00:00:00:00", "02:00:00:00:00:01:02", "0200:0000:0001", "02:00:00:00:00:0g"),
    *("01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00:00:00:00:01\n"),
    "٠٢:00:00:00:00:01",
]


@pytest.mark.parametrize("mac", BAD_MACS)
def test_bad_macs(mac: str) -> None:
    error = refused(f"MAC={mac}")
    assert (error.code, error.msg[:13]) == (Code.INVALID_ENVIRONMENT, "CNI_ARGS: MAC")
    error = refused(args={"cni": {"mac": mac}})
    assert (error.code, error.msg[:13]) == (Code.INVALID_CONFIG, "args.cni.mac:")
    error = refused(runtimeConfig={"mac": mac})
    assert (error.code, error.msg[:18]) == (Code.INVALID_CONFIG, "runtimeConfig.mac:")


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"args": 5}, "args:"),
        ({"args": {"cni": []}}, "args.cni:"),
        ({"args": {"cni": {"mac": 5}}}, "args.cni.mac:"),
        ({"runtimeConfig": []}, "runtimeConfig:"),
        ({"runtimeConfig": {"mac": 5}}, "runtimeConfig.mac:"),
    ],
)
def test_the_places_of_macs_are_typed(keys: dict[str, Any], where: str) -> None:
    conf = {"cniVersion": "1.1.0", "name": "n", "ipam": IPAM} | keys
    with pytest.raises(CniError) as caught:
        netconf.parse(skel.parse_request(ENV, json.dumps(conf).encode()))
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith(where)


# --- dns ----------------------------------------------------------------------------------------

CONFIGURED = {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]}
RUNTIME = {"servers": ["10.0.0.2"], "searches": ["d"], "options": ["e"]}


@pytest.mark.parametrize(
    ("keys", "dns"),
    [
        ({}, None),
        ({"dns": {}}, None),
        ({"dns": CONFIGURED}, DNS(("10.0.0.1",), "a", ("b",), ("c",))),
        ({"runtimeConfig": {"dns": RUNTIME}}, DNS(("10.0.0.2",), "", ("d",), ("e",))),
        ({"runtimeConfig": {"dns": {}}, "dns": {"domain": "x"}}, DNS(domain="x")),
    ],
)
def test_dns(keys: dict[str, Any], dns: DNS | None) -> None:
    assert parsed(**keys).dns == dns


def test_the_runtimes_dns_wins() -> None:
    dns = parsed(dns=CONFIGURED, runtimeConfig={"dns": RUNTIME}).dns
    assert dns is not None
    assert dns.nameservers == ("10.0.0.2",)
    assert dns.search == ("d",)
    assert dns.options == ("e",)


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"dns": 5}, "dns:"),
        ({"dns": {"nameservers": "10.0.0.1"}}, "dns.nameservers:"),
        ({"dns": {"domain": []}}, "dns.domain:"),
        ({"runtimeConfig": {"dns": []}}, "runtimeConfig.dns:"),
        ({"runtimeConfig": {"dns": {"servers": [5]}}}, "runtimeConfig.dns.servers[0]:"),
    ],
)
def test_bad_dns(keys: dict[str, Any], where: str) -> None:
    error = refused(**keys)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith(where)


# --- prevResult ---------------------------------------------------------------------------------


def test_prev_result_is_read_in_the_configurations_version() -> None:
    ip4 = {"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1"}}
    modern = {"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]}
    for version in SUPPORTED_VERSIONS:
        result = parsed(version=version, prevResult=ip4 if version < "0.3" else modern).prev_result
        assert result is not None
        assert [str(ip.address) for ip in result.ips] == ["10.0.0.2/24"]


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (5, "prevResult:"),
        ([], "prevResult:"),
        ("x", "prevResult:"),
        ({"ips": [{"address": "x"}]}, "prevResult.ips[0].address:"),
        ({"interfaces": 5}, "prevResult.interfaces:"),
    ],
)
def test_a_malformed_prev_result(value: object, where: str) -> None:
    error = refused(prevResult=value)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith(where)


ADDRESS = {"address": "10.0.0.2/24"}
LINK = {"name": "eth0", "sandbox": "/run/netns/pod"}


@pytest.mark.parametrize(
    ("previous", "chained"),
    [
        ({"interfaces": [LINK], "ips": [ADDRESS]}, True),
        ({"interfaces": [LINK]}, True),
        ({"ips": [ADDRESS]}, True),  # as portmap takes it
        ({"ips": [{**ADDRESS, "interface": 0}]}, True),
        ({"interfaces": [{"name": "cni0"}], "ips": [ADDRESS]}, True),
        ({"interfaces": [{**LINK, "name": "lo"}], "ips": [ADDRESS]}, False),
        ({"dns": {}}, False),
        ({"interfaces": [{"name": "cni0"}]}, False),
    ],
)
def test_behind_a_plugin_that_made_the_pods_link(previous: object, chained: bool) -> None:
    assert parsed(ipam=None, prevResult=previous).chained is chained
    assert parsed(prevResult=previous).chained is False


# --- anything at all ----------------------------------------------------------------------------


@given(conf=strategies.configs)
@example(conf={"bridge": "\ud800"})
@example(conf={"ipam": {"type": "\ud800"}})
def test_parse_raises_nothing_but_cni_errors(conf: dict[str, Any]) -> None:
    stdin = json.dumps({"name": "n", **conf}).encode()
    try:
        request = skel.parse_request(ENV, stdin)
        assert netconf.parse(request).network == request.network
    except CniError as e:
        json.loads(skel.encode_error(e, skel.error_version(stdin)))
        assert e.code in (1, 2, 4, 6, 7)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("key", ["vlan", "mode", "portMappings"])
def test_no_depth_of_nesting_is_too_much(key: str, opening: str, closing: str) -> None:
    for depth in [*range(10, 900, 70), *range(900, 1000, 3)]:
        value = opening * depth + "1" + closing * depth
        text = f'{{"runtimeConfig": {{"{key}": {value}}}, "name": "n", "{key}": {value}}}'
        with pytest.raises(CniError):
            netconf.parse(skel.parse_request(ENV, text.encode()))
