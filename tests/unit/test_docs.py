"""The documentation: its links lead somewhere, and no option is missing from it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cni_plugin.fields import Fields

_PROJECT = Path(__file__).parents[2]
_PAGES = sorted(
    path.relative_to(_PROJECT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "conf/*.md", "tests/*.md", "bench/*.md")
    for path in _PROJECT.glob(pattern)
)
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CAMEL = re.compile(r"[a-z]+([A-Z]+[a-z]*)+")
# the methods that read a key of an object
_READERS = set(Fields.__dict__) | {"get"}


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The headings as GitHub names them: lower case, words joined by hyphens, nothing else."""
    titles = (re.sub(r"[^\w\- ]", "", title) for title in _HEADING.findall(prose(page)))
    return {title.lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", _PAGES)
def test_relative_links_lead_somewhere(name: str) -> None:
    page = _PROJECT / name
    broken = []
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_readme_of_the_docs_links_to_every_page() -> None:
    linked = set(_LINK.findall(prose(_PROJECT / "docs" / "README.md")))
    pages = {path.name for path in (_PROJECT / "docs").glob("*.md")} - {"README.md"}
    assert pages - linked == set()


def keys(module: str) -> set[str]:
    """What a module reads from the configuration, by the literal keys it asks for.

    Those in camelCase are keys wherever they stand.
    """
    found = set()
    for node in ast.walk(ast.parse((_PROJECT / module).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = node.args[0] if node.args else None
            if node.func.attr in _READERS and isinstance(first, ast.Constant):
                found.add(first.value)
        if isinstance(node, ast.Constant) and _CAMEL.fullmatch(str(node.value)):
            found.add(node.value)
        if isinstance(node, ast.Assign) and "_UNSUPPORTED" in ast.unparse(node.targets[0]):
            found |= set(ast.literal_eval(node.value))
    return {key for key in found if isinstance(key, str)}


@pytest.mark.parametrize("module", ["cni_plugin/netconf.py", "ipam/config.py"])
def test_every_option_is_documented(module: str) -> None:
    text = (_PROJECT / "docs" / "config.md").read_text()
    found = keys(module)
    assert {"ipam", "runtimeConfig"} <= found
    assert sorted(key for key in found if not re.search(rf"\b{key}\b", text)) == []
