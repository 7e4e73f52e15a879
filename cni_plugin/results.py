"""CNI results: encoded for each version of the specification, and decoded from it.

One `Result` has the shape of the newest version. What an older one can't say is left out where the
specification lets it, and is an error where the pod would be told wrong.
"""

from __future__ import annotations

from cni_plugin.fields import Fields, as_interface, invalid
from cni_plugin.skel import at_least, to_json
from cni_plugin.spec import (
    DNS,
    CniError,
    Code,
    Interface,
    IPConfig,
    IPNetwork,
    Result,
    Route,
)
from cni_plugin.typed import Any


def encode_result(result: Result, version: str) -> bytes:
    """A result in the form of `version`.

    Raises CniError 1 when a version before 0.3.0 can't express it: those hold one address per
    family, and at least one.
    """
    document: dict[str, Any] = {"cniVersion": version}
    if not at_least(version, "0.3.0"):
        document |= _legacy_addresses(result, version)
    else:
        if result.interfaces:
            document["interfaces"] = [_interface(i, version) for i in result.interfaces]
        if result.ips:
            document["ips"] = [_ip(ip, version) for ip in result.ips]
        if result.routes:
            document["routes"] = [_route(route, version) for route in result.routes]
    dns = _dns(result.dns)
    if dns or not at_least(version, "1.0.0"):
        document["dns"] = dns
    return to_json(document)


def _legacy_addresses(result: Result, version: str) -> dict[str, Any]:
    """`ip4` and `ip6` of 0.1.0 and 0.2.0: one address for each family, routes beside it."""
    found: dict[str, Any] = {}
    for ip in result.ips:
        key = f"ip{ip.address.version}"
        if key in found:
            raise CniError(
                Code.INCOMPATIBLE_VERSION,
                f"cniVersion: {version} holds one address per family, the pod has more",
                'set "cniVersion" to 0.3.0 or later',
            )
        entry: dict[str, Any] = {"ip": str(ip.address)}
        if ip.gateway is not None:
            entry["gateway"] = str(ip.gateway)
        routes = [
            {"dst": str(route.dst)} | ({"gw": str(route.gw)} if route.gw is not None else {})
            for route in result.routes
            if route.dst.version == ip.address.version
        ]
        if routes:
            entry["routes"] = routes
        found[key] = entry
    if not found:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion: {version} needs an address in the result, the pod has none",
            'set "cniVersion" to 0.3.0 or later, or configure ipam',
        )
    return found


def _interface(interface: Interface, version: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": interface.name}
    if interface.mac:
        entry["mac"] = interface.mac
    if at_least(version, "1.1.0"):
        if interface.mtu:
            entry["mtu"] = interface.mtu
        if interface.socket_path:
            entry["socketPath"] = interface.socket_path
        if interface.pci_id:
            entry["pciID"] = interface.pci_id
    if interface.sandbox:
        entry["sandbox"] = interface.sandbox
    return entry


def _ip(ip: IPConfig, version: str) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if not at_least(version, "1.0.0"):
        entry["version"] = str(ip.address.version)
    if ip.interface is not None:
        entry["interface"] = ip.interface
    entry["address"] = str(ip.address)
    if ip.gateway is not None:
        entry["gateway"] = str(ip.gateway)
    return entry


def _route(route: Route, version: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"dst": str(route.dst)}
    if route.gw is not None:
        entry["gw"] = str(route.gw)
    if at_least(version, "1.1.0"):
        if route.mtu:
            entry["mtu"] = route.mtu
        if route.advmss:
            entry["advmss"] = route.advmss
        numbers = {"priority": route.priority, "table": route.table, "scope": route.scope}
        entry |= {key: value for key, value in numbers.items() if value is not None}
    return entry


def _dns(dns: DNS) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if dns.nameservers:
        entry["nameservers"] = list(dns.nameservers)
    if dns.domain:
        entry["domain"] = dns.domain
    if dns.search:
        entry["search"] = list(dns.search)
    if dns.options:
        entry["options"] = list(dns.options)
    return entry


# --- results of others ------------------------------------------------------------------------


def decode_result(fields: Fields, version: str) -> Result:
    """A result (prevResult, or a delegate's reply) of any version; error 7 names a bad field."""
    if not at_least(version, "0.3.0"):
        return _decode_legacy(fields)
    interfaces = tuple(_decode_interface(entry) for entry in fields.children("interfaces"))
    return Result(
        interfaces=interfaces,
        ips=tuple(_decode_ip(entry, len(interfaces)) for entry in fields.children("ips")),
        routes=decode_routes(fields, "routes"),
        dns=decode_dns(fields.child("dns")),
    )


def _decode_interface(entry: Fields) -> Interface:
    return Interface(
        name=entry.text("name"),
        mac=entry.text("mac").lower(),
        sandbox=entry.text("sandbox"),
        mtu=entry.integer("mtu", 0, 2**31 - 1) or 0,
        socket_path=entry.text("socketPath"),
        pci_id=entry.text("pciID"),
    )


def _decode_ip(entry: Fields, interfaces: int) -> IPConfig:
    index = entry.integer("interface", -1, 2**31 - 1)
    if index is not None and index >= interfaces and interfaces:
        raise invalid(
            entry.at("interface"), index, f"expected an index into {interfaces} interfaces"
        )
    return IPConfig(
        address=as_interface(entry.obj.get("address"), entry.at("address")),
        gateway=entry.address("gateway"),
        interface=index,
    )


def _decode_legacy(fields: Fields) -> Result:
    ips: list[IPConfig] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        if not fields.has(key):
            continue
        entry = fields.child(key)
        ips.append(
            IPConfig(as_interface(entry.obj.get("ip"), entry.at("ip")), entry.address("gateway"))
        )
        routes += decode_routes(entry, "routes")
    return Result(ips=tuple(ips), routes=tuple(routes), dns=decode_dns(fields.child("dns")))


def decode_routes(fields: Fields, key: str) -> tuple[Route, ...]:
    """The list of routes at `key`, as ipam.routes and results hold it."""
    return tuple(_decode_route(entry) for entry in fields.children(key))


def _decode_route(entry: Fields) -> Route:
    dst: IPNetwork | None = entry.network("dst")
    if dst is None:
        raise invalid(entry.at("dst"), None, "expected a CIDR such as 0.0.0.0/0")
    gw = entry.address("gw")
    if gw is not None and gw.version != dst.version:
        raise invalid(entry.at("gw"), str(gw), f"expected an IPv{dst.version} address, as dst is")
    return Route(
        dst=dst,
        gw=gw,
        mtu=entry.integer("mtu", 0, 2**31 - 1) or 0,
        advmss=entry.integer("advmss", 0, 2**31 - 1) or 0,
        priority=entry.integer("priority", 0, 2**32 - 1),
        table=entry.integer("table", 0, 2**32 - 1),
        scope=entry.integer("scope", 0, 255),
    )


def decode_dns(fields: Fields) -> DNS:
    return DNS(
        nameservers=fields.texts("nameservers"),
        domain=fields.text("domain"),
        search=fields.texts("search"),
        options=fields.texts("options"),
    )
