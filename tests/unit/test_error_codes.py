"""docs/error-codes.md and the code tell of the same codes, in the same words."""

from __future__ import annotations

import ast
import errno
import functools
import os
import re
from pathlib import Path

from cni_plugin.spec import Code

_PROJECT = Path(__file__).parents[2]
_HEADING = re.compile(r"^### (\d+) ([A-Z_]+)\n(?P<text>(?:(?!^#).*\n)+)", re.MULTILINE)


def constants() -> dict[str, int]:
    return {name: value for name, value in vars(Code).items() if not name.startswith("_")}


def documented() -> dict[str, int]:
    text = (_PROJECT / "docs" / "error-codes.md").read_text()
    return {match[2]: int(match[1]) for match in _HEADING.finditer(text) if match["text"].strip()}


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    assert documented() == constants()


def test_no_two_failures_share_a_code() -> None:
    assert len(set(constants().values())) == len(constants())


def test_the_specifications_codes_keep_their_numbers() -> None:
    """CNI specification 1.1.0, section 5; 100 and up is the plugin's own."""
    below = {name: code for name, code in constants().items() if code < 100}
    assert below == {
        "INCOMPATIBLE_VERSION": 1,
        "UNSUPPORTED_FIELD": 2,
        "UNKNOWN_CONTAINER": 3,
        "INVALID_ENVIRONMENT": 4,
        "IO_FAILURE": 5,
        "DECODE_FAILURE": 6,
        "INVALID_CONFIG": 7,
        "TRY_AGAIN_LATER": 11,
        "NOT_AVAILABLE": 50,
        "LIMITED_CONNECTIVITY": 51,
    }


def test_every_code_but_the_delegates_own_is_in_use() -> None:
    used = set()
    for folder in ("cni_plugin", "ipam", "launcher"):
        for path in (_PROJECT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("Code"):
                    used.add(node.attr)
    assert set(constants()) - used == {"LIMITED_CONNECTIVITY"}


# --- the sample messages ----------------------------------------------------------------------

_HOLE = "\0"  # a value that is filled in; in a sample, what "..." leaves out
_ITEM = re.compile(r"^- (?:from the executable: )?(`[^`]+`(?:,\s+`[^`]+`)*)", re.MULTILINE)


def samples() -> list[str]:
    """The messages that the list items of error-codes.md begin with."""
    text = (_PROJECT / "docs" / "error-codes.md").read_text()
    found = []
    for item in _ITEM.finditer(text):
        found += [" ".join(sample.split()) for sample in re.findall(r"`([^`]+)`", item[1])]
    return found


def words(text: str) -> list[str]:
    """Without punctuation, which belongs to the sentence around; a word with a hole is a hole."""
    split = (word.strip(",:;\"'()") for word in text.replace("...", f" {_HOLE} ").split())
    return [_HOLE if _HOLE in word else word for word in split if word]


def templates() -> tuple[list[list[str]], list[list[str]]]:
    """Of all strings in the sources, as words: those with values filled in, and the plain ones.

    What the C library says of errors counts as plain, docstrings don't count.
    """
    formatted, plain = [], [words(os.strerror(number)) for number in errno.errorcode]
    docstrings = set()
    for folder in ("cni_plugin", "ipam", "launcher"):
        for path in (_PROJECT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Expr):
                    docstrings.add(node.value)
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else _HOLE for v in node.values)
                    formatted.append(words("".join(map(str, parts))))
                if isinstance(node, ast.Constant) and node not in docstrings:
                    plain.append(words(str(node.value)))
    return formatted, plain


def in_common(sample: list[str], template: list[str]) -> int:
    """How many words both have in the same place, -1 when no value makes one out of the other."""

    @functools.cache
    def best(i: int, j: int) -> int:
        if i == len(sample) and j == len(template):
            return 0
        results = [-1]
        if i < len(sample) and (sample[i] == _HOLE or (j < len(template) and template[j] == _HOLE)):
            results.append(best(i + 1, j))
        if j < len(template) and (template[j] == _HOLE or (i < len(sample) and sample[i] == _HOLE)):
            results.append(best(i, j + 1))
        if i < len(sample) and j < len(template) and sample[i] == template[j] != _HOLE:
            rest = best(i + 1, j + 1)
            results.append(rest if rest < 0 else rest + 1)
        return max(results)

    return best(0, 0)


def is_told(sample: str, formatted: list[list[str]], plain: list[list[str]]) -> bool:
    """Whether the sources hold words that this message can be made of; two must be the same."""
    given = words(sample)
    if any(in_common(given, template) >= 2 for template in formatted):
        return True
    if _HOLE in given:
        return any(in_common(given, [_HOLE, *template, _HOLE]) >= 3 for template in plain)
    text = f" {' '.join(given)} "
    return any(len(template) >= 2 and f" {' '.join(template)} " in text for template in plain)


def test_the_sample_messages_are_the_codes_own() -> None:
    formatted, plain = templates()
    assert len(samples()) > 40
    assert [sample for sample in samples() if not is_told(sample, formatted, plain)] == []


def test_a_message_that_nobody_writes_is_noticed() -> None:
    formatted, plain = templates()
    for sample in ("terminated by a signal; what was begun was undone", "the veth 1 is too long"):
        assert not is_told(sample, formatted, plain)
