"""Host ports: ports of the node that lead to a pod.

The reference's portmap plugin defines the options: `portMappings` of runtimeConfig, `snat`,
`markMasqBit`. Everything here is pure; `kernel.hostports` makes it true.

Rules:
- An unspecified host address ("0.0.0.0", "::") means every address of the node of that family, no
  host address means every address of the families that the pod has.
- A port on every address and the same port on one address exclude each other, as Kubernetes'
  scheduler sees it; on two different addresses they don't.
- Attachments of one container may want the same port, as runtimes give each network the whole list:
  the first has it, and the next one when that has gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from cni_plugin import names
from cni_plugin.fields import Fields, as_address, invalid, shown
from cni_plugin.spec import Attachment, CniError, Code, IPAddress
from cni_plugin.typed import NamedTuple

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
"""The numbers of the protocols that have ports."""
LARGEST_PORT = 65535
DEFAULT_MARK_BIT = 13  # as the reference
_MAPPINGS = "runtimeConfig.portMappings"
_BROADCAST = IPv4Address("255.255.255.255")
_LONGEST_COMMENT = 127  # bytes; nft shows no longer ones


class PortMapping(NamedTuple):
    """One entry of portMappings. `host_ip` None: none was given."""

    host_port: int
    container_port: int
    protocol: str
    host_ip: IPAddress | None


class PortOptions(NamedTuple):
    """What a configuration says about host ports."""

    mappings: tuple[PortMapping, ...]
    snat: bool
    mark_bit: int


class HostPort(NamedTuple):
    """A port of the node, of one family, and where it leads; `host_ip` None: all addresses."""

    version: int
    protocol: str
    host_ip: IPAddress | None
    host_port: int
    pod: IPAddress
    container_port: int

    @property
    def where(self) -> str:
        """The port as people write it: "192.168.1.2:8080/tcp"."""
        return f"{_shown_address(self.version, self.host_ip)}:{self.host_port}/{self.protocol}"

    def clashes(self, other: HostPort) -> bool:
        """Whether a packet could be for both."""
        return (
            (self.version, self.protocol, self.host_port)
            == (other.version, other.protocol, other.host_port)
        ) and (self.host_ip is None or other.host_ip is None or self.host_ip == other.host_ip)

    def covers(self, other: HostPort) -> bool:
        """Whether every packet for the other could be for this one."""
        return self.clashes(other) and self.host_ip in (None, other.host_ip)


class PortRecord(NamedTuple):
    """The host ports of one attachment, as the node remembers them.

    `localnet` is the link through which the node reaches the pod, and which has to carry packets of
    127.0.0.1; "" when no port is of IPv4. `snat`: the pod sees the node's address in the place of
    another pod's or 127.0.0.1; without it these may not get their answers.
    """

    attachment: Attachment
    network: str
    localnet: str
    snat: bool
    ports: tuple[HostPort, ...]

    @property
    def name(self) -> str:
        """The name of its file: that of the attachment's host veth."""
        return names.host_veth_name(self.network, self.attachment)

    @property
    def comment(self) -> str:
        """Whose an element is, for people and for us; too long a text is closed with a hash."""
        container_id, ifname = self.attachment
        text = f"{container_id} {ifname} {self.network}"
        text = text.encode("ascii", "backslashreplace").decode()
        if len(text) <= _LONGEST_COMMENT:
            return text
        return f"{text[: _LONGEST_COMMENT - 1 - len(self.name)]}~{self.name}"

    def beside(self, other: PortRecord) -> bool:
        """Whether both are of one container, by another interface or network."""
        same = self.attachment.container_id == other.attachment.container_id
        return same and self.name != other.name

    @property
    def holder(self) -> str:
        """The attachment, for messages."""
        container_id, ifname = self.attachment
        return f"container {container_id}, interface {ifname}, network {self.network}"


def _shown_address(version: int, address: IPAddress | None) -> str:
    if version == 4:
        return str(address or "0.0.0.0")  # noqa: S104  shown, not bound to
    return f"[{address or '::'}]"


# --- the configuration ------------------------------------------------------------------------


def parse(fields: Fields) -> PortOptions:
    """The host ports of a configuration; none is the usual case. Keys are found in any mixture of
    cases, as Go reads them.

    Raises CniError: 2 for an option of the reference that podwire lacks, 7 for a wrong value.
    """
    fields = Fields(fields.obj, fields.path, any_case=True)
    for key in ("conditionsV4", "conditionsV6", "externalSetMarkChain", "masqAll"):
        if fields.obj.get(key) not in (None, False, "", []):
            raise CniError(
                Code.UNSUPPORTED_FIELD,
                f"{fields.at(key)}: unsupported field, its value is {shown(fields.obj[key])}",
                "podwire's host ports have no conditions and no chains of others: remove the field",
            )
    bit = fields.integer("markMasqBit", 0, 31)
    runtime = fields.child("runtimeConfig")
    mappings = tuple(_mapping(entry) for entry in runtime.children("portMappings"))
    _refuse_twice(mappings)
    return PortOptions(
        mappings=mappings,
        snat=fields.flag("snat", True),
        mark_bit=DEFAULT_MARK_BIT if bit is None else bit,
    )


