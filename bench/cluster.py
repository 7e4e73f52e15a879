"""What it costs to follow a Kubernetes cluster of thousands of Nodes.

A real API server holds the Nodes. An agent starts beside it, as on a node that was just booted;
then single Nodes come, change and go, kubelets write their heartbeats, and nothing happens for a
while. What 200 agents that watch at once cost the API server is told by watches alone, all of them
in one other process.

A change is timed from before the call of the API to the route in the kernel. The agent's CPU time
is read when it has been quiet for a moment; what it does now and then anyway may fall into that
of one change, so medians count.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from time import monotonic, perf_counter_ns, sleep
from typing import NamedTuple

from bench import byhand, clusterplane
from bench.agents import end_with_parent
from bench.clusteragent import FollowingAgent
from bench.clusterplane import FIRST, WATCHERS, Site
from bench.contenders import AGENT, Contender
from bench.measure import CallFailedError, Sample
from bench.namespaces import Namespace
from bench.nodes import Place
from bench.pods import series
from bench.results import Amount, Series

SIZES = (1_000, 5_000)
LINK, ROUTER = "host-gw, one link", "auto, behind a router"
START, HEARTBEAT = "start to ready", "a heartbeat"
ADDED, MOVED, GONE = "a node added", "a node with another podCIDR", "a node deleted"
LATER = "requests: later"
REST, RSS, PEAK = "CPU at rest", "RSS", "RSS at most"
KEPT = "RSS after {:,} changes"
CHANGES = (ADDED, MOVED, GONE)
SERVER = "API server"  # in the place of a contender
AT_ONCE = 200
SIZED = "{what}, {watches} watches"
MANY = (100, 1_100)  # changes without a pause, after which memory is looked at
_EACH = 6  # changes of each kind
_BEATS, _ROUNDS = 40, 3
_REST_S = 32.0  # a whole round of what the agent does every half minute
_ROUTE_S, _POLL_S = 60.0, 0.01
_HEARD_S = 1.0  # after the last event, until all watches have heard it
_serial = count()


class Measured(NamedTuple):
    series: list[Series]
    amounts: list[Amount]


# --- the scenario ---------------------------------------------------------------------------------


def missing() -> list[str]:
    reason = clusterplane.lacking()
    return [f"Following a cluster was not measured: {reason}."] if reason else []


def cluster(sides: Sequence[Contender], place: Place) -> Measured:
    """Each way to the peers with each of SIZES, and the API server's part."""
    found = Measured([], [])
    if missing():
        return found
    executable = next(side for side in sides if side.name == AGENT).executable
    with ExitStack() as stack:
        folder = place.new("control-plane")
        site = Site(folder, stack)
        for size in SIZES:
            site.grow(size)
            for label, spot, backend in (
                (LINK, site.near, "host-gw"),
                (ROUTER, site.far, "auto"),
            ):
                with site.registered(spot):
                    agent = FollowingAgent(executable, place.new("agent"), site, spot, backend)
                    try:
                        _follow(site, agent, label, size, found)
                    finally:
                        agent.end()
            _watch(site, size, found)
    return found


def _follow(site: Site, agent: FollowingAgent, label: str, size: int, found: Measured) -> None:
    """One agent's life beside `size` peers."""

    def note(what: str, unit: str, value: float) -> None:
        found.amounts.append(Amount("cluster", what, label, unit, value, size))

    def keep(what: str, samples: Sequence[Sample]) -> None:
        found.series.append(series("cluster", what, label, samples, size))

    before = site.requests()
    keep(START, [agent.await_ready()])
    _programmed(agent.spot.namespace, size)
    agent.await_quiet()
    asked = clusterplane.since(before, site.requests())
    memory = agent.memory()
    note(RSS, "KiB", memory["VmRSS:"])
    note(PEAK, "KiB", memory["VmHWM:"])
    for what, samples in _changes(site, agent, size).items():
        keep(what, samples)
    keep(HEARTBEAT, [_beats(site, agent, size) for _ in range(_ROUNDS)])
    used, at = agent.cpu(), monotonic()
    sleep(_REST_S)
    note(REST, "ms a minute", (agent.cpu() - used) / 1e6 / (monotonic() - at) * 60)
    if label == ROUTER and size == SIZES[-1]:
        _many(site, agent, note)
    for kind, number in asked.items():
        note(f"requests: {kind}", "requests", number)
    more = clusterplane.since(before, site.requests())
    note(LATER, "requests", sum(more.values()) - sum(asked.values()))


def _changes(site: Site, agent: FollowingAgent, size: int) -> dict[str, list[Sample]]:
    taken: dict[str, list[Sample]] = {what: [] for what in CHANGES}
    for turn in range(_EACH):
        number = FIRST + size + turn
        first, second = clusterplane.subnet_of(number), f"10.200.{turn}.0/24"
        steps: Iterator[tuple[str, Callable[[], None], str, bool]] = iter(
            (
                (ADDED, partial(site.create, number), first, True),
                (MOVED, partial(site.renumber, number, second), second, True),
                (GONE, partial(site.delete, number), second, False),
            )
        )
        for what, change, subnet, there in steps:
            used, begun = agent.cpu(), perf_counter_ns()
            change()
            _await_route(agent.spot.namespace, subnet, there)
            wall = perf_counter_ns() - begun
            agent.await_quiet()
            taken[what].append(Sample(wall, agent.cpu() - used))
    return taken


