"""What the tool prints: aligned tables for people, JSON for programs, errors for both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from json import dumps
from typing import Any, TypeVar

import click

from cni_plugin.spec import CniError, Code

_Function = TypeVar("_Function", bound=Callable[..., Any])


def printable(text: str) -> str:
    """One line that no terminal takes for a command: what files hold may be anybody's."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str, err: bool = False) -> None:
    """Lines of text, with what can't be shown as escapes."""
    click.echo("\n".join(printable(line) for line in text.split("\n")), err=err)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, two spaces between them, no frame."""
    lines = [tuple(headers), *(tuple(printable(str(cell)) for cell in row) for row in rows)]
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
    click.echo(dumps(document, indent=2))


# --- errors -----------------------------------------------------------------------------------


def show_error(error: CniError) -> None:
    """What is wrong, by which code, and what to do about it, on stderr."""
    say(f"error {code_of(error)}: {error.msg}", err=True)
    if error.details:
        show_hint(error.details)


def show_hint(text: str) -> None:
    """What to do, on stderr: stdout has the answer alone."""
    say(f"hint: {text}", err=True)


def code_of(error: CniError) -> int:
    """The error's code; where STATUS has wrapped a cause into its own code 50, the cause's."""
    cause = error.__cause__
    if error.code != Code.NOT_AVAILABLE:
        return error.code
    if isinstance(cause, CniError):
        return code_of(cause)
    if isinstance(cause, PermissionError):
        return Code.PERMISSION_DENIED
    return Code.IO_FAILURE if isinstance(cause, OSError) else error.code


def error_document(error: CniError) -> dict[str, Any]:
    """The error as every --json shows it."""
    return {"code": code_of(error), "msg": error.msg, "details": error.details}


def of_system(error: OSError) -> CniError:
    """The error for a failed system call that nobody foresaw."""
    return CniError(Code.IO_FAILURE, f"system call failed: {error}")


class JsonCommand(click.Command):
    """A command with --json, which then says what failed in JSON as well, on stdout."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (CniError, OSError) as e:
            if not ctx.params["as_json"]:
                raise
            failure = e if isinstance(e, CniError) else of_system(e)
            show_json({"error": error_document(failure)})
            return 1


def json_option(function: _Function) -> _Function:
    """--json, for the parameter `as_json` of a `JsonCommand`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


# --- texts ------------------------------------------------------------------------------------


def count(number: int, singular: str) -> str:
    """The number with its noun: 1 port, 2 ports."""
    return f"{number} {singular}" + ("" if number == 1 else "s")


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
