"""The tool, in this process: what it prints, its exit status, and how it puts mistakes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from cni_plugin import cli, tool_conf, tool_output
from cni_plugin.drift import LinkState
from cni_plugin.lab import matrix, plan
from cni_plugin.lab.matrix import Endpoint
from cni_plugin.lab.nodes import Lab, Member
from cni_plugin.spec import CniError, Code
from tests.support import require

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        status = cli.tool(args)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _reserve(folder: Path, **held: str) -> None:
    """Files as the reference writes them: _10_244_0_2="container eth0"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, holder in held.items():
        text = "\r\n".join(holder.split())
        (folder / name.strip("_").replace("_", ".")).write_bytes(text.encode())


def _conflist(path: Path, *plugins: dict[str, Any], **keys: Any) -> Path:
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": list(plugins), **keys}
    path.write_text(json.dumps(conf))
    return path


# --- the frame --------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    "command", [(), ("status",), ("routes", "sync"), ("ipam", "free"), ("lab",)]
)
def test_help(run: Run, flag: str, command: tuple[str, ...]) -> None:
    status, out, err = run(*command, flag)
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(('podwire', *command))}")


def test_version(run: Run) -> None:
    status, out, _ = run("--version")
    assert status == 0
    assert re.match(r"podwire \d+\.\d+\.\d+, CNI 0\.1\.0, .*1\.1\.0\n$", out)


def test_unknown_command(run: Run) -> None:
    status, out, err = run("frobnicate")
    assert (status, out) == (2, "")
    assert "No such command 'frobnicate'" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    status, out, _ = run("completion", shell)
    assert status == 0
    assert cli.COMPLETE_VARIABLE in out


def test_completion_asks_for_a_shell_it_knows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    status, _, err = run("completion")
    assert status == 2
    assert "bash, zsh, fish" in err
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    status, out, _ = run("completion")
    assert status == 0
    assert out.startswith("#compdef podwire")


def test_table_is_aligned_and_ends_without_blanks() -> None:
    text = tool_output.table(("A", "LONG"), [("long cell", 1), ("x", "")])
    assert text.splitlines() == ["A          LONG", "long cell  1", "x"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (59.9, "59s"), (312, "5m12s"), (11_040, "3h04m"), (1_058_400, "12d06h")],
)
def test_age(seconds: float, text: str) -> None:
    assert tool_output.age(seconds) == text


# --- configurations ---------------------------------------------------------------------------


def test_the_first_valid_file_by_name_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "00-notes.txt").write_text("{")
    (tmp_path / "05-broken.conf").write_text("{")
    _conflist(tmp_path / "20-other.conflist", {"type": "bridge"})
    _conflist(tmp_path / "05-podwire.conflist", {"type": "podwire"}, {"type": "portmap"})
    choice = tool_conf.choose(str(tmp_path))
    assert choice.chosen is not None
    assert choice.chosen.path == str(tmp_path / "05-podwire.conflist")
    assert [path for path, _ in choice.broken] == [str(tmp_path / "05-broken.conf")]
    assert choice.behind == ("20-other.conflist",)
    (plugin,) = choice.chosen.podwires()
    assert plugin.conf == {"type": "podwire", "name": "net", "cniVersion": "1.0.0"}


def test_the_newest_offered_version_counts(tmp_path: Path) -> None:
    path = _conflist(tmp_path / "a.conflist", {"type": "podwire"}, cniVersions=["9.0.0", "1.1.0"])
    assert tool_conf.load(str(path)).version == "1.1.0"


