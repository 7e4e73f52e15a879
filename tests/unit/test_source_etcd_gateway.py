"""The client of etcd's JSON gateway, against answers that no etcd gives; and the options."""

from __future__ import annotations

import http.server
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.sources import Away
from cni_plugin.sources import etcd_messages as messages
from cni_plugin.sources.etcd import EtcdSource
from cni_plugin.sources.etcd_gateway import Gateway
from cni_plugin.sources.etcd_messages import (
    CompactedError,
    Endpoint,
    EtcdError,
    KeyValue,
    UnreachableError,
)
from cni_plugin.sources.etcd_options import EtcdOptions
from cni_plugin.sources.etcd_tls import Reread
from cni_plugin.spec import CniError, Code

Answer = tuple[int, bytes]


class Server(http.server.ThreadingHTTPServer):
    """Answers every request with what `answer` says of its path and body."""

    daemon_threads = True
    answer: Callable[[str, dict[str, object]], Answer]
    asked: int = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        status, data = self.server.answer(self.path, json.loads(body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Handler) as made:
        thread = Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def gateway(server: Server) -> Iterator[Gateway]:
    made = Gateway([endpoint(server)])
    yield made
    made.close()


def endpoint(server: Server) -> Endpoint:
    return Endpoint("127.0.0.1", server.server_address[1], False)


# --- messages -----------------------------------------------------------------------------------


def test_a_range_is_that_of_a_prefix() -> None:
    assert messages.prefixed("/podwire/") == {"key": "L3BvZHdpcmUv", "range_end": "L3BvZHdpcmUw"}


def test_keys_that_are_no_utf_8_survive() -> None:
    kv = messages.key_value({"key": "/wA=", "value": "/w==", "mod_revision": "7"})
    assert messages.encoded(kv.key) == "/wA="
    assert (kv.value, kv.mod_revision, kv.lease) == (b"\xff", 7, 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
names = st.sampled_from(["kvs", "events", "key", "value", "kv", "lease", "header", "revision"])


@given(st.dictionaries(names, json_values | st.dictionaries(names, json_values)))
def test_no_answer_raises_anything_else(answer: dict[str, object]) -> None:
    for reader in (messages.key_values, messages.events, messages.key_value):
        try:
            reader(answer)
        except EtcdError as e:
            assert "not etcd's" in str(e)


# --- a server that is no etcd -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"<html>"), "not JSON"),
        ((200, b"[]"), "not an object"),
        ((200, b"{}"), "not etcd's: b'{}'"),
        ((200, b'{"error": {"code": 7, "message": "denied"}}'), "denied"),
        ((200, b'{"header": 5}'), "not etcd's: header"),
        ((200, b'{"header": {"revision": "5"}, "kvs": [{"key": "?"}]}'), "not etcd's: key"),
        ((200, b'{"header": {"revision": "5"}, "kvs": 1}'), "not etcd's: kvs"),
        ((200, b'{"header": {"revision": "x"}}'), "not etcd's: revision"),
        ((404, b"404 page not found"), "no JSON gateway under /v3"),
        ((400, b"Client sent an HTTP request to an HTTPS server."), "HTTP status 400: Client sent"),
        ((400, b'{"message": "etcdserver: bad", "code": 3}'), "etcdserver: bad"),
        ((503, b""), "HTTP status 503"),
    ],
)
def test_answers_of_others(server: Server, gateway: Gateway, answer: Answer, words: str) -> None:
    server.answer = lambda path, body: answer
    with pytest.raises(EtcdError) as e:
        gateway.range("/podwire/")
    assert words in str(e.value)


def test_follow_tells_of_it_and_raises_nothing(server: Server, tmp_path: Path) -> None:
    server.answer = lambda path, body: (200, b'{"kvs": [{"key": "", "value": "e30="}]}')
    url = str(endpoint(server))
    source = EtcdSource(
        EtcdOptions.checked(url, "n", ["192.168.1.1"], state_file=str(tmp_path / "state"))
    )
    told: list[object] = []

    def tell(change: object) -> None:
        told.append(change)
        source.stop()

    source.follow(tell)
    assert isinstance(told[0], Away)
    assert len(told) == 1


@contextmanager
def another() -> Iterator[Server]:
    """A second server, for the block."""
    with Server(("127.0.0.1", 0), _Handler) as made:
        thread = Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


