"""The range sets of the ipam section: where they may be written, and what is wrong with them.

Every error names the range by its path in the configuration. Stricter than the reference plugin
host-local: a gateway or a bound of the other family, an empty range set and overlaps are refused,
and a range's bounds must be in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from cni_plugin.fields import Fields, as_object, invalid
from cni_plugin.skel import at_least
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam import ranges
from ipam.ranges import Range, RangeSet


class _Named(NamedTuple):
    """A range set with the paths of its ranges in the configuration, for messages."""

    range_set: RangeSet
    paths: tuple[str, ...]


def range_sets(
    conf: Fields,
    subnets: tuple[IPNetwork, ...] | None,
    refuse_foreign: Callable[[IPNetwork], None],
    version: str,
) -> tuple[RangeSet, ...]:
    """The range sets of a network configuration of this CNI version; at least one.

    `subnets` and `refuse_foreign` as for `config.parse`. Raises CniError 7.
    """
    named = list(_configured(conf, conf.child("ipam")))
    if named:
        _refuse_foreign(named, subnets, refuse_foreign)
    else:
        named = [_whole(subnet, index) for index, subnet in enumerate(subnets or ())]
    if not named:
        raise _none_configured(subnets is not None)
    _refuse_overlaps(named)
    _refuse_many(named, version)
    return tuple(entry.range_set for entry in named)


def _none_configured(inventory: bool) -> CniError:
    if inventory:
        return CniError(
            Code.INVALID_CONFIG,
            "ipam.ranges: none is configured, and this node has no podCIDRs in the inventory",
            "give this node podCIDRs of its own in the inventory",
        )
    return CniError(
        Code.INVALID_CONFIG,
        "ipam.ranges: no address range is configured",
        'add one, such as "ranges": [[{"subnet": "10.244.0.0/24"}]]',
    )


def _configured(fields: Fields, ipam: Fields) -> Iterator[_Named]:
    """The runtime's ranges, the single range of older configurations, the list of range sets."""
    yield from _listed(fields.child("runtimeConfig"), "ipRanges")
    if ipam.has("subnet"):
        yield _Named((_range(ipam),), ("ipam",))
    yield from _listed(ipam, "ranges")
    bounds = [key for key in ("rangeStart", "rangeEnd", "gateway") if ipam.address(key)]
    if bounds and not ipam.has("subnet") and not ipam.has("ranges"):
        raise invalid(
            ipam.at("subnet"), None, f"expected a CIDR, because {ipam.at(bounds[0])} is given"
        )


def _listed(fields: Fields, key: str) -> Iterator[_Named]:
    for path, value in fields.items(key):
        if not isinstance(value, list) or not value:
            raise invalid(
                path,
                value,
                "expected a list of at least one range",
                f'{key} is a list of lists, such as [[{{"subnet": "10.244.0.0/24"}}]]',
            )
        paths = tuple(f"{path}[{index}]" for index in range(len(value)))
        found = tuple(
            _range(as_object(v, p, p.startswith("runtimeConfig")))
            for v, p in zip(value, paths, strict=True)
        )
        for entry, inner in zip(found, paths, strict=True):
            if entry.subnet.version != found[0].subnet.version:
                raise invalid(
                    f"{inner}.subnet",
                    str(entry.subnet),
                    f"expected an IPv{found[0].subnet.version} subnet, as {paths[0]} has",
                    "a range set holds one family: write the other one as a set of its own",
                )
        yield _Named(found, paths)