def test_one_plugin_without_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_text('{"name": "net", "type": "podwire"}')
    file = tool_conf.load(str(path))
    assert (file.version, file.podwires()[0].request().version) == ("0.1.0", "1.1.0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"name": "a"}',
        '{"name": "a", "plugins": []}',
        '{"name": "a", "plugins": 7}',
        '{"name": "a", "plugins": [{}]}',
        '{"name": "a", "type": "podwire", "cniVersion": "7"}',
        '{"name": 5, "type": "podwire"}',
        "\xff",
        "[" * 100_000,
        '{"name": "a", "type": "podwire", "x": NaN}',
        '{"name": "a", "type": "podwire"}' + " " * 2**24,
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.conflist"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CniError) as caught:
        tool_conf.load(str(path))
    assert caught.value.msg.startswith(f"{path}: ")


# --- status -----------------------------------------------------------------------------------


def test_status_without_a_folder(run: Run, tmp_path: Path) -> None:
    status, out, err = run("status", "--conf-dir", str(tmp_path / "none"))
    assert (status, err) == (1, "")
    assert "NOT ready" in out
    assert "hint:" in out


def test_status_of_an_empty_folder(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("status", "--conf-dir", str(tmp_path), "--json")
    assert status == 1
    report = json.loads(out)
    assert report["ready"] is False
    assert "holds no network configuration" in report["error"]["msg"]


def test_status_when_another_network_is_first(run: Run, tmp_path: Path) -> None:
    _conflist(tmp_path / "10-other.conflist", {"type": "bridge"}, {"type": "portmap"})
    _conflist(tmp_path / "20-podwire.conflist", {"type": "podwire"})
    status, out, _ = run("status", "--conf-dir", str(tmp_path))
    assert status == 1
    assert "does not use podwire but bridge, portmap" in out
    assert "not used, they sort behind it: 20-podwire.conflist" in out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("00-broken.conflist", "{", "not valid JSON"),
        ("00-empty.conf", "", "not valid JSON"),
        ("02-notype.conf", '{"name": "x", "plugins": [{"type": "bridge"}]}', "of its own"),
        ("01-noname.conflist", '{"plugins": [{"type": "bridge"}]}', "no name"),
        ("00-link.conflist", None, "No such file"),
    ],
)
def test_status_when_a_runtime_stops_at_a_file(
    run: Run, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is None:
        (tmp_path / name).symlink_to("nowhere")
    else:
        (tmp_path / name).write_text(text)
    (tmp_path / "00-folder.conflist").mkdir()
    _conflist(tmp_path / "05-podwire.conflist", {"type": "podwire"})
    status, out, _ = run("status", "--conf-dir", str(tmp_path), "--json")
    report = json.loads(out)
    assert (status, report["ready"]) == (1, False)
    assert report["error"]["msg"].startswith(f"{tmp_path / name}: ")
    assert report["file"] == str(tmp_path / "05-podwire.conflist")
    assert [each["file"] for each in report["broken"]] == [str(tmp_path / name)]
    assert said in report["error"]["msg"]
    assert "remove this file" in report["error"]["details"]


@pytest.mark.parametrize(
    ("kind", "said"), [("podwire", "9.9.9"), ("bridge", "does not use podwire")]
)
def test_status_when_a_runtime_takes_a_file_of_a_strange_version(
    run: Run, tmp_path: Path, kind: str, said: str
) -> None:
    """Runtimes look at the version when they call the plugin, and not before."""
    _conflist(tmp_path / "00-other.conflist", {"type": kind}, cniVersion="9.9.9")
    _conflist(tmp_path / "05-podwire.conflist", {"type": "podwire"})
    status, out, _ = run("status", "--conf-dir", str(tmp_path), "--json")
    report = json.loads(out)
    assert status == 1
    assert report["file"] == str(tmp_path / "00-other.conflist")
    assert (report["broken"], report["plugins"]) == ([], [kind])
    assert said in report["error"]["msg"]


def test_status_names_what_an_add_would_stumble_over(run: Run, tmp_path: Path) -> None:
    plugin = {"type": "podwire", "macspoofchk": True, "ipam": {"type": "host-local"}}
    path = _conflist(tmp_path / "a.conflist", plugin, cniVersion="0.4.0")
    status, out, _ = run("status", "--config", str(path), "--json")
    assert status == 1
    report = json.loads(out)
    assert report["networks"][0]["cniVersion"] == "0.4.0"
    assert report["error"]["code"] == Code.UNSUPPORTED_FIELD
    assert "macspoofchk" in report["error"]["msg"]


def test_status_counts_addresses(run: Run, tmp_path: Path) -> None:
    _reserve(tmp_path / "data/net", _10_244_0_2="a eth0", _10_244_0_9="b eth0", lock="")
    ipam = {
        "type": "host-local",
        "dataDir": str(tmp_path / "data"),
        "ranges": [[{"subnet": "10.244.0.0/28"}], [{"subnet": "fd00:1:2:3::/64"}]],
    }
    path = _conflist(tmp_path / "a.conflist", {"type": "podwire", "bridge": "pw-no", "ipam": ipam})
    _, out, _ = run("status", "--config", str(path), "--json")
    (network,) = json.loads(out)["networks"]
    first, second = network["ipam"]["ranges"]
    assert (first["used"], first["free"]) == (2, 11)  # 14 hosts, the gateway, two reservations
    assert (second["used"], second["free"]) == (0, 2**53 - 1)
    assert network["bridge"]["present"] is False
    _, out, _ = run("status", "--config", str(path))
    assert "10.244.0.1-10.244.0.14: 2 used, 11 free" in out
    assert "2^53 or more free" in out
    assert "pw-no: not there yet" in out


def test_status_knows_the_version_of_a_template(run: Run, tmp_path: Path) -> None:
    plugin = {"type": "podwire", "bridge": "pw-no"}
    path = _conflist(tmp_path / "a.conflist", plugin, cniVersions=["1.0.0", "1.1.0"])
    _, out, _ = run("status", "--config", str(path))
    assert "net, cniVersion 1.0.0, offers up to 1.1.0, mode bridge" in out


def test_status_names_plugins_that_are_missing(run: Run, tmp_path: Path) -> None:
    """Where the folder can be seen; that it is the runtime's can't be told."""
    path = _conflist(tmp_path / "a.conflist", {"type": "podwire"}, {"type": "portmap"})
    (tmp_path / "bin").mkdir()
    options = ("status", "--config", str(path), "--cni-path", f"/proc/nowhere:{tmp_path}/bin")
    assert "is not in" not in run(*options)[1]
    (tmp_path / "bin/podwire").touch()
    _, out, _ = run(*options)
    assert f"warning    plugin portmap is not in /proc/nowhere and {tmp_path}/bin" in out
    _, out, _ = run(*options, "--json")
    (missing,) = json.loads(out)["missing"]
    assert missing["plugin"] == "portmap"


def test_status_of_an_inventory(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps({"nodes": [{"name": "n1"}]}))
    status, out, _ = run("status", "--config", str(path))
    assert status == 1
    assert f"NOT ready (7): {path}: this is a node inventory" in out
    assert "--inventory" in out


def test_status_of_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    _, out, _ = run("status", "--config", str(tmp_path / "none"))
    assert "NOT ready (5): No such file" in out.replace(f"{tmp_path}/none: ", "")
    assert "hint:" in out
    _, out, _ = run("status", "--config", str(tmp_path))
    assert "--conf-dir" in out


def _delegate(folder: Path, versions: list[str], status: int) -> None:
    """An IPAM plugin that answers VERSION, and ends with `status` otherwise."""
    reply = json.dumps({"cniVersion": "1.0.0", "supportedVersions": versions})
    (folder / "other").write_text(
        f"#!/bin/sh\ncat > {folder}/stdin\n"
        f"[ $CNI_COMMAND = VERSION ] && echo '{reply}' && exit 0\n"
        f"echo $CNI_COMMAND >> {folder}/asked\n"
        f'echo \'{{"code": 77, "msg": "no"}}\'\nexit {status}\n'
    )
    (folder / "other").chmod(0o755)


@pytest.mark.root
@pytest.mark.parametrize("mode", ["bridge", "ptp"])
@pytest.mark.parametrize(
    ("versions", "version", "code"),
    [
        (["0.4.0", "1.0.0"], "1.0.0", None),  # no STATUS in it: that it is there has to do
        ([], "1.0.0", None),
        (["1.0.0", "1.1.0"], "1.0.0", 77),
        (["1.0.0", "1.1.0"], "1.1.0", 77),
        (["0.4.0", "1.0.0"], "1.1.0", Code.INCOMPATIBLE_VERSION),
        (None, "1.0.0", Code.DELEGATE_FAILED),
    ],
)
def test_status_asks_a_delegate_what_it_can_answer(
    run: Run, tmp_path: Path, versions: list[str] | None, version: str, code: int | None, mode: str
) -> None:
    require.root()
    if versions is not None:
        _delegate(tmp_path, versions, 1)
    plugin = {"type": "podwire", "bridge": "pw-no", "mode": mode, "ipam": {"type": "other"}}
    path = _conflist(tmp_path / "a.conflist", plugin, cniVersion=version)
    status, out, _ = run("status", "--config", str(path), "--cni-path", str(tmp_path), "--json")
    error = json.loads(out)["error"]
    assert (status, error and error["code"]) == (0 if code is None else 1, code)
    assert (tmp_path / "asked").exists() == (code == 77)


def test_the_code_of_a_cause_is_told() -> None:
    wrapped = CniError(Code.NOT_AVAILABLE, "x")
    wrapped.__cause__ = CniError(Code.SUBNET_OVERLAP, "x")
    assert tool_output.code_of(wrapped) == Code.SUBNET_OVERLAP
    wrapped.__cause__ = PermissionError(13, "x")
    assert tool_output.code_of(wrapped) == Code.PERMISSION_DENIED
    assert tool_output.code_of(CniError(Code.NOT_AVAILABLE, "x")) == Code.NOT_AVAILABLE


# --- ipam -------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> tuple[str, ...]:
    """The options that name the directory `tmp_path`/networks/net."""
    return ("--data-dir", str(tmp_path / "networks"), "--network", "net")


def test_ipam_list(run: Run, tmp_path: Path, place: tuple[str, ...]) -> None:
    _reserve(tmp_path / "networks/net", _10_244_0_10="new eth0", _10_244_0_9="old", lock="")
    status, out, _ = run("ipam", "list", *place)
    assert status == 0
    header, first, second = out.splitlines()
    assert header.split() == ["ADDRESS", "CONTAINER", "INTERFACE", "AGE"]
    assert first.split()[:4] == ["10.244.0.9", "old", "-", "(legacy)"]
    assert second.split()[:3] == ["10.244.0.10", "new", "eth0"]
    _, out, _ = run("ipam", "list", *place, "--json")
    assert [entry["legacy"] for entry in json.loads(out)] == [True, False]


def test_ipam_list_makes_nothing(run: Run, tmp_path: Path, place: tuple[str, ...]) -> None:
    status, out, _ = run("ipam", "list", *place)
    assert status == 0
    assert "no address is reserved" in out
    assert list(tmp_path.iterdir()) == []


def test_ipam_by_configuration(run: Run, tmp_path: Path) -> None:
    """Also of a network that is the reference's: its directory has the same format."""
    _reserve(tmp_path / "data/net", _10_244_0_2="a eth0")
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "data"), "subnet": "10.244.0.0/24"}
    path = _conflist(tmp_path / "a.conflist", {"type": "bridge", "ipam": ipam})
    status, out, _ = run("ipam", "list", "--config", str(path))
    assert status == 0
    assert "10.244.0.2" in out
    path = _conflist(tmp_path / "a.conflist", {"type": "bridge", "ipam": {"type": "dhcp"}})
    status, _, err = run("ipam", "list", "--config", str(path))
    assert status == 1
    assert err.startswith("error 7: ")
    assert "--data-dir" in err


