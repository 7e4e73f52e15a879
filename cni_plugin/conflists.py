"""The network configuration that runtimes find in a folder: made from a template, put in place.

That podwire's is there tells them that pods can come. Which of the folder's files they use is the
matter of `confdir`.

Rules:
- The file appears at once and whole, and its name before that is none that runtimes look at.
- podwire's is told by itself: what the agent writes has the key `MARK`, which runtimes pass over
  and which says to people that the agent will write the file again; what `podwire install` writes
  is exactly what `plain` makes. No other file is replaced or removed, but for one of podwire's own
  name that is no document at all: empty or cut off, as a power cut leaves it.
- The plugin, which runtimes tell nothing of the list, is told by a `MARK` of its own that what does
  not fit the inventory now is about to be written again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from errno import EACCES, EPERM
from json import dumps, loads
from typing import Any

from cni_plugin import wholefiles
from cni_plugin.fields import Fields, invalid
from cni_plugin.listshape import refuse_misshapen
from cni_plugin.spec import CniError, Code, IPNetwork

TYPE = "podwire"
NAME = "05-podwire.conflist"
MARK = "_podwire"
_SAID = "Written by podwire's agent. It replaces what is changed here: change the cluster's."
_FOLLOWED = "follows the cluster"
_VERSIONS = ("1.0.0", "1.1.0")
_GIVEN = ("ranges", "subnet", "rangeStart", "rangeEnd", "gateway")  # what the cluster decides
_IPAM = ("host-local", "podwire-ipam")


# --- making it --------------------------------------------------------------------------------


def default_template() -> dict[str, Any]:
    """The configuration of nodes whose cluster has none of its own."""
    plugin = {
        "type": TYPE,
        "bridge": "cni0",
        "hairpinMode": True,
        "ipMasq": True,
        "capabilities": {"portMappings": True, "bandwidth": True},
        "ipam": {"type": "host-local"},
    }
    return {
        "cniVersion": _VERSIONS[0],
        "cniVersions": list(_VERSIONS),
        "name": TYPE,
        "plugins": [plugin],
    }


def render(
    template: Mapping[str, Any],
    subnets: Sequence[IPNetwork],
    nodes_path: str,
    node_name: str,
    mtu: int,
) -> str:
    """The configuration of one node, from what all nodes share: a plugin list, or one plugin.

    `subnets` are the node's own, `nodes_path` is the inventory's, and `mtu` (bytes, 0 for none) is
    that of new pods unless the template has one. What else the template says is kept.

    Raises CniError 7 for a template without podwire, or one that says what the cluster decides.
    """
    document = {key: value for key, value in template.items() if value is not None}
    if "plugins" not in document:
        inner = {key: value for key, value in document.items() if not key.startswith("cniVersion")}
        inner.pop("name", None)
        outer = {key: document[key] for key in document.keys() - inner.keys()}
        document = {**outer, "plugins": [inner]}
    fields = Fields(document)
    if "cniVersion" not in document and "cniVersions" not in document:
        document |= {"cniVersion": _VERSIONS[0], "cniVersions": list(_VERSIONS)}
    refuse_misshapen(document)
    document["name"] = fields.text("name") or TYPE
    document["plugins"] = plugins = [dict(each.obj) for each in fields.children("plugins")]
    index = _index(plugins)
    plugin = Fields(plugins[index], f"plugins[{index}]")
    ipam = _ipam(plugin)
    own: dict[str, Any] = {"nodes": nodes_path, "nodeName": node_name, MARK: _FOLLOWED}
    if mtu and not plugin.integer("mtu", 0, 65535):
        own["mtu"] = mtu
    plugins[index] |= {**own, "ipam": {**ipam, "ranges": _ranges(subnets)}}
    order = ("cniVersion", "cniVersions", "name")
    first = {key: document[key] for key in order if key in document}
    try:
        return dumps({**first, MARK: _SAID, **document}, indent=2) + "\n"
    except RecursionError as e:
        raise CniError(Code.INVALID_CONFIG, "the network configuration is nested too deeply") from e


def template_of(text: str) -> dict[str, Any] | None:
    """A template of which `render` makes this again, MTU included; None for what it has not made.

    What every node adds of its own is overwritten in its place, but for the ranges.
    """
    if not is_marked(text):
        return None
    document: dict[str, Any] = loads(text)
    try:
        index = _index(plugins := document["plugins"])
        ipam = plugins[index]["ipam"]
        plugins[index]["ipam"] = {key: ipam[key] for key in ipam if key not in _GIVEN}
    except (LookupError, TypeError, AttributeError, CniError):
        return None  # somebody has edited it since
    return document


def _index(plugins: Sequence[Mapping[str, Any]]) -> int:
    """Which of the plugins is podwire, the first if several are."""
    for index, plugin in enumerate(plugins):
        if plugin.get("type") == TYPE:
            return index
    types = [plugin.get("type") for plugin in plugins]
    raise invalid("plugins", types, f'expected one with "type": "{TYPE}"')


def _ipam(plugin: Fields) -> dict[str, Any]:
    ipam = plugin.child("ipam")
    kind = ipam.text("type") or _IPAM[0]
    if kind not in _IPAM:
        wanted = f"expected {_IPAM[0]}, since the cluster decides which subnets a node has"
        raise invalid(ipam.at("type"), kind, wanted)
    for key in _GIVEN:
        if ipam.has(key):
            remedy = "remove it: the cluster decides which subnets a node has"
            raise invalid(ipam.at(key), ipam.obj[key], "expected none", remedy)
    return {"type": kind, **{key: value for key, value in ipam.obj.items() if key != "type"}}


def _ranges(subnets: Sequence[IPNetwork]) -> list[list[dict[str, str]]]:
    """A range set for each family: a pod gets one address of each."""
    sets: dict[int, list[dict[str, str]]] = {}
    for subnet in subnets:
        sets.setdefault(subnet.version, []).append({"subnet": str(subnet)})
    return list(sets.values())


def plain(subnets: Sequence[str], nodes: str) -> str:
    """The configuration that `podwire install` writes: with an inventory of nodes, or with the
    node's own subnets."""
    document = default_template()
    (plugin,) = document["plugins"]
    ipam = plugin.pop("ipam")
    if nodes:
        plugin["nodes"] = nodes
    else:
        plugin["isDefaultGateway"] = True
        ipam["ranges"] = [[{"subnet": subnet}] for subnet in subnets]
    plugin["ipam"] = ipam
    return dumps(document, indent=2) + "\n"


