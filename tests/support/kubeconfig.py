"""kubeconfig files, and the API server's file of tokens: who is who on a test's control plane."""

from __future__ import annotations

import base64
import csv
import json
import os
import secrets
from collections.abc import Sequence
from typing import NamedTuple


class User(NamedTuple):
    """One line of the API server's token file; kubelets are "system:node:NAME" of the group
    "system:nodes"."""

    name: str
    groups: tuple[str, ...] = ()


def write_users(path: str, users: Sequence[User]) -> dict[str, str]:
    """Write the file of tokens, a new one for each: by name."""
    tokens = {user.name: secrets.token_hex(16) for user in users}
    with open(path, "w", opener=_private) as file:
        writer = csv.writer(file)
        for user in users:
            writer.writerow([tokens[user.name], user.name, user.name, ",".join(user.groups)])
    return tokens


def write(path: str, name: str, token: str, server: str, ca: str) -> str:
    """Write a kubeconfig of the token, with the content of the file `ca` inside: its path."""
    with open(ca, "rb") as file:
        authority = base64.b64encode(file.read()).decode()
    cluster = {"server": server, "certificate-authority-data": authority}
    with open(path, "w", opener=_private) as out:
        json.dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": name, "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            },
            out,
        )
    return path


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