def test_another_endpoint_is_asked_when_one_can_not(server: Server, gateway: Gateway) -> None:
    refused = (503, b'{"error": "etcdserver: no leader", "code": 14}')
    with another() as other:
        other.answer = lambda path, body: refused
        server.answer = lambda path, body: (200, b'{"header": {"revision": "5"}}')
        both = Gateway([endpoint(other), endpoint(server)])
        assert both.range("/").revision == 5
        assert both.range("/").revision == 5
        assert (other.asked, server.asked) == (1, 2)  # who has answered is asked first
        server.answer = lambda path, body: refused
        with pytest.raises(UnreachableError, match=r"no leader.*; .*no leader"):
            both.range("/")
        both.close()


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"404 page not found"),
        (302, b"Found"),
        (401, b"<html>who are you?"),
        (401, b'{"message": "unauthorized"}'),
        (200, b"<html>welcome"),
        (200, b"{}"),
        (200, b"[1]"),
        (200, b'{"header": 5}'),
    ],
)
def test_who_is_no_etcd_keeps_nobody_from_one_that_is(server: Server, answer: Answer) -> None:
    with another() as other:
        other.answer = lambda path, body: answer
        server.answer = lambda path, body: (200, b'{"header": {"revision": "5"}}')
        both = Gateway([endpoint(other), endpoint(server)])
        assert both.range("/").revision == 5
        both.close()


def test_an_address_that_swallows_packets_leaves_the_next_its_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host name with two: the kernel drops what comes to a full queue of connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as fill:
        for _ in range(3):
            waiting = fill.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
            for address in (full.getsockname(), server.server_address)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        server.answer = lambda path, body: (200, b'{"header": {"revision": "5"}}')
        named = Gateway([Endpoint("etcd.example", 2379, False)], timeout=1)
        assert named.range("/").revision == 5
        named.close()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["head", "body"])
def test_who_answers_a_byte_now_and_then_keeps_nobody_either(server: Server, head: bytes) -> None:
    ended = Event()

    def drip() -> None:
        sock, _ = listener.accept()
        with sock, suppress(OSError):
            sock.sendall(head)
            while not ended.wait(0.1):
                sock.sendall(b"H")

    server.answer = lambda path, body: (200, b'{"header": {"revision": "5"}}')
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=drip)
        thread.start()
        slow = Endpoint("127.0.0.1", listener.getsockname()[1], False)
        both = Gateway([slow, endpoint(server)], timeout=0.5)
        began = time.monotonic()
        assert both.range("/").revision == 5
        assert time.monotonic() - began < 3
        both.close()
        ended.set()
        thread.join()


def test_an_error_that_is_no_matter_of_the_endpoint_is_final(server: Server) -> None:
    server.answer = lambda path, body: (403, b'{"error": "permission denied", "code": 7}')
    twice = Gateway([endpoint(server), endpoint(server)])
    with pytest.raises(EtcdError, match="permission denied"):
        twice.range("/")
    assert server.asked == 1


def test_pages_are_of_one_revision(server: Server, gateway: Gateway) -> None:
    def answer(path: str, body: dict[str, object]) -> Answer:
        first = "revision" not in body
        kvs = [{"key": messages.encoded("/a" if first else "/b")}]
        header = {"revision": "5" if first else "9"}
        page = {"header": header, "kvs": kvs, "more": first}
        asked.append((body.get("revision"), body["key"]))
        return 200, json.dumps(page).encode()

    asked: list[tuple[object, object]] = []
    server.answer = answer
    snapshot = gateway.range("/")
    assert snapshot[:2] == (5, (KeyValue("/a"), KeyValue("/b")))
    assert asked == [(None, messages.encoded("/")), (5, messages.encoded("/a\0"))]


def test_a_swap_that_was_served_before_its_answer_was_lost(
    server: Server, gateway: Gateway
) -> None:
    """It is sent again, and then refused by what it has made itself."""
    there = {"key": messages.encoded("/k"), "value": "dg==", "lease": "7"}

    def answer(path: str, body: dict[str, object]) -> Answer:
        found = {"kvs": [there]} if path == "/v3/kv/range" else {}
        return 200, json.dumps({"header": {"revision": "5"}, **found}).encode()

    server.answer = answer
    assert gateway.swap({"/k": 0}, [messages.Write("/k", b"v", 7)])
    assert not gateway.swap({"/k": 0}, [messages.Write("/k", b"v", 8)])
    assert not gateway.swap({"/k": 0}, [messages.Write("/k", None)])


# --- watches ------------------------------------------------------------------------------------


def watched(server: Server, gateway: Gateway, *lines: object) -> list[int]:
    """The revisions that were seen; what comes after 10 is asked for."""
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    server.answer = lambda path, body: (200, data)
    seen = []
    with gateway.watch("/podwire/", 10) as watch:
        for revision, _ in watch.batches(10):
            seen.append(revision)
    return seen


def line(**result: object) -> dict[str, object]:
    return {"result": result}


