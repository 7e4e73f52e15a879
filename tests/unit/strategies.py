"""What the property tests draw from: JSON, environments, CNI results, attachments."""

from __future__ import annotations

import json
import os
import string
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any

from hypothesis import strategies as st

from cni_plugin.spec import DNS, Attachment, Interface, IPConfig, Result, Route

_ID_HEAD = string.ascii_letters + string.digits
_ID_TAIL = _ID_HEAD + "_.-"


def identifiers(longest: int) -> st.SearchStrategy[str]:
    """Container IDs and network names: `^[a-zA-Z0-9][a-zA-Z0-9_.\\-]*$`."""
    return st.builds(
        str.__add__, st.sampled_from(_ID_HEAD), st.text(_ID_TAIL, max_size=longest - 1)
    )


ifnames = (
    st.text(
        st.characters(
            min_codepoint=33, exclude_characters="/:%", exclude_categories=("C", "Z", "M")
        ),
        min_size=1,
        max_size=15,
    )
    .filter(lambda name: len(name.encode()) <= 15)
    .filter(lambda name: name not in (".", ".."))
)
networks = identifiers(200)
container_ids = identifiers(300)
attachments = st.builds(Attachment, container_ids, ifnames)

# --- JSON ---------------------------------------------------------------------------------------

# Any code point, lone surrogates too: JSON can write them as \ud800.
texts = st.text(st.characters(), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**310)
    | st.floats()
    | texts
    | st.sampled_from(
        [
            *("", "10.244.0.5", "10.244.0.5/24", "10.244.0.0/24", "::/0", "fd00::1%eth0", "1/1"),
            *("host-local", "bridge", "ptp", "eth0", "02:42:0a:f4:00:05", "\ud800", "../x"),
            *("1.1.0", "0.2.0", "9.9.9", 0, 1, -1, 68, 1500, 2**64),
        ]
    )
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

_KEYS = (
    *("cniVersion", "name", "type", "bridge", "isGateway", "isDefaultGateway", "ipMasq"),
    *("ipMasqBackend", "hairpinMode", "promiscMode", "forceAddress", "mtu", "vlan", "vlanTrunk"),
    *("preserveDefaultVlan", "macspoofchk", "portIsolation", "enabledad", "mode", "nodes"),
    *("disableContainerInterface", "ipam", "dns", "nodeName", "args", "runtimeConfig"),
    *("prevResult", "capabilities", "cni.dev/valid-attachments", "cni.dev/attachments"),
)
_INNER_KEYS = (
    *("type", "ranges", "subnet", "routes", "dst", "gw", "mtu", "table", "scope", "priority"),
    *("cni", "mac", "ips", "dns", "servers", "searches", "options", "nameservers", "domain"),
    *("search", "portMappings", "bandwidth", "interfaces", "name", "sandbox", "address"),
    *("gateway", "interface", "version", "ip4", "ip6", "ip", "containerID", "ifname"),
)
_inner = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_INNER_KEYS), inner, max_size=4)
    ),
    max_leaves=10,
)
# Configurations whose keys are podwire's and whose values are anything.
configs = st.dictionaries(st.sampled_from(_KEYS), _inner | json_values, max_size=8)


def as_json(value: Any) -> bytes:
    """The value as JSON bytes; NaN and the infinities as Python spells them."""
    return json.dumps(value).encode()


stdins = (
    configs.map(as_json)
    | json_values.map(as_json)
    | st.binary(max_size=60)
    | st.builds(lambda doc, cut: as_json(doc)[:cut], configs, st.integers(0, 200))
)

# --- environments ---------------------------------------------------------------------------------

# What a process can find in its environment: any bytes but NUL, decoded as Python does it.
variables = st.binary(max_size=40).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))) | texts
environs = st.fixed_dictionaries(
    {},
    optional={
        "CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"])
        | variables,
        "CNI_CONTAINERID": container_ids | variables,
        "CNI_IFNAME": ifnames | variables,
        "CNI_NETNS": st.just("/run/netns/pod") | variables,
        "CNI_PATH": st.just("/opt/cni/bin") | variables,
        "CNI_ARGS": st.sampled_from(["", "IgnoreUnknown=1;A=B", "MAC=02:00:00:00:00:01", "A"])
        | variables,
    },
)

# --- results --------------------------------------------------------------------------------------

v4_addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
v6_addresses = st.integers(0, 2**128 - 1).map(IPv6Address)
addresses = v4_addresses | v6_addresses
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
_plain = st.text(st.characters(exclude_categories=("Cs",)), max_size=10)

interfaces = st.builds(
    Interface,
    name=_plain,
    mac=macs | st.just(""),
    sandbox=_plain,
    mtu=st.integers(0, 65535),
    socket_path=_plain,
    pci_id=_plain,
)
v4_ips = st.builds(
    lambda address, length, gateway: IPConfig(IPv4Interface((int(address), length)), gateway),
    v4_addresses,
    st.integers(0, 32),
    st.none() | v4_addresses,
)
v6_ips = st.builds(
    lambda address, length, gateway: IPConfig(IPv6Interface((int(address), length)), gateway),
    v6_addresses,
    st.integers(0, 128),
    st.none() | v6_addresses,
)
_numbers = st.none() | st.integers(0, 2**32 - 1)


def _routes(version: int) -> st.SearchStrategy[Route]:
    if version == 4:
        dst: Any = st.builds(
            lambda a, n: IPv4Network((int(a), n), strict=False), v4_addresses, st.integers(0, 32)
        )
        gw: Any = v4_addresses
    else:
        dst = st.builds(
            lambda a, n: IPv6Network((int(a), n), strict=False), v6_addresses, st.integers(0, 128)
        )
        gw = v6_addresses
    return st.builds(
        Route,
        dst=dst,
        gw=st.none() | gw,
        mtu=st.integers(0, 65535),
        advmss=st.integers(0, 65535),
        priority=_numbers,
        table=_numbers,
        scope=st.none() | st.integers(0, 255),
    )


v4_routes, v6_routes = _routes(4), _routes(6)
dns = st.builds(
    DNS,
    nameservers=st.lists(_plain, max_size=3).map(tuple),
    domain=_plain,
    search=st.lists(_plain, max_size=3).map(tuple),
    options=st.lists(_plain, max_size=3).map(tuple),
)


@st.composite
def results(draw: st.DrawFn) -> Result:
    """A result of the newest version: any interfaces, addresses that point at them, routes."""
    links = draw(st.lists(interfaces, max_size=3))
    indexes = st.none() | st.integers(0, len(links) - 1) if links else st.none()
    ips = draw(st.lists(v4_ips | v6_ips, max_size=3))
    return Result(
        interfaces=tuple(links),
        ips=tuple(ip._replace(interface=draw(indexes)) for ip in ips),
        routes=tuple(draw(st.lists(v4_routes | v6_routes, max_size=3))),
        dns=draw(dns),
    )


@st.composite
def legacy_results(draw: st.DrawFn) -> Result:
    """What 0.1.0 and 0.2.0 can say: one address for each family, routes of these families."""
    families = draw(st.sampled_from([(4,), (6,), (4, 6)]))
    ips: list[IPConfig] = []
    routes: list[Route] = []
    for family in families:
        ips.append(draw(v4_ips if family == 4 else v6_ips))
        drawn = draw(st.lists(v4_routes if family == 4 else v6_routes, max_size=2))
        routes += [Route(route.dst, route.gw) for route in drawn]
    return Result(ips=tuple(ips), routes=tuple(routes), dns=draw(dns))
