"""podman, with its CNI back end, on a network that podwire makes."""

from __future__ import annotations

from tests.support.podman import Podman


def test_two_containers(machine, plugins, network, reservations):
    podman = Podman(machine, plugins, network("1.0.0"))
    ids = [podman.start(name) for name in ("a", "b")]
    a, b = podman.address("a"), podman.address("b")
    assert {a, b} == set(reservations()) == {"10.244.0.2", "10.244.0.3"}
    podman.call("exec", "a", "ping", "-c1", "-W3", b)
    podman.call("exec", "b", "ping", "-c1", "-W3", a)

    podman.call("rm", "--force", "--time", "0", "a", "b")
    for container_id in ids:
        commands = [call.command for call in plugins.calls("podwire", container_id=container_id)]
        assert commands == ["ADD", "DEL"]
    assert reservations() == {}
    assert machine.pod_links() == []


def test_an_address_and_a_mac_of_the_users_choice(machine, plugins, network):
    """podman passes them as CNI_ARGS, with IgnoreUnknown."""
    podman = Podman(machine, plugins, network("1.0.0"))
    podman.start("a", "--ip", "10.244.0.77", "--mac-address", "02:42:0a:f4:00:4d")
    assert podman.address("a") == "10.244.0.77"
    assert "02:42:0a:f4:00:4d" in podman.call("exec", "a", "ip", "link", "show", "eth0")
    podman.call("rm", "--force", "--time", "0", "a")


def test_a_container_that_is_restarted(machine, plugins, network, reservations):
    """podman stops and starts with the same container ID: DEL, then ADD again."""
    podman = Podman(machine, plugins, network("1.0.0"))
    podman.start("a")
    podman.call("restart", "--time", "0", "a")
    assert list(reservations()) == [podman.address("a")]
    assert len(machine.pod_links()) == 1
    podman.call("rm", "--force", "--time", "0", "a")
    assert reservations() == {}
