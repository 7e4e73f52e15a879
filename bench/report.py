"""Results for a terminal, or as the page docs/performance.md. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bench import (
    cluster,
    clustertables,
    goals,
    iperf,
    kubereadytables,
    peers,
    rates,
    sandboxes,
    sandboxes_table,
    tables,
    throughput,
)
from bench.connections import COPIED
from bench.contenders import NEWER, PEER_IPAM, PODWIRE_IPAM
from bench.crowd import AT_ONCE, MANY_PODS, PODS
from bench.ipam import FILLS
from bench.results import Results

# Scenarios whose samples are single processes, with their titles, in the order of the report.
PROCESSES = {
    "pod": "A pod with an IPv4 address",
    "dual": "A pod with an IPv4 and an IPv6 address",
    "masquerade": "A pod on a node that masquerades (ipMasq)",
    "chain": "A pod with two host ports and a bandwidth",
    "full": f"One more pod on a node that has {PODS}",
    "check": "CHECK",
    "status": "STATUS",
    "version": "The start of a process (VERSION)",
    "demand": 'An agent on demand (`"agent": "auto"`)',
    "soak": "ADD and DEL without a pause, beside 110 pods",
}
PATHS = {
    throughput.SAME: "Throughput between two pods of one node",
    throughput.ROUTE: "Throughput between two nodes, by plain routes",
    throughput.VXLAN: "Throughput between two nodes, by VXLAN",
}
_REMARKS = {
    "chain": "podwire does it in one call. *Go chain*: bridge, portmap and bandwidth, executed one"
    " after the other as a runtime does it, each with the result of the one before; a DEL goes"
    " backwards. The time is that of the whole chain.",
    "status": "Go's plugins before 1.5.0 don't know STATUS and answer with an error: that exec is"
    f" what podwire is held against. *{NEWER}* knows it.",
    "demand": "The first ADD finds no agent, is served in process and starts one. The next ones"
    " are served by that.",
}
_PATH_EXPLAINED = (
    "iperf3 runs for all sides at once, and only one of them at a time goes on, for"
    f" {1000 * iperf.SLICE_S:.0f} ms: so what is compared runs close together. What counts is what"
    " arrives at the receiving pod's link. Client and server share one CPU, where nothing else"
    " runs before them: a result is the cost of a byte or a packet on the whole way, the programs"
    " included.\n"
    "*by hand*: the same links, addresses and routes made with iproute2, without address"
    " translation, like podwire without ipMasq. Between nodes, Go's routes are made by hand as"
    " well. *of pairs*: the median of the ratios of neighbouring slices; *95 % of it*: where that"
    " lies with this certainty, if only the slices differ. *by hand, again* is a second topology"
    " like the first: it tells what the method makes of equals."
)
_CONNECTIONS_EXPLAINED = (
    "One connection after the other from outside the node: connect, accept, reset. The pod that is"
    " measured was made last. The others are mappings without a link, made by calls of the plugins"
    f" with a result as of another plugin; Go's from the {COPIED}th on are copies of portmap's"
    " rules, put in by iptables-restore, since portmap takes minutes for so many."
)
_PEERS_EXPLAINED = (
    f"*{peers.PROGRAM}*, *{peers.PROGRAM_MORE}*: routes and the overlay's entries, in process. The"
    " others are whole ADDs through an agent, the reading and checking of the inventory included"
    f" when it changed. *{peers.FIRST}*: of a node that knows nobody, with an agent that has just"
    " started."
)
_CLUSTER_EXPLAINED = (
    "A real kube-apiserver and etcd hold the Nodes, of some 6 kB each. *start to ready*: from the"
    " agent's fork to the network configuration, with all routes made; of a process that has just"
    " been started, and Python with it. *a node ...*: from before the call of the API to the route"
    " in the kernel; the agent waits 50 ms for more to happen, and after a turn for three times as"
    " long as that took. CPU is the agent's until it is quiet. *at rest* includes what it looks at"
    " every half minute. Requests are those up to the first quiet moment, by the API server's audit"
    f" log; *later*: all after it. A watch is as an agent has it; {cluster.AT_ONCE} are in one"
    " process, and CPU is the API server's alone."
)
_PAGE = """\
# Performance

Made by `python -m bench --markdown docs/performance.md`; do not edit. `make bench` measures anew.

![Medians of podwire and the Go plugins](performance.svg)

podwire and the Go plugins took turns in one run, after warm-ups. Each side has a node (a network
namespace) with one pod on it already; each pod that was measured got a namespace of its own. Times
are of whole processes, from before fork to after exit. **Ratios are what counts**: absolute times
belong to this machine in this hour, and it may have done other work as well.

- *podwire, agent*: the executable, and an agent that runs; *no agent*: the executable alone;
  *wheel*: the script that pip installs, alone.
