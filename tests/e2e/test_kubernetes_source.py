"""The source of Kubernetes Nodes against a real API server and etcd."""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.sources import (
    Announcement,
    Away,
    Change,
    Gone,
    Listed,
    Put,
    Readiness,
    SourceError,
)
from tests.support import netns, require
from tests.support.apiclient import ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.netns import Namespace, Namespaces
from tests.support.nodeobjects import heartbeat, node_object

STRATEGIC = "application/strategic-merge-patch+json"
NODES = "/api/v1/nodes"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLE = [
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
]
IN_DEFAULT = [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]
OWN = Announcement("0e:00:0a:f4:00:05", ip_address("10.244.0.0"), "vxlan vni=1 port=8472")
READY = Readiness(True, "PodwireReady", "pods have a network")


class Follower:
    """A source that follows in a thread, in a namespace if one is given; `told` has the changes."""

    def __init__(self, options: dict[str, str], place: Namespace | None = None) -> None:
        from cni_plugin.sources.kubernetes import KubernetesSource, Options

        self.told: queue.Queue[Change] = queue.Queue()
        self.source = KubernetesSource(Options(**options))
        self._place = place
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._place.entered() if self._place else contextlib.nullcontext():
            self.source.follow(self.told.put)

    def next(self, timeout: float = 20) -> Change:
        return self.told.get(timeout=timeout)

    def until(self, wanted: Change) -> list[Change]:
        """What is told up to and with `wanted`."""
        told = [self.next()]
        while told[-1] != wanted:
            told.append(self.next())
        return told

    def names(self, change: Change) -> list[str]:
        assert isinstance(change, Listed), change
        return [member.name for member in change.members]

    def close(self) -> None:
        began = time.monotonic()
        self.source.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert time.monotonic() - began < 15


@pytest.fixture(scope="module")
def shared_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    require.root()
    require.modules("lightkube")
    with ControlPlane(tmp_path_factory.mktemp("plane")) as made:
        give_role(made, ROLE, IN_DEFAULT)
        yield made


