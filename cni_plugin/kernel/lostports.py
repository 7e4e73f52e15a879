"""Elements of host ports whose record was lost: somebody emptied the folder of the records.

They lead to whoever gets the pod's address next. Only their comments tell whose they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from cni_plugin import ruleset
from cni_plugin.hostports import PROTOCOLS, HostPort, PortRecord
from cni_plugin.kernel import nftsets
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftsets import Element
from cni_plugin.kernel.portelements import MAPS, Entry, entries_of
from cni_plugin.kernel.portrecords import PortRecords
from cni_plugin.spec import Attachment

_WHOSE = re.compile(r"[^ ]+ [^ ]+ [^ ]+|.*~veth[0-9a-f]+")  # as `PortRecord.comment` writes it


def find(netfilter: NetfilterSocket, records: PortRecords) -> list[Entry]:
    """Those that no record has: 10 ms where there are 1,000 elements.

    With the lock of the records in hand it is right; without it a pod that comes or goes may be
    among them.
    """
    present = [
        entry
        for version in (4, 6)
        for name in MAPS
        for entry in _meant(
            version,
            name,
            nftsets.decode_elements(
                netfilter.dump(nftsets.dump_elements(version, ruleset.TABLE, name))
            ),
        )
    ]
    if not present:
        return []
    known = {
        (entry.version, entry.where, bytes(entry.element.key))
        for record in records.everything().values()
        for entry in entries_of(record)
    }
    return [
        entry
        for entry in present
        if (entry.version, entry.where, bytes(entry.element.key)) not in known
    ]


def _meant(version: int, where: str, elements: Iterable[Element]) -> Iterator[Entry]:
    """Elements of the kernel with what they mean: the way back from `entries_of`."""
    names = {number: name for name, number in PROTOCOLS.items()}
    for element in elements:
        at = len(element.key) - 8  # behind the node's address
        protocol = names.get(element.key[at])
        if protocol is None:
            continue  # nobody's that podwire knows
        data = bytes(element.data)
        port = HostPort(
            version=version,
            protocol=protocol,
            host_ip=ip_address(bytes(element.key[:at])) if at else None,
            host_port=int.from_bytes(element.key[at + 4 : at + 6]),
            pod=ip_address(data[:-4] or bytes(4 if version == 4 else 16)),
            container_port=int.from_bytes(data[-4:-2]),
        )
        yield Entry(version, where, element, port)


def of_attachment(lost: Iterable[Entry], record: PortRecord) -> list[Entry]:
    """Those of them that are of the record's attachment."""
    return [entry for entry in lost if entry.element.comment == record.comment]


def of_any(lost: Iterable[Entry]) -> list[Entry]:
    """Those that an attachment left, by the look of their comments, and no stranger."""
    return [entry for entry in lost if _WHOSE.fullmatch(entry.element.comment)]


def of_network(lost: Iterable[Entry], network: str, valid: Iterable[Attachment]) -> list[Entry]:
    """Those of the network's attachments that are not valid.

    One with a long comment, which is closed with a hash, does not tell its network, and is left to
    `HostPorts.restore`.
    """
    alive = {PortRecord(each, network, "", True, ()).comment for each in valid}
    return [
        entry
        for entry in lost
        if entry.element.comment not in alive and entry.element.comment.split(" ")[2:] == [network]
    ]
