"""The end of the upkeep's thread by a mistake of ours: cni_plugin/agent/upkeep.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_plugin.agent import upkeep
from cni_plugin.agent.server import Options
from tests.support.netns import wait_until
from tests.unit.agent_rig import Office


def test_an_agent_without_its_upkeep_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than go on as if it looked after the node; who looks after it starts the next."""
    monkeypatch.setattr(upkeep.Upkeep, "_files_changed", lambda _: 1 / 0)
    monkeypatch.setattr(upkeep, "_FILES_S", 0.05)
    office = Office(str(tmp_path / "agent.sock"), Options())
    try:
        office.wait(10)
        assert len(office.withdrawn) == 1
        assert len(office.log.fields("the upkeep ended")) == 1
    finally:
        office.close()


def test_a_mistake_in_a_look_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []

    def look(_: object, reasons: object) -> None:
        looks.append(reasons)
        raise ZeroDivisionError

    monkeypatch.setattr(upkeep.Upkeep, "_look", look)
    office = Office(str(tmp_path / "agent.sock"), Options())
    try:
        wait_until(lambda: len(looks) > 1, 10, "the next look", 0.05)
        assert office.running
        assert len(office.log.fields("the upkeep failed")) >= 1
    finally:
        office.close()
    assert office.log.fields("the upkeep ended") == []
