"""A podwire network configuration, typed: every option, and every error that names its field.

The option names are those of the Go bridge plugin and keep their meaning; podwire's own are
`mode`, `nodes`, `nodeName`, `agent`, `agentSocket` and `agentIdle`. What an option means to a
reader is in docs/config.md. The last three are acted on by the client and by `on_demand`.

`parse` is for ADD, CHECK and STATUS: it takes the whole configuration and refuses what is wrong.
DEL and GC do without it. They need no more than `Request.network`, `ipam_type` and ipam.dataDir,
because a pod must go away even when somebody broke the configuration meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cni_plugin.fields import Fields, as_object, invalid, shown
from cni_plugin.memo import Memo
from cni_plugin.results import decode_dns, decode_result
from cni_plugin.skel import ifname_problem
from cni_plugin.spec import DNS, CniError, Code, Request, Result
from cni_plugin.typed import Any, NamedTuple

DEFAULT_BRIDGE = "cni0"
MODES = ("bridge", "ptp")
ON_DEMAND = "auto"
AGENTS = ("", ON_DEMAND, "never")
_IDLE_S, _LONGEST_IDLE_S = 300, 86_400
_MTU_LOW, _MTU_HIGH = 68, 65535  # RFC 791 and the kernel's limit for veth
_MAC = re.compile(
    r"[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}"
)
_LONGEST_SOCKET_PATH = 107  # bytes; sun_path of unix(7), less the zero at its end
_NO_SEPARATORS = str.maketrans("", "", ":-.")


class NetConf(NamedTuple):
    """What ADD, CHECK and STATUS work from. `mtu` 0 and `mac` "" leave the choice to podwire."""

    network: str
    mode: str
    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    hairpin: bool
    promisc: bool
    port_isolation: bool
    enable_dad: bool
    mtu: int
    mac: str
    dns: DNS | None
    ipam_type: str
    nodes: str
    node_name: str
    prev_result: Result | None


class AgentConf(NamedTuple):
    """`mode` is one of AGENTS, `socket` "" for the usual one; `idle_s`: seconds without a call
    after which an agent that was started on demand ends."""

    mode: str
    socket: str
    idle_s: int


def parse(request: Request) -> NetConf:
    """The configuration of a request.

    Raises CniError: 2 for an option that podwire does not have (yet), 7 for a wrong value.
    """
    asked = request.cni_args.get("MAC", "")
    conf: NetConf = _KNOWN.of(lambda: _parse(request), request.config, request.network, asked)
    return conf


_KNOWN = Memo()


def _parse(request: Request) -> NetConf:
    fields = Fields(request.conf)
    _refuse_unsupported(fields)
    agent(fields)
    mode = fields.text("mode", MODES[0])
    if mode not in MODES:
        raise invalid("mode", mode, f"expected one of {', '.join(MODES)}")
    nodes = fields.text("nodes")
    kind = ipam_type(request.conf)
    # A pod that is routed, by mode or to other nodes, is of no use without a way out.
    default_gateway = fields.flag("isDefaultGateway", mode == "ptp" or bool(nodes))
    conf = NetConf(
        network=request.network,
        mode=mode,
        bridge=_bridge_name(fields),
        is_gateway=fields.flag("isGateway") or default_gateway or mode == "ptp",
        is_default_gateway=default_gateway,
        force_address=fields.flag("forceAddress"),
        hairpin=fields.flag("hairpinMode"),
        promisc=fields.flag("promiscMode"),
        port_isolation=fields.flag("portIsolation"),
        enable_dad=fields.flag("enabledad"),
        mtu=_mtu(fields),
        mac=_mac(request),
        dns=_dns(fields),
        ipam_type=kind,
        nodes=nodes,
        node_name=fields.text("nodeName"),
        prev_result=_prev_result(fields, request.version),
    )
    _refuse_combinations(conf)
    return conf


def ipam_type(conf: Mapping[str, Any]) -> str:
    """The IPAM plugin's name, "" for none; it is a name and never a path (CVE-2021-20206)."""
    kind = Fields(conf).child("ipam").text("type")
    if kind in (".", "..") or "/" in kind or "\\" in kind or "\0" in kind:
        raise invalid(
            "ipam.type",
            kind,
            "expected the name of a plugin, not a path",
            "it is found in CNI_PATH",
        )
    if kind == "podwire":
        raise invalid("ipam.type", kind, "expected an IPAM plugin", "podwire's own is host-local")
    return kind


_UNSUPPORTED = ("ipMasq", "macspoofchk", "disableContainerInterface", "vlan", "vlanTrunk")
_CHAINABLE = {"portMappings": "portmap", "bandwidth": "bandwidth"}


def _refuse_unsupported(fields: Fields) -> None:
    """Error 2 for each option of the reference that podwire lacks, when it would do something."""
    runtime = fields.child("runtimeConfig")
    fields.flag("preserveDefaultVlan")
    fields.text("ipMasqBackend")
    for key in _UNSUPPORTED:
        _refuse(fields, key, "this version of podwire does not do it: remove the field")
    for key, plugin in _CHAINABLE.items():
        remedy = f"chain the plugin {plugin} after podwire, and declare the capability there"
        _refuse(runtime, key, f"this version of podwire does not do it: {remedy}")


