"""podwire's agent as it is on a node of a cluster, and what it uses up."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from time import monotonic, perf_counter_ns, sleep

from bench.agents import AgentError, end_with_parent
from bench.clusterplane import AGENTS, Site, Spot
from bench.measure import Sample

_START_S, _END_S = 180.0, 60.0
_QUIET_S, _LATEST_S = 0.4, 30.0
_BUSY_NS = 2_000_000  # in a quarter of _QUIET_S: looking at the clock and at files takes less
_POLL_S = 0.01
_TEMPLATE = {"type": "podwire", "bridge": "cni0", "ipMasq": True}


class Process:
    """Of a process: what it has computed, in ns, and its memory in KiB."""

    def __init__(self, pid: int) -> None:
        self._base = f"/proc/{pid}"

    def cpu(self) -> int:
        total = 0
        for task in os.listdir(f"{self._base}/task"):
            with open(f"{self._base}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
        return total

    def memory(self) -> Mapping[str, int]:
        with open(f"{self._base}/status") as file:
            fields = (line.split() for line in file)
            return {words[0]: int(words[1]) for words in fields if words[0].startswith("Vm")}


class FollowingAgent(Process):
    """podwire's agent as it is on a node of a cluster."""

    def __init__(self, executable: str, folder: str, site: Site, spot: Spot, backend: str) -> None:
        self.spot, self._conf_dir = spot, os.path.join(folder, "net.d")
        os.mkdir(self._conf_dir)
        plugin = {**_TEMPLATE, "backend": backend, "ipam": {"dataDir": f"{folder}/networks"}}
        with open(f"{folder}/network.json", "w", encoding="utf-8") as file:
            json.dump({"name": "podwire", "plugins": [plugin]}, file)
        argv = [executable, "agent", "--kubernetes", "--socket", f"{folder}/agent.sock"]
        argv += ["--kubeconfig", site.kubeconfig(AGENTS), "--node-name", spot.name]
        argv += ["--inventory", f"{folder}/nodes.json", "--conf-dir", self._conf_dir]
        argv += ["--network", f"{folder}/network.json"]
        self._log = f"{folder}/agent.log"
        self.begun = perf_counter_ns()
        with spot.namespace.entered(), open(self._log, "wb") as log:
            self._popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=end_with_parent
            )
        super().__init__(self._popen.pid)

    def await_ready(self) -> Sample:
        """Wait for the network configuration, which comes last. Raises AgentError."""
        end = monotonic() + _START_S
        while not os.listdir(self._conf_dir):
            if self._popen.poll() is not None or monotonic() > end:
                with open(self._log, errors="replace") as log:
                    raise AgentError(f"the agent made no node ready: {log.read()[-3000:]}")
            sleep(_POLL_S)
        return Sample(perf_counter_ns() - self.begun, self.cpu())

    def await_quiet(self) -> None:
        """Until it has done what follows from what happened last: it pauses between turns."""
        end = monotonic() + _LATEST_S
        before, at = self.cpu(), monotonic()
        while monotonic() < min(end, at + _QUIET_S):
            sleep(_QUIET_S / 4)
            if (used := self.cpu()) - before > _BUSY_NS:
                at = monotonic()
            before = used

    def end(self) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            raise AgentError(f"the agent took longer than {_END_S:.0f} s to end") from None
