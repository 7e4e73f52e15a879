"""The options that make an agent follow a cluster, as far as they are wrong from the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni_plugin import cli, tool_follow

pytest.importorskip("lightkube", reason="lightkube is missing: pip install '.[kubernetes]'")

CLUSTER = {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": True}


def kubeconfig(path: Path, **cluster: object) -> str:
    content = {
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not found"),
        ("{", "not a kubeconfig"),
        ("", "not a kubeconfig|no current context"),
        (json.dumps({"current-context": "x"}), "not a kubeconfig|not found"),
    ],
    ids=["missing", "half", "empty", "no clusters"],
)
@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_kubeconfig_of_no_use_is_an_error_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    said: str,
    given: str,
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    argv = ["agent", "--socket", str(tmp_path / "agent.sock"), "--kubernetes"]
    argv += ["--inventory", str(tmp_path / "nodes.json")]
    if given == "option":
        argv += ["--kubeconfig", str(path)]
    else:
        monkeypatch.setenv("KUBECONFIG", str(path))
    assert cli.tool(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error 7: --kubeconfig: expected a kubeconfig that can be used (")
    assert any(each in error for each in said.split("|")), error
    assert str(path) in error
    left = {each.name for each in tmp_path.iterdir()} - {"kubeconfig"}
    assert left == set(), "nothing was begun"


@pytest.mark.parametrize(
    ("server", "content", "words"),
    [
        ("https://192.168.1.2:6443", None, "https://192.168.1.2:6443"),
        (
            "https://192.168.1.2:6443",
            json.dumps({"server": "https://a"}),
            "https://192.168.1.2:6443",
        ),
        ("", json.dumps({"server": "https://a"}), "https://a"),
        ("", "{}", "by PATH"),
        ("", None, "https://[fd00::1]:443"),
    ],
)
def test_people_know_the_server_by_its_url(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    content: str | None,
    words: str,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    found = tool_follow._server_in_words(server, "" if content is None else str(path))
    assert found == words.replace("PATH", str(path))


# --- options that nobody would heed ---------------------------------------------------------------

_EITHER = "--kubernetes or --etcd"
_ETCD, _KUBERNETES = ("--etcd", "http://127.0.0.1:1"), ("--kubernetes",)


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the agents of this test were to follow; none begins."""
    found: list[object] = []
    monkeypatch.setattr(
        "cni_plugin.agent.life.live", lambda _, __, options: found.append(options.follow)
    )
    return found


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        (("--kubeconfig", "/k"), "--kubernetes"),
        (("--api-server", "https://a:6443"), "--kubernetes"),
        (("--network", "/network.json"), _EITHER),
        (("--inventory", "/nodes.json"), _EITHER),
        (("--conf-dir", tool_follow.CONF_DIR), _EITHER),
        (("--node-name", "node-1"), _EITHER),
        (("--etcd-format", "podwire"), "--etcd"),
        (("--etcd-ttl", "0"), "--etcd"),
        (("--etcd-pool", "10.244.0.0/16"), "--etcd"),
        (("--etcd-key", "/key"), "--etcd"),
        (("--node-address", "192.168.1.2"), "--etcd"),
        ((*_KUBERNETES, "--node-address", "192.168.1.2"), "--etcd"),
        ((*_KUBERNETES, "--etcd-format", "flannel"), "--etcd"),
        ((*_ETCD, "--kubeconfig", "/k"), "--kubernetes"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else f"by {each}",
)
def test_an_option_that_nobody_heeds_is_an_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lives: list[object],
    given: tuple[str, ...],
    needed: str,
) -> None:
    assert cli.tool(["agent", "--socket", str(tmp_path / "agent.sock"), *given]) == 2
    assert f"{given[-2]} is of no use without {needed}\n" in capsys.readouterr().err
    assert lives == []
    assert list(tmp_path.iterdir()) == []


def test_variables_and_empty_options_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: list[object]
) -> None:
    """Those are there for other programs, these in places where something may be filled in."""
    for name in ("KUBECONFIG", "NODE_NAME", "PODWIRE_API_SERVER"):
        monkeypatch.setenv(name, "x")
    empty = [f"--{name}=" for name in ("kubeconfig", "api-server", "network", "etcd-pool")]
    assert cli.tool(["agent", "--socket", str(tmp_path / "agent.sock"), *empty]) == 0
    assert lives == [None]
