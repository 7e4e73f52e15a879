"""Two pods that traffic flows between, and the plan of addresses that all sides share."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from bench.namespaces import Namespace

SUBNETS = ("10.244.0.0/24", "10.244.1.0/24")  # of the pods of the first and the second node
UNDERLAY = ("192.168.77.1", "192.168.77.2")  # the nodes' own addresses


class Site(NamedTuple):
    """Traffic goes from `client` to `address`, which is the pod `server`'s."""

    client: Namespace
    server: Namespace
    address: str


def new_namespace(stack: ExitStack, node: bool = False) -> Namespace:
    """A network namespace that goes with the stack; `node`: with its loopback up."""
    found = Namespace(node)
    stack.callback(found.close)
    return found