def _beats(site: Site, agent: FollowingAgent, size: int) -> Sample:
    """One heartbeat, of the mean of some: the API's time and the agent's CPU time."""
    second, used, begun = next(_serial) * _BEATS, agent.cpu(), perf_counter_ns()
    for beat in range(_BEATS):
        site.beat(FIRST + beat * size // _BEATS, second + beat)
    wall = perf_counter_ns() - begun
    agent.await_quiet()
    return Sample(wall // _BEATS, (agent.cpu() - used) // _BEATS)


def _many(site: Site, agent: FollowingAgent, note: Callable[[str, str, float], None]) -> None:
    """Whether many changes leave anything behind."""
    for turn in range(MANY[-1]):
        site.announce(FIRST + turn % 500, f"0e:01:00:00:{turn >> 8:02x}:{turn & 0xFF:02x}")
        if turn + 1 in MANY:
            agent.await_quiet()
            note(KEPT.format(turn + 1), "KiB", agent.memory()["VmRSS:"])


# --- the routes -----------------------------------------------------------------------------------


def _programmed(namespace: Namespace, size: int) -> None:
    """Raises CallFailedError unless there is a route to each of `size` peers."""
    routes = byhand.run(namespace, "ip route show proto 112").splitlines()
    if len(routes) != size:
        raise CallFailedError(f"{len(routes)} routes to {size} peers")


def _await_route(namespace: Namespace, subnet: str, there: bool) -> None:
    """Raises CallFailedError when the route does not come, or go."""
    end = monotonic() + _ROUTE_S
    while _leads(namespace, subnet) != there:
        if monotonic() > end:
            raise CallFailedError(f"the route to {subnet} {'never came' if there else 'stays'}")
        sleep(_POLL_S)


def _leads(namespace: Namespace, subnet: str) -> bool:
    """Whether a route of just this subnet is the one to its addresses."""
    address = subnet.replace(".0/24", ".1")
    try:
        said = byhand.run(namespace, f"ip route get fibmatch {address}")
    except CallFailedError:  # no way at all
        return False
    return said.startswith(subnet)


# --- the API server's part ------------------------------------------------------------------------


def _watch(site: Site, size: int, found: Measured) -> None:
    """The API server without anybody who watches, and with AT_ONCE."""

    def note(what: str, unit: str, watches: int, value: float) -> None:
        named = SIZED.format(what=what, watches=watches)
        found.amounts.append(Amount("cluster", named, SERVER, unit, value, size))

    _costs(site, size, partial(note, watches=0))
    _starts(site, size, found)
    argv = [sys.executable, "-m", "bench.clusterwatchers", site.kubeconfig(WATCHERS), str(AT_ONCE)]
    with site.near.namespace.entered():
        watchers = subprocess.Popen(argv, stdout=subprocess.PIPE, preexec_fn=end_with_parent)
    assert watchers.stdout is not None
    try:
        if watchers.stdout.readline() != b"ready\n":
            raise CallFailedError("the watches never began")
        events = _costs(site, size, partial(note, watches=AT_ONCE))
        sleep(_HEARD_S)
        watchers.send_signal(signal.SIGTERM)
        heard = int(watchers.stdout.readline())
        if heard != events * AT_ONCE:
            raise CallFailedError(f"{AT_ONCE} watches of {events} events heard {heard}")
    finally:
        watchers.kill()
        watchers.wait()
        watchers.stdout.close()


def _starts(site: Site, size: int, found: Measured) -> None:
    """What AT_ONCE agents that start at the same moment mean to the API server."""
    server = "kube-apiserver"
    before = site.plane.cpu_seconds(server)
    argv = [sys.executable, "-m", "bench.clusterstarts", site.kubeconfig(WATCHERS), str(AT_ONCE)]
    with site.near.namespace.entered():
        said = subprocess.check_output(argv, preexec_fn=end_with_parent, text=True)
    half, last = (float(word) for word in said.split())
    for what, unit, value in (
        (f"{AT_ONCE} starts at once, half of them watch", "s", half),
        (f"{AT_ONCE} starts at once, all of them watch", "s", last),
        (f"{AT_ONCE} starts at once, CPU", "s", site.plane.cpu_seconds(server) - before),
        (f"{AT_ONCE} starts at once, RSS then", "KiB", site.plane.resident(server)),
    ):
        found.amounts.append(Amount("cluster", what, SERVER, unit, value, size))


def _costs(site: Site, size: int, note: Callable[..., None]) -> int:
    """What the API server pays, in CPU and memory; how many events it had to tell."""
    used = partial(site.plane.cpu_seconds, "kube-apiserver")
    sleep(2)  # for what it does about watches that have just begun or ended
    before, at = used(), monotonic()
    sleep(10)
    note("CPU at rest", "ms a second", value=1000 * (used() - before) / (monotonic() - at))
    note("RSS", "KiB", value=site.plane.resident("kube-apiserver"))
    before, second = used(), next(_serial) * _BEATS
    for beat in range(_BEATS):
        site.beat(FIRST + beat * size // _BEATS, second + beat)
    sleep(1)
    note("CPU of a heartbeat", "ms", value=1000 * (used() - before) / _BEATS)
    before = used()
    for turn in range(_BEATS // 2):
        site.create(FIRST + size + turn)
    for turn in range(_BEATS // 2):
        site.delete(FIRST + size + turn)
    sleep(1)
    note("CPU of a node that comes or goes", "ms", value=1000 * (used() - before) / _BEATS)
    return 2 * _BEATS
