"""The agent's log: one call is one line, whatever names and texts hold."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni_plugin.agent import log

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "]*)(?: |$)')
HOSTILE = ['a\nlevel=info msg="x"', '"', "\\", "a b", "a=b", "", "\x1b[2J", "\x00", "é", "\u2028"]
HOSTILE += ["\ud800", "\udcff", "\r", "\x7f", "\x85"]


def written(kind: str, fields: dict[str, object], msg: str = "served") -> str:
    """One record as the log has it."""
    record = logging.makeLogRecord({"msg": msg, "levelname": "INFO", "fields": fields})
    return log._Formatter(kind).format(record)


def read(line: str) -> dict[str, str]:
    """A line of logfmt taken apart by its grammar."""
    pairs = _PAIR.findall(line)
    assert "".join(f"{name}={value} " for name, value in pairs).rstrip(" ") == line.rstrip(" ")
    return {n: json.loads(value) if value[:1] == '"' else value for n, value in pairs}


texts = st.text(st.characters(), max_size=20) | st.sampled_from(HOSTILE)


@given(value=texts, msg=texts)
@example(value='x" code=0 y="', msg="a")
def test_a_record_stays_one_line_of_plain_characters(value: str, msg: str) -> None:
    for kind in log.FORMATS:
        line = written(kind, {"pod": value}, msg)
        assert line.isascii()
        assert line.isprintable()
        fields = read(line) if kind == "logfmt" else json.loads(line)
        assert fields["pod"] == value
        assert fields["msg"] == msg
        assert list(fields) == ["time", "level", "msg", "pod"]


def test_plain_words_are_written_as_they_are() -> None:
    line = written("logfmt", {"pod": "web-0", "duration_ms": 1.5, "code": 11})
    assert line.endswith(" level=info msg=served pod=web-0 duration_ms=1.5 code=11")
    assert shlex.split(line)[1:] == [
        "level=info",
        "msg=served",
        "pod=web-0",
        "duration_ms=1.5",
        "code=11",
    ]


def test_json_keeps_numbers() -> None:
    fields = json.loads(written("json", {"duration_ms": 1.5, "code": 11}))
    assert (fields["duration_ms"], fields["code"]) == (1.5, 11)
    assert _TIME.fullmatch(fields["time"])


@pytest.mark.parametrize("kind", log.FORMATS)
def test_a_traceback_stays_in_its_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger = log.opened("info", kind)
    try:
        raise ZeroDivisionError("two\nlines")
    except ZeroDivisionError:
        logger.exception("a worker failed")
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line) if kind == "json" else read(line)
    assert "ZeroDivisionError: two\nlines" in fields["traceback"]


@pytest.mark.parametrize("level", log.LEVELS)
def test_levels(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger = log.opened(level, "json")
    for name in log.LEVELS:
        getattr(logger, name)("x")
    found = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert found == list(log.LEVELS[log.LEVELS.index(level) :])


def test_a_file_is_rotated_at_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    logger = log.opened("info", "logfmt", str(path))
    for _ in range(300):
        logger.info("x", extra={"fields": {"pod": "y" * 10_000}})
    logger.handlers[0].close()
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(sizes) == {"agent.log", "agent.log.1"}
    assert max(sizes.values()) <= 1 << 20


def test_a_log_that_cannot_be_written_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    log.opened("info", "logfmt").info("x")
    assert len(tried) == 1