# --- whose it is ------------------------------------------------------------------------------


def is_plain(text: str) -> bool:
    """Whether `plain` has made exactly this."""
    try:
        plugin = loads(text)["plugins"][0]
        ranges = plugin["ipam"].get("ranges", [])
        subnets = [one["subnet"] for (one,) in ranges]
        return plain(subnets, plugin.get("nodes", "")) == text
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def is_marked(text: str) -> bool:
    """Whether an agent has written this; somebody may have edited it since."""
    try:
        document = loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and MARK in document


def is_ours(text: str) -> bool:
    """Whether podwire has written this, and may replace it."""
    return is_marked(text) or is_plain(text)


def _may_go(path: str, text: str) -> bool:
    """Whether the file at the path, with this in it, is podwire's to replace or remove."""
    return is_ours(text) or (_is_no_document(text) and os.path.isfile(path))


def _is_no_document(text: str) -> bool:
    """Whether this is empty, or the beginning of a document: what a power cut leaves. A whole one
    with a mistake in it is somebody's work."""
    try:
        loads(text)
    except RecursionError:
        return False  # nobody can tell
    except ValueError:
        return "{" not in text or text.count("{") > text.count("}")
    return False


# --- in its folder ----------------------------------------------------------------------------


def place(conf_dir: str, text: str, name: str = NAME) -> bool:
    """Put the file in place, at once and whole; whether it had to be written.

    Raises CniError 5 for a file of that name that is not podwire's, and 5 or 110 where the system
    refuses.
    """
    path = os.path.join(conf_dir, name)
    refuse_foreign(path)
    if held(path) == text:
        return False
    try:
        wholefiles.write(path, 0o644, [text.encode()])
    except OSError as e:
        raise failure(e, path) from e
    return True


def refuse_foreign(path: str) -> None:
    """Raises CniError 5 when something is at the path that podwire has not written."""
    found = held(path)
    if found is not None and not _may_go(path, found):
        raise CniError(
            Code.IO_FAILURE,
            f"{path} exists and is not as podwire writes it",
            "edit that file, or move it away first",
        )


def remove(conf_dir: str, name: str = NAME) -> bool | None:
    """Remove the file; False when there is none, None when it is kept as it is not podwire's.

    Raises CniError 5.
    """
    path = os.path.join(conf_dir, name)
    found = held(path)
    try:
        wholefiles.partial_name(path)  # which goes with it
        if found is None:
            return False
        if not _may_go(path, found):
            return None
        os.unlink(path)
    except OSError as e:
        raise failure(e, path) from e
    return True


def held(path: str) -> str | None:
    """What the file holds; None when there is none. Raises CniError 5."""
    try:
        data = wholefiles.read(path)
    except OSError as e:
        raise failure(e, path) from e
    return None if data is None else data.decode("utf-8", "replace")


def failure(e: OSError, path: str) -> CniError:
    """The error for a system call that failed in the folder of configurations."""
    if e.errno in (EACCES, EPERM):
        return CniError(Code.PERMISSION_DENIED, f"{path}: {e.strerror}", "run it as root")
    remedy = "the folder of the runtime's network configurations has to be there and writable"
    return CniError(Code.IO_FAILURE, f"{path}: {e.strerror}", remedy)
