"""What the tool prints: aligned tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from json import dumps
from typing import Any

import click

from cni_plugin.spec import CniError


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, two spaces between them, no frame."""
    lines = [tuple(headers), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def show_table(headers: Sequence[str], rows: Sequence[Sequence[object]], nothing: str) -> None:
    """The table, or the sentence `nothing` when it has no rows."""
    click.echo(table(headers, rows) if rows else nothing)


def show_json(document: Any) -> None:
    """`document` as indented JSON on stdout."""
    click.echo(dumps(document, indent=2, ensure_ascii=False))


def show_error(error: CniError) -> None:
    """What is wrong, and what to do about it, on stderr."""
    click.echo(f"error: {error.msg}", err=True)
    if error.details:
        click.echo(f"hint: {error.details}", err=True)


def age(seconds: float) -> str:
    """A duration in its two largest units: 42s, 5m12s, 3h04m, 12d06h."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m{whole % 60:02d}s"
    return f"{whole}s"
