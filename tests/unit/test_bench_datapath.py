"""The benchmark of the datapath: chains, transfers, connections, peers, and what a reader sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import (
    chain,
    connections,
    contenders,
    goals,
    iperf,
    peers,
    rates,
    report,
    statistic,
    tables,
    throughput,
)
from bench import results as results_module
from bench.chain import STEPS, Chained, asked, step_config
from bench.contenders import (
    AGENT,
    AGENT_MASQUERADE,
    BY_HAND,
    CHAIN,
    CHAIN_MASQUERADE,
    CONTROL,
    MASQUERADE,
    PEER,
    PORTMAP,
    Contender,
    bridge_config,
)
from bench.measure import CallFailedError, Sample, execute
from bench.nodes import Node
from bench.results import Rates, Results, Series
from ipam import inventory

MS = 1_000_000
PODWIRE = Contender(AGENT, "/opt/podwire", "podwire", "/opt", agent=True)
GO = Contender(PEER, "/usr/lib/cni/bridge", "bridge", "/usr/lib/cni")


def _results(*series: Series, rates: tuple[Rates, ...] = ()) -> Results:
    return Results({"kernel": "Linux"}, {}, {}, series, rates=rates)


def _one(scenario: str, what: str, contender: str, ms: float, size: int = 0) -> Series:
    return Series(scenario, what, contender, (round(ms * MS),), (MS,), size)


def _cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


# --- statistics -------------------------------------------------------------------------------

_rates = st.lists(st.floats(min_value=0.1, max_value=1e6), min_size=1, max_size=60)


@given(_rates)
def test_the_median_of_pairs_lies_in_its_interval(values: list[float]) -> None:
    found = statistic.pairs(values, [1.0] * len(values))
    assert found.low <= found.median <= found.high
    assert {found.low, found.high} <= set(values)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(1, 1, 1), (5, 1, 5), (6, 1, 6), (9, 2, 8), (15, 4, 12), (30, 10, 21)],  # tables of ranks
)
def test_the_interval_is_that_of_the_sign_test(count: int, low: int, high: int) -> None:
    values = [float(rank) for rank in range(1, count + 1)]
    found = statistic.pairs(values, [1.0] * count)
    assert (found.low, found.high) == (low, high)


def test_pairs_need_samples() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        statistic.pairs([], [1.0])


# --- chains -----------------------------------------------------------------------------------


def test_no_two_pods_ask_for_one_host_port() -> None:
    wanted = [mapping["hostPort"] for pod in range(200) for mapping in asked(pod)["portMappings"]]
    assert len(set(wanted)) == len(wanted) == 400
    assert max(wanted) < 32_768  # below the ports that clients get


def test_a_plugin_of_a_list_gets_its_own_capability() -> None:
    config = bridge_config("/d", (4,))
    portmap, bandwidth = (step_config(config, step, asked(1)) for step in STEPS)
    assert set(portmap["runtimeConfig"]) == {"portMappings"}
    assert set(bandwidth["runtimeConfig"]) == {"bandwidth"}
    assert portmap["name"] == bandwidth["name"] == "bench"
    assert "ipam" not in portmap


class _Sandbox:
    path = "/proc/self/ns/net"


class _Node:
    """What `Chained` uses of a node; its bridge is a plugin like the others."""

    namespace = None

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.config = bridge_config("/d", (4,))
        self._results: dict[int, Any] = {}

    def sandbox(self, _pod: int) -> _Sandbox:
        return _Sandbox()

    def result(self, pod: int) -> Any:
        return self._results[pod]

    def run(self, command: str, pod: int, settle: bool = True, **more: Any) -> Sample:
        assert not settle
        call = self.contender.call(command, {**self.config, **more}, f"pod-{pod}", _Sandbox.path)
        sample, said = execute(call)
        self._results[pod] = json.loads(said)
        return sample


_PLUGIN = """#!/bin/sh
read -r config
echo "$CNI_COMMAND {name} $config" >> {log}
echo '{{"by": "{name}"}}'
"""


def _plugins(folder: Path, *names: str) -> Path:
    """Plugins that write down how they were called; the file they write to."""
    log = folder / "log"
    for name in names:
        plugin = folder / name
        # a configuration has no newline at its end, and then `read` fails though it read
        plugin.write_text(_PLUGIN.format(name=name, log=log))
        plugin.chmod(0o755)
    return log


def _calls(log: Path) -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for line in log.read_text().splitlines():
        command, name, config = line.split(" ", 2)
        found.append((command, name, json.loads(config)))
    return found


def test_a_chain_hands_on_results_and_goes_backwards_on_del(tmp_path: Path) -> None:
    log = _plugins(tmp_path, "bridge", "portmap", "bandwidth")
    go = Contender(PEER, str(tmp_path / "bridge"), "bridge", str(tmp_path))
    chained = Chained(cast(Node, _Node(go)), STEPS)
    assert chained.run("ADD", 1).wall > 0
    chained.run("DEL", 1)
    calls = _calls(log)
    assert [(command, name) for command, name, _ in calls] == [
        ("ADD", "bridge"),
        ("ADD", "portmap"),
        ("ADD", "bandwidth"),
        ("DEL", "bandwidth"),
        ("DEL", "portmap"),
        ("DEL", "bridge"),
    ]
    before = [config.get("prevResult", {}).get("by") for _, _, config in calls]
    assert before == [None, "bridge", "portmap", "bandwidth", "bandwidth", "bandwidth"]
    assert "runtimeConfig" not in calls[0][2]


def test_podwire_gets_all_in_one_call(tmp_path: Path) -> None:
    log = _plugins(tmp_path, "podwire")
    ours = Contender(AGENT, str(tmp_path / "podwire"), "podwire", str(tmp_path), agent=True)
    chained = Chained(cast(Node, _Node(ours)), STEPS)
    chained.run("ADD", 3)
    chained.run("DEL", 3)
    calls = _calls(log)
    assert [command for command, _, _ in calls] == ["ADD", "DEL"]
    assert calls[0][2]["runtimeConfig"] == asked(3)


def test_a_plugin_that_fails_ends_the_chain(tmp_path: Path) -> None:
    log = _plugins(tmp_path, "bridge", "bandwidth")
    portmap = tmp_path / "portmap"
    portmap.write_text("#!/bin/sh\nexit 1\n")
    portmap.chmod(0o755)
    go = Contender(PEER, str(tmp_path / "bridge"), "bridge", str(tmp_path))
    with pytest.raises(CallFailedError, match="portmap"):
        Chained(cast(Node, _Node(go)), STEPS).run("ADD", 1)
    assert [name for _, name, _ in _calls(log)] == ["bridge"]


def test_who_masquerades() -> None:
    (side,) = contenders.masquerading([PODWIRE, GO])
    assert side.name == AGENT_MASQUERADE
    call = side.call("ADD", bridge_config("/d", (4,)), "c", "/n")
    assert call.config["ipMasq"] is True
    assert call.config["type"] == "podwire"


def test_commands_tell_the_whole_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "installed", lambda *_: True)
    found = chain.commands([PODWIRE, GO])
    assert list(found) == [
        f"ADD with host ports and bandwidth, {AGENT}",
        "ADD, Go portmap",
        "ADD, Go bandwidth",
    ]
    assert "/usr/lib/cni/portmap" in found["ADD, Go portmap"]


# --- transfers --------------------------------------------------------------------------------


_COUNTERS = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo:     100       2    0    0    0     0          0         0      100       2    0
{link}: 5000000    4000    0    0    0     0          0         0       70       1    0
"""


