"""Configurations that are remembered: the same answer, sooner, and none for another question."""

from __future__ import annotations

import pytest

from cni_plugin import netconf
from cni_plugin.memo import Memo
from cni_plugin.skel import parse_request
from cni_plugin.spec import CniError, Code
from ipam import config


class Counted:
    """A function that tells how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def test_a_known_configuration_is_not_read_again() -> None:
    memo, make = Memo(), Counted()
    assert [memo.of(make, b"{}", "x") for _ in range(3)] == [1, 1, 1]
    assert memo.of(make, b"{}", "y") == 2
    assert memo.of(make, b"{ }", "x") == 3


@pytest.mark.parametrize("config", [b"", b"x" * (16 * 1024 + 1)], ids=["none", "large"])
def test_without_bytes_and_with_many_nothing_is_remembered(config: bytes) -> None:
    memo, make = Memo(), Counted()
    assert [memo.of(make, config) for _ in range(3)] == [1, 2, 3]


def test_it_holds_a_few_and_no_more() -> None:
    memo, make = Memo(), Counted()
    for number in range(1000):
        memo.of(make, b"%d" % number)
    assert len(memo._known) <= 16
    assert memo.of(make, b"999") == 1000


def test_an_error_is_found_anew() -> None:
    memo, make = Memo(), Counted()

    def fail() -> int:
        raise CniError(Code.INVALID_CONFIG, str(make()))

    for number in ("1", "2"):
        with pytest.raises(CniError, match=number):
            memo.of(fail, b"{}")


def request(args: str = "", name: str = "podnet", subnet: str = "10.1.0.0/24"):
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/x",
        "CNI_ARGS": args,
    }
    ipam = f'{{"type": "host-local", "subnet": "{subnet}"}}'
    conf = f'{{"cniVersion": "1.0.0", "name": "{name}", "type": "podwire", "ipam": {ipam}}}'
    return parse_request(environ, conf.encode())


def test_what_the_runtime_asks_for_one_pod_is_not_the_next_ones() -> None:
    asking = request("MAC=02:00:00:00:00:07;IP=10.1.0.7")
    for _ in range(2):
        assert netconf.parse(asking).mac == "02:00:00:00:00:07"
        assert [str(ip) for ip in config.parse(asking).requested] == ["10.1.0.7"]
        assert netconf.parse(request()).mac == ""
        assert config.parse(request()).requested == ()


def test_networks_and_ranges_are_kept_apart() -> None:
    for _ in range(2):
        assert netconf.parse(request(name="a")).network == "a"
        assert netconf.parse(request(name="b")).network == "b"
        for subnet, gateway in (("10.1.0.0/24", "10.1.0.1/24"), ("10.2.0.0/16", "10.2.0.1/16")):
            read = config.parse(request(subnet=subnet))
            assert str(read.range_sets[0][0].subnet) == subnet
            assert [str(gateway) for gateway in read.gateways] == [gateway]
