"""Real etcd servers for tests, a way to cut a node off from them, and what a source tells.

They listen on the loopback of the run's own network namespace (tests/support/private.py).
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import Any

from cni_plugin.sources import Away, Change, Gone, Listed, Member, Put
from cni_plugin.sources.etcd import EtcdSource
from cni_plugin.sources.etcd_addresses import Choose
from cni_plugin.sources.etcd_gateway import Gateway
from cni_plugin.sources.etcd_messages import Endpoint, KeyValue, Write
from cni_plugin.sources.etcd_options import EtcdOptions
from tests.support import require

_READY_SECONDS = 30.0
PATIENCE = 20.0  # seconds that a change may take on a busy machine


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port


class Etcd:
    """One member of an etcd cluster, which keeps what it stores from one start to the next."""

    def __init__(
        self,
        folder: Path,
        name: str = "one",
        options: Sequence[str] = (),
        peers: dict[str, int] | None = None,
        scheme: str = "http",
        listen: str = "127.0.0.1",
    ) -> None:
        """`peers`: the ports of all members of the cluster, by name. `listen`: where it listens for
        clients; it is asked on the loopback whether it is ready."""
        self.port = free_port()
        self.scheme = scheme
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        ports = peers or {name: free_port()}
        cluster = ",".join(f"{other}=http://127.0.0.1:{port}" for other, port in ports.items())
        self._argv = [
            require.program("etcd"),
            *("--name", name, "--data-dir", str(folder / f"etcd-{name}")),
            *("--listen-client-urls", f"{scheme}://{listen}:{self.port}"),
            *("--advertise-client-urls", self.url),
            *("--listen-peer-urls", f"http://127.0.0.1:{ports[name]}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{ports[name]}"),
            *("--initial-cluster", cluster),
            *options,
        ]
        self._log = folder / f"etcd-{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> Etcd:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Until it listens and has a leader."""
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            assert self._process is not None
            ended = self._process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"etcd is not ready:\n{self._log.read_text()[-2000:]}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        if self.scheme == "https":
            return "ready to serve client requests" in self._log.read_text()
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            made.request("GET", "/health")
            return json.loads(made.getresponse().read()).get("health") == "true"
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            made.close()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def gateway(self, port: int = 0) -> Gateway:
        """A client of a person's, to look and to interfere."""
        return Gateway([Endpoint("127.0.0.1", port or self.port, False)])


@contextmanager
def running(*members: Etcd) -> Iterator[None]:
    """All of them, started at once."""
    try:
        for member in members:
            member.start(wait=False)
        for member in members:
            member.wait()
        yield
    finally:
        for member in members:
            member.kill()


class Wire:
    """A TCP way to an etcd that can be cut: what goes over it breaks, and nothing new comes."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = Lock()
        self._pairs: set[socket.socket] = set()
        self._whole = Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        self._whole.clear()
        with self._lock:
            for sock in self._pairs:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in list(self._threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if not self._whole.is_set():
                    raise ConnectionError
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs |= {near, far}
            mover = Thread(target=self._both, args=(near, far), daemon=True)
            self._threads.append(mover)
            mover.start()

    def _both(self, near: socket.socket, far: socket.socket) -> None:
        back = Thread(target=self._move, args=(far, near), daemon=True)
        back.start()
        self._move(near, far)
        back.join()
        with self._lock:
            self._pairs -= {near, far}
            near.close()
            far.close()

    @staticmethod
    def _move(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Follower:
    """A source that is followed in a thread. `seen` holds all that it told, and `known` the members
    by their names, both as far as they were waited for."""

    def __init__(self, options: EtcdOptions, choose: Choose | None = None) -> None:
        self.source = EtcdSource(options, choose=choose)
        self.name = options.node_name
        self.seen: list[Change] = []
        self.known: dict[str, Member] = {}
        self.error: BaseException | None = None
        self._told: Queue[Change] = Queue()
        self._thread = Thread(target=self._follow, name=f"follow-{self.name}", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            self.source.follow(self._told.put)
        except BaseException as e:
            self.error = e

    @property
    def aways(self) -> int:
        return sum(isinstance(change, Away) for change in self.seen)

    def next(self, patience: float = PATIENCE) -> Change:
        """What is told next. Raises Empty."""
        change = self._told.get(timeout=max(0.0, patience))
        self.seen.append(change)
        if isinstance(change, Listed):
            self.known = {member.name: member for member in change.members}
        elif isinstance(change, Put):
            self.known[change.member.name] = change.member
        elif isinstance(change, Gone):
            del self.known[change.name]
        return change

    def wait(self, matches: Callable[[Change], bool]) -> Any:
        """The next change that matches; those before it are passed over."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                change = self.next(deadline - time.monotonic())
            except Empty:
                told = str(self.seen[-3:])[-2000:]
                raise AssertionError(f"not told, but {told}; {self.error!r}") from None
            if matches(change):
                return change

    def wait_for(self, kind: type[Change], **fields: object) -> Any:
        """The next change of a kind that has these fields."""
        return self.wait(
            lambda change: (
                isinstance(change, kind)
                and all(getattr(change, name) == value for name, value in fields.items())
            )
        )

    def listed(self) -> Member:
        """The own member in the next list that has it with a subnet."""
        self.wait(
            lambda change: isinstance(change, Listed) and bool(self.known[self.name].pod_cidrs)
        )
        return self.known[self.name]

    def member(self, name: str, matches: Callable[[Member], bool] = bool) -> Member:
        """The member of that name as it is known, or else as soon as it matches."""

        def has(_: Change) -> bool:
            return name in self.known and matches(self.known[name])

        if not has(Away("")):
            self.wait(has)
        return self.known[name]

    def pending(self, seconds: float) -> list[Change]:
        """What is told within a time."""
        deadline = time.monotonic() + seconds
        found = []
        while (left := deadline - time.monotonic()) > 0:
            with suppress(Empty):
                found.append(self.next(left))
        return found

    def stop(self) -> float:
        """The seconds that it took."""
        began = time.monotonic()
        self.source.stop()
        self._thread.join(PATIENCE)
        took = time.monotonic() - began
        assert not self._thread.is_alive(), "follow does not return"
        assert self.error is None, self.error
        return took


