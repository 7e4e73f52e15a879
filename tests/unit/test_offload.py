"""Where checksums are not left to the network card: decided from a table."""

from __future__ import annotations

import pytest

from cni_plugin.kernel.offload import BROKEN, Broken, decide


@pytest.mark.parametrize(
    ("drivers", "release", "on"),
    [
        ((), "6.1.0-25-amd64", True),
        (("virtio_net", "bonding"), "6.18.44", True),
        (("bonding", "vmxnet3"), "6.1.0", False),
        (("virtio_net",), "5.6.19", False),
        (("virtio_net",), "5.7.0-rc1", True),
        (("virtio_net",), "4.18.0-553.el8.x86_64", False),
        ((), "unreadable", True),
    ],
)
def test_the_known_places(drivers: tuple[str, ...], release: str, on: bool) -> None:
    found = decide("auto", drivers, release)
    assert found.on is on
    assert bool(found.reason) is not on


@pytest.mark.parametrize("mode", ["on", "off"])
def test_what_is_configured_counts(mode: str) -> None:
    always = (Broken("", (), "everywhere"),)
    found = decide(mode, ("vmxnet3",), "4.0.0", always)
    assert found.on is (mode == "on")
    assert "vxlan.checksumOffload" in found.reason


def test_each_place_has_a_reason_and_is_no_rule_for_all() -> None:
    for place in BROKEN:
        assert place.reason
        assert place.driver or place.below
