"""Results for a terminal, or as the page docs/performance.md. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bench import goals, tables
from bench.contenders import NEWER, PEER_IPAM, PODWIRE_IPAM
from bench.crowd import AT_ONCE, MANY_PODS, PODS
from bench.ipam import FILLS
from bench.results import Results

# Scenarios whose samples are single processes, with their titles, in the order of the report.
PROCESSES = {
    "pod": "A pod with an IPv4 address",
    "dual": "A pod with an IPv4 and an IPv6 address",
    "full": f"One more pod on a node that has {PODS}",
    "check": "CHECK",
    "status": "STATUS",
    "version": "The start of a process (VERSION)",
    "demand": 'An agent on demand (`"agent": "auto"`)',
    "soak": "ADD and DEL without a pause, beside 110 pods",
}
_REMARKS = {
    "status": "Go's plugins before 1.5.0 don't know STATUS and answer with an error: that exec is"
    f" what podwire is held against. *{NEWER}* knows it.",
    "demand": "The first ADD finds no agent, is served in process and starts one. The next ones"
    " are served by that.",
}
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
- *Go*: the reference plugins bridge and host-local; *ipMasq*: the same, with masquerading.
- *ratio*: the median divided by the median of Go; *to ipMasq*: by that of Go with masquerading.
- *of pairs*: the median of the ratios of calls that ran next to each other.
- *CPU*: user and system time, the processes that a plugin starts included; not the agent's.
"""


def _sections(results: Results) -> Iterator[tuple[str, str]]:
    if body := goals.shown(results):
        yield "Goals", body
    for scenario, title in PROCESSES.items():
        if body := tables.processes(results, scenario):
            remark = _REMARKS.get(scenario)
            yield title, f"{body}\n\n{remark}" if remark else body
        if scenario == "dual" and (body := tables.parallel(results)):
            yield f"{AT_ONCE} at once", f"{body}\n\n{_parallel_explained()}"
        if scenario == "full" and (body := tables.thousand(results)):
            yield f"One more pod on a node that has {MANY_PODS:,}", body
    if body := tables.held(results):
        yield f"What the agent holds, with {PODS} pods on the node", body
    if body := tables.ipam(results):
        yield "IPAM: the cost of an address", f"{body}\n\n{_ipam_explained(results)}"


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
