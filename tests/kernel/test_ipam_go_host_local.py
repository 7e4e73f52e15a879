"""podwire and the Go host-local on one directory: each reads, excludes and cleans up the other.

$CNI_PEER_PATH names the folder of the Go plugins where it is not one of the usual ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.spec import Attachment, CniError, Code
from ipam import host_local
from ipam.config import HostLocalConf
from tests.support import require
from tests.unit.ipam_disk import (
    DUAL,
    assert_index_agrees,
    conf_of,
    directory,
    files,
    held,
    other_writer,
    pod,
)


class Go:
    """The Go host-local on the directory of a configuration."""

    def __init__(self, executable: str, data_dir: Path, ranges: Any) -> None:
        self.executable = executable
        self.conf: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "name": "podnet",
            "ipam": {"type": "host-local", "dataDir": str(data_dir), "ranges": ranges},
        }

    def call(self, command: str, attachment: Attachment, args: str = "") -> dict[str, Any]:
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_IFNAME": attachment.ifname,
            "CNI_NETNS": "/var/run/netns/none",
            "CNI_PATH": os.path.dirname(self.executable),
            "CNI_ARGS": args,
        }
        done = subprocess.run(
            [self.executable],
            input=json.dumps(self.conf),
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            umask=0o022,
        )
        result: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return result

    def add(self, attachment: Attachment, args: str = "") -> list[str]:
        result = self.call("ADD", attachment, args)
        return [ip["address"].partition("/")[0] for ip in result["ips"]]

    def delete(self, attachment: Attachment) -> None:
        assert self.call("DEL", attachment) == {}


@pytest.fixture(scope="module")
def executable() -> str:
    folder = os.environ.get("CNI_PEER_PATH") or require.go_plugins("host-local")
    return os.path.join(folder, "host-local")


@pytest.fixture
def conf(tmp_path: Path) -> HostLocalConf:
    return conf_of(tmp_path / "networks", DUAL)


@pytest.fixture
def go(executable: str, tmp_path: Path) -> Go:
    return Go(executable, tmp_path / "networks", DUAL)


def add(conf: HostLocalConf, attachment: Attachment) -> list[str]:
    """With the machine's own boot ID, as in earnest."""
    return [str(ip.address.ip) for ip in host_local.add(conf, attachment).ips]


def release(conf: HostLocalConf, attachment: Attachment) -> None:
    host_local.release(conf.place, attachment)


