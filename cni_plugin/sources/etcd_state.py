"""The subnets that this node had, in a file: they are asked for again when etcd has lost them.

The file says which machine they are of: a copy on a machine that was cloned says nothing of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from logging import Logger
from typing import Any, NamedTuple

from cni_plugin import wholefiles
from cni_plugin.fields import as_network
from cni_plugin.sources.etcd_layout import decoded
from cni_plugin.spec import CniError, IPNetwork

_IDENTITIES = ("/etc/machine-id", "/sys/class/dmi/id/product_uuid")  # the first that says any


class Remembered(NamedTuple):
    """`since` is when the node got its first subnet, in RFC 3339; "" when it had none. `conf` is
    what the cluster's network configuration has to say (`Network.conf_keys`). `contested`: another
    node with this one's name has them by now, or claims so. `machine` is whose they are, "" for
    one that can't be told from others."""

    cidrs: tuple[IPNetwork, ...] = ()
    since: str = ""
    conf: Mapping[str, Any] = {}
    contested: bool = False
    machine: str = ""


def machine() -> str:
    """What this machine has for itself, and keeps; "" when there is nothing."""
    for path in _IDENTITIES:
        with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            if found := file.read(100).strip():
                return found
    return ""


def load(path: str, prefix: str, log: Logger) -> Remembered:
    """What is in the file, nothing when it is of another network or machine, or not to be read."""
    try:
        with open(path, "rb", opener=wholefiles.without_waiting) as file:
            fields = decoded(file.read() or b"", path)
        if fields.text("prefix") != prefix:
            return Remembered()
        here, there = machine(), fields.text("machine")
        if here and there and here != there:
            log.warning("%s is of another machine, and says nothing of this one", path)
            return Remembered()
        cidrs = tuple(as_network(value, at) for at, value in fields.items("podCIDRs"))
        conf, contested = dict(fields.child("conf").obj), fields.flag("contested")
        return Remembered(cidrs, fields.text("since"), conf, contested, there)
    except FileNotFoundError:
        return Remembered()
    except (OSError, CniError) as e:
        log.warning("the subnets of this node's earlier life are not known: %s", e)
        return Remembered()


def save(path: str, prefix: str, remembered: Remembered, log: Logger) -> None:
    """Atomically. A file that can't be written is logged: etcd knows as well."""
    document = {
        "prefix": prefix,
        "podCIDRs": [str(cidr) for cidr in remembered.cidrs],
        "since": remembered.since,
        "conf": dict(remembered.conf),
        "contested": remembered.contested,
        "machine": remembered.machine,
    }
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        wholefiles.write(path, 0o600, [json.dumps(document).encode()])
    except OSError as e:
        log.warning("this node's subnets can't be noted in %s: %s", path, e.strerror or e)
