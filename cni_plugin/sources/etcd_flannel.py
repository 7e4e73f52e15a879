"""flannel's layout in etcd, so that a host with podwire can be one of a flannel network. Pure.

Source: flannel's documentation (configuration.md, reservations.md, backends.md), for flannel with
etcd's version 3 API, without --kube-subnet-mgr:

    <prefix>/config                  {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
    <prefix>/subnets/10.5.52.0-24    {"PublicIP": "192.168.64.3", "PublicIPv6": null,
                                      "BackendType": "vxlan",
                                      "BackendData": {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}}

- Hosts have no names there: a peer is named by its PublicIP.
- flannel takes keys in any mixture of cases, as Go's decoder does.
- Without `Backend` flannel with etcd takes udp, although its documentation says vxlan: that is
  refused, since nobody can tell which was meant.
- flannel's end of the overlay has the network address of its subnet, as podwire's has.
- Only IPv4: flannel's etcd part watches no other, and its vxlan has an end of its own for IPv6.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from cni_plugin.crossnode import DEFAULT_PORT, DEFAULT_VNI
from cni_plugin.fields import Fields, invalid
from cni_plugin.sources import Member
from cni_plugin.sources.etcd_layout import (
    Network,
    Own,
    Said,
    as_mac,
    dashed,
    decoded,
    undashed,
    unnamed,
)
from cni_plugin.sources.etcd_messages import KeyValue
from cni_plugin.sources.etcd_pools import Pool, whole_pool
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from ipam.peers import vtep_mac

PREFIX = "/coreos.com/network"
_BACKENDS = ("vxlan", "host-gw")
_LONGEST = 30  # of SubnetLen
_OVERHEAD = 50  # bytes; flannel's MTU is that of the packets outside, podwire's that of the device


class _Vxlan(NamedTuple):
    """flannel's vxlan backend, as far as it matters to its peers; `mtu` as podwire counts it."""

    vni: int
    port: int
    mtu: int
    direct_routing: bool


class FlannelLayout:
    """flannel's."""

    def __init__(self, prefix: str) -> None:
        self.config_key = f"{prefix}/config"
        self.subnets = f"{prefix}/subnets/"

    # --- the configuration ----------------------------------------------------------------------

    def network(self, value: bytes) -> Network:
        fields = decoded(value, self.config_key, any_case=True)
        if not fields.flag("EnableIPv4", True) or fields.flag("EnableIPv6"):
            key = "EnableIPv6" if fields.flag("EnableIPv6") else "EnableIPv4"
            raise invalid(fields.at(key), fields.obj.get(key), "podwire joins IPv4 networks only")
        backend = fields.child("Backend")
        kind = backend.text("Type").lower()
        if kind not in _BACKENDS:
            wanted = 'expected "vxlan" or "host-gw", which podwire shares with flannel'
            raise invalid(backend.at("Type"), backend.obj.get("Type"), wanted)
        pools = (_pool(fields),)
        if kind == "host-gw":
            return Network(pools, "host-gw")
        vxlan = _vxlan(backend)
        chosen = "auto" if vxlan.direct_routing else "vxlan"
        return Network(pools, chosen, vxlan.vni, vxlan.port, vxlan.mtu)

    def config(self, pools: Sequence[Pool]) -> None:
        """It is made before the first flannel starts, by people."""
        return

    # --- subnets --------------------------------------------------------------------------------

    def subnet_keys(self, cidrs: Sequence[IPNetwork]) -> tuple[str, ...]:
        return tuple(f"{self.subnets}{dashed(cidr)}" for cidr in cidrs)

    def subnet(self, key: str) -> IPNetwork | None:
        found = undashed(key.removeprefix(self.subnets).partition("&")[0])  # then IPv6's follows
        return found if isinstance(found, IPv4Network) else None

    def value(self, own: Own, cidrs: Sequence[IPNetwork], said: Said, network: Network) -> bytes:
        """The MAC address follows from the node's name, and is known before the overlay is there.

        PublicIP is what a lease is known by, so it is the address that the agent was given.
        """
        document: dict[str, object] = {
            "PublicIP": str(public_address(own)),
            "PublicIPv6": None,
            "BackendType": _type(network),
        }
        if network.vni:
            mac = said.announcement.vtep_mac or vtep_mac(network.vni, own.name)
            document["BackendData"] = {"VNI": network.vni, "VtepMAC": mac}
        return json.dumps(document, separators=(",", ":")).encode()

    def said(self, kv: KeyValue) -> Said:
        """Nothing: the MAC address may be that of a flannel which was here before."""
        return Said()

    def member(self, kv: KeyValue, network: Network) -> Member:
        since = f"{kv.create_revision:020}"
        name = unnamed(kv.key, self.subnets)
        try:
            fields = decoded(kv.value, kv.key, any_case=True)
            address = fields.address("PublicIP")
            if address is None or address.version != 4:
                got = fields.obj.get("PublicIP")
                raise invalid(fields.at("PublicIP"), got, "expected the host's IPv4 address")
            name = str(address)
            subnet = self.subnet(kv.key)
            if subnet is None:
                raise invalid(kv.key, "", "expected a key such as 10.5.52.0-24")
            return _member(fields, address, subnet, network)._replace(since=since)
        except CniError as e:
            return Member(name, since=since, problem=e.msg)

    def is_own(self, member: Member, own: Own) -> bool:
        """As flannel itself knows its lease again."""
        return member.name == str(public_address(own))

    def name_key(self, name: str) -> None:
        """The folder is flannel's: no key of ours there."""
        return

    def status_key(self, name: str) -> None:
        return