@pytest.mark.parametrize("link", ["  eth0", "eth0"])
def test_what_arrived_is_read_from_the_kernels_counters(link: str) -> None:
    assert iperf.received(_COUNTERS.format(link=link)) == (5_000_000, 4_000)


@pytest.mark.parametrize("link", ["veth0", "  eth00"])
def test_another_link_does_not_count(link: str) -> None:
    with pytest.raises(ValueError, match="no eth0"):
        iperf.received(_COUNTERS.format(link=link))


def test_without_iperf3_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iperf, "PROGRAM", "there-is-no-iperf3")
    (note,) = throughput.missing()
    assert "apt-get install iperf3" in note
    monkeypatch.setattr(iperf, "PROGRAM", "sh")
    assert throughput.missing() == []


# --- connections ------------------------------------------------------------------------------

_SAVED = """\
# Generated by iptables-save v1.8.9 (nf_tables)
*nat
:PREROUTING ACCEPT [0:0]
:CNI-DN-aaaa - [0:0]
:CNI-DN-bbbb - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A CNI-DN-aaaa -p tcp -m tcp --dport 20001 -j DNAT --to-destination 10.244.100.3:8080
-A CNI-DN-bbbb -s 10.244.0.0/16 -p tcp -m tcp --dport 20002 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-bbbb -p tcp -m tcp --dport 20002 -j DNAT --to-destination 10.244.100.4:8080
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"bench\\" id: \\"filler-1\\"" \
-m multiport --dports 20001 -j CNI-DN-aaaa
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"bench\\" id: \\"filler-2\\"" \
-m multiport --dports 20002 -j CNI-DN-bbbb
COMMIT
"""


