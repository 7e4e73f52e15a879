"""A node on which things go wrong on purpose, and what is left of an attachment afterwards.

`Stage.run` executes the plugin with a fault at one system call (faulthook/sitecustomize.py);
`Stage.world` is everything that an ADD could have changed, in comparable form.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tests.support.netns import Namespace
from tests.support.plugin import Config, Plugin
from tests.support.topology import Topology

HOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "faulthook")
NODE_ADDRESSES = ("192.168.1.2/24", "fd00:1::2/64")

# Sweeps look thousands of times: one process for what one can tell, of both families if it can.
_LOOK = """ip -j -d -batch - <<END
addr show
route show table all
rule show
END
ip -j -6 rule
"""
_KINDS = ("link", "route", "rule4", "rule6")
_VOLATILE_FLAGS = ("NO-CARRIER", "LOWER_UP", "DORMANT", "linkdown", "dead")
_VOLATILE = ("operstate", "valid_life_time", "preferred_life_time", "group", "stats")

World = dict[str, str]


class Ended(NamedTuple):
    """How a call ended: exit status (negative: a signal), stdout, stderr."""

    rc: int
    stdout: bytes
    stderr: bytes

    def document(self) -> Any:
        """The one JSON document of stdout."""
        try:
            return json.loads(self.stdout)
        except ValueError as e:
            raise AssertionError(f"not one JSON document ({e}): {self}") from e


class Stage:
    """One node, one sandbox, one configuration with an address directory of its own."""

    def __init__(
        self, topology: Topology, executable: str, folder: str, name: str = "a", **keys: Any
    ) -> None:
        self.node = topology.node(f"node-{name}", *NODE_ADDRESSES)
        self.sandbox = topology.sandbox(f"pod-{name}")
        self.others = [topology.sandbox(f"other-{name}{number}") for number in range(5)]
        self.plugin = Plugin(executable, self.node)
        self.data = os.path.join(folder, f"networks-{name}")
        self.folder = folder
        ranges = [[{"subnet": "10.244.0.0/29"}], [{"subnet": "fd00:2::/125"}]]
        ipam = {"type": "host-local", "dataDir": self.data, "ranges": ranges}
        ipam |= keys.pop("ipam", {})
        self.conf: Config = {
            "cniVersion": "1.0.0",
            "name": "podnet",
            "type": "podwire",
            "isDefaultGateway": True,
            "ipam": {key: value for key, value in ipam.items() if value is not None},
            **keys,
        }

    # --- calls -----------------------------------------------------------------------------------

    def env(self, cid: str = "pod", ifname: str = "eth0", sandbox: str | None = None) -> Config:
        path = self.sandbox.path if sandbox is None else sandbox
        return {"CNI_CONTAINERID": cid, "CNI_IFNAME": ifname, "CNI_NETNS": path}

    def run(
        self,
        command: str,
        fault: str = "",
        log: str = "",
        conf: Config | None = None,
        wrap: Iterable[str] = (),
        **more: Any,
    ) -> Ended:
        """One call with a fault. `wrap` are words before the executable, on the node."""
        env = {**self.env(), **more.pop("env", {})}
        if fault or log:
            env |= {"PYTHONPATH": HOOK, "PODWIRE_FAULT": fault, "PODWIRE_FAULT_LOG": log}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | more
        with self.plugin.placed() as words:
            done = subprocess.run(
                [*wrap, *words],
                input=json.dumps(self.conf if conf is None else conf).encode(),
                env=self.plugin.environ(command, env),
                check=False,
                **options,
            )
        return Ended(done.returncode, done.stdout or b"", done.stderr or b"")

    def points(self, command: str) -> list[str]:
        """The names of the points that a call passes, in order; the call is made."""
        log = os.path.join(self.folder, f"points-{self.node.name}")
        done = self.run(command, log=log)
        assert done.rc == 0, done
        with open(log) as f:
            names = f.read().splitlines()
        os.unlink(log)
        return names

    def remove_bridge(self) -> None:
        self.node.run("ip", "link", "del", "cni0", check=False)

    def start_over(self) -> None:
        """No bridge and no address directory, as on a node's first day."""
        self.remove_bridge()
        shutil.rmtree(self.data, ignore_errors=True)

    # --- looking ---------------------------------------------------------------------------------

    def world(self, *more: Namespace) -> World:
        """Links, addresses, routes and rules of the node and the sandbox, and the address files.

        Left out: what the kernel changes by itself, link-local addresses, the cursors of the
        round-robin.
        """
        found = files(self.data)
        for place in (self.node, self.sandbox, *more):
            found |= look(place)
        return found

    def use(self, cid: str = "other") -> None:
        """Another pod is added, checked and deleted: the network works."""
        env = self.env(cid, sandbox=self.others[0].path)
        result = self.plugin.call("ADD", self.conf, env).result
        checked = self.plugin.call("CHECK", {**self.conf, "prevResult": result}, env)
        assert checked.ok, checked
        assert self.plugin.call("DEL", self.conf, env).ok

    def assert_pool_is_whole(self) -> None:
        """Every address of the range can be had at once (a /29: five and the gateway)."""
        envs = [self.env(pod.name, sandbox=pod.path) for pod in self.others]
        got = [self.plugin.call("ADD", self.conf, env).addresses()[0] for env in envs]
        assert len(set(got)) == len(envs)
        for env in envs:
            assert self.plugin.call("DEL", self.conf, env).ok

    def repair(self) -> None:
        """After a complaint, so that the next ones are its own: a node in use again."""
        for place in (self.node, self.sandbox):
            for name, link in place.links().items():
                uplink = place is self.node and name == "eth0"
                if link.get("linkinfo", {}).get("info_kind") == "veth" and not uplink:
                    place.run("ip", "link", "del", name, check=False)  # or gone with its peer
        shutil.rmtree(self.data, ignore_errors=True)
        self.use()


