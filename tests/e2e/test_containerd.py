"""containerd drives podwire, through CRI as a kubelet does, and by `ctr run --cni`.

Debian's containerd (1.6) and, where it could be unpacked, containerd 2, which speaks 1.1.0 and
calls STATUS.
"""

from __future__ import annotations

import contextlib
import ipaddress
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import images, netns, require
from tests.support.outside import PAGE, Outside

SUBNET = ipaddress.ip_network("10.244.0.0/24")
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


@pytest.fixture(params=["containerd", "containerd 2"])
def programs(request):
    """The folder of the containerd under test."""
    if request.param == "containerd":
        require.programs("containerd", "ctr", "runc")
        return ""
    return require.newer() + "/usr/bin"


@pytest.fixture
def start(machine, go_plugins):
    """start(programs) is a running containerd with podwire, the Go loopback and portmap."""
    require.modules("grpc", "google.protobuf")
    from tests.support.containerd import Containerd

    with contextlib.ExitStack() as stack:

        def run(programs):
            require.programs("runc", "busybox")
            daemon = Containerd(machine, go_plugins("loopback", "portmap"), programs)
            stack.callback(daemon.close)
            return daemon

        yield run


@pytest.fixture
def containerd(start, programs):
    return start(programs)


def test_pods_of_a_kubelet(containerd, network, machine, plugins, reservations):
    """Two pods reach each other; two DELs per sandbox; nothing stays."""
    containerd.configure(network("1.0.0"))
    a, b = containerd.cri.run_pod("a"), containerd.cri.run_pod("b")
    (of_a,), (of_b,) = a.addresses(), b.addresses()
    assert of_a != of_b
    for address in (of_a, of_b):
        assert ipaddress.ip_address(address) in SUBNET
    assert set(reservations()) == {of_a, of_b}
    assert reservations()[of_a].split() == [a.id, "eth0"]

    shell = a.start("shell", "sleep", "1000")
    code, said = shell.run("ping", "-c1", "-W3", of_b)
    assert code == 0, said
    code, said = shell.run("ip", "-4", "-o", "addr", "show", "eth0")
    assert f"{of_a}/24" in said

    for pod in (a, b):
        pod.stop()
        pod.remove()
        commands = [call.command for call in plugins.calls("podwire", container_id=pod.id)]
        assert commands == ["ADD", "DEL", "DEL"]
    assert reservations() == {}
    assert machine.pod_links() == []


def test_dual_stack_pods(containerd, network):
    ranges = [[{"subnet": str(SUBNET)}], [{"subnet": "fd00:10:244::/64"}]]
    containerd.configure(network("1.0.0", ipam={"ranges": ranges}))
    a, b = containerd.cri.run_pod("a"), containerd.cri.run_pod("b")
    assert [ipaddress.ip_address(address).version for address in a.addresses()] == [4, 6]
    shell = a.start("shell", "sleep", "1000")
    for address in b.addresses():
        code, said = shell.run("ping", "-c1", "-W3", address)
        assert code == 0, said
    for pod in (a, b):
        pod.stop()
        pod.remove()


def test_a_sandbox_removed_while_its_plugin_was_broken(containerd, network, plugins, reservations):
    """A DEL that fails is sent again: stop fails, and works once the plugin is back."""
    import grpc

    containerd.configure(network("1.0.0"))
    pod = containerd.cri.run_pod("a")
    plugins.add("podwire", "/bin/false")
    with pytest.raises(grpc.RpcError):
        pod.stop()
    assert len(reservations()) == 1
    plugins.restore("podwire")
    pod.stop()
    pod.remove()
    assert reservations() == {}


def test_a_host_port_by_the_go_portmap_after_podwire(containerd, network, machine, reservations):
    outside = Outside(machine)
    containerd.configure(network("1.0.0", PORTMAP))
    pod = containerd.cri.run_pod("web", host_ports={18080: 80})
    assert pod.start("web", "sleep", "1000").run(*PAGE)[0] == 0
    netns.wait_until(
        lambda: "hello" in outside.node_asks(18080, "10.244.0.1"),
        what="an answer at the bridge's address for the node",
    )
    outside.wait_for_answers(18080)
    pod.stop()
    pod.remove()
    assert reservations() == {}
    assert "18080" not in machine.run("iptables-save", "-t", "nat").stdout


def test_ten_pods_at_once(containerd, network, machine, reservations):
    containerd.configure(network("1.0.0"))
    with ThreadPoolExecutor(10) as pool:
        pods = list(pool.map(containerd.cri.run_pod, (f"p{number}" for number in range(10))))
        addresses = {address for pod in pods for address in pod.addresses()}
        assert len(addresses) == 10
        assert set(reservations()) == addresses
        shell = pods[0].start("shell", "sleep", "1000")
        for address in addresses:
            code, said = shell.run("ping", "-c1", "-W3", address)
            assert code == 0, said
        list(pool.map(lambda pod: pod.stop(), pods))
        list(pool.map(lambda pod: pod.remove(), pods))
    assert reservations() == {}
    assert machine.pod_links() == []


def test_ctr_run_with_cni(containerd, network, machine, plugins, reservations):
    """ctr reads /etc/cni/net.d and runs /opt/cni/bin: paths that are compiled in."""
    containerd.configure(network("1.0.0"))
    for inside, ours in (
        ("/etc/cni/net.d", containerd.conf_folder),
        ("/opt/cni/bin", plugins.path),
    ):
        machine.run("mount", "--bind", ours, inside)
    containerd.import_images()
    command = ("ip", "-4", "-o", "addr", "show", "eth0")
    done = containerd.ctr(
        *("run", "--rm", "--cni", "--cgroup", f"{machine.cgroup}/ctr"),
        *(images.BUSYBOX, "ctr-test", *command),
    )
    assert "10.244.0.2/24" in done.stdout
    assert [call.command for call in plugins.calls("podwire")] == ["ADD", "DEL"]
    assert reservations() == {}
    assert machine.pod_links() == []


def test_a_network_configured_wrongly_says_why(containerd, network):
    """podwire's own words reach the caller of CRI, and with it `kubectl describe`."""
    import grpc

    containerd.configure(network("1.0.0", mtu=-1))
    with pytest.raises(grpc.RpcError) as refused:
        containerd.cri.run_pod("a")
    assert "mtu" in refused.value.details()


def test_containerd_2_calls_status(start, network, plugins):
    """STATUS of a full pool makes the network not ready, with podwire's words; a free address
    makes it ready again."""
    containerd = start(require.newer() + "/usr/bin")
    containerd.configure(network("1.1.0", ipam={"ranges": [[{"subnet": "10.244.0.0/30"}]]}))
    assert plugins.calls("podwire", "STATUS")
    pod = containerd.cri.run_pod("a")
    ready, message = containerd.cri.condition("NetworkReady")
    assert not ready
    assert "podnet" in message or "10.244.0" in message
    pod.stop()
    pod.remove()
    assert containerd.cri.condition("NetworkReady")[0]


@pytest.mark.parametrize("generation", ["containerd", "containerd 2"])
def test_each_runtime_picks_the_version_that_it_knows(start, network, plugins, generation):
    """A list that offers 1.0.0 and 1.1.0 serves both generations."""
    newer = generation == "containerd 2"
    containerd = start(require.newer() + "/usr/bin" if newer else "")
    containerd.configure({**network("1.0.0"), "cniVersions": ["1.0.0", "1.1.0"]})
    pod = containerd.cri.run_pod("a")
    pod.stop()
    pod.remove()
    assert bool(plugins.calls("podwire", "STATUS")) == newer