def test_rules_are_copied_with_another_port_and_address() -> None:
    assert connections.copies(_SAVED, 2, [7]).splitlines() == [
        "*nat",
        ":CNI-COPY-7 - [0:0]",
        "-A CNI-COPY-7 -s 10.244.0.0/16 -p tcp -m tcp --dport 20007 -j CNI-HOSTPORT-SETMARK",
        "-A CNI-COPY-7 -p tcp -m tcp --dport 20007 -j DNAT --to-destination 10.244.100.9:8080",
        '-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"bench\\" id:'
        ' \\"filler-7\\"" -m multiport --dports 20007 -j CNI-COPY-7',
        "COMMIT",
    ]


def test_each_copy_has_its_chain() -> None:
    text = connections.copies(_SAVED, 2, range(10, 13))
    assert [line for line in text.splitlines() if line.startswith(":")] == [
        *(f":CNI-COPY-{pod} - [0:0]" for pod in (10, 11, 12))
    ]


def test_nothing_to_copy_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 rules of filler-3"):
        connections.copies(_SAVED, 3, [7])


def test_no_two_pods_have_one_address() -> None:
    found = [connections.address_of(pod) for pod in range(max(connections.SIZES))]
    assert len(set(found)) == len(found)


# --- peers ------------------------------------------------------------------------------------


def test_the_inventory_is_one_that_podwire_takes() -> None:
    size = max(peers.SIZES) + 4 * peers.MOST
    known = inventory.parse(json.dumps(peers.inventory(size)).encode(), "nodes.json")
    assert len(known.nodes) == size + 1
    assert len({cidr for node in known.nodes for cidr in node.pod_cidrs}) == size + 1
    (network,) = {network for node in known.nodes for network in node.networks}
    assert network.prefixlen == 12


# --- what a reader sees -----------------------------------------------------------------------


def _paths() -> tuple[Rates, ...]:
    """podwire as fast as what is made by hand, and faster than Go, by 0.99 and 1.1."""
    sides = {BY_HAND: 10.0, CONTROL: 10.0, AGENT: 9.9, MASQUERADE: 8.0, AGENT_MASQUERADE: 8.8}
    return tuple(
        Rates(throughput.SAME, iperf.TCP, name, "Gbit/s", (value, 2 * value))
        for name, value in sides.items()
    )


def test_each_side_is_held_against_its_like() -> None:
    text = rates.paths(_results(rates=_paths()), throughput.SAME)
    assert _cells(text, f"{iperf.TCP}, {AGENT}")[-3:] == [BY_HAND, "0.990", "0.990 to 0.990"]
    assert _cells(text, f"{iperf.TCP}, {AGENT_MASQUERADE}")[-3:-1] == [MASQUERADE, "1.100"]
    assert _cells(text, f"{iperf.TCP}, {BY_HAND}")[-3:] == ["", "", ""]
    assert rates.paths(_results(), throughput.SAME) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(9.876, "9.88"), (98.76, "98.8"), (987.6, "987.6"), (21_655.4, "21,655")]
)
def test_digits_of_a_rate(value: float, text: str) -> None:
    assert rates.digits(value) == text


def _mapped(contender: str, *values: float) -> tuple[Rates, ...]:
    return tuple(
        Rates("connections", "host port", contender, "connections/s", (value,), size)
        for size, value in zip(connections.SIZES, values, strict=True)
    )


def test_connections_by_the_number_of_pods() -> None:
    found = _results(rates=(*_mapped(AGENT, 20e3, 20e3, 19e3), *_mapped(PORTMAP, 20e3, 15e3, 5e3)))
    text = rates.connections(found)
    assert _cells(text, AGENT)[2:6] == ["20,000", "20,000", "19,000", "0.95"]
    assert _cells(text, PORTMAP)[5] == "0.25"
    assert rates.connections(_results()) == ""


