"""The shape of a plugin list that a person wrote: what has to be a text, a list, an object.

What podwire's own plugin takes is looked at by the plugin; this is what libcni reads of the list
around it, which names the other plugins of a pod's chain. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cni_plugin.fields import Fields, invalid


def refuse_misshapen(document: Mapping[str, Any]) -> None:
    """Raises CniError 7 that names the field and its value."""
    fields = Fields(document)
    fields.text("cniVersion")
    fields.text("name")
    if fields.texts("cniVersions") and not fields.has("cniVersion"):
        remedy = "runtimes that do not know cniVersions read it"
        raise invalid("cniVersion", None, "expected a version beside cniVersions", remedy)
    for index, plugin in enumerate(fields.children("plugins")):
        kind = plugin.text("type")
        if not kind or "/" in kind or "\0" in kind:
            raise invalid(f"plugins[{index}].type", kind, "expected the name of a plugin")
