"""The network configuration of a node: made from a template, put in place, told from others'."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import confdir, conflists, installation, netconf, skel
from cni_plugin.confdir import in_use
from cni_plugin.conflists import default_template, is_ours, place, remove, render
from cni_plugin.spec import CniError, Code
from ipam import config
from tests.unit.strategies import json_values

CONF = Path(__file__).parents[2] / "conf"
NODES = "/var/lib/podwire/nodes.json"
SUBNETS = tuple(map(ip_network, ("10.244.1.0/24", "fd00:10:1::/64", "10.245.1.0/24")))


def rendered(template: dict[str, Any] | None = None, mtu: int = 1450) -> dict[str, Any]:
    text = render(default_template() if template is None else template, SUBNETS, NODES, "n1", mtu)
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def refused(template: dict[str, Any]) -> CniError:
    with pytest.raises(CniError) as caught:
        rendered(template)
    assert caught.value.code == Code.INVALID_CONFIG
    return caught.value


def plugin(**fields: Any) -> dict[str, Any]:
    return {"type": "podwire", "ipam": {"type": "host-local"}, **fields}


# --- making it --------------------------------------------------------------------------------


def test_the_default_template_is_that_of_the_static_configuration() -> None:
    template = default_template()
    static = json.loads((CONF / "05-podwire.conflist").read_text())
    del static["plugins"][0]["nodes"]
    assert template == static


def test_what_a_node_adds() -> None:
    found = rendered()
    assert found.pop(conflists.MARK)
    (added,) = found.pop("plugins")
    (plain,) = default_template()["plugins"]
    assert added.pop("ipam") == {
        "type": "host-local",
        "ranges": [
            [{"subnet": "10.244.1.0/24"}, {"subnet": "10.245.1.0/24"}],
            [{"subnet": "fd00:10:1::/64"}],
        ],
    }
    del plain["ipam"]
    mark = {conflists.MARK: added[conflists.MARK]}
    assert added == {**plain, "nodes": NODES, "nodeName": "n1", "mtu": 1450, **mark}
    assert found == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "podwire",
    }


def test_podwire_takes_it() -> None:
    """As a runtime hands it over, with the ranges that the template could not know."""
    document = rendered()
    conf = {**document["plugins"][0], "name": document["name"], "cniVersion": "1.1.0"}
    request = skel.parse_request({"CNI_COMMAND": "STATUS"}, json.dumps(conf).encode())
    parsed = netconf.parse(request)
    assert (parsed.nodes, parsed.node_name, parsed.mtu) == (NODES, "n1", 1450)
    assert parsed.is_default_gateway
    ranges = config.parse(request, SUBNETS).range_sets
    assert {entry.subnet for entries in ranges for entry in entries} == set(SUBNETS)


def test_a_template_of_one_plugin() -> None:
    found = rendered(plugin(name="pods", cniVersion="0.4.0", vxlan={"vni": 7}))
    assert (found["name"], found["cniVersion"]) == ("pods", "0.4.0")
    assert "cniVersions" not in found
    (only,) = found["plugins"]
    assert only["vxlan"] == {"vni": 7}
    assert not {"name", "cniVersion"} & set(only)


def test_what_the_template_says_is_kept() -> None:
    template = {
        "name": "pods",
        "disableCheck": True,
        "_why": "a comment",
        "plugins": [
            {"type": "first", "mtu": 9},
            plugin(mtu=1300, ipam={"routes": [{"dst": "1.1.1.1/32"}], "dataDir": "/data"}),
            {"type": "tuning", "sysctl": {}},
        ],
    }
    before = json.dumps(template)
    found = rendered(template)
    assert json.dumps(template) == before
    assert (found["disableCheck"], found["_why"]) == (True, "a comment")
    first, ours, last = found["plugins"]
    assert (first, last) == (template["plugins"][0], template["plugins"][2])  # type: ignore[index]
    assert ours["mtu"] == 1300
    assert (ours["ipam"]["routes"], ours["ipam"]["dataDir"]) == ([{"dst": "1.1.1.1/32"}], "/data")
    assert ours["ipam"]["type"] == "host-local"


def test_without_an_mtu_the_plugin_chooses() -> None:
    assert "mtu" not in rendered(mtu=0)["plugins"][0]
    assert rendered({"plugins": [plugin(mtu=0)]})["plugins"][0]["mtu"] == 1450


def test_the_same_again_is_the_same_text() -> None:
    texts = {render(default_template(), SUBNETS, NODES, "n1", 1450) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"plugins": [{"type": "bridge"}]}, '"type": "podwire", got ["bridge"]'),
        ({"plugins": []}, "plugins"),
        ({"plugins": "podwire"}, "plugins: expected a list"),
        ({"plugins": ["podwire"]}, "plugins[0]: expected an object"),
        ({}, "plugins"),
        (plugin(name=7), "name: expected a string"),
        (plugin(mtu="1450"), "plugins[0].mtu: expected a whole number"),
        (plugin(ipam={"type": "dhcp"}), "plugins[0].ipam.type: expected host-local"),
        (plugin(ipam=7), "plugins[0].ipam: expected an object"),
        (plugin(ipam={"subnet": "10.1.0.0/16"}), "plugins[0].ipam.subnet: expected none"),
        (plugin(ipam={"ranges": [[{"subnet": "10.1.0.0/16"}]]}), "ipam.ranges: expected none"),
    ],
)
def test_a_template_that_can_not_be_used(template: dict[str, Any], said: str) -> None:
    assert said in refused(template).msg


@given(st.dictionaries(st.sampled_from(["plugins", "name", "type", "ipam", "x"]), json_values))
def test_any_template_is_used_or_refused(template: dict[str, Any]) -> None:
    try:
        assert is_ours(render(template, SUBNETS, NODES, "n1", 1450))
    except CniError as e:
        assert e.code == Code.INVALID_CONFIG


# --- and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [0, 1450])
def test_a_template_of_what_was_made(mtu: int) -> None:
    """What is made of it is the same file, whatever the MTU is now."""
    template = {
        "name": "net",
        "cniVersion": "1.0.0",
        "plugins": [
            {"type": "tuning"},
            {"type": "podwire", "ipam": {"type": "podwire-ipam", "dataDir": "/d"}, "ipMasq": True},
        ],
    }
    text = render(template, SUBNETS, NODES, "n1", mtu)
    former = conflists.template_of(text)
    assert former is not None
    assert render(former, SUBNETS, NODES, "n1", mtu) == text
    if mtu:
        assert render(former, SUBNETS, NODES, "n1", 1400) == text


@pytest.mark.parametrize(
    "text", ["{", "[]", conflists.plain(["10.0.0.0/24"], ""), '{"_podwire": "", "plugins": 1}']
)
def test_no_template_of_anything_else(text: str) -> None:
    assert conflists.template_of(text) is None


def test_stamps_of_a_folder(tmp_path: Path) -> None:
    assert confdir.stamps(str(tmp_path / "none")) == ()
    seen = [confdir.stamps(str(tmp_path))]

    def differs() -> bool:
        seen.append(confdir.stamps(str(tmp_path)))
        return seen[-1] not in seen[:-1]

    path = tmp_path / "a.conf"
    path.write_text("{}")
    assert differs()
    path.write_text("{ }")
    assert differs()
    (tmp_path / ".a.conf.new").write_text("{}")
    assert not differs()
    path.rename(tmp_path / "b.conf")
    assert differs()


# --- whose it is, and where it lies -----------------------------------------------------------


AGENTS = render(default_template(), SUBNETS, NODES, "n1", 1450)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_it_is_put_in_place_once(folder: Path) -> None:
    path = folder / conflists.NAME
    (folder / f".{conflists.NAME}.new").write_text("of one that was killed")
    assert place(str(folder), AGENTS)
    assert path.read_text() == AGENTS
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat()
    assert not place(str(folder), AGENTS)
    assert path.stat() == before
    assert place(str(folder), AGENTS.replace("1450", "1400"))
    assert remove(str(folder)) is True
    assert remove(str(folder)) is False


def test_what_was_changed_in_it_is_written_over(folder: Path) -> None:
    """The mark says so to whoever changes it; who removes the mark has a file of their own."""
    path = folder / conflists.NAME
    path.write_text(json.dumps(json.loads(AGENTS.replace("cni0", "br9"))))
    assert place(str(folder), AGENTS)
    own = json.loads(AGENTS)
    del own[conflists.MARK]
    path.write_text(json.dumps(own))
    for refusal in (
        lambda: place(str(folder), AGENTS),
        lambda: conflists.refuse_foreign(str(path)),
    ):
        with pytest.raises(CniError, match="not as podwire writes it") as caught:
            refusal()
        assert caught.value.code == Code.IO_FAILURE
    assert remove(str(folder)) is None
    assert json.loads(path.read_text()) == own


def test_what_install_wrote_is_replaced_and_the_other_way_round(folder: Path) -> None:
    static = installation.conflist(["10.244.1.0/24"], "")
    assert is_ours(static)
    assert not is_ours(static.replace("cni0", "br9"))
    assert installation.place_conflist(str(folder), static)
    assert place(str(folder), AGENTS)
    assert installation.has_conflist(str(folder))
    assert installation.remove_conflist(str(folder)) is True


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[]",
            "7",
            "{}",
            '{"plugins": []}',
            json.dumps({"name": "x", "plugins": []}),
            "[" * 10**5,
        ),
        AGENTS.rstrip()[:-1] + ",}",  # a mistake of somebody who has edited it
    ],
)
def test_what_is_nobodys(text: str, folder: Path) -> None:
    assert not is_ours(text)
    (folder / conflists.NAME).write_text(text)
    with pytest.raises(CniError):
        place(str(folder), AGENTS)
    assert remove(str(folder)) is None


@pytest.mark.parametrize("text", ["", " ", "{", "\0" * 700, "\ufffd", AGENTS[:200], AGENTS[:-3]])
def test_what_a_power_cut_leaves_of_it(text: str, folder: Path) -> None:
    """Empty or cut off: nobody's network is in it."""
    assert not is_ours(text)
    (folder / conflists.NAME).write_text(text)
    conflists.refuse_foreign(str(folder / conflists.NAME))
    assert place(str(folder), AGENTS)
    assert (folder / conflists.NAME).read_text() == AGENTS
    (folder / conflists.NAME).write_text(text)
    assert remove(str(folder)) is True


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for step in (place, remove):
        arguments = (str(tmp_path / "none"), AGENTS)[: 2 if step is place else 1]
        if step is remove:
            assert remove(*arguments) is False
            continue
        with pytest.raises(CniError, match="none/05-podwire") as caught:
            place(*arguments)
        assert caught.value.code == Code.IO_FAILURE
    assert in_use(str(tmp_path / "none")) is None


