"""Temporary: deletes in the caller's thread until the reaper is there."""

from __future__ import annotations

from cni_plugin.kernel import detach
from cni_plugin.kernel.netlink import RouteSocket


class Reaper:
    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def remove(self, name: str) -> None:
        with RouteSocket() as route_socket:
            detach.remove_host_veth(route_socket, name)