@pytest.mark.parametrize(
    "options",
    [
        ("--data-dir", "/x"),
        ("--network", "a/b"),
        ("--network", ".."),
        ("--config", "/x", "--network", "n"),
    ],
)
def test_ipam_options_that_contradict(run: Run, options: tuple[str, ...]) -> None:
    assert run("ipam", "list", *options)[0] == 2


def test_ipam_free(run: Run, tmp_path: Path, place: tuple[str, ...]) -> None:
    folder = tmp_path / "networks/net"
    _reserve(folder, _10_244_0_2="a eth0", _10_244_0_3="b", _10_244_0_4="c eth0")
    addresses = ("10.244.0.2", "10.244.0.3")
    status, out, _ = run("ipam", "free", *addresses, *place, "--yes", "--force")
    assert (status, out) == (0, "10.244.0.2 freed\n10.244.0.3 freed\n")
    assert [path.name for path in folder.glob("10.*")] == ["10.244.0.4"]


@pytest.mark.parametrize(
    ("wrong", "status"), [("10.244.0.77", 1), ("10.244.0", 2), ("../../etc/passwd", 2)]
)
def test_ipam_free_is_all_or_nothing(
    run: Run, tmp_path: Path, place: tuple[str, ...], wrong: str, status: int
) -> None:
    _reserve(tmp_path / "networks/net", _10_244_0_2="a eth0")
    assert run("ipam", "free", "10.244.0.2", wrong, *place, "--yes", "--force")[0] == status
    assert (tmp_path / "networks/net/10.244.0.2").exists()