def _refuse(fields: Fields, key: str, remedy: str) -> None:
    value = fields.obj.get(key)
    if not _asks_nothing(value):
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"{fields.at(key)}: unsupported field, its value is {shown(value)}",
            remedy,
        )


def _asks_nothing(value: object) -> bool:
    """Absent, false, zero, empty: the reference does nothing for these either."""
    if isinstance(value, dict):
        return not any(value.values())
    return value is None or value is False or value == 0 or value in ("", [])


def agent(fields: Fields) -> AgentConf:
    """What a configuration says about agents. Raises CniError 7 for a wrong value."""
    mode = fields.text("agent")
    if mode not in AGENTS:
        raise invalid("agent", mode, 'expected "auto", "never" or "" (an agent that runs serves)')
    path = fields.text("agentSocket")
    if path and not _is_socket_path(path):
        wanted = f"expected an absolute path of at most {_LONGEST_SOCKET_PATH} bytes"
        raise invalid("agentSocket", path, wanted)
    return AgentConf(mode, path, fields.integer("agentIdle", 1, _LONGEST_IDLE_S) or _IDLE_S)


def _is_socket_path(path: str) -> bool:
    try:
        encoded = path.encode()
    except UnicodeError:  # JSON can write halves of characters
        return False
    return path[0] == "/" and "\0" not in path and len(encoded) <= _LONGEST_SOCKET_PATH


def _bridge_name(fields: Fields) -> str:
    name = fields.text("bridge") or DEFAULT_BRIDGE
    problem = ifname_problem(name)
    if problem:
        raise invalid("bridge", name, f"a link's name {problem}")
    return name


def _mtu(fields: Fields) -> int:
    mtu = fields.integer("mtu", 0, _MTU_HIGH) or 0
    if mtu and mtu < _MTU_LOW:
        raise invalid("mtu", mtu, f"expected 0 or a number from {_MTU_LOW} to {_MTU_HIGH}")
    return mtu


def _mac(request: Request) -> str:
    """The MAC asked for; precedence as in the reference: CNI_ARGS < args.cni < runtimeConfig."""
    fields = Fields(request.conf)
    chosen = ""
    for path, value in _macs(fields, request.cni_args):
        if not value:
            continue
        if not _MAC.fullmatch(value.lower()):
            raise _bad_mac(path, value, "expected a MAC address such as 02:42:0a:f4:00:05")
        digits = value.lower().translate(_NO_SEPARATORS)
        chosen = ":".join(digits[i : i + 2] for i in range(0, 12, 2))
        if int(chosen[:2], 16) & 1 or chosen == "00:00:00:00:00:00":
            raise _bad_mac(path, value, "expected a unicast MAC address")
    return chosen


def _macs(fields: Fields, cni_args: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "CNI_ARGS: MAC", cni_args.get("MAC", "")
    args = fields.child("args").child("cni")
    runtime = fields.child("runtimeConfig")
    yield args.at("mac"), args.text("mac")
    yield runtime.at("mac"), runtime.text("mac")


def _bad_mac(path: str, value: str, wanted: str) -> CniError:
    error = invalid(path, value, wanted)
    if path.startswith("CNI_ARGS"):
        error.code = Code.INVALID_ENVIRONMENT
    return error


def _dns(fields: Fields) -> DNS | None:
    """runtimeConfig.dns before dns; None leaves what IPAM says.

    The dns capability names its lists `servers` and `searches` (CONVENTIONS.md).
    """
    configured = decode_dns(fields.child("dns"))
    runtime = fields.child("runtimeConfig").child("dns")
    given = DNS(
        nameservers=runtime.texts("servers"),
        search=runtime.texts("searches"),
        options=runtime.texts("options"),
    )
    if given != DNS():
        return given._replace(domain=configured.domain)
    return configured if configured != DNS() else None


def _prev_result(fields: Fields, version: str) -> Result | None:
    value = fields.obj.get("prevResult")
    if value is None:
        return None
    return decode_result(as_object(value, "prevResult"), version)


def _refuse_combinations(conf: NetConf) -> None:
    if conf.hairpin and conf.promisc:
        raise CniError(
            Code.INVALID_CONFIG,
            "hairpinMode: true and promiscMode: true exclude each other",
            "a promiscuous bridge already returns a pod's packets to it: keep one of them",
        )
    if conf.mode == "ptp":
        for name, value in (
            ("hairpinMode", conf.hairpin),
            ("promiscMode", conf.promisc),
            ("portIsolation", conf.port_isolation),
        ):
            if value:
                raise CniError(
                    Code.INVALID_CONFIG,
                    f"{name}: true needs a bridge, and mode is ptp",
                    f'remove {name}, or set "mode" to "bridge"',
                )
        if not conf.ipam_type:
            raise CniError(
                Code.INVALID_CONFIG,
                "ipam.type: missing, and mode ptp routes by address",
                'add an ipam section such as {"type": "host-local", "subnet": "10.244.0.0/24"}',
            )
