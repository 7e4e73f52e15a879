"""What podwire keeps in etcd: which key, and what is in it. Pure.

    <prefix>/config                   the pools, made by the first node, the same for all
    <prefix>/subnets/10.244.3.0-24    whose subnet it is, for each subnet of a node one key
    <prefix>/names/node-1             that the name is in use; the node's subnets
    <prefix>/status/node-1            whether pods of the node have a network

`Layout` is what the source needs to know of a layout; `etcd_flannel` has another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from cni_plugin.fields import Fields, as_address, as_network, invalid
from cni_plugin.sources import Announcement, Member, Readiness
from cni_plugin.sources.etcd_messages import KeyValue
from cni_plugin.sources.etcd_pools import Pool, whole_pool
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork

NODE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}")  # what the inventory takes
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MOST_BYTES = 64 * 1024  # of a value; etcd takes 1.5 MiB


class Own(NamedTuple):
    """This node, as it tells of itself."""

    name: str
    addresses: tuple[IPAddress, ...]


class Network(NamedTuple):
    """What the cluster's nodes agree on. Of `backend` and what follows it podwire's own layout says
    nothing: "" and 0. `mtu` is that of the overlay's device; 0: it follows the underlay."""

    pools: tuple[Pool, ...]
    backend: str = ""
    vni: int = 0
    port: int = 0
    mtu: int = 0

    def conf_keys(self) -> dict[str, Any]:
        """What the nodes' network configuration has to say, so that they reach each other."""
        keys: dict[str, Any] = {"backend": self.backend} if self.backend else {}
        if self.vni:
            keys["vxlan"] = {"vni": self.vni, "port": self.port, "mtu": self.mtu}
        return keys


class Said(NamedTuple):
    """What a node tells of itself beside its subnets; `since` is in RFC 3339."""

    announcement: Announcement = Announcement()
    since: str = ""


class Layout(Protocol):
    """Keys and values, for one prefix."""

    config_key: str
    subnets: str
    """What the keys of all subnets begin with."""

    def network(self, value: bytes) -> Network:
        """What is at `config_key`. Raises CniError 7."""

    def config(self, pools: Sequence[Pool]) -> bytes | None:
        """What the first node writes there; None when it is for people to write."""

    def subnet_keys(self, cidrs: Sequence[IPNetwork]) -> tuple[str, ...]:
        """The keys of one node's subnets."""

    def subnet(self, key: str) -> IPNetwork | None:
        """The subnet that a key stands for; None when it is no such key."""

    def value(self, own: Own, cidrs: Sequence[IPNetwork], said: Said, network: Network) -> bytes:
        """What is at this node's subnet keys."""

    def said(self, kv: KeyValue) -> Said:
        """What this node said in an earlier life, as far as it can be read."""

    def member(self, kv: KeyValue, network: Network) -> Member:
        """The node that a subnet's key tells of; what is wrong is its `problem`."""

    def is_own(self, member: Member, own: Own) -> bool:
        """Whether the key, by what is in it, is this node's."""

    def name_key(self, name: str) -> str | None:
        """The key that stands for a node's name; None when there are none."""

    def status_key(self, name: str) -> str | None:
        """The key for a node's readiness; None when there are none."""


