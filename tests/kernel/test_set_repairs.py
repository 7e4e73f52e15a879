"""Sets of ranges brought from any state to any other by a process that knows nothing of them."""

from __future__ import annotations

import random

import pytest

from tests.support import packetfilter
from tests.support.netns import Namespace

_STEPS = 150
_FAMILIES = {4: ("10.244.0.0/24", "10.244.{}.0/24"), 6: ("fd00::/64", "fd00:0:0:{:x}::/64")}


@pytest.mark.parametrize("version", [4, 6])
def test_ranges_that_touch_come_and_go(node: Namespace, version: int) -> None:
    """What merges and splits leaves beginnings and ends that belong to different ranges: the kernel
    knows ranges only as a whole."""
    own, subnet = _FAMILIES[version]
    choices = random.Random(1)
    for _ in range(_STEPS):
        numbers = choices.sample(range(2, 14), choices.randrange(1, 11))
        direct = tuple(subnet.format(number) for number in sorted(numbers))
        wanted = packetfilter.rules(own, direct=direct, masquerade=True, bridge="cni0")
        packetfilter.firewall(node).ensure(wanted)
        assert packetfilter.firewall(node).differences(wanted) == []
