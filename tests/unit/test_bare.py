"""The private copy of pyroute2's message classes: the same bytes as its own, and no trace."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from cni_plugin.kernel import bare

RTNL = "pyroute2.netlink.rtnl"
LINK_KINDS = (
    *("bond", "can", "geneve", "gtp", "ipoib", "ipvlan", "team", "tun", "tuntap", "vlan"),
    *("vrf", "vti", "vti6", "vxlan", "xfrm"),
)
MAC = "0a:58:0a:f4:00:02"


def _info(kind: str, data: dict[str, Any] | None = None) -> tuple[str, Any]:
    attrs: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)]
    if data is not None:
        attrs.append(("IFLA_INFO_DATA", data))
    return ("IFLA_LINKINFO", {"attrs": attrs})


_PEER = {"attrs": [("IFLA_IFNAME", "eth0"), ("IFLA_ADDRESS", MAC), ("IFLA_NET_NS_FD", 5)]}
_PORT = {"attrs": [("IFLA_BRPORT_MODE", 1), ("IFLA_BRPORT_ISOLATED", 1)]}
_SLAVE = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", _PORT)]}
_VXLAN = {"attrs": [("IFLA_VXLAN_ID", 1), ("IFLA_VXLAN_LOCAL", "192.0.2.1")]}
_VLAN = {"attrs": [("IFLA_VLAN_ID", 7)]}
_VIA = {"family": 10, "addr": "2001:db8::1"}

MESSAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "empty link": ("ifinfmsg", {}),
    "named link": ("ifinfmsg", {"index": 3, "attrs": [("IFLA_IFNAME", "cni0")]}),
    "flags, MTU, alias": (
        "ifinfmsg",
        {"flags": 1, "change": 1, "attrs": [("IFLA_MTU", 9000), ("IFLA_IFALIAS", "podwire")]},
    ),
    "bridge": ("ifinfmsg", {"attrs": [_info("bridge", {"attrs": [("IFLA_BR_STP_STATE", 0)]})]}),
    "veth": ("ifinfmsg", {"attrs": [_info("veth", {"attrs": [("VETH_INFO_PEER", _PEER)]})]}),
    "port": ("ifinfmsg", {"attrs": [("IFLA_LINKINFO", _SLAVE)]}),
    "vxlan": ("ifinfmsg", {"attrs": [_info("vxlan", _VXLAN)]}),
    "vlan": ("ifinfmsg", {"attrs": [_info("vlan", _VLAN)]}),
    "MAC address": ("ifinfmsg", {"attrs": [("IFLA_ADDRESS", MAC), ("IFLA_MASTER", 2)]}),
    "IPv4 address": (
        "ifaddrmsg",
        {
            "family": 2,
            "prefixlen": 24,
            "index": 3,
            "attrs": [("IFA_ADDRESS", "10.244.0.2"), ("IFA_BROADCAST", "10.244.0.255")],
        },
    ),
    "IPv6 address": (
        "ifaddrmsg",
        {"family": 10, "prefixlen": 64, "attrs": [("IFA_LOCAL", "fd00::2"), ("IFA_FLAGS", 2)]},
    ),
    "IPv4 route": (
        "rtmsg",
        {
            "family": 2,
            "dst_len": 16,
            "attrs": [
                ("RTA_DST", "10.244.0.0"),
                ("RTA_GATEWAY", "10.244.0.1"),
                ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1400)]}),
            ],
        },
    ),
    "route by another family": ("rtmsg", {"family": 2, "attrs": [("RTA_VIA", _VIA)]}),
    "IPv6 route": ("rtmsg", {"family": 10, "attrs": [("RTA_DST", "fd00::"), ("RTA_OIF", 4)]}),
    "neighbour": (
        "ndmsg",
        {"family": 2, "ifindex": 3, "attrs": [("NDA_DST", "10.0.0.1"), ("NDA_LLADDR", MAC)]},
    ),
}


def _bytes(cls: Any, value: dict[str, Any]) -> bytes:
    message = cls()
    message.setvalue(value)
    message.encode()
    return bytes(message.data)


def _decoded(cls: Any, data: bytes) -> str:
    """As text: attributes of two copies of a class are never equal as objects."""
    message = cls(data)
    message.decode()
    return repr(message.getvalue())


def _both(name: str) -> tuple[Any, Any]:
    real = getattr(import_module(f"{RTNL}.{name}"), name)
    private = getattr(bare, name)
    assert private is not real
    return real, private


@pytest.mark.parametrize("title", MESSAGES)
def test_the_same_bytes_as_pyroute2s_own_classes(title: str) -> None:
    name, value = MESSAGES[title]
    real, private = _both(name)
    data = _bytes(real, value)
    assert len(data) >= 16
    assert _bytes(private, value) == data
    assert _decoded(private, data) == _decoded(real, data)


@pytest.mark.parametrize("kind", LINK_KINDS)
def test_every_kind_of_link_has_its_class(kind: str) -> None:
    """Loaded when it is met first, or at once: whichever, its attributes have the same names."""
    real, private = (cls.ifinfo.data_map[kind] for cls in _both("ifinfmsg"))
    assert [tuple(entry) for entry in private.nla_map] == [tuple(entry) for entry in real.nla_map]


def test_no_kind_of_link_is_missing() -> None:
    real, private = (cls.ifinfo.data_map for cls in _both("ifinfmsg"))
    assert private.keys() == real.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ifinfmsg", {"attrs": [("IFLA_MTU", "no number")]}),
        ("ifaddrmsg", {"family": 2, "attrs": [("IFA_ADDRESS", "no address")]}),
    ],
)
def test_what_cannot_be_encoded_fails_alike(
    name: str, value: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The way to an error goes through stand-ins: logging, traceback."""
    real, private = _both(name)
    logged = []
    for cls in (real, private):
        caplog.clear()
        with pytest.raises(Exception, match=r".") as raised:
            _bytes(cls, value)
        logged.append((type(raised.value), str(raised.value), len(caplog.records)))
    assert logged[0] == logged[1]


def test_a_logger_logs_under_the_modules_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pyroute2.netlink"):
        bare.load("pyroute2.netlink").log.info("hello")
    assert [record.name for record in caplog.records] == ["pyroute2.netlink"]


def test_what_a_stand_in_lacks_comes_from_the_real_module() -> None:
    module = bare.load("pyroute2.netlink")
    assert module.threading.Thread is import_module("threading").Thread
    assert bare.load(f"{RTNL}.ifinfmsg").config.gc_timeout == 60


def test_a_module_is_loaded_once() -> None:
    assert bare.load(f"{RTNL}.ifinfmsg").ifinfmsg is bare.ifinfmsg
    assert bare.load(f"{RTNL}.ndmsg").nlmsg is bare.load("pyroute2.netlink").nlmsg


def test_a_module_that_does_not_exist() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pyroute2\.nothing"):
        bare.load("pyroute2.nothing")


def test_sys_modules_gets_nothing_of_it() -> None:
    """A later import of pyroute2, or of what had a stand-in, is whole."""
    code = (
        "import sys, cni_plugin.kernel.bare as b\n"
        "assert not [m for m in sys.modules if m.startswith('pyroute2')]\n"
        "import pyroute2, logging, socket, typing, weakref\n"
        "assert socket.AF_INET.name == 'AF_INET' and weakref.WeakValueDictionary\n"
        "assert typing.Optional[int] and logging.Handler\n"
        "from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg\n"
        "assert ifinfmsg is not b.ifinfmsg\n"
        "print(pyroute2.IPRoute.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("IPRoute\n", "")