def _range(fields: Fields) -> Range:
    subnet = fields.network("subnet")
    where = fields.at("subnet")
    if subnet is None:
        raise invalid(where, None, "expected a CIDR such as 10.244.0.0/24")
    if ranges.too_small(subnet):
        widest = subnet.max_prefixlen - 2
        raise invalid(where, str(subnet), f"expected a prefix of /{widest} or shorter")
    if ranges.is_mapped(subnet):
        raise invalid(where, str(subnet), "expected IPv4 written as IPv4, not mapped into IPv6")
    if special := ranges.reserved(subnet):
        raise invalid(where, str(subnet), f"expected a subnet outside of {special}")
    start = _bound(fields, "rangeStart", subnet) or ranges.first(subnet)
    end = _bound(fields, "rangeEnd", subnet) or ranges.last(subnet)
    if int(start) > int(end):
        key = "rangeEnd" if fields.has("rangeEnd") else "rangeStart"
        value = end if key == "rangeEnd" else start
        raise invalid(
            fields.at(key), str(value), f"the range from {start} to {end} holds no address"
        )
    return Range(subnet, start, end, _gateway(fields, subnet))


def _bound(fields: Fields, key: str, subnet: IPNetwork) -> IPAddress | None:
    address = fields.address(key)
    if address is None:
        return None
    address = ranges.canonical(address)
    if address not in subnet:
        raise invalid(fields.at(key), str(address), f"expected an address inside {subnet}")
    return address


def _gateway(fields: Fields, subnet: IPNetwork) -> IPAddress:
    gateway = fields.address("gateway")
    if gateway is None:
        return ranges.first(subnet)
    gateway = ranges.canonical(gateway)
    if gateway.version != subnet.version:
        raise invalid(
            fields.at("gateway"), str(gateway), f"expected an IPv{subnet.version} address"
        )
    if ranges.reserved(ip_network(gateway)) or gateway in ranges.not_hosts(subnet):
        raise invalid(fields.at("gateway"), str(gateway), "expected the address of a host")
    return gateway


def _whole(subnet: IPNetwork, index: int) -> _Named:
    """The range set of one of this node's pod subnets."""
    where = f"nodes: podCIDRs[{index}]"
    return _Named((_range(Fields({"subnet": str(subnet)}, where)),), (where,))


def _refuse_foreign(
    named: list[_Named],
    subnets: tuple[IPNetwork, ...] | None,
    refuse_foreign: Callable[[IPNetwork], None],
) -> None:
    """Addresses of another node's subnet would be unreachable: nobody routes them here."""
    if subnets is None:
        return
    for entry in named:
        for found, path in zip(entry.range_set, entry.paths, strict=True):
            refuse_foreign(found.subnet)
            if not any(_inside(found.subnet, subnet) for subnet in subnets):
                raise invalid(
                    f"{path}.subnet",
                    str(found.subnet),
                    "expected a subnet inside this node's pod subnets"
                    f" {', '.join(str(subnet) for subnet in subnets) or '(it has none)'}",
                    "remove the ranges, or correct this node's podCIDRs in the inventory",
                )


def _inside(subnet: IPNetwork, outer: IPNetwork) -> bool:
    if isinstance(subnet, IPv4Network) and isinstance(outer, IPv4Network):
        return subnet.subnet_of(outer)
    if isinstance(subnet, IPv6Network) and isinstance(outer, IPv6Network):
        return subnet.subnet_of(outer)
    return False


def _refuse_overlaps(named: list[_Named]) -> None:
    sets = tuple(entry.range_set for entry in named)
    for i, j, k, m in ranges.overlaps(sets):
        raise CniError(
            Code.INVALID_CONFIG,
            f"{named[i].paths[j]} ({sets[i][j]}) overlaps {named[k].paths[m]} ({sets[k][m]})",
            "an address must belong to one range: change rangeStart and rangeEnd, or remove one",
        )


def _refuse_many(named: list[_Named], version: str) -> None:
    """Results before 0.3.0 hold one address for each family."""
    if at_least(version, "0.3.0"):
        return
    families = [entry.range_set[0].subnet.version for entry in named]
    for family in (4, 6):
        if families.count(family) > 1:
            paths = ", ".join(e.paths[0] for e in named if e.range_set[0].subnet.version == family)
            raise CniError(
                Code.INVALID_CONFIG,
                f"ipam.ranges: {families.count(family)} IPv{family} range sets ({paths}), and"
                f" cniVersion {version} knows one address per family",
                'set "cniVersion" to 0.3.0 or later, or put the ranges into one set',
            )