CREATED = line(created=True, header={"revision": "12"})


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        ([CREATED], UnreachableError, "etcd ended the watch"),
        ([CREATED, line(canceled=True, compact_revision="11")], CompactedError, "revision 11"),
        ([line(created=True, header={"revision": "9"})], CompactedError, "at revision 9, which is"),
        ([CREATED, line(canceled=True, cancel_reason="why")], UnreachableError, "why"),
        ([{"error": {"grpc_code": 14, "message": "no leader"}}], UnreachableError, "no leader"),
        ([{"error": {"grpc_code": 7, "message": "denied"}}], EtcdError, "denied"),
        (["text"], EtcdError, "not an object"),
        ([line(events=5)], EtcdError, "not etcd's: events"),
    ],
)
def test_how_watches_end(
    server: Server, gateway: Gateway, lines: list[object], error: type[EtcdError], words: str
) -> None:
    with pytest.raises(error) as e:
        watched(server, gateway, *lines)
    assert type(e.value) is error
    assert words in str(e.value)


def test_a_watch_of_another_cluster(server: Server, gateway: Gateway) -> None:
    created = line(created=True, header={"revision": "12", "cluster_id": "8"})
    server.answer = lambda path, body: (200, json.dumps(created).encode())
    with gateway.watch("/podwire/", 10) as watch:
        assert next(watch.batches(10, 8)) == (10, ())
    with (
        gateway.watch("/podwire/", 10) as watch,
        pytest.raises(CompactedError, match="another etcd cluster, 8 and not 7"),
    ):
        next(watch.batches(10, 7))


def test_the_member_of_a_watch_that_ended_is_not_asked_first(server: Server) -> None:
    server.answer = lambda path, body: (200, b"{}")
    gateway = Gateway([endpoint(server), Endpoint("127.0.0.1", 1, False)])
    with pytest.raises(UnreachableError), gateway.watch("/podwire/", 10) as watch:
        list(watch.batches(10))
    assert gateway._first == 1
    gateway.close()


def test_a_watch_is_where_its_events_are_not_where_etcd_is(
    server: Server, gateway: Gateway
) -> None:
    event = {"kv": {"key": "YQ==", "mod_revision": "11"}}
    lines = [
        CREATED,
        line(header={"revision": "99"}, events=[event]),
        line(header={"revision": "100"}),
    ]
    seen: list[int] = []
    data = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
    server.answer = lambda path, body: (200, data)
    with (
        gateway.watch("/podwire/", 10) as watch,
        pytest.raises(UnreachableError),
    ):
        for revision, _ in watch.batches(10):
            seen.append(revision)
    assert seen == [10, 11, 100]


@pytest.mark.parametrize(
    ("status", "lives"),
    [(200, True), (403, True), (503, False), (0, False)],
    ids=["answers", "refuses", "can't", "hangs"],
)
def test_whether_the_member_of_a_watch_lives(server: Server, status: int, lives: bool) -> None:
    ended = Event()

    def answer(path: str, body: dict[str, object]) -> Answer:
        if path == "/v3/watch":
            return 200, json.dumps(CREATED).encode()
        asked.append(body)
        if not status:
            ended.wait(30)
        refusal = {"code": 7} if status == 403 else {}
        return status or 200, json.dumps({"header": {"revision": "5"}, **refusal}).encode()

    asked: list[dict[str, object]] = []
    server.answer = answer
    nobody = Endpoint("127.0.0.1", 1, False)
    gateway = Gateway([endpoint(server), nobody], timeout=0.3)
    with gateway.watch("/podwire/", 10) as watch:
        assert watch.lives() is lives
    assert asked[0]["serializable"] is True, "the others have no part in it"
    assert gateway._first == (0 if lives else 1), "who is asked first from now on"
    ended.set()
    gateway.close()


def test_nothing_works_once_it_is_closed(gateway: Gateway) -> None:
    gateway.close()
    with pytest.raises(UnreachableError, match="was stopped"):
        gateway.range("/")


# --- options ------------------------------------------------------------------------------------


def checked(urls: str = "http://192.168.1.10:2379", **keywords: object) -> EtcdOptions:
    name = str(keywords.pop("name", "node-1"))
    addresses = keywords.pop("addresses", ["192.168.1.1"])
    return EtcdOptions.checked(urls, name, addresses, **keywords)  # type: ignore[arg-type]


