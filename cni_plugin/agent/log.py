"""The agent's log: one line for each call, on stderr or in a file, as logfmt or as JSON.

Every line has `time` (UTC), `level` and `msg`. A line about a call has command, container, ifname,
network, pod and namespace where the runtime named them, duration_ms, outcome (ok, error, declined
or undone), and of an error its code, text and remedy.
"""

from __future__ import annotations

import json
import logging
import select
import sys
import time
from logging.handlers import RotatingFileHandler
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("logfmt", "json")
_FILE_BYTES = 1 << 20


class _Formatter(logging.Formatter):
    """`time level msg`, then the record's `fields` in their order."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._encode = _as_json if kind == "json" else _as_logfmt

    def format(self, record: logging.LogRecord) -> str:
        moment = time.gmtime(record.created)
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self._encode(fields)


def _as_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields)


def _as_logfmt(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items())


def _quoted(text: str) -> str:
    """As it is when it is one plain word; else as a JSON string, so that a line stays a line."""
    plain = text and text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


class _Stream(logging.StreamHandler[TextIO]):
    """Drops a line that nobody takes: a reader of our stderr who stopped must not stop the agent.

    A pipe that can be written has room for PIPE_BUF bytes, so no line is longer than that.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if _takes(self.stream):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record).encode("utf-8", "backslashreplace")
        if len(line) < select.PIPE_BUF:
            return line.decode()
        return line[: select.PIPE_BUF - 8].decode("utf-8", "ignore") + "..."


def _takes(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream, select.POLLOUT)
    except OSError:
        return True  # no file of the system's, which nobody reads or does not read
    return any(event & select.POLLOUT for _, event in poll.poll(0))


def opened(level: str, kind: str, path: str = "") -> logging.Logger:
    """The agent's logger; `path` is a file that is rotated at one megabyte, "" for stderr."""
    handler: logging.Handler = (
        RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=1)
        if path
        else _Stream(sys.stderr)
    )
    handler.setFormatter(_Formatter(kind))
    logging.raiseExceptions = False  # a log that can't be written must not fail a call
    _leave_out_what_no_line_has()
    logger = logging.Logger("podwire")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    return logger


def _leave_out_what_no_line_has() -> None:
    """Where a record comes from: to find it takes as long as the line itself ("Optimization" in
    Python's logging HOWTO)."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