def test_ipam_free_asks(
    run: Run, tmp_path: Path, place: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _reserve(tmp_path / "networks/net", _10_244_0_2="a eth0")
    monkeypatch.setattr("click.confirm", lambda text: False)
    status, out, _ = run("ipam", "free", "10.244.0.2", *place, "--force")
    assert status == 1
    assert "10.244.0.2 of container a eth0" in out
    assert (tmp_path / "networks/net/10.244.0.2").exists()


def test_ipam_import_of_a_directory(run: Run, tmp_path: Path, place: tuple[str, ...]) -> None:
    _reserve(tmp_path / "old", _10_244_0_2="a eth0", _10_244_0_3="b", fd00__2="c eth0", lock="")
    (tmp_path / "old/last_reserved_ip.0").write_text("10.244.0.3")
    (tmp_path / "old/fd00..2").rename(tmp_path / "old/fd00::2")
    status, out, _ = run("ipam", "import", str(tmp_path / "old"), *place, "--dry-run")
    assert status == 0
    assert "3 would be taken over, 0 already there" in out
    assert not (tmp_path / "networks").exists()
    assert run("ipam", "import", str(tmp_path / "old"), *place)[0] == 0
    new = tmp_path / "networks/net"
    assert (new / "10.244.0.2").read_bytes() == b"a\r\neth0"
    assert (new / "10.244.0.3").read_bytes().strip() == b"b"
    assert (new / "fd00::2").exists()
    status, out, _ = run("ipam", "import", str(tmp_path / "old"), *place)
    assert status == 0
    assert "0 taken over, 3 already there" in out


def test_ipam_import_of_a_listing(run: Run, tmp_path: Path, place: tuple[str, ...]) -> None:
    _reserve(tmp_path / "from/old", _10_244_0_2="a eth0", _10_244_0_3="b")
    _, out, _ = run(
        "ipam", "list", "--data-dir", str(tmp_path / "from"), "--network", "old", "--json"
    )
    listing = tmp_path / "listing.json"
    listing.write_text(out)
    assert run("ipam", "import", str(listing), *place)[0] == 0
    _, again, _ = run("ipam", "list", *place, "--json")

    def essence(text: str) -> list[tuple[str, str, str]]:
        return [(e["address"], e["containerID"], e["ifname"]) for e in json.loads(text)]

    assert essence(again) == essence(out)


def test_ipam_import_reports_every_conflict_and_does_nothing(
    run: Run, tmp_path: Path, place: tuple[str, ...]
) -> None:
    _reserve(tmp_path / "networks/net", _10_244_0_2="mine eth0", _10_244_0_3="mine2 eth0")
    _reserve(tmp_path / "old", _10_244_0_1="x eth0", _10_244_0_2="y eth0", _10_244_0_3="z eth0")
    status, out, err = run("ipam", "import", str(tmp_path / "old"), *place)
    assert (status, out) == (1, "")
    assert "10.244.0.2 of container y eth0 is reserved for container mine eth0" in err
    assert "10.244.0.3 of container z eth0" in err
    assert not (tmp_path / "networks/net/10.244.0.1").exists()


@pytest.mark.parametrize(
    "document",
    [
        "nonsense",
        {},
        [{}],
        [{"address": "10.0.0.1"}],
        [{"address": "10.0.0.1", "containerID": "a\r\nb"}],
        [{"address": "10.0.0.1", "containerID": "a", "ifname": "../x"}],
        [{"address": "10.0.0.1/24", "containerID": "a"}],
        [{"address": "10.0.0.1", "containerID": c, "ifname": "eth0"} for c in ("a", "b")],
    ],
)
def test_ipam_import_of_a_bad_listing(
    run: Run, tmp_path: Path, place: tuple[str, ...], document: Any
) -> None:
    listing = tmp_path / "listing.json"
    listing.write_text(json.dumps(document) if document != "nonsense" else document)
    status, _, err = run("ipam", "import", str(listing), *place)
    assert status == 1
    assert err.startswith("error ")
    assert not (tmp_path / "networks").exists()


def test_ipam_free_can_t_tell_of_others_pods(
    run: Run, tmp_path: Path, place: tuple[str, ...]
) -> None:
    _reserve(tmp_path / "networks/net", _10_244_0_2="a eth0")
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "networks"), "subnet": "10.244.0.0/24"}
    path = _conflist(tmp_path / "a.conflist", {"type": "bridge", "ipam": ipam})
    for options in (place, ("--config", str(path))):
        status, _, err = run("ipam", "free", "10.244.0.2", *options, "--yes")
        assert status == 1
        assert err.startswith("error 101: can't tell whether container a eth0 is gone")
        assert "--force" in err
    assert (tmp_path / "networks/net/10.244.0.2").exists()


