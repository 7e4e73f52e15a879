"""The ipam section of type host-local, typed: every option, and every error that names its field.

Two readers. `parse` is strict, for ADD, CHECK and STATUS. `locate` is for DEL and GC, which need
no more than where the reservations are: a pod must go away even when somebody broke the ranges
meanwhile.

The options and their meaning are those of the reference plugin host-local. Stricter than it: a
gateway or a bound of the other family, an empty range set and overlaps are refused with the names
of the fields, and a range's bounds must be in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

from cni_plugin.fields import Fields, as_interface, as_object, as_text, invalid
from cni_plugin.memo import Memo
from cni_plugin.results import decode_routes
from cni_plugin.skel import at_least
from cni_plugin.spec import CniError, Code, IPAddress, IPInterface, IPNetwork, Request, Route
from cni_plugin.typed import NamedTuple
from ipam import ranges
from ipam.ranges import Range, RangeSet

DEFAULT_DATA_DIR = "/var/lib/cni/networks"


class Place(NamedTuple):
    """Where the reservations of a network are: the directory `data_dir`/`network`."""

    data_dir: str
    network: str


class HostLocalConf(NamedTuple):
    """What ADD, CHECK and STATUS work from.

    `gateways` are those of all ranges, each with the prefix under which the bridge has it.
    `requested` holds the addresses asked for, canonical and without their prefixes;
    `resolv_conf` is the path of the file that `dns` of the result is read from, "" for none.
    """

    network: str
    data_dir: str
    range_sets: tuple[RangeSet, ...]
    gateways: tuple[IPInterface, ...] = ()
    routes: tuple[Route, ...] = ()
    resolv_conf: str = ""
    requested: tuple[IPAddress, ...] = ()

    @property
    def place(self) -> Place:
        return Place(self.data_dir, self.network)


class _Named(NamedTuple):
    """A range set with the paths of its ranges in the configuration, for messages."""

    range_set: RangeSet
    paths: tuple[str, ...]


def parse(
    request: Request,
    subnets: tuple[IPNetwork, ...] | None = None,
    refuse_foreign: Callable[[IPNetwork], None] = lambda subnet: None,
) -> HostLocalConf:
    """The ipam section of a request, with the addresses that the runtime asks for.

    `subnets` are this node's pod subnets, from an inventory; None where there is no inventory.
    They are the ranges, one set each, when the configuration has none; otherwise every range must
    lie inside one of them.
    `refuse_foreign` is asked first, and may know whose a subnet is instead.

    Raises CniError: 7 for a wrong value, 4 for one in CNI_ARGS.
    """
    if subnets is not None:
        return _parse(request, subnets, refuse_foreign)
    asked = request.cni_args.get("IP", "")
    conf: HostLocalConf = _KNOWN.of(
        lambda: _parse(request, None, refuse_foreign), request.config, request.network, asked
    )
    return conf


_KNOWN = Memo()


def _parse(
    request: Request,
    subnets: tuple[IPNetwork, ...] | None,
    refuse_foreign: Callable[[IPNetwork], None],
) -> HostLocalConf:
    fields = Fields(request.conf)
    ipam = fields.child("ipam")
    named = list(_range_sets(fields, ipam))
    if named:
        _refuse_foreign(named, subnets, refuse_foreign)
    else:
        named = [_whole(subnet, index) for index, subnet in enumerate(subnets or ())]
    if not named and subnets is not None:
        raise CniError(
            Code.INVALID_CONFIG,
            "ipam.ranges: none is configured, and this node has no podCIDRs in the inventory",
            "give this node podCIDRs of its own in the inventory",
        )
    if not named:
        raise CniError(
            Code.INVALID_CONFIG,
            "ipam.ranges: no address range is configured",
            'add one, such as "ranges": [[{"subnet": "10.244.0.0/24"}]]',
        )
    _refuse_overlaps(named)
    _refuse_many(named, request.version)
    return HostLocalConf(
        network=request.network,
        data_dir=_path(ipam, "dataDir", DEFAULT_DATA_DIR),
        range_sets=tuple(entry.range_set for entry in named),
        gateways=tuple(_gateway_interface(r) for entry in named for r in entry.range_set),
        routes=decode_routes(ipam, "routes"),
        resolv_conf=_path(ipam, "resolvConf", ""),
        requested=tuple(dict.fromkeys(_requested(fields, request))),
    )


def locate(request: Request) -> Place:
    """Where the reservations of the request's network are, whatever else is configured.

    Raises CniError 7 for a dataDir that can't be one: nothing could be found there.
    """
    section = request.conf.get("ipam")
    ipam = Fields(section if isinstance(section, dict) else {}, "ipam")
    return Place(_path(ipam, "dataDir", DEFAULT_DATA_DIR), request.network)


def _path(fields: Fields, key: str, default: str) -> str:
    """An absolute path: an agent's working directory is not the runtime's."""
    text = fields.text(key) or default
    if text and (not text.startswith("/") or not text.isprintable()):
        raise invalid(fields.at(key), text, "expected an absolute path")
    return text


# --- ranges -----------------------------------------------------------------------------------


def _range_sets(fields: Fields, ipam: Fields) -> Iterator[_Named]:
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


def _gateway_interface(entry: Range) -> IPInterface:
    """A range's gateway as the bridge carries it: see `datapath`."""
    subnet = entry.subnet
    prefix = subnet.prefixlen if entry.gateway in subnet else subnet.max_prefixlen
    return ip_interface(f"{entry.gateway}/{prefix}")


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


# --- requested addresses ----------------------------------------------------------------------


def _requested(fields: Fields, request: Request) -> Iterator[IPAddress]:
    """What the runtime asks for: args.cni and the capability `ips` (CONVENTIONS.md), else CNI_ARGS,
    which is deprecated and gives way to them."""
    asking = (fields.child("args").child("cni"), fields.child("runtimeConfig"))
    configured = [_address(value, path) for at in asking for path, value in at.items("ips")]
    asked = request.cni_args.get("IP", "")
    if not asked or configured:
        yield from configured
        return
    try:
        yield _address(asked, "CNI_ARGS: IP")
    except CniError as e:
        raise CniError(Code.INVALID_ENVIRONMENT, e.msg, e.details) from e


def _address(value: object, path: str) -> IPAddress:
    """An address; a prefix behind it is checked and left out, since the range has its own."""
    text = as_text(value, path)
    plain, slash, _ = text.partition("/")
    try:
        address = ip_address(plain.replace("%", "/"))  # a zone is refused as a prefix would be
        if slash:
            as_interface(text, path)
    except ValueError:
        raise invalid(path, value, "expected an IP address such as 10.244.0.5") from None
    return ranges.canonical(address)
