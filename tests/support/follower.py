"""A node that follows a cluster of three, whose source is in memory (`fakesource`)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from cni_plugin.agent.clusternode import Place
from cni_plugin.agent.coordination import Coordination
from cni_plugin.agent.templates import Template
from cni_plugin.conflists import default_template
from cni_plugin.fabric import Memory
from tests.support.fakesource import FakeSource, member
from tests.support.netns import Namespace, wait_until
from tests.support.topology import Split

MEMBERS = tuple(
    member(
        f"node-{number}",
        " ".join(address.partition("/")[0] for address in Split.ADDRESSES[number]),
        f"10.244.{number}.0/24 fd00:10:244:{number}::/64",
    )
    for number in range(3)
)


class Follower:
    """One node's coordination, which runs in this process."""

    def __init__(
        self,
        node: Namespace,
        number: int,
        folder: Path,
        failed: Callable[[], None] | None = None,
        **template: Any,
    ) -> None:
        self.node = node
        self.name = f"node-{number}"
        self.source = FakeSource()
        self.memory = Memory()
        self.inventory = folder / self.name / "nodes.json"
        self.conf_dir = folder / self.name / "net.d"
        self.conf_dir.mkdir(parents=True, exist_ok=True)
        self.bin_dir = folder / self.name / "bin"
        ipam = {"type": "host-local", "dataDir": str(folder / self.name / "networks")}
        self.template = default_template()
        self.template["plugins"][0].update({"ipam": ipam, **template})
        self.shared = folder / self.name / "config" / "network.json"
        server = ("the API server", ip_network("203.0.113.1/32"))
        place = Place(
            self.name,
            str(self.inventory),
            str(self.conf_dir),
            Template(str(self.shared)),
            (server,),
            str(self.bin_dir),
        )
        logger = logging.getLogger(f"test.{self.name}")
        self.failed: list[bool] = []
        end = failed or (lambda: self.failed.append(True))
        self._coordination = Coordination(self.source, place, self.memory, logger, end)

    def share(self, text: str = "") -> None:
        """Put `template`, or a text in its place, where the agent reads it, as a kubelet does it
        with a ConfigMap: the name is a link by way of a link to a folder, which is replaced."""
        config = self.shared.parent
        version = config / f"..{len(list(config.glob('..*')))}"
        version.mkdir(parents=True)
        (version / self.shared.name).write_text(text or json.dumps(self.template))
        (config / "..new").unlink(missing_ok=True)
        (config / "..new").symlink_to(version.name)
        os.replace(config / "..new", config / "..data")
        if not self.shared.is_symlink():
            self.shared.symlink_to(f"..data/{self.shared.name}")

    def start(self) -> None:
        """With what is shared already, else with `template`."""
        if not self.shared.exists():
            self.share()
        with self.node.entered():
            self._coordination.start()

    def stop(self) -> None:
        self._coordination.stop()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            return wait_until(condition, 60, f"{self.name}: {what}", 0.02)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.source.states[-3:]}") from e

    def wait_for_state(self, reason: str) -> None:
        self.wait(lambda: self.source.states and self.source.states[-1].reason == reason, reason)

    def conflist(self) -> dict[str, Any]:
        return json.loads((self.conf_dir / "05-podwire.conflist").read_text())

    def plugin(self) -> dict[str, Any]:
        return next(p for p in self.conflist()["plugins"] if p["type"] == "podwire")

    def has_conflist(self) -> bool:
        return (self.conf_dir / "05-podwire.conflist").exists()

    def owned(self, family: str = "-4") -> set[str]:
        """The destinations of podwire's routes."""
        listed = self.node.run("ip", "-j", family, "route", "show", "proto", "112").stdout
        return {route["dst"] for route in json.loads(listed or "[]")}


@contextmanager
def followers(split: Split, folder: Path) -> Iterator[Callable[..., Follower]]:
    """make(0) is node 0 of three, which follows a cluster that has told nothing yet."""
    running: list[Follower] = []

    def make(number: int = 0, **template: Any) -> Follower:
        follower = Follower(split.nodes[number], number, folder, **template)
        running.append(follower)
        follower.start()
        return follower

    yield make
    for follower in running:
        follower.stop()
        assert not follower.source.following
        assert not follower.failed


def subnets_of(plugin: dict[str, Any]) -> list[str]:
    return [one["subnet"] for (one,) in plugin["ipam"]["ranges"]]
