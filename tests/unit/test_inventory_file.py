"""The inventory that podwire writes itself, what it says of the overlay, how fast it is read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.crossnode import CrossNode
from cni_plugin.fields import Fields, as_address, as_interface, as_network
from cni_plugin.spec import CniError, Code
from ipam import inventory, nodes, texts
from ipam.inventory import Inventory, Node, encode, load, parse, write
from ipam.overlaps import _any_conflict, _claims, _first_conflict, refuse_overlaps
from ipam.peers import ROUTED, desired, underlay_address, underlay_version, vtep, vtep_mac

SCHEMA = json.loads((Path(__file__).parents[2] / "conf" / "nodes.schema.json").read_text())
SOURCE = "/var/lib/podwire/nodes.json"
MAC = "0a:58:0a:f4:00:01"


def node(name: str, addresses: str, pod_cidrs: str = "", **more: Any) -> Node:
    return Node(
        name,
        tuple(map(ip_address, addresses.split())),
        pod_cidrs=tuple(map(ip_network, pod_cidrs.split())),
        **more,
    )


A = node("a", "192.168.1.2 fd00:1::2", "10.244.1.0/24 fd00:10:1::/64")
B = node("b", "192.168.1.3", "10.244.2.0/24", vtep_mac=MAC, overlay_address=ip_address("10.0.0.3"))


# --- writing ----------------------------------------------------------------------------------


def test_a_line_for_each_node_and_nothing_that_is_not_known() -> None:
    assert encode([A, B, node("c", "192.168.1.4")]).decode() == (
        '{"nodes": [\n'
        '{"name": "a", "addresses": ["192.168.1.2", "fd00:1::2"],'
        ' "podCIDRs": ["10.244.1.0/24", "fd00:10:1::/64"]},\n'
        '{"name": "b", "addresses": ["192.168.1.3"], "podCIDRs": ["10.244.2.0/24"],'
        ' "overlayAddress": "10.0.0.3", "vtepMAC": "0a:58:0a:f4:00:01"},\n'
        '{"name": "c", "addresses": ["192.168.1.4"]}\n'
        "]}\n"
    )


_written = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(["192.168.1.2", "192.168.1.3"])),
    unique_by=lambda each: each[0],
    max_size=6,
)


@given(st.lists(st.tuples(_written, st.sampled_from(["", "gone", "other"])), max_size=6))
@settings(deadline=None)
def test_a_line_that_is_known_is_not_made_again(
    turns: list[tuple[list[tuple[str, str]], str]],
) -> None:
    """And the file says the same, whatever was written before and happened to it."""
    known: inventory.Lines = {}
    objects: dict[tuple[str, str], Node] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "nodes.json"
        for drawn, harm in turns:
            nodes = tuple(objects.setdefault(each, node(*each)) for each in drawn)
            if harm == "gone":
                path.unlink(missing_ok=True)
            elif harm == "other":
                path.write_text("{}")
            before = path.read_bytes() if path.exists() else None
            with patch.object(inventory.entries, "line", wraps=inventory.entries.line) as line:
                written = write(str(path), nodes, known)
            assert path.read_bytes() == encode(nodes)
            assert written or before == encode(nodes)
            assert line.call_count <= len(nodes)
            with patch.object(inventory.entries, "line", side_effect=AssertionError):
                assert not write(str(path), nodes, known)


def test_one_new_line_among_many() -> None:
    many = [node(f"n{number:04}", f"10.0.{number >> 8}.{number & 255}") for number in range(600)]
    known: inventory.Lines = {}
    with TemporaryDirectory() as folder:
        path = f"{folder}/nodes.json"
        write(path, many, known)
        many[300] = node("n0300", "10.1.0.1")
        del many[20]
        with patch.object(inventory.entries, "line", wraps=inventory.entries.line) as line:
            write(path, many, known)
        assert line.call_count == 1
        assert Path(path).read_bytes() == encode(many)


def test_what_is_written_is_read_again() -> None:
    with_networks = parse(
        b'{"nodes": [{"name": "n", "addresses": ["192.168.1.2/24", "10.0.0.1", "fd00::2/64"]}]}', ""
    ).nodes
    for written in ((A, B), with_networks):
        data = encode(written)
        assert parse(data, SOURCE).nodes == written
        jsonschema.validate(json.loads(data), SCHEMA)


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "podwire" / "nodes.json"
    old = os.umask(0o077)
    try:
        assert write(str(path), [A, B])
    finally:
        os.umask(old)
    assert load(str(path)).nodes == (A, B)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    before = path.stat()
    assert not write(str(path), [A, B])
    assert path.stat() == before
    assert write(str(path), [A])
    assert path.stat().st_ino != before.st_ino
    assert os.listdir(path.parent) == ["nodes.json"]


def test_a_write_that_was_killed_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".nodes.json.new").write_text('{"nodes": [')
    assert write(str(tmp_path / "nodes.json"), [A])
    assert os.listdir(tmp_path) == ["nodes.json"]


def test_what_can_not_be_written_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    path.mkdir()
    with pytest.raises(CniError) as caught:
        write(str(path), [A])
    assert caught.value.code == Code.IO_FAILURE
    assert str(path) in caught.value.msg
    assert os.listdir(tmp_path) == ["nodes.json"]
    (tmp_path / "file").touch()
    with pytest.raises(CniError, match=r"file/nodes\.json"):
        write(str(tmp_path / "file" / "nodes.json"), [A])


# --- what it says of the overlay --------------------------------------------------------------


def parsed(**fields: Any) -> Node:
    entry = {"name": "a", "addresses": ["192.168.1.2"], **fields}
    (found,) = parse(json.dumps({"nodes": [entry]}).encode(), SOURCE).nodes
    return found


def test_the_keys_of_the_overlay() -> None:
    assert parsed()[4:] == (None, "")
    assert parsed(overlayAddress="10.0.0.7", vtepMAC=MAC)[4:] == (ip_address("10.0.0.7"), MAC)
    assert parsed(overlayAddress=None, vtepMAC=None)[4:] == (None, "")
    assert parsed(vtepMAC="0A:58:0A:F4:00:01").vtep_mac == MAC


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("overlayAddress", "127.0.0.1", "can reach"),
        ("overlayAddress", "10.0.0.7/24", "expected an IP address"),
        ("overlayAddress", 7, "expected a string"),
        ("vtepMAC", "01:00:5e:00:00:01", "one station"),
        ("vtepMAC", "00:00:00:00:00:00", "one station"),
        ("vtepMAC", "0a580af40001", "one station"),
        ("vtepMAC", 7, "expected a string"),
    ],
)
def test_values_of_the_overlay_that_can_not_be(key: str, value: object, said: str) -> None:
    with pytest.raises(CniError, match=said) as caught:
        parsed(**{key: value})
    assert caught.value.code == Code.INVALID_CONFIG
    assert f"nodes[0].{key}" in caught.value.msg
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(
        {"nodes": [{"name": "a", "addresses": ["192.168.1.2"], key: value}]}
    ) or value in ("127.0.0.1", "01:00:5e:00:00:01", "00:00:00:00:00:00")


def test_two_nodes_with_one_link_layer_address() -> None:
    with pytest.raises(CniError, match=r"nodes\[1\].vtepMAC: .* other than that of node b"):
        parse(encode([B, A._replace(vtep_mac=MAC)]), SOURCE)


def test_peers_are_reached_as_they_say() -> None:
    """By its own link-layer address, at the address it names, which may be none of its others."""
    known = Inventory(SOURCE, (A, B))
    peers = desired(known, A, CrossNode(backend="vxlan"), lambda address: ROUTED)
    assert peers.tunnels == {MAC: ip_address("10.0.0.3")}
    assert set(peers.neighbours.values()) == {MAC}
    assert vtep(1, B) == MAC
    assert vtep(1, A) == vtep_mac(1, "a")


def test_an_address_of_the_other_version_says_nothing() -> None:
    other = B._replace(overlay_address=ip_address("fd00:9::3"))
    cross = CrossNode(backend="vxlan")
    assert underlay_version(Inventory(SOURCE, (A, other)), cross) == 4
    assert underlay_address(other, 4, cross) == ip_address("192.168.1.3")
    assert underlay_address(B, 4, cross, ip_network("192.168.1.0/24")) == ip_address("10.0.0.3")


# --- reading fast -----------------------------------------------------------------------------

_CHARS = "0123456789abcdefABCDEF.:/%x- \0١"
_addresses = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda a: a.exploded),
    st.text(_CHARS, max_size=20),
    st.sampled_from(
        ["1.2.3", "01.2.3.4", "1.2.3.256", "::ffff:1.2.3.4", "::1.2.3.4", "1:2:3:4:5:6:7::", ":::"]
    ),
)
_prefixed = st.one_of(
    _addresses,
    st.builds("{}/{}".format, _addresses, st.integers(-1, 130)),
    st.builds("{}/{}".format, _addresses, st.sampled_from(["024", "", "+8", "٢", "255.0.0.0"])),
    st.ip_addresses(v=4).flatmap(
        lambda a: st.integers(0, 32).map(lambda n: str(IPv4Network((int(a), n), strict=False)))
    ),
    st.ip_addresses(v=6).flatmap(
        lambda a: st.integers(0, 128).map(lambda n: str(IPv6Network((int(a), n), strict=False)))
    ),
)


def taken(read: Callable[[], Any]) -> Any:
    """What was read; None for a refusal."""
    try:
        return read()
    except CniError:
        return None


@given(_addresses)
def test_an_address_is_read_as_the_careful_reader_reads_it(text: str) -> None:
    assert texts.address(text) in (None, taken(lambda: as_address(text, "")))


@given(_prefixed)
def test_networks_are_read_as_the_careful_reader_reads_them(text: str) -> None:
    assert texts.network(text) in (None, taken(lambda: as_network(text, "")))
    careful = taken(lambda: as_interface(text, ""))
    both = None if careful is None else (careful.ip, careful.network)
    assert texts.interface(text) in (None, both)


@pytest.mark.parametrize("text", ["10.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "::"])
def test_usual_texts_are_taken(text: str) -> None:
    assert texts.address(text) == ip_address(text)
    assert texts.interface(f"{text}/8") is not None
    width = ip_address(text).max_prefixlen
    assert texts.network(f"{text}/{width}") == ip_network(text)


_entries = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "node-1", "", "-", 7, None]),
        "addresses": st.one_of(
            st.lists(_prefixed, max_size=3), st.sampled_from(["10.0.0.1", None, {}, [7]])
        ),
        "podCIDRs": st.one_of(
            st.lists(_prefixed, max_size=3), st.sampled_from(["", None, {"10.0.0.0/8": 1}, [None]])
        ),
        "overlayAddress": st.one_of(_addresses, st.sampled_from([None, 7])),
        "vtepMAC": st.sampled_from([MAC, MAC.upper(), "", None, 7, "01:00:00:00:00:00"]),
        "_comment": st.just(1),
        "podCIDR": st.just("10.0.0.0/8"),
    },
)


@given(_entries)
def test_an_entry_is_read_as_the_careful_reader_reads_it(entry: dict[str, Any]) -> None:
    assert nodes.read_plain(entry) in (None, taken(lambda: nodes.read(Fields(entry, "nodes[0]"))))


def test_what_podwire_writes_is_read_fast() -> None:
    for written in (A, B):
        assert nodes.read_plain(json.loads(nodes.line(written))) == written


_few = st.sampled_from(
    [f"10.0.{i}.0/{size}" for i in (0, 1) for size in (24, 26)] + ["10.0.0.0/16", "fd00::/64"]
)


@given(
    st.lists(
        st.tuples(st.lists(_few, max_size=2), st.sampled_from(["10.0.0.1", "10.0.1.7", "1.1.1.1"])),
        min_size=1,
        max_size=4,
    ),
    st.lists(_few, max_size=1),
)
def test_overlaps_are_met_by_the_sweep_without_names(
    drawn: list[tuple[list[str], str]], local: list[str]
) -> None:
    found = tuple(
        Node(f"n{i}", (ip_address(address),), (), tuple(map(ip_network, cidrs)))
        for i, (cidrs, address) in enumerate(drawn)
    )
    known = Inventory(SOURCE, found)
    links = [("eth0", ip_network(text)) for text in local]
    named = _first_conflict(_claims(known, found[0], links))
    assert _any_conflict(found, [network for _, network in links]) == (named is not None)


def test_5000_nodes_are_read_and_compared_at_once() -> None:
    """In 75 ms on a slow machine: the bound is for one that has more to do."""
    many = [
        Node(
            f"node-{i}",
            (ip_address(0xAC100000 + i),),
            (),
            (IPv4Network((0x0A000000 + 256 * i, 24)),),
            ip_address(0xAC100000 + i),
            f"0a:00:00:00:{i >> 8:02x}:{i & 255:02x}",
        )
        for i in range(5000)
    ]
    data = encode(many)
    assert len(data) < inventory.MAX_INVENTORY_BYTES / 10
    taken_s = []
    for _ in range(3):
        begun = time.process_time()
        known = parse(data, SOURCE)
        refuse_overlaps(known, known.nodes[0])
        taken_s.append(time.process_time() - begun)
    assert min(taken_s) < 0.5