def look(place: Namespace) -> World:
    shown = place.run("sh", "-c", _LOOK).stdout
    decoder, found, position = json.JSONDecoder(), {}, 0
    for kind in _KINDS:
        items, position = decoder.raw_decode(shown, position)
        position += len(shown[position:]) - len(shown[position:].lstrip())
        for number, item in enumerate(items):
            for key, text in _lines(kind, number, item):
                found[f"{place.name} {key}"] = text
    return found


def _lines(kind: str, number: int, item: Any) -> Iterable[tuple[str, str]]:
    if kind == "link":
        addresses = item.pop("addr_info", [])
        yield f"link {item['ifname']}", _stable(item)
        for address in addresses:
            if address.get("scope") != "link" and "local" in address:
                name = f"address {item['ifname']} {address['local']}/{address['prefixlen']}"
                yield name, _stable(address)
    elif kind == "route":
        family = 6 if "pref" in item else 4  # only routes of IPv6 have a preference (RFC 4191)
        volatile = str(item.get("dst", "")).startswith(("fe80", "ff00", "multicast"))
        if not volatile and item.get("type") != "anycast":  # these come with forwarding
            words = (item.get(k) for k in ("table", "type", "dst", "gateway", "dev", "metric"))
            name = " ".join(str(word) for word in words if word is not None)
            yield f"route{family} {name}", _stable(item)
    else:
        yield f"{kind} {number}", _stable(item)


def _stable(item: Any) -> str:
    return json.dumps(_pruned(item), sort_keys=True)


def _pruned(item: Any) -> Any:
    if isinstance(item, dict):
        return {
            key: _pruned(value)
            for key, value in item.items()
            if key not in _VOLATILE and "timer" not in key and "topology_change" not in key
        }
    if isinstance(item, list):
        return [_pruned(value) for value in item if value not in _VOLATILE_FLAGS]
    return item


def files(top: str) -> World:
    """Every file below a folder: mode and content, or the target of a symbolic link."""
    found: World = {}
    for folder, folders, names in os.walk(top):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            if name.startswith("last_reserved_ip."):
                continue
            status = os.lstat(path)
            text = stat.filemode(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                text += f" {os.readlink(path)}"
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as f:
                    text += f" {f.read()!r}"
            found[f"file {os.path.relpath(path, top)}"] = text
    return found


def difference(before: World, now: World) -> list[str]:
    """What is not as it was, in words."""
    return [
        *(f"left: {key}: {now[key]}" for key in now if key not in before),
        *(f"gone: {key}: {before[key]}" for key in before if key not in now),
        *(f"{k}: {before[k]}\n   is now {now[k]}" for k in now if before.get(k, now[k]) != now[k]),
    ]


def leftovers(before: World, now: World) -> list[str]:
    """The difference without what may stay after a kill and a DEL.

    That is the bridge with its addresses and routes, and the address directory itself with lock
    and boot mark.
    """
    return [line for line in difference(before, now) if not _may_stay(line)]


def _may_stay(line: str) -> bool:
    head = line.split(": {", 1)[0]
    if " cni0" in head or head.startswith("left: file "):
        name = head.removeprefix("left: file ").split(": ")[0].rpartition("/")[2]
        return " cni0" in head or name in ("podnet", ".podwire-podnet", "lock", "boot")
    return False


def sweep(stages: list[Stage], numbers: Iterable[Any], body: Callable[[Stage, Any], list[str]]):
    """Call `body` for each number, each stage in a thread of its own; all complaints together.

    A body that raises is a complaint too.
    """
    work = list(numbers)

    def one(index: int) -> list[str]:
        complaints = []
        for number in work[index :: len(stages)]:
            try:
                found = body(stages[index], number)
            except AssertionError as e:
                found = [str(e)]
            if found:
                shown = [line.partition(": {")[0][:500] for line in found]
                complaints.append(f"at {number}: " + "\n    ".join(shown))
                stages[index].repair()
        return complaints

    with ThreadPoolExecutor(len(stages)) as pool:
        complaints = [line for part in pool.map(one, range(len(stages))) for line in part]
    assert not complaints, f"{len(complaints)} complaints\n" + "\n".join(
        line[:260] for line in complaints[:60]
    )
