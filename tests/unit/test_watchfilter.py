"""What the kernel keeps back of the route watch: cni_plugin/kernel/watchfilter.py.

A program for a netlink socket runs on any other as well, so the kernel itself is asked here.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Collection, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cni_plugin.kernel import watchfilter
from cni_plugin.kernel.watch import RouteWatch

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_NEWROUTE, _DELROUTE, _NEWNEIGH, _DELNEIGH = 24, 25, 28, 29
_MULTI = 0x2
_POD = re.compile(r"veth[0-9a-f]{11}|pwi[0-9a-f]{12}")
_OVERLAY, _BRIDGE = 3, 4


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _link(name: str, family: int = 0, first: int = 3) -> bytes:
    head = struct.pack("=BxHiII", family, 1, 9, 0x41, 0)
    return head + _attribute(first, name.encode() + b"\0") + _attribute(4, bytes(4))


def _route(
    table: int = 254, kind: int = 1, length: int = 24, protocol: int = 2, dst: bytes = b"\x0a"
) -> bytes:
    head = struct.pack("=8BI", 2, length, 0, 0, table, protocol, 0, kind, 0)
    return head + _attribute(15, struct.pack("=I", table)) + _attribute(1, dst.ljust(16, b"\0"))


def _address(scope: int) -> bytes:
    return struct.pack("=4Bi", 2, 24, 0, scope, 2)


def _neighbour(index: int) -> bytes:
    return struct.pack("=B3xiHBB", 7, index, 0x80, 0, 0)


Hears = Callable[..., bool]


@pytest.fixture(scope="module")
def hears() -> Iterator[Hears]:
    """hears(kind, body): whether a socket with the filter gets such a message."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.setblocking(False)

    def heard(
        kind: int, body: bytes, flags: int = 0, overlays: Collection[int] = (_OVERLAY,)
    ) -> bool:
        watchfilter.attach(receiver, overlays)
        data = struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
        sender.send(data)
        try:
            return receiver.recv(1 << 16) == data
        except BlockingIOError:
            return False

    with sender, receiver:
        yield heard


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("vethabcdef01234", False),
        ("pwi0123456789ab", False),
        ("eth0", True),
        ("cni0", True),
        ("pwvx1", True),
        ("vethabcdef0123", True),  # another plugin's: told apart by the watch
        ("vethABCDEF01234", True),
        ("vethabcdef0123g", True),
        ("vethabcdef0123/", True),
        ("vethabcdef0123:", True),
        ("vethabcdef0123`", True),
        ("vethernet-lan-1", True),
        ("pwi0123456789a_", True),
        ("pwig123456789ab", True),
        ("pwx0123456789ab", True),
        ("wetharbcdef0123", True),
    ],
)
@pytest.mark.parametrize("kind", [_NEWLINK, _DELLINK])
def test_links_of_pods_are_kept_back(hears: Hears, kind: int, name: str, passes: bool) -> None:
    assert hears(kind, _link(name)) is passes
    assert not hears(kind, _link(name, family=7))  # what a bridge says of its port
    assert hears(kind, _link(name), flags=_MULTI)  # the answer to a question
    assert hears(kind, _link(name, first=2))


@given(name=st.from_regex(r"\A(veth|pwi|pwv|eth)[0-9a-zA-F:/`@.-]{1,12}\Z"))
@example("veth0123456789a")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_only_names_of_pods_links(hears: Hears, name: str) -> None:
    assert hears(_NEWLINK, _link(name[:15])) is not bool(_POD.fullmatch(name[:15]))


@pytest.mark.parametrize(
    ("kinds", "body", "passes"),
    [
        ((_NEWROUTE, _DELROUTE), _route(), True),
        ((_NEWROUTE, _DELROUTE), _route(table=255), False),
        ((_NEWROUTE, _DELROUTE), _route(kind=5), False),
        ((_NEWROUTE, _DELROUTE), _route(length=64, dst=b"\xfe\x80"), False),
        ((_NEWROUTE, _DELROUTE), _route(length=64, dst=b"\xfe\x81"), True),
        ((_NEWROUTE, _DELROUTE), _route(length=65, dst=b"\xfe\x80"), True),
        ((_NEWROUTE, _DELROUTE), _route(length=64, dst=b"\xfe\x80", protocol=3), True),
        ((_NEWADDR, _DELADDR), _address(0), True),
        ((_NEWADDR, _DELADDR), _address(253), False),
        ((_NEWNEIGH, _DELNEIGH), _neighbour(_OVERLAY), True),
        ((_NEWNEIGH, _DELNEIGH), _neighbour(_BRIDGE), False),
        ((_NEWNEIGH, _DELNEIGH), _neighbour(_OVERLAY << 24), False),
        ((2, 3, 4711), b"\0" * 4, True),
    ],
)
def test_the_rest(hears: Hears, kinds: tuple[int, ...], body: bytes, passes: bool) -> None:
    for kind in kinds:
        assert hears(kind, body) is passes
        assert hears(kind, body, flags=_MULTI)


def test_overlays(hears: Hears) -> None:
    assert not hears(_NEWNEIGH, _neighbour(_OVERLAY), overlays=())
    some, many = range(100, 116), range(100, 200)
    assert [i for i in range(90, 130) if hears(_NEWNEIGH, _neighbour(i), overlays=some)] == [*some]
    assert hears(_NEWNEIGH, _neighbour(7), overlays=many)  # too many to name: all
    assert not hears(_NEWROUTE, _route(table=255), overlays=many)


@pytest.fixture
def watch() -> RouteWatch:
    made = RouteWatch.__new__(RouteWatch)
    made.links = {
        2: (b"eth0", 0x41, 1500),
        _OVERLAY: (b"pwvx1", 0x41, 1450),
        _BRIDGE: (b"cni0", 0x41, 1500),
        9: (b"eth9", 0, 0),
    }
    return made


_LINKS = _NEWLINK, _DELLINK
_OTHERS = _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH, _DELNEIGH
_names = st.sampled_from(("eth0", "eth9", "pwvx1", "vethabcdef01234"))
_messages = st.one_of(
    # A link's message without its name there is none, and what is said of one goes by that.
    st.tuples(st.sampled_from(_OTHERS), st.binary(min_size=16, max_size=64)),
    st.tuples(st.sampled_from(_LINKS), st.builds(_link, _names, st.sampled_from((0, 7)))),
    st.tuples(
        st.sampled_from((_NEWROUTE, _DELROUTE)),
        st.builds(
            _route,
            st.sampled_from((252, 254, 255)),
            st.sampled_from((0, 1, 5)),
            st.sampled_from((63, 64)),
            st.sampled_from((2, 3, 112)),
            st.sampled_from((b"\xfe\x80", b"\xfd\x80")),
        ),
    ),
    st.tuples(
        st.sampled_from((_NEWADDR, _DELADDR)),
        st.builds(_address, st.sampled_from((0, 200, 253, 254))),
    ),
    st.tuples(st.sampled_from((_NEWNEIGH, _DELNEIGH)), st.builds(_neighbour, st.integers(0, 9))),
)


@given(message=_messages)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_kept_back_says_nothing(
    hears: Hears, watch: RouteWatch, message: tuple[int, bytes]
) -> None:
    known = dict(watch.links)
    if not hears(*message):
        assert watch.word(*message) == ""
    watch.links = known  # the next message is not to meet what this one said
