"""Which network configuration a node goes by, when the one that all nodes share can't be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import conflists
from cni_plugin.agent import templates
from cni_plugin.agent.templates import Shared, Template, Templates
from cni_plugin.spec import CniError, Code


class Node:
    """`wrong` and `failing` are the MTUs that are refused before and after something is tried."""

    def __init__(self, folder: Path) -> None:
        self.shared = folder / "network.json"
        self.placed = folder / "05-podwire.conflist"
        self.templates = Templates(Template(str(self.shared)), str(self.placed))
        self.wrong: set[int] = set()
        self.failing: set[int] = set()
        self.tried: list[int] = []
        self.trials: list[bool] = []

    def share(self, mtu: int) -> None:
        self.shared.write_text(json.dumps({"type": "podwire", "mtu": mtu}))

    def _check(self, shared: Shared) -> None:
        if _mtu(shared) in self.wrong:
            raise CniError(Code.INVALID_CONFIG, "a wrong MTU")

    def _attempt(self, shared: Shared, trial: bool) -> int:
        self.trials.append(trial)
        self.tried.append(_mtu(shared))
        if _mtu(shared) in self.failing:
            raise CniError(Code.KERNEL_REFUSED, "a failing MTU")
        return _mtu(shared)

    def use(self) -> int:
        return self.templates.use(self._check, self._attempt)


def _mtu(shared: Shared) -> int:
    plugin: dict[str, Any] = dict(shared.get("plugins", [shared])[0])
    return int(plugin["mtu"])


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def _refused(step: Callable[[], object]) -> str:
    with pytest.raises(CniError) as caught:
        step()
    return caught.value.msg


def test_what_is_shared(node: Node) -> None:
    for mtu in (1400, 1300):
        node.share(mtu)
        assert node.use() == mtu
        assert node.templates.problem == ""


def test_what_is_wrong_is_passed_over_until_it_is_right(node: Node) -> None:
    node.share(1400)
    node.use()
    node.wrong = {1300}
    node.share(1300)
    assert node.use() == 1400
    assert f"{node.shared}: a wrong MTU" in node.templates.problem
    assert node.tried == [1400, 1400]
    node.wrong = set()
    assert node.use() == 1300
    assert node.templates.problem == ""


def test_what_fails_is_not_tried_again_at_once(node: Node, monkeypatch: Any) -> None:
    node.share(1400)
    node.use()
    node.failing = {1300}
    node.share(1300)
    for _ in range(3):
        assert node.use() == 1400
        assert "a failing MTU" in node.templates.problem
    assert node.tried == [1400, 1300, 1400, 1400, 1400]
    assert node.trials == [False, True, False, False, False]
    monkeypatch.setattr(templates, "_AGAIN_S", 0.0)
    node.failing = set()
    assert node.use() == 1300


@pytest.mark.parametrize("part", ["_check", "_attempt"])
def test_what_nobody_has_foreseen_is_a_mistake_too(
    node: Node, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """It would end the agents of all nodes, and those that are started after them."""
    node.share(1400)
    node.use()
    usual = getattr(node, part)

    def unforeseen(shared: Shared, *rest: bool) -> Any:
        return usual(shared, *rest) if _mtu(shared) != 1300 else {}["type"]

    monkeypatch.setattr(node, part, unforeseen)
    node.share(1300)
    assert node.use() == 1400
    assert "KeyError: 'type'" in node.templates.problem


def test_another_one_is_tried_at_once(node: Node) -> None:
    node.share(1400)
    node.use()
    node.failing = {1300}
    node.share(1300)
    node.use()
    node.share(1200)
    assert node.use() == 1200


def test_where_nothing_works_what_is_shared_is_at_fault_no_longer(node: Node) -> None:
    """A link that is down: both fail, and both are tried again."""
    node.share(1400)
    node.use()
    node.share(1300)
    node.failing = {1300, 1400}
    assert _refused(node.use) == "a failing MTU"
    node.failing = set()
    assert node.use() == 1300


def test_none_before(node: Node) -> None:
    assert "no such file" in _refused(node.use)
    node.share(1400)
    node.failing = {1400}
    assert _refused(node.use) == "a failing MTU"
    assert node.tried == [1400]


def test_what_is_in_place_after_a_start(node: Node) -> None:
    text = conflists.render({"type": "podwire", "mtu": 1400}, (), "/nodes.json", "n", 0)
    node.placed.write_text(text)
    node.shared.write_text("[]")
    assert node.use() == 1400
    assert "expected a JSON object" in node.templates.problem
    node.placed.write_text(text.replace(conflists.MARK, "_others"))
    assert Node(node.shared.parent).templates.problem == ""
    assert "expected a JSON object" in _refused(Node(node.shared.parent).use)


def test_what_is_added_for_the_cluster(node: Node) -> None:
    node.share(1400)
    template = Template(str(node.shared), lambda shared: {**shared, "backend": "vxlan"})
    assert template.read()["backend"] == "vxlan"
    assert Template().read() == conflists.default_template()
    assert Template().stamp() == ()
    before = template.stamp()
    node.share(13000)
    assert template.stamp() != before