def _mapping(entry: Fields) -> PortMapping:
    protocol = entry.text("protocol").lower() or "tcp"
    if protocol not in PROTOCOLS:
        wanted = f"expected one of {', '.join(PROTOCOLS)}"
        raise invalid(entry.at("protocol"), entry.text("protocol"), wanted)
    return PortMapping(
        host_port=_port(entry, "hostPort"),
        container_port=_port(entry, "containerPort"),
        protocol=protocol,
        host_ip=_host_ip(entry),
    )


def _port(entry: Fields, key: str) -> int:
    """Runtimes leave mappings without a host port out, and the reference refuses 0 as we do."""
    port = entry.integer(key, 1, LARGEST_PORT)
    if port is None:
        raise invalid(entry.at(key), None, f"expected a number from 1 to {LARGEST_PORT}")
    return port


def _host_ip(entry: Fields) -> IPAddress | None:
    path, text = entry.at("hostIP"), entry.text("hostIP")
    if not text:
        return None
    address = as_address(text, path)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_multicast or address == _BROADCAST:
        raise invalid(path, text, "expected an address that a node can have")
    if address.version == 6 and address.is_link_local:
        remedy = "without a link, which can't be given here, it means none of the node's"
        raise invalid(path, text, "expected no link-local address", remedy)
    if address.version == 6 and address.is_loopback:
        remedy = "the kernel lets nobody but the node itself answer there: 127.0.0.1 works"
        raise invalid(path, text, "expected an address other than ::1", remedy)
    return address


def _refuse_twice(mappings: tuple[PortMapping, ...]) -> None:
    """Two mappings of one port of the node: which of them was meant?"""
    first: dict[tuple[object, ...], int] = {}
    for index, mapping in enumerate(mappings):
        port = mapping.protocol, mapping.host_port
        own, others = _marks(mapping.host_ip)
        earlier = min((first[port, mark] for mark in others if (port, mark) in first), default=None)
        if earlier is not None:
            raise CniError(
                Code.INVALID_CONFIG,
                f"{_MAPPINGS}[{index}].hostPort: {mapping.host_port}/{mapping.protocol} is "
                f"mapped by {_MAPPINGS}[{earlier}] already",
                "map each port of the node once, or on different hostIPs",
            )
        for mark in own:
            first.setdefault((port, mark), index)


def _marks(host_ip: IPAddress | None) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """What a mapping is found by, and by what the mappings of its port are that it overlaps."""
    if host_ip is None:
        return ("any", "all"), ("any",)
    version = host_ip.version
    if host_ip.is_unspecified:
        return ("any", version, ("all", version)), ("all", version)
    return ("any", version, host_ip), ("all", ("all", version), host_ip)


# --- the plan ---------------------------------------------------------------------------------


def plan(options: PortOptions, addresses: Iterable[IPAddress]) -> tuple[HostPort, ...]:
    """The host ports of a pod with these addresses; of several of a family the first counts.

    Raises CniError 7 when a mapping's family is one that the pod does not have.
    """
    if not options.mappings:
        return ()
    pods: dict[int, IPAddress] = {}
    for address in addresses:
        pods.setdefault(address.version, address)
    return tuple(
        port
        for index, mapping in enumerate(options.mappings)
        for port in _host_ports(mapping, f"{_MAPPINGS}[{index}]", pods)
    )


def _host_ports(mapping: PortMapping, path: str, pods: dict[int, IPAddress]) -> Iterator[HostPort]:
    asked = mapping.host_ip
    if not pods:
        raise CniError(Code.INVALID_CONFIG, f"{path}: the pod has no address to lead to")
    if asked is not None and asked.version not in pods:
        raise invalid(
            f"{path}.hostIP",
            str(asked),
            f"expected an IPv{10 - asked.version} address, the pod has no IPv{asked.version}",
            "leave hostIP out for all addresses of the pod's families",
        )
    specific = None if asked is None or asked.is_unspecified else asked
    for version in sorted(pods) if asked is None else (asked.version,):
        yield HostPort(
            version=version,
            protocol=mapping.protocol,
            host_ip=specific,
            host_port=mapping.host_port,
            pod=pods[version],
            container_port=mapping.container_port,
        )


def record(
    options: PortOptions,
    network: str,
    attachment: Attachment,
    link: str,
    addresses: Iterable[IPAddress],
) -> PortRecord:
    """What the node has to do and to remember for a pod with these addresses.

    `link` leads to the pod: the bridge, or the host veth of a ptp. Errors are those of `plan`.
    """
    ports = plan(options, addresses)
    return PortRecord(
        attachment=attachment,
        network=network,
        localnet=link if options.snat and any(port.version == 4 for port in ports) else "",
        snat=options.snat,
        ports=ports,
    )
