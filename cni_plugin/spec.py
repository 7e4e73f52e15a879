"""The vocabulary of the CNI specification: requests, results, errors.

Rules of this module:
- It holds data and no behaviour: no I/O, no parsing (`skel` does that), no policy.
- It imports nothing of podwire, so that every layer may use it.
- NamedTuples rather than dataclasses: importing `dataclasses` costs several milliseconds, and
  this module is on the path of every ADD.

Source: CNI specification 1.1.0 (containernetworking/cni, SPEC.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

from cni_plugin.typed import Any, NamedTuple

SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT_VERSION = SUPPORTED_VERSIONS[-1]

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network


class Code:
    """Error codes. Below 100 they are the specification's; from 100 on, podwire's.

    Each is described, with its cause and remedy, in docs/error-codes.md.
    """

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51

    POOL_EXHAUSTED = 100
    ADDRESS_UNAVAILABLE = 101
    INTERFACE_EXISTS = 102
    LINK_CONFLICT = 103
    KERNEL_REFUSED = 104
    DELEGATE_FAILED = 105
    SUBNET_OVERLAP = 106
    CHECK_FAILED = 107
    GC_INCOMPLETE = 108
    DUPLICATE_ALLOCATION = 109
    PERMISSION_DENIED = 110
    INTERNAL = 199


class CniError(Exception):
    """A failure as the runtime gets it: one error document with a code, a message and details.

    `msg` says what is wrong and names the field and the value; `details` says what to do.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class Attachment(NamedTuple):
    """One interface of one container: the key of everything that an ADD makes."""

    container_id: str
    ifname: str


class Request(NamedTuple):
    """One call of the plugin, validated by `skel`.

    `netns` is the path the runtime gave ("" when absent). `cni_args` is CNI_ARGS taken apart.
    `path` holds the folders of CNI_PATH. `config` is stdin as it came, for delegates; `conf` the
    same, decoded; `version` is the cniVersion in force and `network` the network's name.
    """

    command: str
    attachment: Attachment
    netns: str
    cni_args: Mapping[str, str]
    path: tuple[str, ...]
    config: bytes
    conf: Mapping[str, Any]
    version: str
    network: str


class Interface(NamedTuple):
    """A link that an ADD made; `sandbox` is the netns path, "" for a link of the host."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


class IPConfig(NamedTuple):
    """An address with its prefix; `interface` is an index into `Result.interfaces`."""

    address: IPInterface
    gateway: IPAddress | None = None
    interface: int | None = None


class Route(NamedTuple):
    """A route of the pod. Zero or None means that the field was not given."""

    dst: IPNetwork
    gw: IPAddress | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class DNS(NamedTuple):
    """Resolver settings, passed on to the runtime and applied by nobody here."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(NamedTuple):
    """What an ADD made, in the shape of the newest version; `results` encodes older ones."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()
