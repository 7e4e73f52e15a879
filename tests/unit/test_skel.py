"""The protocol without I/O: what a request must hold, and how errors and versions are said.

Expectations are the CNI specification's (SPEC.md 1.1.0) and, where it leaves a choice, the ones
that docs/error-codes.md states.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

import pytest
from hypothesis import given

from cni_plugin import skel
from cni_plugin.spec import SUPPORTED_VERSIONS, Attachment, CniError, Code, Request
from tests.unit import strategies

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr-1",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
}
CONF = b'{"cniVersion": "1.1.0", "name": "podnet", "type": "podwire"}'
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")


def env(**changes: str | None) -> dict[str, str]:
    """A complete environment with changes; None takes a variable away."""
    merged: dict[str, str | None] = {**ENV, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def conf(**keys: object) -> bytes:
    merged = {"cniVersion": "1.1.0", "name": "podnet", "type": "podwire"} | keys
    return json.dumps({k: v for k, v in merged.items() if v is not None}).encode()


def refused(environ: Mapping[str, str] = ENV, stdin: bytes = CONF) -> CniError:
    """The error that parse_request raises."""
    with pytest.raises(CniError) as caught:
        skel.parse_request(environ, stdin)
    return caught.value


# --- a good request -----------------------------------------------------------------------------


def test_a_request_holds_what_environment_and_stdin_say() -> None:
    request = skel.parse_request(env(CNI_ARGS="K8S_POD_NAME=web"), CONF)
    assert request == Request(
        command="ADD",
        attachment=Attachment("ctr-1", "eth0"),
        netns="/run/netns/pod",
        cni_args={"K8S_POD_NAME": "web"},
        path=("/opt/cni/bin", "/usr/lib/cni"),
        config=CONF,
        conf=json.loads(CONF),
        version="1.1.0",
        network="podnet",
    )


@pytest.mark.parametrize("path", [None, "", ":"])
def test_cni_path_may_be_absent_for_all_but_gc(path: str | None) -> None:
    for command in ("ADD", "DEL", "CHECK", "STATUS"):
        assert skel.parse_request(env(CNI_COMMAND=command, CNI_PATH=path), CONF).path == ()


# --- what each command requires -----------------------------------------------------------------

REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": set(),
}
VARIABLES = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_every_missing_variable_is_named_and_no_other(command: str, empty: bool) -> None:
    for count in range(len(VARIABLES) + 1):
        for gone in itertools.combinations(VARIABLES, count):
            environ = env(CNI_COMMAND=command, **dict.fromkeys(gone, "" if empty else None))
            missing = REQUIRED[command] & set(gone)
            if not missing:
                assert skel.parse_request(environ, CONF).command == command
                continue
            error = refused(environ)
            assert error.code == Code.INVALID_ENVIRONMENT
            assert {name for name in VARIABLES if name in error.msg} == missing


@pytest.mark.parametrize("command", ["", "add", "ADD ", "FOO", "DELETE", "\udcff", None])
def test_an_unknown_command(command: str | None) -> None:
    error = refused(env(CNI_COMMAND=command))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert "CNI_COMMAND" in error.msg


def test_gc_and_status_ignore_a_container_and_an_interface() -> None:
    for command in ("GC", "STATUS"):
        environ = env(CNI_COMMAND=command, CNI_CONTAINERID="../x", CNI_IFNAME="a/b")
        assert skel.parse_request(environ, CONF).attachment == Attachment("", "")


# --- identifiers --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize(
    "container_id",
    ["-a", ".a", "_a", "..", "a/b", "../a", "a b", "a:b", "a\n", "é", "a\0", "a\udcff", "a~", "٣"],
)
def test_bad_container_ids(command: str, container_id: str) -> None:
    error = refused(env(CNI_COMMAND=command, CNI_CONTAINERID=container_id))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert "CNI_CONTAINERID" in error.msg


@pytest.mark.parametrize("container_id", ["a", "9", "A-b_c.d", "a" * 64, "0." + "x-" * 100])
def test_good_container_ids(container_id: str) -> None:
    request = skel.parse_request(env(CNI_CONTAINERID=container_id), CONF)
    assert request.attachment.container_id == container_id


BAD_IFNAMES = {
    "16 bytes": "a" * 16,
    "16 bytes in 8 characters": "é" * 8,
    "dot": ".",
    "dot dot": "..",
    "slash": "a/b",
    "colon": "a:b",
    "space": "a b",
    "tab": "a\tb",
    "line feed": "eth0\n",
    "vertical tab": "a\vb",
    "no-break space": "a\u00a0b",
    "percent": "eth%d",
    "escape": "a\x1bb",
    "delete": "a\x7fb",
    "C1 control": "a\x85b",
    "not UTF-8": "a\udcff",
}


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("ifname", BAD_IFNAMES.values(), ids=BAD_IFNAMES.keys())
def test_bad_interface_names(command: str, ifname: str) -> None:
    error = refused(env(CNI_COMMAND=command, CNI_IFNAME=ifname))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert "CNI_IFNAME" in error.msg


@pytest.mark.parametrize(
    "ifname", ["e", "eth0", "a" * 15, "...", ".a", "net1.100", "é" * 7, "網路"]
)
def test_good_interface_names(ifname: str) -> None:
    assert skel.parse_request(env(CNI_IFNAME=ifname), CONF).attachment.ifname == ifname


@pytest.mark.parametrize(
    "name", [None, "", "-a", "..", "a/b", "../a", "a b", "a\n", "é", 5, [], {}]
)
def test_bad_or_missing_network_names(name: object) -> None:
    error = refused(stdin=conf(name=name))
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("name")


@pytest.mark.parametrize("name", ["a", "podnet", "k8s-pod-network", "a.b_c-d", "9"])
def test_good_network_names(name: str) -> None:
    assert skel.parse_request(ENV, conf(name=name)).network == name


# --- CNI_ARGS -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ("", {}),
        ("IP=10.1.2.3", {"IP": "10.1.2.3"}),
        ("IP=10.1.2.3;MAC=02:00:00:00:00:01", {"IP": "10.1.2.3", "MAC": "02:00:00:00:00:01"}),
        ("K8S_POD_NAME=", {"K8S_POD_NAME": ""}),
        ("IgnoreUnknown=1;FOO=BAR", {"IgnoreUnknown": "1", "FOO": "BAR"}),
        ("FOO=BAR;IgnoreUnknown=1", {"IgnoreUnknown": "1", "FOO": "BAR"}),
        ("IgnoreUnknown=true;FOO=a=b", {"IgnoreUnknown": "true", "FOO": "a=b"}),
        ("IgnoreUnknown=TRUE;FOO=", {"IgnoreUnknown": "TRUE", "FOO": ""}),
        ("IgnoreUnknown=0;IP=10.1.2.3", {"IgnoreUnknown": "0", "IP": "10.1.2.3"}),
    ],
)
def test_cni_args(text: str, args: dict[str, str]) -> None:
    assert skel.parse_request(env(CNI_ARGS=text), CONF).cni_args == args


def test_what_containerd_sends_is_known_without_ignore_unknown() -> None:
    keys = ("NAME", "NAMESPACE", "UID", "INFRA_CONTAINER_ID")
    text = ";".join(f"K8S_POD_{key}=x" for key in keys)
    assert len(skel.parse_request(env(CNI_ARGS=text), CONF).cni_args) == 4


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("FOO=BAR", "FOO"),
        ("IgnoreUnknown=0;FOO=BAR", "FOO"),
        ("IgnoreUnknown=false;FOO=BAR", "FOO"),
        ("ignoreunknown=1;FOO=BAR", "FOO"),
        ("IgnoreUnknown=maybe", "IgnoreUnknown"),
        ("IgnoreUnknown=", "IgnoreUnknown"),
        ("IP", "IP"),
        ("=x", "=x"),
        ("IP=10.1.2.3;oops;MAC=x", "oops"),
        ("IgnoreUnknown=1;oops", "oops"),
    ],
)
def test_bad_cni_args(text: str, named: str) -> None:
    error = refused(env(CNI_ARGS=text))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert error.msg.startswith("CNI_ARGS")
    assert named in error.msg


def test_all_unknown_cni_args_are_named() -> None:
    error = refused(env(CNI_ARGS="FOO=1;IP=10.1.2.3;BAR=2"))
    assert "FOO" in error.msg
    assert "BAR" in error.msg


# --- stdin --------------------------------------------------------------------------------------

BAD_JSON = {
    "empty": b"",
    "white space": b" \n",
    "truncated": CONF[:-1],
    "truncated string": CONF[:-4],
    "two documents": CONF + CONF,
    "a list": b"[" + CONF + b"]",
    "a string": b'"x"',
    "a number": b"5",
    "null": b"null",
    "NaN": b'{"name": "n", "mtu": NaN}',
    "Infinity": b'{"name": "n", "mtu": -Infinity}',
    "nested 100,000 deep": b'{"name": "n", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects nested 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "unclosed nesting": b"[" * 100_000,
    "not UTF-8": b'{"name": "\xff"}',
    "UTF-16": CONF.decode().encode("utf-16"),
    "a control character in a string": b'{"name": "a\nb"}',
    "a number of 5,000 digits": b'{"name": "n", "mtu": ' + b"9" * 5000 + b"}",
    "single quotes": b"{'name': 'n'}",
    "a comment": b"{} // no",
}


@pytest.mark.parametrize("stdin", BAD_JSON.values(), ids=BAD_JSON.keys())
@pytest.mark.parametrize("command", ["ADD", "DEL", "GC"])
def test_what_is_no_json_object(command: str, stdin: bytes) -> None:
    assert refused(env(CNI_COMMAND=command), stdin).code == Code.DECODE_FAILURE


def test_more_than_16_mib() -> None:
    padding = b" " * (16 * 1024 * 1024)
    assert refused(stdin=CONF + padding).code == Code.DECODE_FAILURE
    assert skel.parse_request(ENV, CONF + padding[: -len(CONF)]).network == "podnet"


def test_the_last_of_equal_keys_counts_as_in_go() -> None:
    stdin = b'{"cniVersion": "9.9.9", "cniVersion": "1.0.0", "name": "a", "name": "b"}'
    request = skel.parse_request(ENV, stdin)
    assert (request.version, request.network) == ("1.0.0", "b")


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, ""])
def test_no_version_means_0_1_0(version: str | None) -> None:
    assert skel.parse_request(ENV, conf(cniVersion=version)).version == "0.1.0"


def test_the_supported_versions() -> None:
    wanted = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
    assert wanted == SUPPORTED_VERSIONS


@pytest.mark.parametrize("version", ["9.9.9", "1.0", "1.0.1", "v1.0.0", "1.1.0 ", "0.0.0", "1"])
def test_the_match_of_versions_is_exact(version: str) -> None:
    for command in COMMANDS:
        error = refused(env(CNI_COMMAND=command), conf(cniVersion=version))
        assert error.code == Code.INCOMPATIBLE_VERSION
        assert version in error.msg


@pytest.mark.parametrize("version", [1, 1.0, True, [], {}])
def test_a_version_that_is_no_string(version: object) -> None:
    assert refused(stdin=conf(cniVersion=version)).code in (6, 7)


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
@pytest.mark.parametrize(
    ("command", "since"),
    [
        ("ADD", "0.1.0"),
        ("DEL", "0.1.0"),
        ("CHECK", "0.4.0"),
        ("GC", "1.1.0"),
        ("STATUS", "1.1.0"),
    ],
)
def test_the_versions_that_have_a_command(command: str, since: str, version: str) -> None:
    environ, stdin = env(CNI_COMMAND=command), conf(cniVersion=version)
    if SUPPORTED_VERSIONS.index(version) >= SUPPORTED_VERSIONS.index(since):
        assert skel.parse_request(environ, stdin).version == version
    else:
        error = refused(environ, stdin)
        assert error.code == Code.INCOMPATIBLE_VERSION
        assert command in error.msg
        assert version in error.msg


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion": "0.3.1"}', "0.3.1"),
        (b'{"cniVersion": "9.9.9"}', "9.9.9"),
        (b'{"cniVersion": "1.1.0", "name": "n"}', "1.1.0"),
    ],
)
def test_version_echoes(stdin: bytes, version: str) -> None:
    reply = json.loads(skel.encode_version(stdin))
    assert reply == {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}


@pytest.mark.parametrize("stdin", [b"", b"\n", b"{}"])
def test_version_without_a_version_to_echo(stdin: bytes) -> None:
    reply = json.loads(skel.encode_version(stdin))
    assert reply["cniVersion"] in SUPPORTED_VERSIONS
    assert reply["supportedVersions"] == list(SUPPORTED_VERSIONS)


# --- errors -------------------------------------------------------------------------------------


def test_an_error_document() -> None:
    error = CniError(Code.INVALID_CONFIG, "mtu: \u00e9 \udcff\n", "do this")
    assert json.loads(skel.encode_error(error, "0.4.0")) == {
        "cniVersion": "0.4.0",
        "code": 7,
        "msg": "mtu: \u00e9 \udcff\n",
        "details": "do this",
    }


def test_details_may_be_absent() -> None:
    assert "details" not in json.loads(skel.encode_error(CniError(4, "x"), "1.0.0"))


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (conf(cniVersion="0.3.1"), "0.3.1"),
        (conf(cniVersion=None), "0.1.0"),
        (conf(cniVersion="9.9.9"), "1.1.0"),
        (b"{", "1.1.0"),
        (b"", "1.1.0"),
    ],
)
def test_the_version_of_an_error_document(stdin: bytes, version: str) -> None:
    assert skel.error_version(stdin) == version


# --- anything at all ----------------------------------------------------------------------------


@given(environ=strategies.environs, stdin=strategies.stdins)
def test_parse_request_raises_nothing_but_cni_errors(environ: dict[str, str], stdin: bytes) -> None:
    try:
        request = skel.parse_request(environ, stdin)
    except CniError as e:
        document = json.loads(skel.encode_error(e, skel.error_version(stdin)))
        assert document["code"] == e.code > 0
        assert document["msg"]
        assert document["cniVersion"] in SUPPORTED_VERSIONS
    else:
        assert request.version in SUPPORTED_VERSIONS
        assert request.network


@given(stdin=strategies.stdins)
def test_version_raises_nothing_but_cni_errors(stdin: bytes) -> None:
    try:
        reply = json.loads(skel.encode_version(stdin))
    except CniError as e:
        assert e.code in (6, 7)
    else:
        assert reply["supportedVersions"] == list(SUPPORTED_VERSIONS)


def parsed_depth(opening: str, closing: str, depth: int) -> bytes:
    return conf(name="@").replace(b'"@"', (opening * depth + "1" + closing * depth).encode())


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_no_depth_of_nesting_is_too_much(opening: str, closing: str) -> None:
    """Also what the parser just takes must not be too deep for what comes after it."""
    for depth in [*range(1, 900, 100), *range(900, 1010)]:
        assert refused(stdin=parsed_depth(opening, closing, depth)).code in (6, 7)