@pytest.fixture
def plane(shared_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane, with nodes "node-1" and "node-2"."""
    for number in (1, 2):
        shared_plane.api.create(NODES, node_object(number))
    yield shared_plane
    shared_plane.api.delete(NODES)


@pytest.fixture
def options(plane: ControlPlane, tmp_path: Path) -> dict[str, str]:
    """Of node-1, by the kubeconfig of a user that may do everything."""
    return {"node_name": "node-1", "kubeconfig": plane.kubeconfig}


@pytest.fixture
def follow(plane: ControlPlane) -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def start(options: dict[str, str], place: Namespace | None = None) -> Follower:
        made.append(Follower(options, place))
        return made[-1]

    yield start
    for one in made:
        one.close()


Follow = Callable[..., Follower]


def give_role(plane: ControlPlane, rules: list[Object], in_default: list[Object]) -> None:
    """The ServiceAccount podwire of the namespace podwire, with these rules alone."""
    create(plane, "/api/v1/namespaces", {"metadata": {"name": "podwire"}})
    create(plane, "/api/v1/namespaces/podwire/serviceaccounts", {"metadata": {"name": "podwire"}})
    for place, kind, given in (
        (RBAC, "ClusterRole", rules),
        (f"{RBAC}/namespaces/default", "Role", in_default),
    ):
        who = {"kind": "ServiceAccount", "name": "podwire", "namespace": "podwire"}
        role = {"kind": kind, "name": "podwire", "apiGroup": "rbac.authorization.k8s.io"}
        metadata = {"metadata": {"name": "podwire"}}
        create(plane, f"{place}/{kind.lower()}s", {**metadata, "rules": given})
        bound = {**metadata, "subjects": [who], "roleRef": role}
        create(plane, f"{place}/{kind.lower()}bindings", bound)


def create(plane: ControlPlane, path: str, body: Object) -> None:
    """Create it, or put it in the place of what is there."""
    try:
        plane.api.create(path, body)
    except ApiError as e:
        if e.status != 409:
            raise
        if "rules" in body:
            plane.api.replace(f"{path}/{body['metadata']['name']}", body)


def account(plane: ControlPlane, folder: Path) -> dict[str, str]:
    """Options of a pod: the ServiceAccount's token and CA in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(plane.service_account_token("podwire", "podwire"))
    shutil.copy(plane.ca, folder / "ca.crt")
    return {"node_name": "node-1", "api_server": plane.url, "account": str(folder)}


def beat(plane: ControlPlane, name: str, moment: str) -> None:
    body = {"status": {"conditions": heartbeat(moment)}}
    plane.api.patch(f"{NODES}/{name}/status", body, STRATEGIC)


def condition(plane: ControlPlane, name: str) -> Object:
    found = plane.api.get(f"{NODES}/{name}")["status"]["conditions"]
    return next(one for one in found if one["type"] == "NetworkUnavailable")


def requests(plane: ControlPlane, verb: str) -> int:
    """How many requests for nodes the API server counts, those that go on included."""
    text = plane.api.get("/metrics")["text"]
    done = r'^apiserver_request_total\{.*resource="nodes".*verb="%s".*\} (\d+)$'
    going_on = r'^apiserver_longrunning_gauge\{.*resource="nodes".*verb="%s".*\} (\d+)$'
    found = [
        int(count)
        for pattern in (done, going_on)
        for count in re.findall(pattern % verb, text, re.MULTILINE)
    ]
    return sum(found)


# --- following --------------------------------------------------------------------------------


def test_nodes_that_come_change_and_go(
    plane: ControlPlane, options: dict[str, str], follow: Follow
) -> None:
    follower = follow(options)
    assert follower.names(follower.next()) == ["node-1", "node-2"]
    both = node_object(3, ("192.168.1.3", "fd00::3"), ("10.244.3.0/24", "fd00:10:3::/64"))
    plane.api.create(NODES, both)
    put = follower.next()
    assert isinstance(put, Put)
    assert put.member.name == "node-3"
    assert put.member.addresses == (ip_address("192.168.1.3"), ip_address("fd00::3"))
    assert put.member.pod_cidrs == (ip_network("10.244.3.0/24"), ip_network("fd00:10:3::/64"))
    assert put.member.vtep_mac == "0e:00:00:00:00:03"
    assert put.member.backend == "vxlan vni=1 port=8472"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", put.member.since)
    moved = [{"type": "InternalIP", "address": "192.168.1.33"}]
    plane.api.patch(f"{NODES}/node-3/status", {"status": {"addresses": moved}})
    changed = follower.next()
    assert isinstance(changed, Put)
    assert changed.member == put.member._replace(addresses=(ip_address("192.168.1.33"),))
    plane.api.delete(f"{NODES}/node-3")
    assert follower.next() == Gone("node-3")


def test_a_node_without_what_it_needs_is_told_with_its_problem(
    plane: ControlPlane, options: dict[str, str], follow: Follow
) -> None:
    follower = follow(options)
    follower.next()
    bad = {"name": "bare", "annotations": {"podwire.io/vtep-mac": "no"}}
    plane.api.create(NODES, {"metadata": bad})
    put = follower.next()
    assert isinstance(put, Put)
    assert (put.member.addresses, put.member.pod_cidrs) == ((), ())
    assert "podwire.io/vtep-mac" in put.member.problem


def test_heartbeats_tell_nothing(
    plane: ControlPlane, options: dict[str, str], follow: Follow
) -> None:
    follower = follow(options)
    follower.next()
    for second in range(20):
        for name in ("node-1", "node-2"):
            beat(plane, name, f"2024-06-01T12:00:{second:02}Z")
    plane.api.delete(f"{NODES}/node-2")
    assert follower.next() == Gone("node-2")


def test_a_list_in_pages_and_one_watch_are_all_that_is_asked(
    plane: ControlPlane, options: dict[str, str], follow: Follow
) -> None:
    for number in range(3, 603):
        plane.api.create(NODES, node_object(number))
    before = [requests(plane, verb) for verb in ("LIST", "WATCH", "GET")]
    follower = follow(options)
    listed = follower.next()
    for number in range(3, 603):
        beat(plane, f"node-{number}", "2024-06-01T12:00:00Z")
    plane.api.delete(f"{NODES}/node-2")
    assert follower.next() == Gone("node-2")
    after = [requests(plane, verb) for verb in ("LIST", "WATCH", "GET")]
    assert len(follower.names(listed)) == 602
    # three pages of one list
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 1, 0]


