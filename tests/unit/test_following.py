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