def test_options() -> None:
    made = checked(
        "http://etcd-1, https://[fd00::2]:4001",
        pool="10.244.0.0/16,fd00:10:244::/48",
        subnet_length="25,64",
    )
    assert [str(each) for each in made.endpoints] == [
        "http://etcd-1:2379",
        "https://[fd00::2]:4001",
    ]
    assert [str(each) for each in made.pools] == [
        "10.244.0.0/16 in subnets of /25",
        "fd00:10:244::/48 in subnets of /64",
    ]
    assert (made.prefix, made.ttl) == ("/podwire", 86400)
    assert checked(form="flannel").prefix == "/coreos.com/network"
    assert checked(pool="10.244.0.0/16", prefix="/a/b/").prefix == "/a/b"
    assert checked(pool="fd00::/48,10.244.0.0/16").pools[0].length == 24


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"urls": ""}, "--etcd: expected URLs"),
        ({"urls": "192.168.1.10:2379"}, "--etcd: expected URLs"),
        ({"urls": "http://h:99999"}, "--etcd: expected URLs"),
        ({"urls": "http://user:pw@h"}, "--etcd: expected URLs"),
        ({"urls": "http://h/v3"}, "--etcd: expected URLs"),
        ({"urls": "http://h..x"}, "--etcd: expected URLs"),
        ({"urls": "http://a b:2379"}, "--etcd: expected URLs"),
        ({"urls": "http://a\x7f:2379"}, "--etcd: expected URLs"),
        ({"urls": "http://a\t:2379"}, "--etcd: expected URLs"),
        ({"prefix": "podwire"}, "--etcd-prefix: expected a path"),
        ({"prefix": "/"}, "--etcd-prefix: expected a path"),
        ({"pool": "10.244.0.1/16"}, "--etcd-pool: expected a network address"),
        ({"pool": "10.244.0.0/16,10.245.0.0/16"}, "--etcd-pool: expected at most one network"),
        ({"pool": "10.244.0.0/16", "subnet_length": "x"}, "--etcd-subnet-length: expected a numb"),
        ({"pool": "10.244.0.0/16", "subnet_length": "8"}, "--etcd-subnet-length: expected a numb"),
        ({"subnet_length": "24"}, "--etcd-subnet-length: expected one number for each"),
        ({"form": "calico"}, "--etcd-format: expected one of podwire, flannel"),
        (
            {"form": "flannel", "pool": "10.244.0.0/16"},
            "--etcd-pool: a flannel network has its own",
        ),
        ({"form": "flannel", "addresses": ["fd00::1"]}, "--etcd-format: flannel's networks need"),
        ({"ttl": 1}, "--etcd-ttl: expected seconds from 2"),
        ({"cert": "/c", "urls": "https://h"}, "--etcd-cert: expected --etcd-key beside it"),
        ({"key": "/k", "urls": "https://h"}, "--etcd-key: expected --etcd-cert beside it"),
        ({"cacert": "/c"}, "--etcd-cacert: expected an endpoint with https://"),
        ({"user": "u"}, "--etcd-user: expected --etcd-password-file beside it"),
        ({"user": "u", "password_file": "/none"}, "--etcd-password-file: expected a readable file"),
        ({"name": "a b"}, "--node-name: expected a name"),
        ({"addresses": []}, "this node has no address"),
        ({"addresses": ["0.0.0.0"]}, "--node-address: expected an address of this"),
        ({"addresses": ["127.0.0.1"]}, "--node-address: expected an address of this"),
        ({"addresses": ["224.0.0.1"]}, "--node-address: expected an address of this"),
        ({"addresses": ["255.255.255.255"]}, "--node-address: expected an address of this"),
        ({"addresses": ["::"]}, "--node-address: expected an address of this"),
        ({"addresses": ["fe80::1"]}, "--node-address: expected an address of this"),
    ],
)
def test_options_that_can_not_be(keywords: dict[str, object], words: str) -> None:
    with pytest.raises(CniError) as e:
        checked(**keywords)  # type: ignore[arg-type]
    assert e.value.code == Code.INVALID_CONFIG
    assert e.value.msg.startswith(words)


def test_files_of_tls_that_can_not_be(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for files, words in (
        ({"cacert": str(tmp_path / "none")}, "--etcd-cacert: expected PEM files"),
        ({"cacert": str(bad)}, "--etcd-cacert: expected PEM files"),
        ({"cert": str(bad), "key": str(bad)}, "--etcd-cert and --etcd-key: expected PEM files"),
    ):
        with pytest.raises(CniError) as e:
            EtcdSource(checked("https://h", **files))
        assert e.value.msg.startswith(words)


def test_files_of_tls_are_read_again_when_they_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("1")
    read: list[ssl.SSLContext] = []

    def reading() -> ssl.SSLContext:
        if file.read_text() == "bad":
            raise CniError(Code.INVALID_CONFIG, "no good")
        read.append(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return read[-1]

    tls = Reread(reading, ("", str(file)))
    assert [tls(), tls()] == [read[0]] * 2
    file.write_text("bad")
    assert tls() is read[0]
    file.unlink()
    (tmp_path / "new").write_text("2")
    os.replace(tmp_path / "new", file)
    assert tls() is read[1]
    assert len(read) == 2