def public_address(own: Own) -> IPAddress:
    """The address that flannel's hosts send to. Raises CniError 7 when there is no IPv4 one."""
    for address in own.addresses:
        if address.version == 4:
            return address
    raise CniError(
        Code.INVALID_CONFIG,
        f"--etcd-format: flannel's networks need an IPv4 address, and node {own.name} has none",
    )


def _type(network: Network) -> str:
    return "vxlan" if network.vni else "host-gw"


def _member(fields: Fields, address: IPAddress, subnet: IPNetwork, network: Network) -> Member:
    found = Member(str(address), (address,), (subnet,), backend="host-gw")
    kind = fields.text("BackendType")
    if kind != _type(network):
        wanted = f'expected "{_type(network)}", as the network\'s configuration has it'
        raise invalid(fields.at("BackendType"), kind, wanted)
    if not network.vni:
        return found
    data = fields.child("BackendData")
    vni = data.integer("VNI", 0, 2**24 - 1)
    if vni != network.vni:
        raise invalid(data.at("VNI"), vni, f"expected {network.vni}, as the others have it")
    return found._replace(
        overlay_address=address,
        vtep_mac=as_mac(data.text("VtepMAC"), data.at("VtepMAC")),
        backend=f"vxlan vni={network.vni} port={network.port}",
    )


# --- the network's configuration ----------------------------------------------------------------


def _pool(fields: Fields) -> Pool:
    """The first subnet is left out, unless SubnetMin says otherwise: so flannel does."""
    network = fields.network("Network")
    if network is None or network.version != 4:
        got = fields.obj.get("Network")
        raise invalid(fields.at("Network"), got, "expected a CIDR such as 10.5.0.0/16")
    if network.prefixlen > _LONGEST - 2:
        wanted = f"expected a network of at most /{_LONGEST - 2}"
        raise invalid(fields.at("Network"), str(network), wanted)
    given = fields.integer("SubnetLen", 0, 32) or 0
    length = given or (24 if network.prefixlen <= 22 else network.prefixlen + 2)
    if not network.prefixlen + 2 <= length <= _LONGEST:
        wanted = f"expected a number from {network.prefixlen + 2} to {_LONGEST}"
        raise invalid(fields.at("SubnetLen"), given, wanted)
    pool = whole_pool(network, length, fields.at("Network"), fields.at("SubnetLen"))
    first = _bound(fields, "SubnetMin", pool, 1)
    last = _bound(fields, "SubnetMax", pool, pool.last)
    if first > last:
        got = fields.obj.get("SubnetMax")
        raise invalid(fields.at("SubnetMax"), got, "expected an address after SubnetMin")
    return pool._replace(first=first, last=last)


def _bound(fields: Fields, key: str, pool: Pool, default: int) -> int:
    address = fields.address(key)
    if address is None or int(address) == 0:
        return default
    if address not in pool.network or pool.subnet(pool.number(address)).network_address != address:
        wanted = f"expected the first address of a /{pool.length} in {pool.network}"
        raise invalid(fields.at(key), str(address), wanted)
    return pool.number(address)


def _vxlan(backend: Fields) -> _Vxlan:
    if backend.flag("GBP"):
        raise invalid(backend.at("GBP"), True, "podwire has no group based policy")
    vni = backend.integer("VNI", 1, 2**24 - 1)
    port = backend.integer("Port", 0, 65535)
    return _Vxlan(
        DEFAULT_VNI if vni is None else vni,
        port or DEFAULT_PORT,
        max(0, (backend.integer("MTU", 0, 65535) or 0) - _OVERHEAD),
        backend.flag("DirectRouting"),
    )