def _veth(name: str, alias: str) -> LinkState:
    return LinkState(2, name, "veth", "", 0, True, False, True, 0, 0, alias, False, False)


@pytest.mark.parametrize(
    ("aliases", "freed"),
    [((), True), (("podwire net other eth0",), True), (("podwire net a eth1", ""), False)],
)
def test_ipam_free_of_a_pod_without_a_link(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aliases: tuple[str, ...],
    freed: bool,
) -> None:
    links = [_veth(f"veth{i}", alias) for i, alias in enumerate(aliases)]
    monkeypatch.setattr("cni_plugin.kernel.observe.veths", lambda _: links)
    _reserve(tmp_path / "networks/net", _10_244_0_2="a eth0")
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "networks"), "subnet": "10.244.0.0/24"}
    path = _conflist(tmp_path / "a.conflist", {"type": "podwire", "ipam": ipam})
    status, _, err = run("ipam", "free", "10.244.0.2", "--config", str(path), "--yes")
    assert (status == 0, "veth1 of this node" in err) == (freed, not freed)


def test_ipam_free_of_an_old_reservation_looks_for_the_container(
    run: Run, tmp_path: Path, place: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    links = [_veth("veth0", "podwire net a net1")]
    monkeypatch.setattr("cni_plugin.kernel.observe.veths", lambda _: links)
    _reserve(tmp_path / "networks/net", _10_244_0_2="a")
    status, _, err = run("ipam", "free", "10.244.0.2", *place, "--yes")
    assert status == 1
    assert "10.244.0.2 is in use: veth0" in err


def test_ipam_free_without_a_terminal(
    run: Run, tmp_path: Path, place: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _reserve(tmp_path / "networks/net", _10_244_0_2="a eth0")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status, _, err = run("ipam", "free", "10.244.0.2", *place, "--force")
    assert status == 2
    assert "use --yes" in err


@pytest.mark.parametrize("kind", ["directory", "listing"])
def test_ipam_import_of_nothing(
    run: Run, tmp_path: Path, place: tuple[str, ...], kind: str
) -> None:
    source = tmp_path / "source"
    _reserve(source, lock="") if kind == "directory" else source.write_text("[]")
    status, out, err = run("ipam", "import", str(source), *place)
    assert (status, out) == (1, "")
    assert err.startswith(f"error 7: {source}: holds no reservation\n")


def test_ipam_import_of_addresses_outside_the_ranges(run: Run, tmp_path: Path) -> None:
    _reserve(tmp_path / "old", _10_244_0_2="a eth0", _10_9_0_2="b eth0")
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "data"), "subnet": "10.244.0.0/24"}
    path = _conflist(tmp_path / "a.conflist", {"type": "podwire", "ipam": ipam})
    arguments = ("ipam", "import", str(tmp_path / "old"), "--config", str(path))
    status, _, err = run(*arguments)
    assert status == 1
    assert err.startswith("error 101: 10.9.0.2: outside the ranges of the network (10.244.0.1-")
    assert not (tmp_path / "data").exists()
    status, out, _ = run(*arguments, "--force")
    assert status == 0
    assert "2 taken over" in out


