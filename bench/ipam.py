"""What an address costs when many are taken: podwire's IPAM in process, beside the Go host-local.

Both have directories of their own on the same file system, filled alike: the first addresses of a
/16, in order, and the cursor at the last of them. podwire's are measured by the call, without a
process around it; of the Go plugin whole processes are, and its VERSION tells what of that is the
start of a process. All fills take turns in each round, so that drift hits all of them.

One more fill, `SCATTERED`, has the same number of addresses at random places of the range. It tells
what the search for a free one costs when 92 of 100 are taken.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from random import Random
from time import perf_counter_ns
from typing import Any

from bench import contenders
from bench.contenders import Contender
from bench.measure import Budget, Sample, execute, rotated
from bench.results import Series
from cni_plugin.spec import Attachment
from ipam import host_local, ranges
from ipam.config import HostLocalConf
from ipam.ranges import Range

FILLS = (10, 1_000, 10_000, 60_000)
SCATTERED = "podwire, scattered"
PAIRS = 200
PEER_PAIRS = 8
_WARM_UPS = 5
_LEAST = 60  # pairs, however slow the machine is
_SUBNET = IPv4Network("10.244.0.0/16")
_NETWORK = "bench"


class _Fill:
    """One address directory with `size` reservations, and what was measured in it."""

    def __init__(self, name: str, size: int, folder: str) -> None:
        self.name = name
        self.size = size
        self.data_dir = folder
        self._samples: dict[str, list[Sample]] = {}

    def populate(self, addresses: Sequence[int]) -> None:
        """Write the reservations as files, in the reference's format."""
        path = os.path.join(self.data_dir, _NETWORK)
        os.makedirs(path)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number, address in enumerate(addresses):
                _write(folder, str(IPv4Address(address)), f"filler-{number:06}\r\neth0")
            _write(folder, "last_reserved_ip.0", str(IPv4Address(addresses[-1])))
        finally:
            os.close(folder)

    def keep(self, what: str, sample: Sample) -> None:
        self._samples.setdefault(what, []).append(sample)

    def series(self) -> list[Series]:
        found = []
        for what, samples in self._samples.items():
            wall, cpu = zip(*samples, strict=True)
            found.append(Series("ipam", what, self.name, wall, cpu if any(cpu) else (), self.size))
        return found


class _Podwire(_Fill):
    """Measured in process: one call of host_local.add, one of host_local.release."""

    def __init__(self, name: str, size: int, folder: str) -> None:
        super().__init__(name, size, folder)
        first = ranges.first(_SUBNET)
        whole = Range(_SUBNET, first, ranges.last(_SUBNET), first)
        self._conf = HostLocalConf(_NETWORK, folder, ((whole,),))

    def populate(self, addresses: Sequence[int]) -> None:
        super().populate(addresses)
        host_local.release(self._conf.place, Attachment("nobody", "eth0"))  # makes the index

    def pair(self, turn: int, keep: bool) -> None:
        attachment = Attachment(f"pod-{turn}", "eth0")
        start = perf_counter_ns()
        host_local.add(self._conf, attachment)
        middle = perf_counter_ns()
        host_local.release(self._conf.place, attachment)
        end = perf_counter_ns()
        if keep:
            self.keep("add", Sample(middle - start, 0))
            self.keep("release", Sample(end - middle, 0))


class _Peer(_Fill):
    """Measured as processes, with a VERSION before each pair: a start, and nothing else."""

    def __init__(self, contender: Contender, size: int, folder: str) -> None:
        super().__init__(contender.name, size, folder)
        self._contender = contender

    def pair(self, turn: int, keep: bool) -> None:
        config, pod = _config(self.data_dir), f"pod-{turn}"
        calls = {
            "VERSION": self._contender.version(),
            "add": self._contender.call("ADD", config, pod, "/unused"),
            "release": self._contender.call("DEL", config, pod, "/unused"),
        }
        for what, call in calls.items():
            sample = execute(call)[0]
            if keep:
                self.keep(what, sample)


def ipam(peer: Contender | None, folder: str, pairs: int = PAIRS) -> list[Series]:
    """`pairs` pairs of add and release at each fill, and PEER_PAIRS of the peer among them."""
    top = f"{folder}/fills"
    ours = [_Podwire(contenders.PODWIRE_IPAM, size, f"{top}/podwire-{size}") for size in FILLS]
    ours.append(_Podwire(SCATTERED, FILLS[-1], f"{top}/scattered-{FILLS[-1]}"))
    theirs = [_Peer(peer, size, f"{top}/go-{size}") for size in FILLS] if peer else []
    for fill in (*ours, *theirs):
        fill.populate(_addresses(fill.size, scattered=fill.name == SCATTERED))
    every = max(1, pairs // PEER_PAIRS)
    budget = Budget()
    for turn in range(-_WARM_UPS, pairs):
        if budget.spent(turn, _LEAST):
            break
        for mine in rotated(ours, turn):
            mine.pair(turn + _WARM_UPS, turn >= 0)
        if peer is not None and (turn == -1 or (turn >= 0 and turn % every == 0)):
            for other in rotated(theirs, turn // every):
                other.pair(turn + _WARM_UPS, turn >= 0)
    return [series for fill in (*ours, *theirs) for series in fill.series()]


def _addresses(size: int, scattered: bool) -> list[int]:
    """The addresses that are taken; the last of them is the one the cursor stands at."""
    usable = range(int(ranges.first(_SUBNET)) + 1, int(ranges.last(_SUBNET)) + 1)
    if scattered:
        return Random(size).sample(usable, size)
    return list(usable[:size])


def _write(folder: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _config(data_dir: str) -> dict[str, Any]:
    section = {"type": "host-local", "dataDir": data_dir, "ranges": [[{"subnet": str(_SUBNET)}]]}
    return {"cniVersion": "1.0.0", "name": _NETWORK, "ipam": section}


def commands(peer: Contender) -> dict[str, str]:
    """The peer's calls as one repeats them by hand; podwire's are function calls."""
    config = _config("/tmp/bench-ipam")
    return {
        f"{command}, {peer.name}": peer.call(command, config, "pod-1", "/unused").shell()
        for command in ("ADD", "DEL")
    }