class Bench:
    """An etcd, and what a test does with it; `close` ends all of it."""

    def __init__(self, folder: Path, etcd: Etcd | None = None) -> None:
        self.folder = folder
        self.etcd = etcd or Etcd(folder)
        self._followers: list[Follower] = []
        self._wires: list[Wire] = []
        try:
            self.etcd.start()
        except BaseException:
            self.etcd.kill()
            raise
        self.look = self.etcd.gateway()

    def close(self) -> None:
        for follower in self._followers:
            follower.source.stop()
        for wire in self._wires:
            wire.close()
        self.look.close()
        self.etcd.kill()
        for follower in self._followers:
            follower.stop()

    def options(self, number: int = 1, url: str = "", **keywords: Any) -> EtcdOptions:
        return node_options(self.folder, number, url or self.etcd.url, **keywords)

    def follow(self, number: int = 1, url: str = "", **keywords: Any) -> Follower:
        """Follow as a node."""
        made = Follower(self.options(number, url, **keywords))
        self._followers.append(made)
        return made

    def wire(self) -> Wire:
        made = Wire(self.etcd.port)
        self._wires.append(made)
        return made

    # --- looking and interfering, as people do --------------------------------------------------

    def keys(self, prefix: str = "/podwire/subnets/") -> dict[str, bytes]:
        return {kv.key: kv.value for kv in self.look.range(prefix).kvs}

    def at(self, key: str) -> KeyValue:
        return self.look.get(key)[key]

    def held(self, cidr: object) -> KeyValue:
        """The key of a subnet."""
        return self.at(key_of(cidr))

    def put(self, key: str, value: bytes | None) -> None:
        """Write a key, with no lease; None deletes it."""
        self.look.swap({}, [Write(key, value)])

    def put_node(self, name: str, cidr: object, address: str) -> None:
        """Write a subnet's key as another node would."""
        value = {"name": name, "addresses": [address], "podCIDRs": [str(cidr)]}
        self.put(key_of(cidr), json.dumps(value).encode())

    def compact(self) -> None:
        """Forget all that was before now."""
        body = {"revision": str(self.look.range("/podwire/").revision), "physical": True}
        self.post("/v3/kv/compaction", body)

    def post(self, path: str, body: object) -> Any:
        made = http.client.HTTPConnection("127.0.0.1", self.etcd.port, timeout=10)
        made.request("POST", path, json.dumps(body))
        response = made.getresponse()
        answer = response.read()
        made.close()
        assert response.status == http.HTTPStatus.OK, answer
        return json.loads(answer)


def key_of(cidr: object) -> str:
    return f"/podwire/subnets/{str(cidr).replace('/', '-')}"


def node_options(folder: Path, number: int, url: str, **keywords: Any) -> EtcdOptions:
    """Those of the node "node-<number>"; `keywords` go before."""
    given = {"pool": "10.244.0.0/16", **keywords}
    given.setdefault("state_file", str(folder / f"state-{number}.json"))
    address = given.pop("address", f"192.168.1.{number}")
    name = given.pop("name", f"node-{number}")
    return EtcdOptions.checked(url, name, [address], **given)
