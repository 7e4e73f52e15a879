"""Keeping the host ports: the maps' elements are those that the node's records say."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cni_plugin import ruleset
from cni_plugin.fabric import PORTS, Fabric
from cni_plugin.hostports import PortRecord
from cni_plugin.kernel import nftsets, portelements, sysctl
from cni_plugin.kernel.hostports import HostPorts
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.portrecords import PortRecords
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.kernel.sysctl import Sysctls

_Held = set[tuple[int, str, bytes, bytes]]


def keep(fabric: Fabric) -> list[str]:
    """Put back what is not as the records say; what was done, in words.

    A pod that comes or goes at this moment looks like a difference, so one is looked at twice.
    Without any record, too: one that was lost has left its elements, which lead to whoever gets
    the pod's address next. Called only when others may have changed the ruleset, and now and then.
    """
    folder = StateFolder(fabric.key, PORTS)
    records = PortRecords(folder)
    if not (difference(fabric, records) and difference(fabric, records)):
        return []
    found = difference(fabric, records)
    sysctls = Sysctls()
    try:
        # Not one of those that the memory counts: it may find nothing to change, and then the
        # ruleset's generation does not move with it.
        transact = partial(NetfilterSocket.transaction, fabric.netfilter)
        HostPorts(fabric.netfilter, fabric.route_socket, folder, sysctls, transact).restore()
    finally:
        sysctls.close()
    return found


def difference(fabric: Fabric, records: PortRecords) -> list[str]:
    """What is not as the records say, in words."""
    known = tuple(records.everything().values())
    wanted, present = _wanted(known), _present(fabric.netfilter)
    found = []
    if lost := len(wanted - present):
        found.append(f"{lost} elements of host ports were missing")
    if surplus := len(present - wanted):
        found.append(f"{surplus} elements of host ports were nobody's")
    found += (
        f"route_localnet of {link} was off"
        for link in sorted({record.localnet for record in known if record.localnet})
        if sysctl.read(f"ipv4/conf/{link}/route_localnet") == "0"
    )
    return found


def _wanted(records: Iterable[PortRecord]) -> _Held:
    return {
        (entry.version, entry.where, entry.element.key, entry.element.data)
        for record in records
        for entry in portelements.entries_of(record)
    }


def _present(netfilter: NetfilterSocket) -> _Held:
    return {
        (version, name, element.key, element.data)
        for version in (4, 6)
        for name in portelements.MAPS
        for element in nftsets.decode_elements(
            netfilter.dump(nftsets.dump_elements(version, ruleset.TABLE, name))
        )
    }