def test_peers_by_their_number() -> None:
    found = _results(
        _one("peers", peers.FIRST, "vxlan", 100, 1_000),
        _one("peers", peers.FIRST, "vxlan", 600, 5_000),
    )
    text = rates.peers(found)
    assert _cells(text, f"{peers.FIRST}, vxlan")[1:] == ["1", "100.0", "600.0"]
    assert rates.peers(_results()) == ""


def _goal(found: Results, title: str) -> goals.Goal:
    (goal,) = [goal for goal in goals.goals(found) if goal.title == title]
    return goal


def test_goals_of_the_datapath() -> None:
    found = _results(
        _one("masquerade", "ADD", AGENT_MASQUERADE, 5),
        _one("masquerade", "ADD", MASQUERADE, 50),
        _one("chain", "DEL", AGENT, 30),
        _one("chain", "DEL", CHAIN, 100),
        _one("chain", "ADD", AGENT_MASQUERADE, 8),
        _one("chain", "ADD", CHAIN_MASQUERADE, 100),
        _one("peers", peers.FIRST, "vxlan", 1_500, 1_000),
        _one("peers", peers.PROGRAM_MORE, "vxlan", 1, 1_000),
        _one("peers", peers.PROGRAM_MORE, "vxlan", 1.25, 5_000),
        rates=(*_paths(), *_mapped(AGENT, 20e3, 20e3, 19.5e3)),
    )
    assert _goal(found, "ADD with ipMasq / Go's").measured == 0.1
    assert not _goal(found, "DEL with host ports and bandwidth / Go chain").met
    assert _goal(found, "ADD with these and ipMasq / Go chain with it").met
    assert _goal(found, f"{peers.FIRST}, 1,000 peers, vxlan").measured == 1.5
    assert not _goal(found, f"{peers.FIRST}, 1,000 peers, vxlan").met
    assert _goal(found, "one more peer at 5,000 / at 1,000, vxlan").measured == 1.25
    assert _goal(found, f"{iperf.TCP}, same node / by hand").met
    assert _goal(found, f"{iperf.TCP}, same node / Go, ipMasq").measured == pytest.approx(1.1)
    assert _goal(found, "connections to a host port at 1,000 mapped pods / at 1").met


def test_a_slow_path_is_no_met_goal() -> None:
    slow = tuple(r._replace(values=(9.7, 19.4)) if r.contender == AGENT else r for r in _paths())
    assert _goal(_results(rates=slow), f"{iperf.TCP}, same node / by hand").verdict == "no"


def test_what_chance_decides_is_neither_met_nor_missed() -> None:
    sides = {MASQUERADE: (10.0,) * 9, AGENT_MASQUERADE: (9.8,) * 5 + (10.1,) * 4}
    near = tuple(Rates(throughput.SAME, iperf.TCP, s, "Gbit/s", v) for s, v in sides.items())
    found = _results(rates=near)
    assert _goal(found, f"{iperf.TCP}, same node / Go, ipMasq").verdict == goals.CANNOT_TELL
    assert f"*{goals.CANNOT_TELL}*" in report.page(found)
    assert _goal(_results(rates=_paths()), f"{iperf.TCP}, same node / by hand").verdict == "yes"


def test_a_chain_is_held_against_the_chain() -> None:
    found = _results(
        *(
            _one("chain", "ADD", side, ms)
            for side, ms in ((AGENT, 9), (CHAIN, 90), (CHAIN_MASQUERADE, 180))
        )
    )
    text = tables.processes(found, "chain")
    assert _cells(text, f"ADD, {AGENT}")[-3:] == ["0.10", "0.10", "0.05"]


def test_the_report_has_a_section_for_each() -> None:
    found = _results(
        _one("masquerade", "ADD", MASQUERADE, 50),
        _one("chain", "ADD", CHAIN, 50),
        _one("peers", peers.FIRST, "vxlan", 1_500, 1_000),
        rates=(*_paths(), *_mapped(AGENT, 20e3, 20e3, 19e3)),
    )
    page = report.page(found)
    for title in (
        "A pod on a node that masquerades (ipMasq)",
        "A pod with two host ports and a bandwidth",
        "Throughput between two pods of one node",
        "Connections to a host port",
        "Many nodes",
    ):
        assert f"## {title}\n" in page
    assert "Throughput between two nodes" not in page  # which was not measured


def test_rates_survive_json() -> None:
    found = _results(rates=_paths())
    assert results_module.decode(results_module.encode(found)) == found
