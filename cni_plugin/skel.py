"""The CNI protocol without I/O: environment and stdin to a `Request`, errors to bytes.

Rules:
- Nothing here reads, writes or executes: the same code serves a process, an agent and a unit test.
- What each command requires is one table (`_REQUIRED`), not a chain of ifs.
- All missing variables are named at once, as the specification asks.

Where this differs from the reference's skel: of the commands only GC requires CNI_PATH, as the
specification says (delegates need it as well, and say so themselves), and errors go to stdout,
which is where libcni reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from json import dumps

from cni_plugin.fields import Fields, as_text, decode, invalid, shown
from cni_plugin.spec import (
    CURRENT_VERSION,
    SUPPORTED_VERSIONS,
    Attachment,
    CniError,
    Code,
    Request,
)
from cni_plugin.typed import Any

MAX_CONFIG_BYTES = 16 * 1024 * 1024

_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME_BYTES = 15
_NAME_BYTES = 200  # it becomes a folder and a part of a file's name: NAME_MAX is 255
_KNOWN_ARGS = frozenset(
    (
        "IgnoreUnknown",
        "IP",
        "MAC",
        "K8S_POD_NAME",
        "K8S_POD_NAMESPACE",
        "K8S_POD_UID",
        "K8S_POD_INFRA_CONTAINER_ID",
    )
)


def at_least(version: str, wanted: str) -> bool:
    """Whether a supported version is `wanted` or newer."""
    return SUPPORTED_VERSIONS.index(version) >= SUPPORTED_VERSIONS.index(wanted)


# --- requests ---------------------------------------------------------------------------------


def parse_request(environ: Mapping[str, str], stdin: bytes) -> Request:
    """The request that environment and stdin make.

    Raises CniError: 1 for a version or a command the version does not have, 4 for the
    environment, 6 for stdin that is no JSON object, 7 for the network's name.
    """
    command = _command(environ)
    attachment = _attachment(environ) if "CNI_IFNAME" in _REQUIRED[command] else Attachment("", "")
    conf = decode_config(stdin)
    version = config_version(conf)
    _refuse_conflist(conf)
    since = _SINCE.get(command)
    if since is not None and not at_least(version, since):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion: {command} needs a configuration of {since} or later, got {version}",
            f'set "cniVersion" to {since} or later',
        )
    return Request(
        command=command,
        attachment=attachment,
        netns=environ.get("CNI_NETNS", ""),
        cni_args=parse_args(environ.get("CNI_ARGS", "")),
        path=tuple(part for part in environ.get("CNI_PATH", "").split(":") if part),
        config=stdin,
        conf=conf,
        version=version,
        network=_network_name(conf),
    )


def _command(environ: Mapping[str, str]) -> str:
    """The command, with all the variables that it requires."""
    command = environ.get("CNI_COMMAND", "")
    if command not in _REQUIRED:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_COMMAND: unknown command {shown(command)}",
            f"one of {', '.join(_REQUIRED)}",
        )
    missing = [name for name in _REQUIRED[command] if not environ.get(name)]
    if missing:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"required environment variables missing: {', '.join(missing)}",
            f"{command} needs them; see the CNI specification, section 2",
        )
    return command


def decode_config(stdin: bytes) -> Mapping[str, Any]:
    """stdin as a JSON object; error 6 for anything else, NaN and endless nesting included."""
    if len(stdin) > MAX_CONFIG_BYTES:
        raise CniError(
            Code.DECODE_FAILURE, f"network configuration is larger than {MAX_CONFIG_BYTES} bytes"
        )
    try:
        conf = decode(stdin)
    except ValueError as e:
        raise CniError(
            Code.DECODE_FAILURE,
            f"network configuration on stdin is not valid JSON: {e}",
            "stdin must hold one JSON object; the runtime writes it from the conflist",
        ) from e
    if not isinstance(conf, dict):
        raise CniError(
            Code.DECODE_FAILURE,
            f"network configuration on stdin must be a JSON object, got {shown(conf)}",
        )
    return conf


def _refuse_conflist(conf: Mapping[str, Any]) -> None:
    """A person who calls a plugin by hand may well pass the file that runtimes read."""
    if "plugins" in conf and "type" not in conf:
        raise CniError(
            Code.INVALID_CONFIG,
            "plugins: this is a list of plugins (a conflist), not a plugin's configuration",
            "pass one element of plugins, with the name and the cniVersion of the list",
        )


def config_version(conf: Mapping[str, Any]) -> str:
    """The configuration's cniVersion; 0.1.0 when missing or empty, error 1 when not spoken."""
    version = Fields(conf).text("cniVersion") or SUPPORTED_VERSIONS[0]
    if version not in SUPPORTED_VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion: {shown(version)} is not supported",
            f"podwire speaks {', '.join(SUPPORTED_VERSIONS)}",
        )
    return version