def in_parallel(*works: Any) -> list[Any]:
    with ThreadPoolExecutor(max_workers=len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


# --- one after the other ----------------------------------------------------------------------


def test_the_files_are_the_same(go: Go, conf: HostLocalConf, tmp_path: Path) -> None:
    mine = conf_of(tmp_path / "mine", DUAL)
    for number in range(3):
        assert go.add(pod(number)) == add(mine, pod(number))
    for number, address in enumerate(("10.244.0.77", "fd00:244::77"), start=5):
        wanted = conf_of(tmp_path / "mine", DUAL, asked=address)
        assert go.add(pod(number), f"IP={address}") == add(wanted, pod(number))
    go.delete(pod(1))
    release(mine, pod(1))
    assert go.add(pod(9)) == add(mine, pod(9))
    theirs, ours = (
        {path.name: path.read_bytes() for path in directory(c.place).iterdir()}
        for c in (conf, mine)
    )
    assert theirs == ours
    assert directory(conf.place).stat().st_mode == directory(mine.place).stat().st_mode
    modes = [(directory(mine.place) / name).stat().st_mode & 0o777 for name in ours]
    assert set(modes) == {0o600}  # the newest releases' too; older ones wrote 0644


@pytest.mark.parametrize(
    "ranges",
    [
        [[{"subnet": "10.1.0.0/29"}]],
        [[{"subnet": "10.1.0.0/29", "gateway": "10.1.0.4"}]],
        [[{"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.3", "rangeEnd": "10.1.0.5"}]],
        [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/29", "rangeStart": "10.2.0.4"}]],
        [[{"subnet": "fd00::/125", "rangeStart": "fd00::3"}]],
        [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/125"}], [{"subnet": "10.3.0.0/28"}]],
    ],
)
def test_the_order_is_the_same(executable: str, tmp_path: Path, ranges: Any) -> None:
    go = Go(executable, tmp_path / "go", ranges)
    mine = conf_of(tmp_path / "mine", ranges)
    for number in range(14):
        result = go.call("ADD", pod(number))
        if "ips" not in result:
            with pytest.raises(CniError) as caught:
                add(mine, pod(number))
            assert caught.value.code == Code.POOL_EXHAUSTED
            break
        assert [
            (str(ip.address), str(ip.gateway)) for ip in host_local.add(mine, pod(number)).ips
        ] == [(ip["address"], ip["gateway"]) for ip in result["ips"]]
        if number % 3 == 2:
            go.delete(pod(number - 1))
            release(mine, pod(number - 1))
    assert held(mine.place) == held(conf_of(tmp_path / "go", ranges).place)


def test_each_takes_turns(go: Go, conf: HostLocalConf) -> None:
    given = [
        address
        for number in range(6)
        for address in (add(conf, pod(number)) if number % 2 else go.add(pod(number)))
    ]
    assert given[::2] == [f"10.244.0.{number}" for number in range(2, 8)]
    for number in range(6):
        (go.delete if number % 2 else lambda attachment: release(conf, attachment))(pod(number))
    assert held(conf.place) == {}
    release(conf, pod("nobody"))
    assert_index_agrees(conf.place)


def test_neither_serves_an_attachment_of_the_other_twice(go: Go, conf: HostLocalConf) -> None:
    go.add(pod(1))
    add(conf, pod(2))
    with pytest.raises(CniError) as caught:
        add(conf, pod(1))
    assert caught.value.code == Code.DUPLICATE_ALLOCATION
    assert "duplicate" in go.call("ADD", pod(2))["msg"]
    host_local.check(conf, pod(1), ())
    assert go.call("CHECK", pod(2)) == {}


def test_a_directory_in_use_is_taken_over(go: Go, conf: HostLocalConf) -> None:
    for number in range(5):
        go.add(pod(number))
    with other_writer(conf.place) as path:
        (path / "10.244.0.4").write_text("c2")  # as releases before 0.7 wrote
        (path / "fd00:244::4").write_text("c2")
    assert add(conf, pod(5)) == ["10.244.0.7", "fd00:244::7"]
    release(conf, pod(0))
    release(conf, pod(2))
    kept = frozenset({pod(1), pod(5)})
    assert host_local.collect(conf.place, kept) == [pod(3), pod(4)]
    assert set(held(conf.place).values()) == kept
    go.delete(pod(5))
    release(conf, pod(1))
    assert files(conf.place) == {}


def test_an_address_that_the_other_gave_to_another_pod(go: Go, conf: HostLocalConf) -> None:
    assert add(conf, pod(1))[0] == "10.244.0.2"
    go.delete(pod(1))
    assert go.add(pod(2), "IP=10.244.0.2")[0] == "10.244.0.2"
    release(conf, pod(1))
    assert held(conf.place)["10.244.0.2"] == pod(2)
    release(conf, pod(2))
    assert held(conf.place) == {}


# --- at once ----------------------------------------------------------------------------------

_EACH = 20


def test_adds_of_both_at_once_are_distinct(go: Go, conf: HostLocalConf) -> None:
    given: list[str] = []

    def ours(worker: int) -> None:
        for number in range(_EACH):
            given.extend(add(conf, pod(f"ours-{worker}-{number}")))

    def theirs(worker: int) -> None:
        for number in range(_EACH):
            given.extend(go.add(pod(f"theirs-{worker}-{number}")))

    in_parallel(*(lambda w=w, f=f: f(w) for w in range(2) for f in (ours, theirs)))
    assert len(given) == len(set(given)) == 2 * 2 * 2 * _EACH
    assert set(held(conf.place)) == set(given)
    everybody = sorted(set(held(conf.place).values()))
    half = len(everybody) // 2
    # Crosswise, so that each removes what the other made, while the other removes, too.
    in_parallel(
        lambda: [release(conf, attachment) for attachment in everybody[half:]],
        lambda: [go.delete(attachment) for attachment in everybody[:half]],
    )
    assert files(conf.place) == {}
    release(conf, pod("nobody"))
    assert_index_agrees(conf.place)


def test_a_small_pool_is_shared_to_the_last_address(executable: str, tmp_path: Path) -> None:
    """ADDs and DELs of both at once, at the edge of exhaustion: no leak, no address twice."""
    ranges = [[{"subnet": "10.1.0.0/28"}]]
    go, conf = Go(executable, tmp_path, ranges), conf_of(tmp_path, ranges)
    guard = threading.Lock()
    in_use: dict[str, str] = {}
    doubles: list[str] = []

    def use(addresses: list[str], who: str) -> None:
        with guard:
            doubles.extend(a for a in addresses if a in in_use)
            in_use.update(dict.fromkeys(addresses, who))

    def done(who: str) -> None:
        with guard:
            for address in [a for a, user in in_use.items() if user == who]:
                del in_use[address]

    def ours() -> None:
        for number in range(80):
            name = f"ours-{number}"
            try:
                use(add(conf, pod(name)), name)
            except CniError as e:
                assert e.code == Code.POOL_EXHAUSTED
            if number % 4:
                done(name)
                release(conf, pod(name))

    def theirs() -> None:
        for number in range(_EACH):
            name = f"theirs-{number}"
            result = go.call("ADD", pod(name))
            use([ip["address"].partition("/")[0] for ip in result.get("ips", [])], name)
            if number % 4:
                done(name)
                go.delete(pod(name))

    in_parallel(ours, theirs)
    assert doubles == []
    assert set(held(conf.place)) == set(in_use)
    host_local.collect(conf.place, frozenset())
    assert files(conf.place) == {}
    assert_index_agrees(conf.place)
