"""The node inventory: reading it, finding oneself in it, and refusing what overlaps."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import netconf, skel
from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from ipam.inventory import (
    MAX_INVENTORY_BYTES,
    Inventory,
    Node,
    find_self,
    load,
    parse,
)
from ipam.overlaps import refuse_foreign_subnet, refuse_overlaps

CONF = Path(__file__).parents[2] / "conf"
SOURCE = "/etc/podwire/nodes.json"


def node(name: str = "node-1", **fields: Any) -> dict[str, Any]:
    return {"name": name, "addresses": ["192.168.1.2"], **fields}


def encode(*nodes: Any, **fields: Any) -> bytes:
    return json.dumps({"nodes": list(nodes), **fields}).encode()


def cluster(*subnets: Sequence[str], prefix: str = "") -> Inventory:
    """node-1 at 192.168.1.2 with the first pod subnets, node-2 at .3 with the second, ..."""
    return parse(
        encode(
            *(
                node(
                    f"node-{number}", addresses=[f"192.168.1.{number + 1}{prefix}"], podCIDRs=cidrs
                )
                for number, cidrs in enumerate(subnets, 1)
            )
        ),
        SOURCE,
    )


def refused(code: int, *said: str, data: bytes) -> CniError:
    with pytest.raises(CniError) as caught:
        parse(data, SOURCE)
    assert caught.value.code == code
    assert caught.value.msg.startswith(f"{SOURCE}: ")
    for text in said:
        assert text in caught.value.msg
    return caught.value


# --- reading ----------------------------------------------------------------------------------


def test_nodes_in_the_order_of_the_file() -> None:
    inventory = parse(
        encode(
            node("b", addresses=["192.168.1.3/24", "fd00::3"], podCIDRs=["10.244.1.0/24"]),
            node("a", podCIDRs=["10.244.0.0/24", "fd00:10:244::/64"], _rack="7"),
            _comment="two",
            **{"$schema": "./nodes.schema.json"},
        ),
        SOURCE,
    )
    assert inventory == Inventory(
        SOURCE,
        (
            Node(
                "b",
                (ip_address("192.168.1.3"), ip_address("fd00::3")),
                (ip_network("192.168.1.0/24"),),
                (ip_network("10.244.1.0/24"),),
            ),
            Node(
                "a",
                (ip_address("192.168.1.2"),),
                (),
                (ip_network("10.244.0.0/24"), ip_network("fd00:10:244::/64")),
            ),
        ),
    )


def test_a_node_needs_no_pod_subnet() -> None:
    assert parse(encode(node()), SOURCE).nodes[0].pod_cidrs == ()


@pytest.mark.parametrize(
    ("nodes", "field"),
    [
        ([node(podCIDRs=["10.244.0.1/24"])], "nodes[0].podCIDRs[0]: "),
        ([node(podCIDRs=["10.244.0.0"])], "nodes[0].podCIDRs[0]: "),
        ([node(), node("b", addresses=["192.168.1.3"], podCIDRs=["x"])], "nodes[1].podCIDRs[0]: "),
        ([node(podCIDRs="10.244.0.0/24")], "nodes[0].podCIDRs: expected a list"),
        ([node(podCIDRs=[7])], "nodes[0].podCIDRs[0]: expected a string"),
        ([node(podCIDR=["10.244.0.0/24"])], 'nodes[0]: unknown key "podCIDR"'),
        ([node(addresses=[])], "nodes[0].addresses: "),
        ([node(addresses=None)], "nodes[0].addresses: "),
        ([node(addresses=["node-1"])], "nodes[0].addresses[0]: "),
        ([node(addresses=["192.168.1.2/33"])], "nodes[0].addresses[0]: "),
        ([node(addresses=["fe80::1%eth0"])], "nodes[0].addresses[0]: "),
        ([node(addresses=["192.168.1.2", "fe80::1"])], "nodes[0].addresses[1]: "),
        ([node(addresses=["fd00::1"]), node("b", addresses=["ff02::1"])], "nodes[1].addresses[0]"),
        ([node(), node(addresses=["192.168.1.3"])], "nodes[1].name: "),
        ([node(), node("b")], "nodes[1].addresses[0]: expected an address other than that of node"),
        ([node("")], "nodes[0].name: "),
        ([node("a b")], "nodes[0].name: "),
        ([node("a\n")], "nodes[0].name: "),
        ([node("n" * 254)], "nodes[0].name: "),
        ([{"addresses": ["192.168.1.2"]}], "nodes[0].name: "),
        (["node-1"], "nodes[0]: expected an object"),
        ([], "nodes: expected at least one node"),
    ],
)
def test_a_wrong_field_is_named(nodes: list[Any], field: str) -> None:
    refused(Code.INVALID_CONFIG, f"{SOURCE}: {field}", data=encode(*nodes))


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::1"])
def test_an_address_that_is_no_gateway(address: str) -> None:
    refused(Code.INVALID_CONFIG, "nodes[0].addresses[0]", data=encode(node(addresses=[address])))


@pytest.mark.parametrize("address", ["1.0.0.1", "223.255.255.254", "128.0.0.1", "::2", "fec0::1"])
def test_an_address_next_to_those_that_are_none(address: str) -> None:
    assert parse(encode(node(addresses=[address])), SOURCE).nodes[0].addresses


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"nodes": NaN}', "NaN"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "expected an object"),
        (b"{}", "nodes: expected at least one node"),
        (b'{"nodes": {}}', "nodes: expected a list"),
        (b'{"node": []}', 'unknown key "node"'),
        (b" " * (MAX_INVENTORY_BYTES + 1), "larger than"),
    ],
)
def test_a_file_of_another_shape(data: bytes, said: str) -> None:
    refused(Code.INVALID_CONFIG, said, data=data)


def test_the_known_keys_are_said() -> None:
    error = refused(7, data=encode(node(podCIDR=[])))
    assert "podCIDRs" in error.details


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["10.244.0.0/24", "192.168.1.2", "fd00::/64", "fd00::1/64", "node-1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["nodes", "name", "addresses", "podCIDRs", "_x"]) | st.text(), inner
        )
    ),
)
NODE_LIKE = st.fixed_dictionaries(
    {"name": st.just("node-1") | JSON_VALUES, "addresses": st.lists(JSON_VALUES, max_size=2)},
    optional={"podCIDRs": JSON_VALUES},
)


@given(JSON_VALUES | st.fixed_dictionaries({"nodes": st.lists(NODE_LIKE, max_size=3)}))
def test_any_json_is_read_or_refused(document: Any) -> None:
    try:
        parse(json.dumps(document).encode(), SOURCE)
    except CniError as e:
        assert e.code == Code.INVALID_CONFIG
        e.msg.encode()


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(CniError):
        parse(data, SOURCE)


# --- the file ---------------------------------------------------------------------------------


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_bytes(encode(node()))
    assert load(str(file)) == parse(file.read_bytes(), str(file))


def unreadable(path: str) -> CniError:
    with pytest.raises(CniError) as caught:
        load(path)
    return caught.value


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    error = unreadable(f"{tmp_path}/nodes.json")
    assert error.code == Code.IO_FAILURE
    assert error.msg.startswith("nodes: ")
    assert f"{tmp_path}/nodes.json" in error.msg or "..." in error.msg
    assert "No such file" in error.msg


@pytest.mark.parametrize("path", ["/", "/\0", "/\ud800"])
def test_a_path_that_is_no_file(path: str) -> None:
    error = unreadable(path)
    assert error.code == Code.IO_FAILURE
    error.msg.encode()


def test_a_relative_path() -> None:
    assert unreadable("nodes.json").code == Code.INVALID_CONFIG


@pytest.mark.timeout(10)
def test_a_fifo_does_not_hold_up_an_add(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "nodes.json")
    assert unreadable(f"{tmp_path}/nodes.json").code == Code.INVALID_CONFIG


def test_a_file_without_end_is_not_read_to_it() -> None:
    assert "larger than" in unreadable("/dev/zero").msg


# --- which node is this one -------------------------------------------------------------------

THREE = cluster(["10.244.0.0/24"], ["10.244.1.0/24"], ["10.244.2.0/24"])


def not_asked() -> list[IPAddress]:
    raise AssertionError("addresses were not needed")


def ours(*addresses: str) -> list[IPAddress]:
    return [ip_address(address) for address in ("127.0.0.1", "::1", *addresses)]


def test_the_name_given_comes_first() -> None:
    assert find_self(THREE, "node-2", "node-1", not_asked) is THREE.nodes[1]


def test_the_address_comes_before_the_hostname() -> None:
    found = find_self(THREE, "", "node-1", lambda: ours("192.168.1.3", "10.0.0.1"))
    assert found is THREE.nodes[1]


@pytest.mark.parametrize("hostname", ["node-3", "NODE-3"])
@pytest.mark.parametrize("addresses", [(), ("192.168.1.2", "192.168.1.3")])
def test_the_hostname_when_addresses_do_not_decide(
    hostname: str, addresses: tuple[str, ...]
) -> None:
    assert find_self(THREE, "", hostname, lambda: ours(*addresses)) is THREE.nodes[2]


def test_an_unknown_name_is_not_guessed_around() -> None:
    many = cluster(*([] for _ in range(20)))
    with pytest.raises(CniError) as caught:
        find_self(many, "node-99", "node-1", lambda: ours("192.168.1.2"))
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith("nodeName: ")
    assert "node-99" in caught.value.msg
    assert SOURCE in caught.value.msg
    assert "node-1, node-2" in caught.value.details
    assert "and 12 more" in caught.value.details


@pytest.mark.parametrize("addresses", [(), ("192.168.1.2", "192.168.1.3")])
def test_no_way_leads_to_a_node(addresses: tuple[str, ...]) -> None:
    with pytest.raises(CniError) as caught:
        find_self(THREE, "", "elsewhere", lambda: ours(*addresses))
    assert caught.value.code == Code.INVALID_CONFIG
    for said in (SOURCE, "nodeName", "address", "hostname", "elsewhere"):
        assert said in caught.value.msg
    if addresses:
        assert "node-1, node-2" in caught.value.msg


# --- uniqueness -------------------------------------------------------------------------------


def overlap(inventory: Inventory, own: int = 0, local: Sequence[tuple[str, str]] = ()) -> CniError:
    networks = [(link, ip_network(network)) for link, network in local]
    with pytest.raises(CniError) as caught:
        refuse_overlaps(inventory, inventory.nodes[own], networks)
    assert caught.value.code == Code.SUBNET_OVERLAP
    assert SOURCE in caught.value.details
    return caught.value


def test_two_nodes_with_one_subnet() -> None:
    inventory = cluster(["10.244.0.0/24"], ["10.244.0.0/24"])
    error = overlap(inventory, own=1)
    assert error.msg == (
        "pod subnet 10.244.0.0/24 of node node-2 overlaps 10.244.0.0/24 of node node-1"
    )
    assert error.details == f"give each node a podCIDR of its own in {SOURCE}"
    assert overlap(inventory, own=0).msg == (
        "pod subnet 10.244.0.0/24 of node node-1 overlaps 10.244.0.0/24 of node node-2"
    )


def test_the_overlap_of_this_node_is_reported_first() -> None:
    inventory = cluster(["10.244.0.0/24"], ["10.244.0.0/24"], ["10.245.0.0/16"], ["10.245.7.0/24"])
    assert overlap(inventory, own=3).msg == (
        "pod subnet 10.245.7.0/24 of node node-4 overlaps 10.245.0.0/16 of node node-3"
    )


def test_two_peers_with_one_subnet() -> None:
    error = overlap(cluster(["10.244.0.0/24"], ["10.0.9.0/24"], ["10.0.0.0/16"]))
    assert "10.0.9.0/24 of node node-2" in error.msg
    assert "10.0.0.0/16 of node node-3" in error.msg


def test_a_node_that_overlaps_itself() -> None:
    error = overlap(cluster(["10.244.0.0/24", "10.244.0.128/25"]))
    assert error.msg.startswith("pod subnet 10.244.0.")
    assert error.msg.endswith("of node node-1 itself")


def test_a_subnet_that_holds_a_node() -> None:
    inventory = cluster(["10.244.0.0/24"], ["192.168.1.0/30"])
    assert overlap(inventory).msg == (
        "pod subnet 192.168.1.0/30 of node node-2 overlaps the address 192.168.1.2 of node node-1"
    )


def test_a_subnet_inside_a_node_network() -> None:
    error = overlap(cluster(["10.244.0.0/24"], ["192.168.1.128/25"], prefix="/24"))
    assert error.msg.startswith(
        "pod subnet 192.168.1.128/25 of node node-2 overlaps the node network 192.168.1.0/24 of"
    )
    assert "outside the networks of the nodes" in error.details


@pytest.mark.parametrize("own", [0, 1])
def test_a_subnet_that_is_connected_to_this_node(own: int) -> None:
    inventory = cluster(["10.244.0.0/24"], ["10.244.1.0/24"])
    error = overlap(inventory, own, local=[("eth0", "192.168.1.0/24"), ("eth{1}", "10.244.1.0/25")])
    assert error.msg.startswith(
        "pod subnet 10.244.1.0/24 of node node-2 overlaps"
        f" link eth{{1}}'s network 10.244.1.0/25 of node node-{own + 1}"
    )
    assert error.msg.endswith(" itself") is (own == 1)


def test_neighbours_do_not_overlap() -> None:
    inventory = cluster(
        ["10.244.0.0/25", "10.244.0.128/25", "fd00::/65"],
        ["10.244.1.0/24", "fd00:0:0:0:8000::/65"],
        prefix="/24",
    )
    local = [("eth0", ip_network("192.168.1.0/24")), ("eth1", ip_network("192.168.0.0/16"))]
    refuse_overlaps(inventory, inventory.nodes[0], local)


def test_the_families_do_not_meet() -> None:
    inventory = cluster(["10.244.0.0/24"], ["::a00:0/104"])
    refuse_overlaps(inventory, inventory.nodes[0])


def networks_in(base: str, bits: int) -> st.SearchStrategy[IPNetwork]:
    """Subnets of a small network, so that random ones do meet."""
    whole = ip_network(base)
    subnets: list[IPNetwork] = [net for more in range(bits + 1) for net in whole.subnets(more)]
    return st.sampled_from(subnets)


NETWORKS = networks_in("10.0.0.0/27", 5) | networks_in("fd00::/123", 5)
ADDRESSES = NETWORKS.map(lambda network: network.network_address)
NODES = st.lists(
    st.tuples(
        st.lists(ADDRESSES, max_size=2),
        st.lists(NETWORKS, max_size=1),
        st.lists(NETWORKS, max_size=3),
    ),
    min_size=1,
    max_size=5,
)
LOCAL = st.lists(st.tuples(st.just("eth0"), NETWORKS), max_size=2)


@given(NODES, LOCAL, st.data())
def test_overlaps_as_by_brute_force(
    drawn: list[tuple[list[IPAddress], list[IPNetwork], list[IPNetwork]]],
    local: list[tuple[str, IPNetwork]],
    data: st.DataObject,
) -> None:
    nodes = tuple(
        Node(f"n{i}", tuple(addresses), tuple(networks), tuple(cidrs))
        for i, (addresses, networks, cidrs) in enumerate(drawn)
    )
    own = data.draw(st.sampled_from(nodes))
    pods = [(n.name, number, cidr) for n in nodes for number, cidr in enumerate(n.pod_cidrs)]
    taken = [(n.name, network) for n in nodes for network in n.networks]
    taken += [(n.name, ip_network(address)) for n in nodes for address in n.addresses]
    taken += [(own.name, network) for _, network in local]
    pairs = [(a[0], b[0]) for a, b in product(pods, pods) if a[:2] < b[:2] and meet(a[2], b[2])]
    pairs += [
        (pod[0], name) for pod, (name, network) in product(pods, taken) if meet(pod[2], network)
    ]
    try:
        refuse_overlaps(Inventory(SOURCE, nodes), own, local)
    except CniError as e:
        assert e.code == Code.SUBNET_OVERLAP
        named = [pair for pair in pairs if all(f"node {name}" in e.msg for name in pair)]
        assert named
        if any(own.name in pair for pair in pairs):
            assert f"of node {own.name}" in e.msg
    else:
        assert not pairs


def meet(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def test_five_thousand_nodes_are_checked_quickly() -> None:
    base = int(ip_address("10.0.0.0"))
    first = ip_address("172.16.0.1")
    nodes = tuple(
        Node(
            f"node-{i}",
            (first + i,),
            (ip_network("172.16.0.0/16"),),
            (ip_network((base + i * 256, 24)),),
        )
        for i in range(5000)
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        refuse_overlaps(Inventory(SOURCE, nodes), nodes[2500])
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # some 30 ms; the margin is for a busy machine, quadratic takes minutes


# --- subnets of the ipam section --------------------------------------------------------------


@pytest.mark.parametrize("subnet", ["10.244.0.0/24", "10.244.0.64/26", "fd00:10:244::/80"])
def test_a_subnet_of_this_node(subnet: str) -> None:
    inventory = cluster(["10.244.0.0/24", "fd00:10:244::/64"], ["10.244.1.0/24"])
    refuse_foreign_subnet(inventory, inventory.nodes[0], ip_network(subnet))


@pytest.mark.parametrize("subnet", ["10.244.1.0/24", "10.244.1.64/26", "10.244.0.0/16"])
def test_a_subnet_of_another_node(subnet: str) -> None:
    inventory = cluster(["10.244.0.0/24"], ["10.244.1.0/24"])
    with pytest.raises(CniError) as caught:
        refuse_foreign_subnet(inventory, inventory.nodes[0], ip_network(subnet))
    assert caught.value.code == Code.SUBNET_OVERLAP
    assert caught.value.msg == (
        f"ipam: subnet {subnet} of node node-1 overlaps 10.244.1.0/24 of node node-2"
    )


@pytest.mark.parametrize("subnet", ["10.245.0.0/24", "10.244.0.0/23", "fd00::/64"])
def test_a_subnet_of_nobody(subnet: str) -> None:
    inventory = cluster(["10.244.0.0/24"], ["10.244.9.0/24"])
    with pytest.raises(CniError) as caught:
        refuse_foreign_subnet(inventory, inventory.nodes[0], ip_network(subnet))
    assert caught.value.code == Code.INVALID_CONFIG
    assert subnet in caught.value.msg
    assert "10.244.0.0/24" in caught.value.msg


# --- conf/ ------------------------------------------------------------------------------------


def schema() -> jsonschema.Draft202012Validator:
    document = json.loads((CONF / "nodes.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_the_example_is_valid_and_without_overlap() -> None:
    data = (CONF / "nodes.example.json").read_bytes()
    schema().validate(json.loads(data))
    inventory = parse(data, SOURCE)
    refuse_overlaps(inventory, inventory.nodes[0])


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"nodes": []},
        {"nodes": [node()], "node": []},
        {"nodes": [node(podCIDR=[])]},
        {"nodes": [node(addresses=[])]},
        {"nodes": [node(podCIDRs=["10.244.0.0"])]},
        {"nodes": [node("a b")]},
        {"nodes": [{"name": "node-1"}]},
    ],
)
def test_schema_and_parser_refuse_the_same(document: Any) -> None:
    assert not schema().is_valid(document)
    refused(Code.INVALID_CONFIG, data=json.dumps(document).encode())


MADE = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/n"}],
    "ips": [{"address": "10.87.0.2/16", "interface": 0}],
}


@pytest.mark.parametrize("path", sorted(CONF.glob("*.conflist")), ids=lambda path: path.name)
def test_the_templates_are_configurations(path: Path) -> None:
    conflist = json.loads(path.read_text())
    plugin, *chained = conflist["plugins"]
    assert {entry["type"] for entry in conflist["plugins"]} == {"podwire"}
    assert conflist["cniVersion"] in conflist["cniVersions"]
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/n",
        "CNI_IFNAME": "eth0",
    }
    for version in conflist["cniVersions"]:
        stdin = json.dumps({"cniVersion": version, "name": conflist["name"], **plugin}).encode()
        conf = netconf.parse(skel.parse_request(environ, stdin))
        assert conf.is_default_gateway
        assert conf.nodes in ("", SOURCE)
        for entry in chained:  # it adds to what the first has made
            stdin = json.dumps(
                {**entry, "cniVersion": version, "name": conflist["name"], "prevResult": MADE}
            ).encode()
            assert netconf.parse(skel.parse_request(environ, stdin)).chained