@pytest.fixture
def restarted_plane(
    request: pytest.FixtureRequest, _nothing_left: None, tmp_path: Path
) -> Iterator[ControlPlane]:
    """A control plane of the test's own, with the nodes; its parameter: options of the API
    server."""
    with ControlPlane(tmp_path, api_options=getattr(request, "param", ())) as plane:
        for number in (1, 2):
            plane.api.create(NODES, node_object(number))
        yield plane


def test_the_api_server_goes_and_comes_back(restarted_plane: ControlPlane) -> None:
    plane = restarted_plane
    follower = Follower({"node_name": "node-1", "kubeconfig": plane.kubeconfig})
    try:
        follower.next()
        plane.stop_api()
        away = follower.next()
        assert isinstance(away, Away)
        assert plane.url in away.reason
        time.sleep(3)
        assert follower.told.empty(), "told again while it is away"
        with pytest.raises(SourceError, match=re.escape(plane.url)):
            follower.source.announce(OWN)
        plane.start_api()
        assert follower.names(follower.next(60)) == ["node-1", "node-2"]
        plane.api.delete(f"{NODES}/node-2")
        assert follower.next() == Gone("node-2")
        follower.source.announce(OWN)
    finally:
        follower.close()


@pytest.mark.parametrize(
    "restarted_plane", [(), ("--watch-cache=false",)], indirect=True, ids=["cache", "etcd"]
)
def test_what_happened_while_it_was_away_is_not_lost(restarted_plane: ControlPlane) -> None:
    """The new process does not know the version that we have, nor does etcd once it has compacted
    its history, which the API server asks itself without its cache: 410 Gone."""
    plane = restarted_plane
    follower = Follower({"node_name": "node-1", "kubeconfig": plane.kubeconfig})
    try:
        follower.next()
        plane.stop_api()
        assert isinstance(follower.next(), Away)
        plane.etcd_delete("/registry/minions/node-2")
        plane.compact_etcd()
        plane.start_api()
        last = follower.next(60)
        while follower.names(last) != ["node-1"]:
            last = follower.next()
    finally:
        follower.close()


