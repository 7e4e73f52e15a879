"""The subnets that this node had, in a file: they are asked for again when etcd has lost them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from logging import Logger
from typing import Any, NamedTuple

from cni_plugin import wholefiles
from cni_plugin.fields import as_network
from cni_plugin.sources.etcd_layout import decoded
from cni_plugin.spec import CniError, IPNetwork


class Remembered(NamedTuple):
    """`since` is when the node got its first subnet, in RFC 3339; "" when it had none. `conf` is
    what the cluster's network configuration has to say (`Network.conf_keys`)."""

    cidrs: tuple[IPNetwork, ...] = ()
    since: str = ""
    conf: Mapping[str, Any] = {}


def load(path: str, prefix: str, log: Logger) -> Remembered:
    """What is in the file, nothing when it is of another network or not to be read."""
    try:
        with open(path, "rb", opener=wholefiles.without_waiting) as file:
            fields = decoded(file.read() or b"", path)
        if fields.text("prefix") != prefix:
            return Remembered()
        cidrs = tuple(as_network(value, at) for at, value in fields.items("podCIDRs"))
        return Remembered(cidrs, fields.text("since"), dict(fields.child("conf").obj))
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
    }
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        wholefiles.write(path, 0o600, [json.dumps(document).encode()])
    except OSError as e:
        log.warning("this node's subnets can't be noted in %s: %s", path, e.strerror or e)
