"""A host outside a `Machine`, and HTTP across the link between them."""

from __future__ import annotations

from tests.support import netns
from tests.support.machine import Machine

MACHINE, HOST = "192.168.1.2", "192.168.1.9"
PAGE = ("sh", "-c", "mkdir /page && echo hello > /page/index.html && httpd -p 80 -h /page")
"""A command for a container of the busybox image: afterwards port 80 says hello."""


class Outside:
    """Gives the machine eth0 with 192.168.1.2 and, behind it, a host with 192.168.1.9."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._inside = ("nsenter", "--net=/run/netns/outside")
        machine.run("ip", "netns", "add", "outside")
        veth = ("type", "veth", "peer", "name", "eth0", "netns", "outside")
        machine.run("ip", "link", "add", "eth0", *veth)
        for inside, address in (((), MACHINE), (self._inside, HOST)):
            machine.run(*inside, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            machine.run(*inside, "ip", "link", "set", "eth0", "up")

    def asks(self, port: int, address: str = MACHINE) -> str:
        """What an HTTP server answers the host; "" when nobody does."""
        return self._ask(self._inside, address, port)

    def node_asks(self, port: int, address: str = "127.0.0.1") -> str:
        """The same for the machine itself."""
        return self._ask((), address, port)

    def _ask(self, inside: tuple[str, ...], address: str, port: int) -> str:
        asked = self._machine.run(
            *inside,
            *("busybox", "nc", "-w", "3", address, str(port)),
            stdin="GET / HTTP/1.0\r\n\r\n",
            check=False,
        )
        return asked.stdout

    def wait_for_answers(self, port: int) -> None:
        """Until "hello" comes from a port of the machine, for the host and for the machine."""
        ways = {"the host": lambda: self.asks(port), "127.0.0.1": lambda: self.node_asks(port)}
        for client, ask in ways.items():
            netns.wait_until(
                lambda ask=ask: "hello" in ask(),
                what=f"an answer at port {port} for {client}",
            )
