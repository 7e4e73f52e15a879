"""How pytest-xdist's workers share the tests: from one queue, in the order of tests/support/order.

A worker gets the next piece when it is about to have none left.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import order


class Distribution(LoadScopeScheduling):
    """The pieces stay in the order in which their tests are collected."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        """The name of the piece that a test belongs to."""
        return order.piece(nodeid)
