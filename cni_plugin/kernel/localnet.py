"""Links that carry packets of 127.0.0.1, for host ports: their sysctl route_localnet.

Without it the node itself would not reach its pods' ports at 127.0.0.1. Of what comes in by such a
link for 127.0.0.0/8 the chain `guard` drops all else (CVE-2020-8558). A link that carried them
before the first port needed it goes on after the last. Call with the lock of the records in hand.
"""

from __future__ import annotations

from cni_plugin.kernel.portrecords import PortRecords
from cni_plugin.kernel.sysctl import Sysctls

_ROUTE_LOCALNET = "route_localnet"


class Localnet:
    """The links of the current network namespace; "" is none, and needs nothing."""

    def __init__(self, records: PortRecords, sysctls: Sysctls) -> None:
        self._records = records
        self._sysctls = sysctls

    def let(self, name: str, link: str) -> None:
        """Let packets from 127.0.0.1 out by a link, for the record of this name."""
        if not link:
            return
        with self._sysctls.folder(f"ipv4/conf/{link}/") as folder:
            carried = folder.read(_ROUTE_LOCALNET) == "1"
            if not (carried and self._records.uses(link, besides=name)):
                self._records.note_link(link, name, carried)
            folder.ensure(_ROUTE_LOCALNET, "1")

    def end(self, name: str, link: str) -> bool:
        """Without host ports behind it a link need not carry them; it may be gone itself.

        Whether nobody needs the link any more: `PortRecords.forget_link` may follow.
        """
        if not link or self._records.uses(link, besides=name):
            return False
        if not self._records.carried_before(link):
            with self._sysctls.folder(f"ipv4/conf/{link}/") as folder:
                folder.write(_ROUTE_LOCALNET, "0", required=False)
        return True

    def settle(self) -> None:
        """The same for all links: records are gone that could not be read."""
        for link in self._records.links():
            if self.end("", link):
                self._records.forget_link(link)

    def restore(self, link: str) -> None:
        """Somebody turned it off; no-op for a link that is gone."""
        with self._sysctls.folder(f"ipv4/conf/{link}/") as folder:
            if folder.read(_ROUTE_LOCALNET) is not None:
                folder.ensure(_ROUTE_LOCALNET, "1")

    def problem(self, link: str) -> str:
        """What is not as an ADD left it, in words; "" for nothing."""
        if not link:
            return ""
        with self._sysctls.folder(f"ipv4/conf/{link}/") as folder:
            if folder.read(_ROUTE_LOCALNET) == "1":
                return ""
        return f"host ports: {_ROUTE_LOCALNET} of {link} is not 1"