def test_a_failure_with_json_is_json(run: Run, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.conflist")
    for command in (("routes", "show"), ("routes", "sync"), ("ipam", "list"), ("status",)):
        status, out, err = run(*command, "--config", missing, "--json")
        assert (status, err) == (1, "")
        error = json.loads(out)["error"]
        assert set(error) == {"code", "msg", "details"}
        assert error["code"] == Code.IO_FAILURE


# --- completion -------------------------------------------------------------------------------


@pytest.fixture
def complete() -> Callable[..., list[str]]:
    def call(*words: str) -> list[str]:
        completion = ShellComplete(cli.podwire, {}, "podwire", cli.COMPLETE_VARIABLE)
        *before, incomplete = words
        return [item.value for item in completion.get_completions(list(before), incomplete)]

    return call


def test_completion_of_reserved_addresses(
    complete: Callable[..., list[str]], tmp_path: Path, place: tuple[str, ...]
) -> None:
    _reserve(tmp_path / "networks/net", _10_244_0_2="a eth0", _10_244_1_3="b eth0")
    assert complete("ipam", "free", *place, "10.244.1") == ["10.244.1.3"]
    assert complete("ipam", "free", "--network", "other", "10") == []
    assert complete("ipam", "free", "--config", str(tmp_path / "none"), "10") == []


def test_completion_of_labs(
    complete: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("cni_plugin.lab.nodes.STATE", str(tmp_path))
    assert complete("lab", "down", "--name", "m") == ["mine"]


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--config"),
        ("routes", "show", "--inventory"),
        ("ipam", "list", "--data-dir"),
        ("ipam", "list", "--conf-dir"),
        ("ipam", "import"),
    ],
)
def test_completion_of_paths(words: tuple[str, ...]) -> None:
    completion = ShellComplete(cli.podwire, {}, "podwire", cli.COMPLETE_VARIABLE)
    (item,) = completion.get_completions(list(words), "x")
    assert item.type in ("file", "dir")


