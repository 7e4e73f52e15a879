"""VERSION, which the client answers itself: as in process, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni_plugin import client, skel
from cni_plugin.spec import SUPPORTED_VERSIONS
from tests.unit.fake_agent import called, encoded


def environ(path: str, command: str) -> bytes:
    return encoded({client.SOCKET_VARIABLE: path, "CNI_COMMAND": command})


def version(stdin: bytes) -> Any:
    """The client's own reply; None when it leaves it to others."""
    outcome = called(environ("/proc/nowhere", "VERSION"), stdin)
    if outcome.status is None:
        assert outcome.stdout == b""
        return None
    assert outcome.status == 0
    return json.loads(outcome.stdout)


@pytest.mark.parametrize("stated", [*SUPPORTED_VERSIONS, "0.0.1", "2.0.0", "1.1", "10.20.30"])
@pytest.mark.parametrize(
    "form", ['{"cniVersion":"%s"}', '{"cniVersion": "%s"}\n', ' {"cniVersion":\r\n\t"%s" } ']
)
def test_version_of_what_runtimes_send(stated: str, form: str) -> None:
    stdin = (form % stated).encode()
    assert version(stdin) == json.loads(skel.encode_version(stdin))


@pytest.mark.parametrize("stdin", [b"", b" ", b"\n\n"])
def test_version_of_nothing(stdin: bytes) -> None:
    assert version(stdin) == json.loads(skel.encode_version(stdin))


fragments = st.sampled_from(
    [
        '{"cniVersion":',
        '"1.0.0"',
        "}",
        " ",
        "\n",
        "\x0b",
        "\x0c",
        '"',
        "1.",
        "0",
        ",",
        "\\u0031",
        '"name":"x"',
        "null",
        "{",
        "\xa0",
        '"1. 0.0"',
        '""',
        "5",
    ]
)


@given(stdin=st.lists(fragments, max_size=7).map(lambda parts: "".join(parts).encode()))
@example(stdin=b'{"cniVersion":"1. 0.0"}')
@example(stdin=b'{\x0b"cniVersion":"1.0.0"}')
@example(stdin=b'{"cniVersion":""}')
@example(stdin=b'{"cniVersion":"1.0.0","cniVersion":"0.4.0"}')
@example(stdin=b"\x0b")
@example(stdin=b'\x0b{"cniVersion":"1.0.0"}')
@settings(max_examples=500)
def test_version_means_what_it_means_in_process(stdin: bytes) -> None:
    found = version(stdin)
    if found is not None:
        assert found == json.loads(skel.encode_version(stdin))
