"""The text of a record of host ports: one JSON object in a file with the record's name."""

from __future__ import annotations

from ipaddress import ip_address
from json import dumps, loads

from cni_plugin.hostports import LARGEST_PORT, PROTOCOLS, HostPort, PortRecord
from cni_plugin.skel import ifname_problem
from cni_plugin.spec import Attachment, IPAddress
from cni_plugin.typed import Any


def encode(record: PortRecord) -> bytes:
    """The record as JSON."""
    document = {
        "containerID": record.attachment.container_id,
        "ifname": record.attachment.ifname,
        "network": record.network,
        "localnet": record.localnet,
        "snat": record.snat,
        "ports": [
            [port.protocol, str(port.host_ip or ""), port.host_port, str(port.pod), port[5]]
            for port in record.ports
        ],
    }
    return dumps(document).encode()


def decode(data: bytes, name: str) -> PortRecord:
    """The record in the file of this name. Raises ValueError for all that `encode` never writes."""
    try:
        document: Any = loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  the file's content is wrong
    localnet = _text(document, "localnet")
    if localnet and (problem := ifname_problem(localnet)):
        raise ValueError(f"localnet {problem}")
    if not isinstance(snat := document.get("snat"), bool):
        raise ValueError("snat is neither true nor false")  # noqa: TRY004
    if not isinstance(ports := document.get("ports"), list):
        raise ValueError("ports is no list")  # noqa: TRY004
    record = PortRecord(
        attachment=Attachment(_text(document, "containerID"), _text(document, "ifname")),
        network=_text(document, "network"),
        localnet=localnet,
        snat=snat,
        ports=tuple(_port(entry) for entry in ports),
    )
    if record.name != name:
        raise ValueError(f"it is the record of {record.name}")
    return record


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")  # noqa: TRY004
    return value


def _port(entry: Any) -> HostPort:
    if not isinstance(entry, list) or len(entry) != 5:
        raise ValueError("a port is no list of 5")
    protocol, host_ip, host_port, pod, port = entry
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise ValueError("a port's protocol has no ports")
    address = _address(pod)
    specific = None if host_ip == "" else _address(host_ip)
    if specific is not None and specific.version != address.version:
        raise ValueError("a port's two addresses are of different families")
    return HostPort(address.version, protocol, specific, _number(host_port), address, _number(port))


def _address(value: Any) -> IPAddress:
    if not isinstance(value, str):  # ip_address takes numbers as well
        raise ValueError("an address is no text")  # noqa: TRY004
    return ip_address(value)


def _number(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST_PORT:
        raise ValueError(f"a port's number is not within 1 to {LARGEST_PORT}")
    return value
