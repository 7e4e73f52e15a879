"""Where the API server is, as the node's kubelet knows it.

The agent must reach the API before any Service works, so the address of the Service is of no use to
it. The kubelet has the same need, and its kubeconfig names the server. Only that line is taken from
the file, by the init container: the agent never sees the kubelet's credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from cni_plugin import wholefiles
from cni_plugin.spec import CniError, Code

NOTE = "/run/podwire/api-server"
_SERVER = re.compile(r"""^[\s{,"'-]*server["']?\s*:\s*["']?([^\s"',}]+)""", re.MULTILINE)
_MOST_BYTES = 1 << 20


def in_kubeconfig(path: str) -> str:
    """The URL of the one server that the kubeconfig at `path` names, in YAML or JSON.

    Raises CniError 5 when it can't be read, 7 when it names none, or several.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_BYTES)
    except OSError as e:
        raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}") from e
    found = sorted(set(_SERVER.findall(text.replace(",", ",\n").replace("{", "{\n"))))
    if len(found) != 1:
        named = ", ".join(found) or "none"
        raise CniError(
            Code.INVALID_CONFIG,
            f"{path}: expected one API server, found {named}",
            "give the agent the server by --api-server or PODWIRE_API_SERVER",
        )
    return refuse_wrong(found[0], path)


def refuse_wrong(url: str, field: str) -> str:
    """The URL, if it is one of a server. Raises CniError 7 naming the field."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise CniError(
            Code.INVALID_CONFIG,
            f"{field}: expected the URL of an API server, got {url!r}",
            "such as https://192.168.1.2:6443",
        )
    return url


def note(kubeconfigs: Sequence[str], path: str = NOTE) -> str:
    """Write down the server that the first of these files names which is there; "" when none is.

    Raises CniError as `in_kubeconfig`, and 5 when the note can't be written.
    """
    for kubeconfig in kubeconfigs:
        if not os.path.exists(kubeconfig):
            continue
        url = in_kubeconfig(kubeconfig)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            wholefiles.write(path, 0o644, [url.encode() + b"\n"])
        except OSError as e:
            raise CniError(Code.IO_FAILURE, f"{path}: {e.strerror}") from e
        return url
    return ""


def noted(path: str = NOTE) -> str:
    """The server that was written down; "" when none was."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        return file.read().strip()
    return ""
