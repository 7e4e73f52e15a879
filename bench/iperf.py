"""iperf3 between two pods, in slices: all sides run, and only one of them at a time.

A transfer is started once for each side and then held: SIGSTOP for all but the one whose slice it
is. So no start of a program is in a slice, a slice can be short, and what is compared runs within
tenths of a second: a machine that slows down slows all sides alike. What went through is read from
the counters of the receiving pod's link, at the beginning and the end of a slice.

Client and server share one CPU. What is measured is then what a byte or a packet costs on the whole
way, the programs included; with two CPUs wake-ups across them are most of the noise.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from time import monotonic, perf_counter, sleep

from bench.agents import end_with_parent
from bench.measure import CallFailedError
from bench.namespaces import Namespace
from bench.sites import Site

PROGRAM = "iperf3"
TCP, TCP_EIGHT, UDP = "TCP, 1 stream", "TCP, 8 streams", "UDP, 64 bytes"
UNITS = {TCP: "Gbit/s", TCP_EIGHT: "Gbit/s", UDP: "1,000 packets/s"}
SLICE_S = 0.03
_SETTLE_S = 0.01  # before a slice: queues fill and windows open again
_OPTIONS: Mapping[str, Sequence[str]] = {
    TCP: (),
    TCP_EIGHT: ("--parallel", "8"),
    UDP: ("--udp", "--bandwidth", "0", "--length", "64"),
}
_LONGEST_S = 3600
_START_S = 5.0
_PORT = 5201
_PRIORITY = -20
_CPU = max(os.sched_getaffinity(0))  # the first one has the machine's interrupts
_AUTOGROUP = "/proc/self/autogroup"
_LINK = "eth0:"
_AT = ("--port", str(_PORT))
_ENOUGH = 10_000  # bits or packets: more than what the beginning takes


def installed() -> bool:
    return shutil.which(PROGRAM) is not None


class Transfer:
    """A transfer of the kind `what`, which stands still but in its slices; ends with the stack.

    Raises CallFailedError when nothing comes to flow.
    """

    def __init__(self, site: Site, what: str, stack: ExitStack) -> None:
        self._what = what
        self._name = f"{PROGRAM} to {site.address}, {what}"
        self._counters = _counters(site.server, stack)
        self._server = _start(site.server, ["--server", "--one-off", *_AT], stack)
        _await(lambda: _listens(site.server), self._name)
        argv = ["--client", site.address, "--time", str(_LONGEST_S), *_AT, *_OPTIONS[what]]
        self._client = _start(site.client, argv, stack)
        _await(lambda: self._passed() > _ENOUGH, self._name)
        self._hold()

    def slice(self) -> float:
        """What passes in SLICE_S seconds, in a second: in the unit that UNITS tells.

        Raises CallFailedError when the transfer came to an end, or nothing passed.
        """
        for process in (self._server, self._client):
            if process.poll() is not None:
                raise CallFailedError(f"{self._name}: it ended with status {process.returncode}")
            process.send_signal(signal.SIGCONT)
        sleep(_SETTLE_S)
        begin, before = perf_counter(), self._passed()
        sleep(SLICE_S)
        end, after = perf_counter(), self._passed()
        self._hold()
        if after == before:
            raise CallFailedError(f"{self._name}: nothing passed in {end - begin:.3f} s")
        return (after - before) / (end - begin) / (1e3 if self._what == UDP else 1e9)

    def _hold(self) -> None:
        self._client.send_signal(signal.SIGSTOP)
        self._server.send_signal(signal.SIGSTOP)

    def _passed(self) -> int:
        """Bits, or packets of UDP, that arrived at the receiving pod since its link exists."""
        octets, packets = received(os.pread(self._counters, 65536, 0).decode())
        return packets if self._what == UDP else 8 * octets


def received(table: str) -> tuple[int, int]:
    """Bytes and packets that eth0 received, of the text of /proc/net/dev.

    Raises ValueError when there is no eth0.
    """
    for line in table.splitlines():
        if line.lstrip().startswith(_LINK):
            octets, packets = line.partition(":")[2].split()[:2]
            return int(octets), int(packets)
    raise ValueError("there is no eth0")


def _counters(namespace: Namespace, stack: ExitStack) -> int:
    """The file of a namespace's counters, open until the stack closes."""
    with namespace.entered():
        found = os.open("/proc/thread-self/net/dev", os.O_RDONLY)
    stack.callback(os.close, found)
    return found


def _start(namespace: Namespace, argv: Sequence[str], stack: ExitStack) -> subprocess.Popen[bytes]:
    with namespace.entered():
        process = subprocess.Popen(
            [PROGRAM, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_pinned,
        )
    stack.callback(_end, process)
    return process


def _pinned() -> None:
    """To one CPU, and before all others there: what the machine does besides is not measured."""
    end_with_parent(signal.SIGKILL)  # which reaches one that is stopped
    os.sched_setaffinity(0, {_CPU})
    os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    if os.path.exists(_AUTOGROUP):  # by which the scheduler shares between sessions (sched(7))
        with open(_AUTOGROUP, "w") as file:
            file.write(str(_PRIORITY))


@contextmanager
def beside() -> Iterator[None]:
    """The calling process leaves the transfers' CPU to them for the block, if it has another."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed - {_CPU} or allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _listens(namespace: Namespace) -> bool:
    """Whether the server has its socket. A connection to it would be its one transfer."""
    wanted = f":{_PORT:04X} "
    with namespace.entered(), open("/proc/thread-self/net/tcp6") as lines:
        return any(wanted in line.partition(" 0A ")[0] for line in lines if " 0A " in line)


def _await(ready: Callable[[], bool], name: str) -> None:
    end = monotonic() + _START_S
    while not ready():
        if monotonic() > end:
            raise CallFailedError(f"{name}: nothing flows after {_START_S:.0f} s")
        sleep(0.005)


def commands() -> dict[str, str]:
    """The transfers as one repeats them by hand, from the namespace `pod` to `other`."""
    pinned = f"taskset --cpu-list 0 {PROGRAM}"
    found = {"The server of a transfer": f"ip netns exec other {pinned} --server &"}
    for what, options in _OPTIONS.items():
        words = " ".join(["--client", "ADDRESS", *options])
        found[what] = f"ip netns exec pod {pinned} {words}"
    return found