- *Go*: the reference plugins bridge and host-local; *ipMasq*: with masquerading.
- *ratio*: the median divided by the median of Go; *to ipMasq*: by that of Go with masquerading.
- *of pairs*: the median of the ratios of calls that ran next to each other.
- *CPU*: user and system time, the processes that a plugin starts included; not the agent's.
"""


_GOALS_EXPLAINED = (
    f"*{goals.CANNOT_TELL}*: missed by less than chance does; more runs tell. The tables below say"
    " where a ratio lies with a certainty of 95 %."
)


def _sections(results: Results) -> Iterator[tuple[str, str]]:
    if body := goals.shown(results):
        open_ = f"\n\n{_GOALS_EXPLAINED}" if goals.CANNOT_TELL in body else ""
        yield "Goals", body + open_
    for scenario, title in PROCESSES.items():
        if body := tables.processes(results, scenario):
            remark = _REMARKS.get(scenario)
            yield title, f"{body}\n\n{remark}" if remark else body
        if scenario == "dual" and (body := tables.parallel(results)):
            yield f"{AT_ONCE} at once", f"{body}\n\n{_parallel_explained()}"
        if scenario == "chain":
            yield from _traffic(results)
        if scenario == "full" and (body := tables.thousand(results)):
            yield f"One more pod on a node that has {MANY_PODS:,}", body
    if body := tables.held(results):
        yield f"What the agent holds, with {PODS} pods on the node", body
    if body := tables.ipam(results):
        yield "IPAM: the cost of an address", f"{body}\n\n{_ipam_explained(results)}"


def _traffic(results: Results) -> Iterator[tuple[str, str]]:
    for path, title in PATHS.items():
        if body := rates.paths(results, path):
            yield title, f"{body}\n\n{_PATH_EXPLAINED}" if path == throughput.SAME else body
    if body := rates.connections(results):
        yield "Connections to a host port", f"{body}\n\n{_CONNECTIONS_EXPLAINED}"
    if body := rates.peers(results):
        yield "Many nodes", f"{body}\n\n{_PEERS_EXPLAINED}"
    for scenario, title in sandboxes.TITLES.items():
        if body := sandboxes_table.sandboxes(results, scenario):
            yield title, f"{body}\n\n{sandboxes_table.EXPLAINED}"
    parts = [clustertables.agent(results), clustertables.held(results)]
    if found := [part for part in (*parts, clustertables.server(results)) if part]:
        yield "Following a Kubernetes cluster", "\n\n".join((*found, _CLUSTER_EXPLAINED))
    if body := kubereadytables.starts(results):
        title = "Kubernetes: from the kubelets' start to nodes that are Ready"
        yield title, f"{body}\n\n{kubereadytables.EXPLAINED_STARTS}"
    if body := kubereadytables.pods(results):
        title = "Kubernetes: from a pod's creation to Ready"
        yield title, f"{body}\n\n{kubereadytables.EXPLAINED_PODS}"


def _parallel_explained() -> str:
    return (
        f"*a second*: {AT_ONCE} divided by the time from before the first fork to after the last"
        " exit, of the median round. p50 and p95 are of single calls, over all rounds."
    )


def _ipam_explained(results: Results) -> str:
    ours = results.find("ipam", "add", PODWIRE_IPAM, FILLS[0])
    text = (
        f"podwire: {len(ours.wall) if ours else 0} calls in process, without the start of one."
        " *scattered*: as many addresses at random places of the /16, so that the search for a"
        " free one begins among taken ones."
    )
    theirs = results.find("ipam", "add", PEER_IPAM, FILLS[0])
    if theirs is not None:
        text += (
            f"\nGo: {len(theirs.wall)} processes, each less the time of a VERSION that ran just"
            " before; at 10 reservations, what is left is mostly noise."
        )
    return text


def text(results: Results) -> str:
    """The report for a terminal."""
    parts = [*results.notes, *(f"{title}\n{body}" for title, body in _sections(results))]
    machine = [f"{name}: {value}" for name, value in results.machine.items()]
    sides = [f"{name}: {value}" for name, value in results.contenders.items()]
    parts.append("\n".join(machine + sides))
    commands = [f"# {title}\n{command}" for title, command in results.commands.items()]
    if commands:
        parts.append("The commands, for `ip netns add node; ip netns add pod`:")
    parts += commands
    return "\n\n".join(parts) + "\n"


def page(results: Results) -> str:
    """The report as a Markdown page, with `aliases` in place of this machine's paths."""
    parts = [_PAGE.rstrip(), *results.notes]
    parts += [f"## {title}\n\n{body}" for title, body in _sections(results)]
    facts = {**results.machine, **results.contenders}
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    parts.append(f"## The machine and the versions\n\n{lines}")
    if results.commands:
        parts.append(
            "## The commands\n\nTo repeat a call by hand: `ip netns add node; ip netns add pod`,"
            " and then these. The benchmark itself enters the node's namespace and starts the"
            " plugin there, so `ip netns exec` is no part of the times. RESULT stands for what ADD"
            " printed."
        )
        parts += [f"{title}:\n```sh\n{command}\n```" for title, command in results.commands.items()]
    whole = "\n\n".join(parts) + "\n"
    for path, alias in results.aliases.items():
        whole = whole.replace(path, alias)
    return whole