# --- which one counts -------------------------------------------------------------------------

FLANNEL = {"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}


def test_the_first_by_name_is_used(folder: Path) -> None:
    assert in_use(str(folder)) is None
    place(str(folder), AGENTS)
    found = in_use(str(folder))
    assert found == (str(folder / conflists.NAME), "podwire", ("podwire",), "")
    assert found.ours
    (folder / "05-cilium.conflist").write_text(json.dumps(FLANNEL))
    found = in_use(str(folder))
    assert found is not None
    assert (found.path, found.network) == (str(folder / "05-cilium.conflist"), "cbr0")
    assert found.types == ("flannel", "portmap")
    assert not found.ours


@pytest.mark.timeout(20)
def test_a_fifo_keeps_nobody_waiting(folder: Path) -> None:
    os.mkfifo(folder / "00-fifo.conf")
    place(str(folder), AGENTS)
    found = in_use(str(folder))
    assert found is not None
    assert found.ours
    (folder / conflists.NAME).unlink()
    os.mkfifo(folder / conflists.NAME)
    with pytest.raises(CniError) as refused:
        place(str(folder), AGENTS)
    assert refused.value.code == 5


@pytest.mark.parametrize("name", ["00-x.conflist.bak", ".00.conflist.new", "00-x", "00-x.yaml"])
def test_names_that_runtimes_pass_over(folder: Path, name: str) -> None:
    place(str(folder), AGENTS)
    (folder / name).write_text(json.dumps(FLANNEL))
    os.mkdir(folder / "01-folder.conflist")
    found = in_use(str(folder))
    assert found is not None
    assert found.ours
    (folder / name).unlink()


@pytest.mark.parametrize("ending", ["conf", "json"])
def test_a_single_plugin(folder: Path, ending: str) -> None:
    (folder / f"00-one.{ending}").write_text('{"name": "one", "type": "bridge"}')
    found = in_use(str(folder))
    assert found is not None
    assert (found.network, found.types) == ("one", ("bridge",))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("00.conflist", "{", "not valid JSON"),
        ("00.conflist", "[" * 10**5, "not valid JSON"),
        ("00.conflist", "[]", "expected an object"),
        ("00.conflist", '{"type": "bridge", "name": "one"}', "no plugins"),
        ("00.conflist", '{"name": "x", "plugins": [{}]}', "no plugins with a type"),
        ("00.conflist", '{"plugins": [{"type": "bridge"}]}', "no name"),
        ("00.conflist", '{"name": "x", "plugins": 7}', "plugins: expected a list"),
        ("00.conf", json.dumps(FLANNEL), "of its own"),
        ("00.json", " " * (2 << 20) + "{}", "larger than"),
    ],
)
def test_files_that_can_not_be_used(folder: Path, name: str, text: str, said: str) -> None:
    """Passed over where there is a better one; told of where there is none."""
    (folder / name).write_text(text)
    found = in_use(str(folder))
    assert found is not None
    assert said in found.problem
    place(str(folder), AGENTS)
    better = in_use(str(folder))
    assert better is not None
    assert better.ours
    assert [each.problem for each in confdir.candidates(str(folder))] == [found.problem, ""]
    assert confdir.stopping(str(folder)) == found
    (folder / name).rename(folder / f"99-{name}")
    assert confdir.stopping(str(folder)) is None


