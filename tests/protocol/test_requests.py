"""Requests that are refused: environment, configuration, version, before anything is touched.

Every reply is held to the specification by `Plugin.call`: a failure is exactly one error document
on stdout. The network namespace of these calls never exists, so that nothing can be made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.plugin import Config, Plugin, Reply

ENV = {
    "CNI_CONTAINERID": "ctr",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/proc/nowhere/netns",
    "CNI_ARGS": None,
}
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
NO_NETNS = (3, 110)  # what follows when the request itself is right; 110 without root

MakeConf = Callable[..., Config]


@pytest.fixture(params=["podwire", "podwire-ipam"])
def executable(
    request: pytest.FixtureRequest, podwire_executable: str, podwire_ipam_executable: str
) -> Plugin:
    path = podwire_executable if request.param == "podwire" else podwire_ipam_executable
    return Plugin(path)


def refused(
    plugin: Plugin, command: str, conf: Config | str | bytes, **env: str | None
) -> dict[str, Any]:
    """The error document of a call that has to fail; its shape is checked here."""
    reply = plugin.call(command, conf, {**ENV, **env})
    return error_document(reply)


def error_document(reply: Reply) -> dict[str, Any]:
    document = reply.error
    assert reply.rc != 0
    assert (
        {"cniVersion", "code", "msg"} <= set(document) <= {"cniVersion", "code", "msg", "details"}
    )
    assert isinstance(document["cniVersion"], str)
    assert isinstance(document["msg"], str)
    assert isinstance(document.get("details", ""), str)
    assert type(document["code"]) is int
    assert document["code"] not in (0, 199)
    assert "Traceback" not in reply.stderr
    return document


# --- environment --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["FOO", "add", "ADD ", "DELETE", "\udcff"])
def test_an_unknown_command(executable: Plugin, make_conf: MakeConf, command: str) -> None:
    error = refused(executable, command, make_conf())
    assert error["code"] == 4
    assert "CNI_COMMAND" in error["msg"]


@pytest.mark.parametrize(
    ("command", "required"),
    [
        ("ADD", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}),
        ("DEL", {"CNI_CONTAINERID", "CNI_IFNAME"}),
        ("CHECK", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}),
        ("GC", {"CNI_PATH"}),
    ],
)
def test_all_missing_variables_are_named_at_once(
    executable: Plugin, make_conf: MakeConf, command: str, required: set[str]
) -> None:
    names = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
    for gone in (names, *((name,) for name in sorted(required))):
        error = refused(
            executable, command, make_conf(cniVersion="1.1.0"), **dict.fromkeys(gone, None)
        )
        assert error["code"] == 4
        assert {name for name in names if name in error["msg"]} == required & set(gone)


def test_bad_identifiers(podwire: Plugin, make_conf: MakeConf) -> None:
    for container_id in ("../x", "-a", "a/b", "a b", "é", "\udcff"):
        error = refused(podwire, "DEL", make_conf(), CNI_CONTAINERID=container_id)
        assert (error["code"], "CNI_CONTAINERID" in error["msg"]) == (4, True), container_id
    for ifname in (
        "a" * 16,
        "é" * 8,
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "a\n",
        "e%d",
        "a\x01",
        "\udcff",
    ):
        error = refused(podwire, "ADD", make_conf(), CNI_IFNAME=ifname)
        assert (error["code"], "CNI_IFNAME" in error["msg"]) == (4, True), ifname


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ("FOO=BAR", (4,)),
        ("IgnoreUnknown=0;FOO=BAR", (4,)),
        ("oops", (4,)),
        ("IgnoreUnknown=1;FOO=BAR", NO_NETNS),
        ("IgnoreUnknown=true;FOO=BAR", NO_NETNS),
        ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=d", NO_NETNS),
        ("", NO_NETNS),
    ],
)
def test_cni_args(podwire: Plugin, make_conf: MakeConf, args: str, code: tuple[int, ...]) -> None:
    assert refused(podwire, "ADD", make_conf(), CNI_ARGS=args)["code"] in code


def test_a_bad_mac_in_cni_args(podwire: Plugin, make_conf: MakeConf) -> None:
    error = refused(podwire, "ADD", make_conf(), CNI_ARGS="MAC=zz")
    assert error["code"] == 4
    assert "MAC" in error["msg"]


# --- stdin --------------------------------------------------------------------------------------

BAD_STDIN = {
    "empty": b"",
    "truncated": b'{"cniVersion": "1.1.0", "name": "n"',
    "two documents": b'{"name": "n"}{"name": "n"}',
    "list": b"[]",
    "string": b'"x"',
    "null": b"null",
    "NaN": b'{"cniVersion": "1.1.0", "name": "n", "mtu": NaN}',
    "Infinity": b'{"cniVersion": "1.1.0", "name": "n", "mtu": Infinity}',
    "100,000 lists deep": b'{"name": "n", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 objects deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "invalid UTF-8": b'{"cniVersion": "1.1.0", "name": "\xff\xfe"}',
    "huge integer": b'{"name": "n", "mtu": ' + b"9" * 10_000 + b"}",
    "over 16 MiB": b'{"cniVersion": "1.1.0", "name": "n", "x": "' + b"x" * (1 << 24) + b'"}',
}


@pytest.mark.parametrize("stdin", BAD_STDIN.values(), ids=BAD_STDIN.keys())
def test_what_is_no_json_object(executable: Plugin, stdin: bytes) -> None:
    assert refused(executable, "ADD", stdin)["code"] == 6


def test_closed_stdin_is_an_empty_one(podwire: Plugin) -> None:
    wrapped = Plugin("/bin/sh")
    wrapped.argv = lambda: ["sh", "-c", 'exec "$0" <&-', podwire.executable]  # type: ignore[method-assign]
    assert refused(wrapped, "ADD", b"")["code"] == 6


@pytest.mark.parametrize("depth", [500, 900, 990])
@pytest.mark.parametrize("key", ["vlan", "name"])
def test_nesting_that_the_parser_just_takes(podwire: Plugin, key: str, depth: int) -> None:
    value = '{"a":' * depth + "1" + "}" * depth
    stdin = f'{{"cniVersion": "1.1.0", "name": "n", "{key}": {value}}}'
    assert refused(podwire, "ADD", stdin)["code"] in (2, 6, 7)


@pytest.mark.parametrize("key", ["name", "bridge", "mode"])
def test_a_lone_surrogate(podwire: Plugin, make_conf: MakeConf, key: str) -> None:
    error = refused(podwire, "ADD", make_conf(**{key: "\ud800"}))
    assert error["code"] == 7
    assert error["msg"].startswith(key)


@pytest.mark.parametrize("name", [None, "", "../x", "a b", "é", 5])
def test_network_names(executable: Plugin, make_conf: MakeConf, name: Any) -> None:
    conf = {**make_conf(cniVersion="1.1.0"), "name": name}
    error = refused(executable, "DEL", conf)
    assert error["code"] == 7
    assert error["msg"].startswith("name")


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_version(executable: Plugin, make_conf: MakeConf, command: str) -> None:
    error = refused(executable, command, make_conf(cniVersion="9.9.9"))
    assert error["code"] == 1
    assert "9.9.9" in error["msg"]
    assert error["cniVersion"] == "1.1.0"


@pytest.mark.parametrize(
    ("command", "version"),
    [
        ("CHECK", "0.3.1"),
        ("CHECK", None),
        ("GC", "1.0.0"),
        ("STATUS", "1.0.0"),
        ("STATUS", "0.4.0"),
    ],
)
def test_a_command_that_the_version_does_not_have(
    executable: Plugin, make_conf: MakeConf, command: str, version: str | None
) -> None:
    error = refused(executable, command, make_conf(cniVersion=version))
    assert error["code"] == 1
    assert error["cniVersion"] == (version or "0.1.0")


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_an_error_carries_the_configurations_version(
    podwire: Plugin, make_conf: MakeConf, version: str
) -> None:
    error = refused(podwire, "ADD", make_conf(cniVersion=version))
    assert error["cniVersion"] == version
    assert error["code"] in NO_NETNS


def test_a_missing_version_is_0_1_0(podwire: Plugin, make_conf: MakeConf) -> None:
    assert refused(podwire, "ADD", make_conf(cniVersion=None))["cniVersion"] == "0.1.0"


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"vlan": 100}, ("vlan", "100")),
        ({"vlanTrunk": [{"id": 7}]}, ("vlanTrunk", '[{"id": 7}]')),
        ({"macspoofchk": True}, ("macspoofchk", "true")),
        ({"disableContainerInterface": True}, ("disableContainerInterface", "true")),
    ],
)
def test_options_that_are_not_built(
    podwire: Plugin, make_conf: MakeConf, keys: Config, named: tuple[str, str]
) -> None:
    for command in ("ADD", "STATUS"):
        error = refused(podwire, command, make_conf(cniVersion="1.1.0", **keys))
        assert error["code"] == 2
        for text in named:
            assert text in error["msg"]


def test_their_off_values(podwire: Plugin, make_conf: MakeConf) -> None:
    conf = make_conf(
        vlan=0,
        vlanTrunk=[],
        macspoofchk=False,
        ipMasq=False,
        disableContainerInterface=False,
        preserveDefaultVlan=False,
        runtimeConfig={"portMappings": [], "bandwidth": {}},
    )
    assert refused(podwire, "ADD", conf)["code"] in NO_NETNS


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"hairpinMode": True, "promiscMode": True}, ("hairpinMode", "promiscMode")),
        ({"mode": "macvlan"}, ("mode", "macvlan")),
        ({"mtu": 67}, ("mtu", "67")),
        ({"mtu": 65536}, ("mtu", "65536")),
        ({"mtu": "1500"}, ("mtu", "1500")),
        ({"isGateway": "yes"}, ("isGateway", "yes")),
        ({"bridge": "a" * 16}, ("bridge", "a" * 16)),
        ({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}, ("runtimeConfig.mac", "01:00")),
        ({"args": {"cni": {"mac": "x"}}}, ("args.cni.mac", "x")),
        ({"prevResult": 5}, ("prevResult", "5")),
        ({"prevResult": {"ips": [{"address": "x"}]}}, ("prevResult.ips[0].address", "x")),
        ({"prevResult": {"interfaces": [[]]}}, ("prevResult.interfaces[0]", "[]")),
        ({"dns": {"nameservers": 5}}, ("dns.nameservers", "5")),
    ],
)
def test_values_that_cannot_be(
    podwire: Plugin, make_conf: MakeConf, keys: Config, named: tuple[str, str]
) -> None:
    error = refused(podwire, "ADD", make_conf(**keys))
    assert error["code"] == 7
    for text in named:
        assert text in error["msg"]


def test_nothing_was_made_on_the_disk(podwire: Plugin, make_conf: MakeConf) -> None:
    conf = make_conf()
    for keys in ({"vlan": 5}, {"mtu": 1}, {"cniVersion": "9.9.9"}, {}):
        refused(podwire, "ADD", {**conf, **keys})
    assert not os.path.exists(conf["ipam"]["dataDir"])


def test_messages_are_json_that_go_can_read(podwire: Plugin, make_conf: MakeConf) -> None:
    reply = podwire.call("ADD", make_conf(), {**ENV, "CNI_IFNAME": "a\x01\udcff"})
    assert json.loads(reply.stdout.encode().decode("utf-8"))["code"] == 4