# --- routes -----------------------------------------------------------------------------------


def test_routes_without_an_inventory(run: Run, tmp_path: Path) -> None:
    path = _conflist(tmp_path / "a.conflist", {"type": "podwire"})
    status, _, err = run("routes", "show", "--config", str(path))
    assert status == 1
    assert "nodes: not set" in err
    assert "--inventory" in err


def test_routes_of_overlapping_nodes_are_refused(run: Run, tmp_path: Path) -> None:
    inventory = tmp_path / "nodes.json"
    cidrs = ["10.244.0.0/24"]
    entries = [{"name": f"n{i}", "addresses": [f"192.0.2.{i}"], "podCIDRs": cidrs} for i in (1, 2)]
    inventory.write_text(json.dumps({"nodes": entries}))
    arguments = ("routes", "show", "--inventory", str(inventory), "--node", "n1")
    status, out, err = run(*arguments)
    assert status == 1
    assert out.startswith("DESTINATION")
    assert err.startswith("error 106: ")
    assert "n1" in err
    assert "n2" in err
    status, out, err = run(*arguments, "--json")
    assert (status, err) == (1, "")
    assert json.loads(out)["error"]["code"] == Code.SUBNET_OVERLAP


def test_routes_that_are_missing(run: Run, tmp_path: Path) -> None:
    inventory = tmp_path / "nodes.json"
    entries = [
        {"name": f"n{i}", "addresses": [f"192.0.2.{i}"], "podCIDRs": [f"198.18.{i}.0/24"]}
        for i in (1, 2)
    ]
    inventory.write_text(json.dumps({"nodes": entries}))
    arguments = ("--inventory", str(inventory), "--node", "n1", "--json")
    status, out, _ = run("routes", "show", *arguments)
    assert status == 0
    [row] = json.loads(out)
    # Behind the machine's router if it has one; without any way nothing speaks for the overlay.
    assert (row["path"], row["via"]) in {("direct", "192.0.2.2"), ("vxlan", "198.18.2.0")}
    assert (row["dst"], row["node"]) == ("198.18.2.0/24", "n2")
    assert (row["state"], row["actual"]) == ("missing", None)
    status, out, err = run("routes", "show", *arguments[:-1])
    assert (status, out.split()[-1]) == (0, "missing")
    assert f"podwire routes sync --inventory {inventory} --node n1" in err


