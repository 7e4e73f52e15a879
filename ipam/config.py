"""The ipam section of type host-local, typed: every option, and every error that names its field.

Two readers. `parse` is strict, for ADD, CHECK and STATUS. `locate` is for DEL and GC, which need
no more than where the reservations are: a pod must go away even when somebody broke the ranges
meanwhile.

The options and their meaning are those of the reference plugin host-local. `rangeconf` reads the
ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface

from cni_plugin.fields import Fields, as_interface, as_text, invalid
from cni_plugin.memo import Memo
from cni_plugin.results import decode_routes
from cni_plugin.spec import CniError, Code, IPAddress, IPInterface, IPNetwork, Request, Route
from cni_plugin.typed import NamedTuple
from ipam import ranges
from ipam.rangeconf import range_sets
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
    sets = range_sets(fields, subnets, refuse_foreign, request.version)
    return HostLocalConf(
        network=request.network,
        data_dir=_path(ipam, "dataDir", DEFAULT_DATA_DIR),
        range_sets=sets,
        gateways=tuple(_gateway_interface(each) for one in sets for each in one),
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


def _gateway_interface(entry: Range) -> IPInterface:
    """A range's gateway as the bridge carries it: see `datapath`."""
    subnet = entry.subnet
    prefix = subnet.prefixlen if entry.gateway in subnet else subnet.max_prefixlen
    return ip_interface(f"{entry.gateway}/{prefix}")


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