def _network_name(conf: Mapping[str, Any]) -> str:
    name = conf.get("name")
    if name is None or name == "":
        raise CniError(Code.INVALID_CONFIG, "name: the network configuration has none")
    text = as_text(name, "name")
    if not _NAME.fullmatch(text) or len(text) > _NAME_BYTES:
        raise invalid(
            "name",
            name,
            f"expected letters, digits, '_', '.' and '-', a letter or digit first, at most"
            f" {_NAME_BYTES} of them",
        )
    return text


def _attachment(environ: Mapping[str, str]) -> Attachment:
    container_id, ifname = environ["CNI_CONTAINERID"], environ["CNI_IFNAME"]
    if not _NAME.fullmatch(container_id):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID: invalid container ID {shown(container_id)}",
            "letters, digits, '_', '.' and '-', a letter or digit first",
        )
    problem = ifname_problem(ifname)
    if problem:
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_IFNAME: {shown(ifname)} {problem}")
    return Attachment(container_id, ifname)


def ifname_problem(name: str) -> str:
    """What is wrong with a link's name by the kernel's rules; "" when nothing is."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > _IFNAME_BYTES:
        return f"must have 1 to {_IFNAME_BYTES} bytes"
    if name in (".", "..", "all", "default"):  # the last two are folders of sysctls
        return "is a reserved name"
    if any(char in "/:%" or char.isspace() or not char.isprintable() for char in name):
        return "must not hold '/', ':', '%', white space or control characters"
    return ""


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS taken apart; an unknown key is error 4 unless IgnoreUnknown is set."""
    args: dict[str, str] = {}
    for pair in text.split(";"):
        if not pair:
            continue
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS: {shown(pair)} is not a KEY=VALUE pair",
                "pairs are separated by ';'",
            )
        args[key] = value
    if not _ignore_unknown(args.get("IgnoreUnknown", "0")):
        unknown = [key for key in args if key not in _KNOWN_ARGS]
        if unknown:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS: unknown keys {', '.join(unknown)}",
                "remove them, or add IgnoreUnknown=1",
            )
    return args


def _ignore_unknown(value: str) -> bool:
    if value.lower() in ("1", "true"):
        return True
    if value.lower() in ("0", "false"):
        return False
    raise CniError(
        Code.INVALID_ENVIRONMENT, f"CNI_ARGS: IgnoreUnknown must be 1 or 0, got {shown(value)}"
    )


# --- replies ----------------------------------------------------------------------------------


def encode_version(stdin: bytes) -> bytes:
    """The reply to VERSION: the input's cniVersion is echoed, whatever it is."""
    version = CURRENT_VERSION
    if stdin.strip():
        version = Fields(decode_config(stdin)).text("cniVersion") or SUPPORTED_VERSIONS[0]
    return to_json({"cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS})


def encode_error(error: CniError, version: str) -> bytes:
    """The error document of the specification, section 5."""
    document: dict[str, Any] = {"cniVersion": version, "code": error.code, "msg": error.msg}
    if error.details:
        document["details"] = error.details
    return to_json(document)


def error_version(stdin: bytes) -> str:
    """The version an error document carries: the configuration's, the newest if it has none."""
    try:
        return config_version(decode_config(stdin))
    except CniError:
        return CURRENT_VERSION


def to_json(document: Mapping[str, Any]) -> bytes:
    """A document as the runtime reads it from stdout."""
    return dumps(document).encode() + b"\n"