def test_a_connection_that_dies_in_silence_is_noticed(
    namespaces: Namespaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other end's link is down: nothing is answered, and nothing is refused."""
    from cni_plugin.sources import kubeconnect

    short = [kubeconnect._KEEPALIVE[0]]
    for (level, option, _), value in zip(kubeconnect._KEEPALIVE[1:], (1, 1, 2, 3000), strict=True):
        short.append((level, option, value))
    monkeypatch.setattr(kubeconnect, "_KEEPALIVE", tuple(short))
    server, client = namespaces.make("server"), namespaces.make("client")
    client.run("ip", "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", server.path)
    for place, address in ((server, "192.168.1.2/24"), (client, "192.168.1.3/24")):
        place.run("ip", "addr", "add", address, "dev", "eth0")
        place.run("ip", "link", "set", "eth0", "up")
    with ControlPlane(tmp_path, server, address="192.168.1.2") as plane:
        plane.api.create(NODES, node_object(1))
        options = {"node_name": "node-1", "kubeconfig": plane.kubeconfig}
        follower = Follower(options, client)
        try:
            assert follower.names(follower.next()) == ["node-1"]
            server.run("ip", "link", "set", "eth0", "down")
            assert isinstance(follower.next(60), Away)
            server.run("ip", "link", "set", "eth0", "up")
            assert follower.names(follower.next(60)) == ["node-1"]
        finally:
            follower.close()


# --- telling ----------------------------------------------------------------------------------


def test_annotations_condition_and_events_are_written_once(
    plane: ControlPlane, tmp_path: Path, follow: Follow
) -> None:
    """With a ServiceAccount that has exactly the verbs of the documentation."""
    follower = follow(account(plane, tmp_path / "account"))
    follower.next()
    for _ in range(2):
        follower.source.announce(OWN)
        follower.source.say_ready(READY)
        follower.source.report("node-2", "PodCIDROverlap", "10.244.0.0/24 is node-1's")
    put = follower.next()
    assert isinstance(put, Put)
    assert (put.member.vtep_mac, put.member.overlay_address) == OWN[:2]
    found = plane.api.get(f"{NODES}/node-1")
    annotations = found["metadata"]["annotations"]
    assert annotations["podwire.io/vtep-mac"] == "0e:00:0a:f4:00:05"
    assert annotations["podwire.io/overlay-address"] == "10.244.0.0"
    assert annotations["podwire.io/backend"] == "vxlan vni=1 port=8472"
    assert annotations["node.alpha.kubernetes.io/ttl"] == "0"
    assert len(found["status"]["conditions"]) == 5, "the kubelet's must stay"
    written = condition(plane, "node-1")
    assert (written["status"], written["reason"]) == ("False", "PodwireReady")
    events = plane.api.get("/api/v1/namespaces/default/events")["items"]
    (event,) = [one for one in events if one["involvedObject"]["name"] == "node-2"]
    assert event["reason"] == "PodCIDROverlap"
    assert event["source"] == {"component": "podwire", "host": "node-1"}
    assert event["type"] == "Warning"
    follower.source.announce(Announcement(backend="host-gw"))
    annotations = plane.api.get(f"{NODES}/node-1")["metadata"]["annotations"]
    assert {k: v for k, v in annotations.items() if "podwire.io" in k} == {
        "podwire.io/backend": "host-gw"
    }


def test_the_transition_of_the_condition_moves_with_its_status(
    plane: ControlPlane, options: dict[str, str], follow: Follow
) -> None:
    follower = follow(options)
    follower.next()
    follower.source.say_ready(READY)
    first = condition(plane, "node-1")
    time.sleep(1.1)
    follower.source.say_ready(READY._replace(message="other words"))
    second = condition(plane, "node-1")
    assert second["message"] == "other words"
    assert second["lastTransitionTime"] == first["lastTransitionTime"]
    assert second["lastHeartbeatTime"] > first["lastHeartbeatTime"]
    follower.source.say_ready(Readiness(False, "NetworkNotReady", "no"))
    third = condition(plane, "node-1")
    assert third["status"] == "True"
    assert third["lastTransitionTime"] > first["lastTransitionTime"]


def test_a_token_is_read_anew(plane: ControlPlane, tmp_path: Path, follow: Follow) -> None:
    """The one that replaces it may do nothing, so it shows whose it is."""
    follower = follow(account(plane, tmp_path / "account"))
    follower.next()
    create(plane, "/api/v1/namespaces/podwire/serviceaccounts", {"metadata": {"name": "other"}})
    other = plane.service_account_token("podwire", "other")
    (tmp_path / "account" / "token").write_text(other)
    with pytest.raises(SourceError, match="system:serviceaccount:podwire:other"):
        follower.source.announce(OWN)
    account(plane, tmp_path / "account")
    follower.source.announce(OWN)


@pytest.mark.parametrize("missing", ["list", "watch", "status", "events"])
def test_each_verb_is_needed(
    plane: ControlPlane, tmp_path: Path, follow: Follow, missing: str
) -> None:
    rules = [{**ROLE[0], "verbs": [verb for verb in ROLE[0]["verbs"] if verb != missing]}]
    rules += ROLE[1:] if missing != "status" else []
    give_role(plane, rules, [] if missing == "events" else IN_DEFAULT)
    try:
        options = account(plane, tmp_path / "account")
        netns.wait_until(lambda: refused(follow(options)) == [missing], what=f"no {missing}")
    finally:
        give_role(plane, ROLE, IN_DEFAULT)


def refused(follower: Follower) -> list[str]:
    """What the API server refuses to a source."""
    first = follower.next()
    if isinstance(first, Away):
        return ["list"]
    found = []
    with contextlib.suppress(queue.Empty):
        if isinstance(follower.next(0.5), Away):
            found.append("watch")
    source = follower.source
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("status", lambda: source.announce(OWN)),
        ("status", lambda: source.say_ready(READY._replace(message=str(time.time())))),
        ("events", lambda: source.report("node-2", "NoAddress", "it has none")),
    ]
    for name, call in calls:
        try:
            call()
        except SourceError as e:
            assert "403" in str(e), e
            found += [name] if name not in found else []
    if "status" not in found:
        source.announce(Announcement())
    return found
