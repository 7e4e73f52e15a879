"""What ADD tells the runtime: equal to what the kernel holds, in every version's format."""

from __future__ import annotations

import pytest

ROUTES = [{"dst": "10.9.0.0/16"}, {"dst": "fd00:9::/64", "gw": "fd00:10:244::1"}]
OF_INTERFACES = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def in_kernel(node, sandbox, result):
    """The links of a result, as the kernel shows them."""
    return [
        (sandbox if interface.get("sandbox") else node).links()[interface["name"]]
        for interface in result["interfaces"]
    ]


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("mode", ["bridge", "ptp"])
@pytest.mark.parametrize("version", OF_INTERFACES)
def test_the_result_equals_the_kernel(plugin, node, sandbox, make_conf, dual, version, mode):
    conf = make_conf(cniVersion=version, mode=mode, ipam={"ranges": dual.ranges, "routes": ROUTES})
    result = plugin.add(conf, sandbox).result
    assert result["cniVersion"] == version
    links = in_kernel(node, sandbox, result)
    kinds = [link["linkinfo"]["info_kind"] for link in links]
    assert kinds == (["bridge"] if mode == "bridge" else []) + ["veth", "veth"]
    for told, link in zip(result["interfaces"], links, strict=True):
        assert told["mac"] == link["address"]
        assert told.get("mtu") == (link["mtu"] if version == "1.1.0" else None)
    pod = len(links) - 1
    assert [told.get("sandbox", "") for told in result["interfaces"]] == ["", "", sandbox.path][
        -len(links) :
    ]
    assert result["interfaces"][pod]["name"] == "eth0"
    assert links[pod]["link_index"] == links[pod - 1]["ifindex"]
    hosts = dual.interfaces(2) if mode == "bridge" else ["10.244.0.2/32", "fd00:10:244::2/128"]
    tagged = [{"version": v} if version < "1" else {} for v in ("4", "6")]
    assert result["ips"] == [
        {"address": address, "gateway": gateway, "interface": pod, **tag}
        for address, gateway, tag in zip(hosts, dual.hosts(1), tagged, strict=True)
    ]
    told_routes = [(route["dst"], route.get("gw")) for route in result["routes"]]
    assert told_routes[:2] == [("10.9.0.0/16", None), ("fd00:9::/64", "fd00:10:244::1")]
    assert told_routes[2:] == [("0.0.0.0/0", "10.244.0.1"), ("::/0", "fd00:10:244::1")]
    assert ("dns" in result) == (version < "1")


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "", None])
def test_the_first_versions(plugin, sandbox, make_conf, dual, version):
    conf = make_conf(cniVersion=version, ipam={"ranges": dual.ranges, "routes": ROUTES})
    result = plugin.add(conf, sandbox).result
    assert result == {
        "cniVersion": version or "0.1.0",
        "ip4": {
            "ip": "10.244.0.2/24",
            "gateway": "10.244.0.1",
            "routes": [{"dst": "10.9.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.0.1"}],
        },
        "ip6": {
            "ip": "fd00:10:244::2/64",
            "gateway": "fd00:10:244::1",
            "routes": [
                {"dst": "fd00:9::/64", "gw": "fd00:10:244::1"},
                {"dst": "::/0", "gw": "fd00:10:244::1"},
            ],
        },
        "dns": {},
    }
    assert sorted(sandbox.addresses("eth0")) == sorted(dual.interfaces(2))
    assert plugin.delete(conf, sandbox).ok


def test_the_first_versions_have_no_result_without_an_address(
    plugin, node, sandbox, make_conf, untouched
):
    conf = make_conf(cniVersion="0.2.0", isGateway=None, isDefaultGateway=None)
    del conf["ipam"]
    with untouched(node, sandbox):
        assert plugin.add(conf, sandbox).error["msg"]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_what_came_before_in_the_chain_is_passed_on(plugin, sandbox, make_conf, version):
    """prevResult of ADD in front, its indexes untouched; CHECK is content with the whole."""
    sandbox.run("ip", "link", "add", "net0", "type", "bridge")
    sandbox.run("ip", "addr", "add", "10.99.0.5/24", "dev", "net0")
    sandbox.run("ip", "link", "set", "net0", "up")
    sandbox.run("ip", "route", "add", "10.98.0.0/16", "via", "10.99.0.1")
    mac = sandbox.links()["net0"]["address"]
    tag = {"version": "4"} if version < "1" else {}
    earlier = {
        "cniVersion": version,
        "interfaces": [{"name": "net0", "mac": mac, "sandbox": sandbox.path}],
        "ips": [{"address": "10.99.0.5/24", "interface": 0, **tag}],
        "routes": [{"dst": "10.98.0.0/16", "gw": "10.99.0.1"}],
        "dns": {"nameservers": ["10.99.0.53"]},
    }
    conf = make_conf(cniVersion=version)
    result = plugin.add(conf, sandbox, prev=earlier).result
    assert [link["name"] for link in result["interfaces"]][::3] == ["net0", "eth0"]
    assert result["interfaces"][0] == earlier["interfaces"][0]
    assert result["ips"][0] == earlier["ips"][0]
    assert result["ips"][1] == {
        "address": "10.244.0.2/24", "gateway": "10.244.0.1", "interface": 3, **tag
    }  # fmt: skip
    assert result["routes"][0] == earlier["routes"][0]
    assert result["dns"] == earlier["dns"]
    assert plugin.check(conf, sandbox, prev=result).ok
    assert plugin.delete(conf, sandbox, prev=result).ok
    assert set(sandbox.links()) == {"lo", "net0"}