class PodwireLayout:
    """podwire's own."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.config_key = f"{prefix}/config"
        self.subnets = f"{prefix}/subnets/"

    def network(self, value: bytes) -> Network:
        fields = decoded(value, self.config_key)
        pools = []
        for key, length_key in (("network", "subnetLength"), ("network6", "subnetLength6")):
            network = fields.network(key)
            length = fields.integer(length_key, 1, 128)
            if network is not None:
                if (network.version == 4) != (key == "network"):
                    raise invalid(fields.at(key), str(network), "expected the other IP version")
                path, length_path = fields.at(key), fields.at(length_key)
                pools.append(whole_pool(network, length, path, length_path))
        if not pools:
            raise invalid(fields.at("network"), None, "expected a CIDR here or in network6")
        return Network(tuple(pools))

    def config(self, pools: Sequence[Pool]) -> bytes:
        document: dict[str, object] = {}
        for pool in pools:
            suffix = "6" if pool.version == 6 else ""
            document[f"network{suffix}"] = str(pool.network)
            document[f"subnetLength{suffix}"] = pool.length
        return json.dumps(document).encode()

    def subnet_keys(self, cidrs: Sequence[IPNetwork]) -> tuple[str, ...]:
        return tuple(f"{self.subnets}{dashed(cidr)}" for cidr in cidrs)

    def subnet(self, key: str) -> IPNetwork | None:
        return undashed(key.removeprefix(self.subnets))

    def value(self, own: Own, cidrs: Sequence[IPNetwork], said: Said, network: Network) -> bytes:
        overlay = said.announcement.overlay_address
        document = {
            "name": own.name,
            "addresses": [str(address) for address in own.addresses],
            "podCIDRs": [str(cidr) for cidr in cidrs],
            "vtepMAC": said.announcement.vtep_mac,
            "overlayAddress": "" if overlay is None else str(overlay),
            "backend": said.announcement.backend,
            "since": said.since,
        }
        return json.dumps(document).encode()

    def said(self, kv: KeyValue) -> Said:
        try:
            fields = decoded(kv.value, kv.key)
            return Said(_announcement(fields), fields.text("since"))
        except CniError:
            return Said()  # it is written anew then

    def member(self, kv: KeyValue, network: Network) -> Member:
        """`since` is the key's create revision: etcd's order, whatever the nodes' clocks say."""
        since = f"{kv.create_revision:020}"
        try:
            fields = decoded(kv.value, kv.key)
            name = fields.text("name")
            if not NODE_NAME.fullmatch(name):
                wanted = "expected a name of letters, digits, '-', '_' and '.'"
                raise invalid(fields.at("name"), name, wanted)
        except CniError as e:
            return Member(unnamed(kv.key, self.subnets), since=since, problem=e.msg)
        try:
            return _member(fields, name, self.subnet(kv.key))._replace(since=since)
        except CniError as e:
            return Member(name, since=since, problem=e.msg)

    def is_own(self, member: Member, own: Own) -> bool:
        return member.name == own.name

    def name_key(self, name: str) -> str:
        return f"{self.prefix}/names/{name}"

    def status_key(self, name: str) -> str:
        return f"{self.prefix}/status/{name}"


def status(state: Readiness, at: str) -> bytes:
    """What is at a node's status key; `at` is the time it was found, in RFC 3339."""
    document = {"ready": state.ready, "reason": state.reason, "message": state.message, "at": at}
    return json.dumps(document).encode()


def _member(fields: Fields, name: str, subnet: IPNetwork | None) -> Member:
    addresses = tuple(as_address(value, path) for path, value in fields.items("addresses"))
    if not addresses:
        raise invalid(fields.at("addresses"), fields.obj.get("addresses"), "expected an address")
    cidrs = tuple(as_network(value, path) for path, value in fields.items("podCIDRs"))
    if subnet not in cidrs:
        got = fields.obj.get("podCIDRs")
        raise invalid(fields.at("podCIDRs"), got, "expected the key's own subnet among them")
    said = _announcement(fields)
    return Member(
        name,
        addresses,
        cidrs,
        overlay_address=said.overlay_address,
        vtep_mac=said.vtep_mac,
        backend=said.backend,
    )


def _announcement(fields: Fields) -> Announcement:
    overlay = fields.text("overlayAddress")
    address = as_address(overlay, fields.at("overlayAddress")) if overlay else None
    mac = fields.text("vtepMAC")
    return Announcement(
        as_mac(mac, fields.at("vtepMAC")) if mac else "", address, fields.text("backend")
    )


# --- what layouts have in common ----------------------------------------------------------------


def decoded(value: bytes, key: str, any_case: bool = False) -> Fields:
    """The object at a key. Raises CniError 7 that names the key."""
    try:
        document = json.loads(value.decode()) if len(value) <= _MOST_BYTES else None
    except (ValueError, RecursionError) as e:
        raise CniError(Code.INVALID_CONFIG, f"{key}: not valid JSON: {e}") from e
    if not isinstance(document, dict):
        raise CniError(
            Code.INVALID_CONFIG, f"{key}: expected an object of at most {_MOST_BYTES} bytes"
        )
    return Fields(document, key, any_case)


def as_mac(text: str, path: str) -> str:
    """A MAC address in its usual form, in lower case."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise invalid(path, text, "expected a MAC address such as 02:42:ac:11:00:02")
    return mac


def dashed(cidr: IPNetwork) -> str:
    """A CIDR as the last part of a key: 10.244.3.0-24."""
    return f"{cidr.network_address}-{cidr.prefixlen}"


def undashed(text: str) -> IPNetwork | None:
    """The CIDR; None for what `dashed` does not make."""
    address, _, length = text.rpartition("-")
    try:
        found = as_network(f"{address}/{length}", "")
    except CniError:
        return None
    return found if dashed(found) == text else None


def unnamed(key: str, subnets: str) -> str:
    """A name for the holder of a key that says none which could be used."""
    return re.sub(r"[^a-zA-Z0-9_.\-]", "-", f"key-{key.removeprefix(subnets)}")[:253]