def test_a_link_that_leads_nowhere(folder: Path) -> None:
    os.symlink("nowhere", folder / "00.conflist")
    found = in_use(str(folder))
    assert found is not None
    assert "No such file" in found.problem


# --- what people write ------------------------------------------------------------------------

_LIST = conflists.default_template()
_PLUGINS: list[Any] = _LIST["plugins"]


def deep(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cniVersions": 5}, "cniVersions: expected"),
        ({"cniVersions": [[]]}, "cniVersions[0]: expected"),
        ({"cniVersion": ["1.0.0"]}, "cniVersion: expected"),
        ({"cniVersion": None}, "cniVersion: expected a version beside cniVersions"),
        ({"name": 5}, "name: expected"),
        ({"plugins": {}}, "plugins: expected"),
        ({"plugins": [*_PLUGINS, 5]}, "plugins[1]: expected"),
        ({"plugins": [*_PLUGINS, {"foo": 1}]}, "plugins[1].type: expected the name of a plugin"),
        ({"plugins": [*_PLUGINS, {"type": 5}]}, "plugins[1].type: expected"),
        ({"plugins": [*_PLUGINS, {"type": "../x"}]}, "plugins[1].type: expected"),
        ({"x": deep(5000)}, "nested too deeply"),
    ],
)
def test_a_list_of_another_shape(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(CniError) as refused:
        conflists.render({**_LIST, **changes}, (), "/nodes.json", "node-1", 0)
    assert refused.value.code == Code.INVALID_CONFIG
    assert field in refused.value.msg


def test_what_is_null_is_as_not_there() -> None:
    nulls = {"cniVersions": None, "cniVersion": None, "disableCheck": None}
    text = conflists.render({**_LIST, **nulls}, (), "/nodes.json", "node-1", 0)
    assert text == conflists.render(_LIST, (), "/nodes.json", "node-1", 0)
