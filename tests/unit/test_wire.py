"""Framing: what one end packs the other takes apart, and nothing else passes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import wire

_PACKAGE = Path(wire.__file__).parent
_SHARED = {"struct", "json", "sys"}  # what MicroPython has as well


@given(
    ipam=st.booleans(),
    errno=st.integers(0, 0xFFFF),
    home=st.integers(0, 2**64 - 1),
    version=st.text(max_size=20),
    environ=st.binary(max_size=99),
    stdin=st.binary(max_size=99),
)
def test_a_request_is_what_it_was(
    ipam: bool, errno: int, home: int, version: str, environ: bytes, stdin: bytes
) -> None:
    data = wire.request(ipam, errno, home, version, environ, stdin)
    header = wire.request_header(data[: wire.REQUEST_BYTES])
    sizes = len(version.encode()), len(environ), len(stdin)
    assert header == (ipam, errno, home, *sizes)
    assert data[wire.REQUEST_BYTES :] == version.encode() + environ + stdin


@given(
    verdict=st.sampled_from([wire.SERVED, wire.DECLINED]),
    status=st.integers(0, 255),
    body=st.binary(max_size=99),
)
def test_a_reply_is_what_it_was(verdict: int, status: int, body: bytes) -> None:
    data = wire.reply(verdict, status, body)
    assert wire.reply_header(data[: wire.REPLY_BYTES]) == (verdict, status, len(body))
    assert data[wire.REPLY_BYTES :] == body


@given(data=st.binary(min_size=wire.REPLY_BYTES, max_size=wire.REPLY_BYTES))
def test_other_bytes_are_no_reply(data: bytes) -> None:
    if data[:4] != wire.MAGIC:
        with pytest.raises(wire.WireError):
            wire.reply_header(data)


@given(data=st.binary(min_size=wire.REQUEST_BYTES, max_size=wire.REQUEST_BYTES))
def test_other_bytes_are_no_request(data: bytes) -> None:
    if data[:4] != wire.MAGIC:
        with pytest.raises(wire.WireError):
            wire.request_header(data)


@pytest.mark.parametrize("size", [wire.LARGEST_REPLY + 1, 2**32 - 1])
def test_a_reply_larger_than_any_is_none(size: int) -> None:
    header = wire.reply(wire.SERVED, 0, b"")[:-4] + size.to_bytes(4, "little")
    with pytest.raises(wire.WireError):
        wire.reply_header(header)


@pytest.mark.parametrize("verdict", range(2, 256))
def test_an_unknown_verdict_is_none(verdict: int) -> None:
    with pytest.raises(wire.WireError):
        wire.reply_header(wire.reply(verdict, 0, b""))


@pytest.mark.parametrize(
    ("environ", "stdin"), [(wire.LARGEST_ENVIRON + 1, 0), (0, wire.LARGEST_STDIN + 1)]
)
def test_a_request_larger_than_any_is_none(environ: int, stdin: int) -> None:
    data = wire.request(False, 0, 1, "1", b"", b"")[: wire.REQUEST_BYTES]
    sizes = environ.to_bytes(4, "little") + stdin.to_bytes(4, "little")
    with pytest.raises(wire.WireError):
        wire.request_header(data[:-16] + sizes + data[-8:])


def test_a_heartbeat_never_begins_a_reply() -> None:
    """The client strips heartbeats in front of a reply."""
    assert wire.MAGIC[:1] != wire.HEARTBEAT
    assert len({wire.HEARTBEAT, wire.CONFIRMATION, wire.UNDONE}) == 3


@pytest.mark.parametrize("name", ["wire.py", "client.py", "cniversions.py", "probing.py"])
def test_the_sources_keep_to_what_micropython_has(name: str) -> None:
    tree = ast.parse((_PACKAGE / name).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    frozen = {"client", "cniversions", "sysio", "wire"}
    assert {name.name for node in imports for name in node.names} <= _SHARED | frozen
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"cni_plugin", "cni_plugin.version", "version"}
