"""Who reaches whom, and what the receiver sees: a TCP connection for every pair of endpoints.

Each receiver listens in its own namespace and answers every caller with the source address that
it saw. A path is right when that is an address of the caller's own: then nothing on the way has
translated it, and the answer's way back works as well.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from typing import NamedTuple

from cni_plugin.lab import cables, spaces
from cni_plugin.lab.nodes import Lab, Member
from cni_plugin.spec import IPAddress
from cni_plugin.tool_output import table

_TIMEOUT_S = 3.0
_FAILURES = {ENETUNREACH: "no route", EHOSTUNREACH: "no answer", ECONNREFUSED: "refused"}
_AT_ONCE = 16
_WIDTH = 96  # columns of text that a block of the matrix may take


class Endpoint(NamedTuple):
    """A node or a pod; `address` is where it is called, `own` are all addresses it may use."""

    member: Member
    address: IPAddress
    own: frozenset[str]


class Path(NamedTuple):
    """One connection: `source` is what the receiver saw, or else `failure` says what happened."""

    sender: Endpoint
    receiver: Endpoint
    source: str
    failure: str

    @property
    def right(self) -> bool:
        return self.source in self.sender.own

    def __str__(self) -> str:
        if self.failure:
            return self.failure
        return self.source if self.right else f"{self.source} NAT!"


def endpoints(lab: Lab, version: int) -> list[Endpoint]:
    """The nodes and pods of a lab that have an address of this family."""
    found = []
    for member in lab.members():
        addresses = cables.addresses_in(member.netns)
        own = [a.ip for link, a in addresses if link == cables.IFNAME and a.version == version]
        if own:
            every = frozenset(str(address.ip) for _, address in addresses)
            found.append(Endpoint(member, own[0], every))
    return found


def probe(ends: Sequence[Endpoint]) -> list[Path]:
    """Connect every endpoint to every other, many at once."""
    with contextlib.ExitStack() as stack:
        ports = {end.member.name: stack.enter_context(_answering(end)) for end in ends}
        pairs = [(a, b) for a in ends for b in ends if a is not b]
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            return list(pool.map(lambda p: _connect(p[0], p[1], ports[p[1].member.name]), pairs))


@contextlib.contextmanager
def _answering(end: Endpoint) -> Iterator[int]:
    """A receiver that runs until the block ends; its port."""
    with spaces.entered(end.member.netns):
        listener = socket.socket(_family(end), socket.SOCK_STREAM)
    with listener:
        listener.bind((str(end.address), 0))
        listener.listen(64)
        thread = threading.Thread(target=_answer, args=(listener,), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer(listener: socket.socket) -> None:
    while True:
        try:
            caller, source = listener.accept()
        except OSError:  # shut down: the end
            return
        with caller, contextlib.suppress(OSError):
            caller.sendall(source[0].encode())


def _connect(sender: Endpoint, receiver: Endpoint, port: int) -> Path:
    try:
        with spaces.entered(sender.member.netns):
            caller = socket.socket(_family(receiver), socket.SOCK_STREAM)
        with caller:
            caller.settimeout(_TIMEOUT_S)
            caller.connect((str(receiver.address), port))
            source = caller.recv(64).decode()
    except TimeoutError:
        return Path(sender, receiver, "", "timeout")
    except OSError as e:
        return Path(sender, receiver, "", _FAILURES.get(e.errno or 0, "failed"))
    return Path(sender, receiver, source, "")


def _family(end: Endpoint) -> socket.AddressFamily:
    return socket.AF_INET if end.address.version == 4 else socket.AF_INET6


# --- showing ----------------------------------------------------------------------------------


def lines(paths: Sequence[Path]) -> Iterator[str]:
    """The matrix, in blocks by receiving node so that it fits a terminal."""
    cells = {(p.sender.member.name, p.receiver.member.name): str(p) for p in paths}
    senders = list({p.sender.member.name: p.sender for p in paths}.values())
    for block in _blocks(senders, cells):
        headers = ["", "from \\ to", *(end.member.name for end in block)]
        rows = [["", "", *(str(end.address) for end in block)]]
        rows += [
            [
                end.member.name,
                str(end.address),
                *(cells.get((end.member.name, to.member.name), ".") for to in block),
            ]
            for end in senders
        ]
        yield from table(headers, rows).splitlines()
        yield ""


def _blocks(
    ends: Sequence[Endpoint], cells: Mapping[tuple[str, str], str]
) -> Iterator[list[Endpoint]]:
    """Receivers that fit side by side; each node begins a new block unless one holds all."""
    labels = max(len(end.member.name) for end in ends) + max(len(str(end.address)) for end in ends)

    def width(end: Endpoint) -> int:
        texts = [str(end.address), end.member.name]
        texts += [cells.get((sender.member.name, end.member.name), "") for sender in ends]
        return max(len(text) for text in texts) + 2

    room = _WIDTH - labels - 2
    if sum(width(end) for end in ends) <= room:
        yield list(ends)
        return
    block: list[Endpoint] = []
    for end in ends:
        full = sum(width(other) for other in block) + width(end) > room
        if block and (full or end.member.node != block[-1].member.node):
            yield block
            block = []
        block.append(end)
    yield block


def verdict(paths: Sequence[Path]) -> tuple[bool, str]:
    """Whether every path is right, and a sentence that says so or names the wrong ones."""
    wrong = [path for path in paths if not path.right]
    if not wrong:
        return True, f"{len(paths)} of {len(paths)} paths work. NAT: none"
    listed = "; ".join(
        f"{path.sender.member.name} to {path.receiver.member.name}: {path}" for path in wrong[:5]
    )
    more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    translated = sum(1 for path in wrong if path.source)
    nat = f" NAT: {translated}." if translated else ""
    return False, (
        f"{len(paths) - len(wrong)} of {len(paths)} paths work.{nat} Wrong are {listed}{more}"
    )