def test_routes_options_that_contradict(run: Run) -> None:
    assert run("routes", "show", "--node", "n1")[0] == 2
    assert run("routes", "show", "--inventory", "/x", "--config", "/y")[0] == 2


# --- the lab, as far as it needs no kernel ----------------------------------------------------


def test_lab_nodes_have_the_story_s_addresses() -> None:
    first, second = plan.node(1, (4, 6)), plan.node(2, (4, 6), subnet=1)
    assert first.addresses == ("192.168.1.2/24", "fd00:1::2/64")
    assert first.pod_cidrs == ("10.244.0.0/24", "fd00:10:244::/64")
    assert second.addresses == ("192.168.1.3/24", "fd00:1::3/64")
    assert second.pod_cidrs == first.pod_cidrs


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-x", "a" * 32])
def test_lab_names(name: str) -> None:
    with pytest.raises(CniError):
        Lab(name)


def test_a_lab_knows_its_own_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    present = [
        "podwire-a-switch",
        "podwire-a-node-10",
        "podwire-a-node-2-pod-1",
        "podwire-a-node-2",
        "podwire-a-b-node-1",
        "podwire-a-node-1-pod-1-x",
        "other",
    ]
    monkeypatch.setattr("cni_plugin.lab.spaces.names", lambda: present)
    assert [m.name for m in Lab("a").members()] == ["node-2", "node-2/pod-1", "node-10", "switch"]
    assert [m.name for m in Lab("a-b").members()] == ["node-1"]
    with pytest.raises(CniError, match="lab a has no node-1"):
        Lab("a").member("node-1")


def _end(name: str, address: str, *more: str) -> Endpoint:
    from ipaddress import ip_address

    return Endpoint(Member(name, name), ip_address(address), frozenset((address, *more)))


def test_matrix_tells_right_from_wrong() -> None:
    a, b = _end("node-1", "192.168.1.2", "10.244.0.1"), _end("node-1/pod-1", "10.244.0.2")
    right = [matrix.Path(a, b, "10.244.0.1", ""), matrix.Path(b, a, "10.244.0.2", "")]
    assert matrix.verdict(right) == (True, "2 of 2 paths work. NAT: none")
    translated = [right[0], matrix.Path(b, a, "192.168.1.2", "")]
    ok, text = matrix.verdict(translated)
    assert not ok
    assert text.startswith("1 of 2 paths work. NAT: 1. Wrong are ")
    assert "node-1/pod-1 to node-1: 192.168.1.2 NAT!" in text
    ok, text = matrix.verdict([right[0], matrix.Path(b, a, "", "timeout")])
    assert not ok
    assert "node-1/pod-1 to node-1: timeout" in text
    assert "NAT" not in text


def test_matrix_is_split_by_receiving_node() -> None:
    ends = [
        _end(f"node-{n}{pod}", f"10.24{n}.{p}.100")
        for n in range(2)
        for p, pod in enumerate(["", *(f"/pod-{i}" for i in range(1, 6))])
    ]
    paths = [matrix.Path(a, b, str(a.address), "") for a in ends for b in ends if a is not b]
    text = "\n".join(matrix.lines(paths))
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    assert all(len(line) <= 100 for block in blocks for line in block)
    columns = [name for block in blocks for name in block[0].split()[3:]]
    assert columns == [end.member.name for end in ends]
    assert all(len(block) == 2 + len(ends) for block in blocks)
