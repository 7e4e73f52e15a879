"""docs/error-codes.md and `Code` tell of the same codes."""

from __future__ import annotations

import ast
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
    for folder in ("cni_plugin", "ipam"):
        for path in (_PROJECT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("Code"):
                    used.add(node.attr)
    assert set(constants()) - used == {"LIMITED_CONNECTIVITY"}
