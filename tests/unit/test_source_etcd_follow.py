"""What `podwire agent` makes of its options for etcd."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import cli
from cni_plugin.sources import etcd, etcd_addresses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--etcd", ""], "--etcd: expected URLs"),
        (["--kubernetes", "--etcd="], "--etcd: expected URLs"),
        (["--etcd", "http://a b", "--node-address", "192.168.1.1"], "--etcd: expected URLs"),
        (["--etcd", "http://h", "--node-address", "127.0.0.1"], "--node-address: expected an"),
    ],
)
def test_what_can_not_be_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert cli.tool(["agent", "--socket", str(tmp_path / "agent.sock"), *options]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [False, True], ids=["by the routes", "by an option"])
def test_addresses_are_followed_unless_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    def made(options: Any, logger: object, choose: object) -> None:
        found.append((options.addresses, choose))
        raise LookupError

    def chosen() -> tuple[Any, ...]:
        return (ip_address("192.168.1.7"),)

    found: list[object] = []
    monkeypatch.setattr(etcd_addresses, "of_default_routes", chosen)
    monkeypatch.setattr(etcd, "EtcdSource", made)
    options = ["--etcd", "http://h", "--inventory", str(tmp_path / "nodes.json")]
    if given:
        options += ["--node-address", "192.168.1.7"]
    with pytest.raises(LookupError):
        cli.tool(["agent", "--socket", str(tmp_path / "agent.sock"), *options])
    assert found == [(chosen(), None if given else chosen)]
