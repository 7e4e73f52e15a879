"""A podwire network configuration, typed: every option, and every error that names its field.

The option names are those of the Go bridge plugin and keep their meaning; podwire's own are
`mode`, `nodes`, `nodeName`, `backend`, `vxlan`, `underlay`, `nonMasqueradeCIDRs`,
`acceptForwarding`, `agent`, `agentSocket` and `agentIdle`. What an option means to a reader is in
docs/config.md. What belongs together is read by a module of its own: `crossnode`, `shaping`,
`hostports`, `agentconf`.

`parse` is for ADD, CHECK and STATUS: it takes the whole configuration and refuses what is wrong.
DEL and GC do without it. They need no more than `Request.network`, `ipam_type` and ipam.dataDir,
because a pod must go away even when somebody broke the configuration meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

from cni_plugin import agentconf, crossnode, hostports, macs, names, shaping
from cni_plugin.crossnode import CrossNode
from cni_plugin.fields import Fields, as_network, as_object, invalid, shown
from cni_plugin.hostports import PortOptions
from cni_plugin.memo import Memo
from cni_plugin.results import decode_dns, decode_result
from cni_plugin.ruleset import INGRESS_POLICIES
from cni_plugin.shaping import Bandwidth
from cni_plugin.skel import ifname_problem
from cni_plugin.spec import DNS, CniError, Code, IPNetwork, Request, Result
from cni_plugin.typed import Any, NamedTuple

DEFAULT_BRIDGE = "cni0"
MODES = ("bridge", "ptp")
_MTU_LOW, _MTU_HIGH = 68, 65535  # RFC 791 and the kernel's limit for veth


class NetConf(NamedTuple):
    """What ADD, CHECK and STATUS work from. `mtu` 0 and `mac` "" leave the choice to podwire.

    `maps_ports`: pods of the network have host ports, this one or others.
    `chained`: an earlier plugin of the chain made the pod's link, and podwire only adds to it.
    """

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
    ip_masq: bool
    non_masquerade: tuple[IPNetwork, ...]
    ingress_policy: str
    accept_forwarding: bool
    nodes: str
    node_name: str
    cross_node: CrossNode
    bandwidth: Bandwidth
    ports: PortOptions
    maps_ports: bool
    prev_result: Result | None
    chained: bool = False


def parse(request: Request) -> NetConf:
    """The configuration of a request.

    Raises CniError: 2 for an option that podwire does not have (yet), 7 for a wrong value.
    """
    asked = request.cni_args.get("MAC", "")
    conf: NetConf = _KNOWN.of(lambda: _parse(request), request.config, request.network, asked)
    return conf._replace(chained=True) if is_chained(request, conf.prev_result) else conf


_KNOWN = Memo()


def _parse(request: Request) -> NetConf:
    fields = Fields(request.conf)
    _refuse_unsupported(fields)
    agentconf.parse(fields)
    mode, nodes = _mode(fields), _nodes(fields)
    kind = ipam_type(request.conf)
    ports = hostports.parse(fields)
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
        mac=macs.asked(request),
        dns=_dns(fields),
        ipam_type=kind,
        ip_masq=fields.flag("ipMasq"),
        non_masquerade=tuple(as_network(*reversed(e)) for e in fields.items("nonMasqueradeCIDRs")),
        ingress_policy=_ingress_policy(fields, mode),
        accept_forwarding=fields.flag("acceptForwarding", default=True),
        nodes=nodes,
        node_name=fields.text("nodeName"),
        cross_node=crossnode.parse(fields),
        bandwidth=shaping.parse(fields),
        ports=ports,
        maps_ports=bool(ports.mappings) or fields.child("capabilities").flag("portMappings"),
        prev_result=_prev_result(fields, request.version),
    )
    _refuse_combinations(conf)
    return conf


def _mode(fields: Fields) -> str:
    mode = fields.text("mode", MODES[0])
    if mode not in MODES:
        raise invalid("mode", mode, f"expected one of {', '.join(MODES)}")
    return mode


def _nodes(fields: Fields) -> str:
    nodes = fields.text("nodes")
    if not nodes.isprintable():  # zeros, halves of characters: no file can be called that
        raise invalid("nodes", nodes, "expected the absolute path of the node inventory")
    return nodes


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


_UNSUPPORTED = ("macspoofchk", "disableContainerInterface", "vlan", "vlanTrunk")


def _refuse_unsupported(fields: Fields) -> None:
    """Error 2 for each option of the reference that podwire lacks, when it would do something."""
    fields.flag("preserveDefaultVlan")
    _masquerade_backend(fields)
    for key in _UNSUPPORTED:
        _refuse(fields, key, "this version of podwire does not do it: remove the field")


def _masquerade_backend(fields: Fields) -> None:
    backend = fields.text("ipMasqBackend")
    if backend not in ("", "nftables"):
        wanted = 'expected "nftables" or ""'
        raise invalid("ipMasqBackend", backend, wanted, "podwire masquerades by nftables alone")


def _ingress_policy(fields: Fields, mode: str) -> str:
    policy = fields.text("ingressPolicy") or INGRESS_POLICIES[0]
    if policy not in INGRESS_POLICIES:
        raise invalid("ingressPolicy", policy, f"expected one of {', '.join(INGRESS_POLICIES)}")
    if policy != INGRESS_POLICIES[0] and mode == "ptp":
        wanted = "expected open, since the others tell bridges apart and mode is ptp"
        raise invalid("ingressPolicy", policy, wanted)
    return policy


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


def is_chained(request: Request, previous: Result | None) -> bool:
    """Whether an earlier plugin of the chain, podwire perhaps, made the pod's link.

    There are no addresses to hand out then, and `previous` holds the attachment's interface; or
    addresses alone, as some plugins leave the interfaces out. When it holds podwire's own host veth
    as well, it is the whole chain's result: of this very entry if nobody gave the pod an address
    (layer 2 only), else of an earlier one.
    """
    if previous is None or ipam_type(request.conf):
        return False
    if previous.ips and not any(i.sandbox for i in previous.interfaces):
        return True
    own = names.host_veth_name(request.network, request.attachment)
    made = any(i.name == request.attachment.ifname and i.sandbox for i in previous.interfaces)
    return made and (bool(previous.ips) or all(i.name != own for i in previous.interfaces))


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
