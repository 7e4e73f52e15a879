"""The directory: its format, its index, and what survives death, reboots and other writers."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cni_plugin.spec import Attachment, CniError, Code
from ipam import host_local, store
from ipam.config import HostLocalConf, Place
from ipam.directory import Directory
from ipam.index import decode, encode, key
from tests.unit.ipam_disk import (
    BOOT,
    DUAL,
    NEXT_BOOT,
    Fate,
    add,
    assert_index_agrees,
    conf_of,
    directory,
    files,
    foreign_add,
    foreign_delete,
    held,
    index,
    other_writer,
    pod,
    take_over,
)


@pytest.fixture
def conf(tmp_path: Path) -> HostLocalConf:
    return conf_of(tmp_path / "networks", DUAL)


@pytest.fixture
def place(conf: HostLocalConf) -> Place:
    return conf.place


@pytest.fixture
def fate() -> Iterator[Fate]:
    with pytest.MonkeyPatch.context() as patch:
        yield Fate(patch)


def release(place: Place, attachment: Attachment, boot: str = BOOT) -> None:
    host_local.release(place, attachment, boot)


# --- format -----------------------------------------------------------------------------------


def test_the_directory_is_the_references(conf: HostLocalConf, place: Place) -> None:
    umask = os.umask(0o022)
    try:
        assert add(conf, pod(1)) == ["10.244.0.2", "fd00:244::2"]
        assert add(conf, pod(2)) == ["10.244.0.3", "fd00:244::3"]
    finally:
        os.umask(umask)
    path = directory(place)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {
        "10.244.0.2": b"c1\r\neth0",
        "fd00:244::2": b"c1\r\neth0",
        "10.244.0.3": b"c2\r\neth0",
        "fd00:244::3": b"c2\r\neth0",
        "last_reserved_ip.0": b"10.244.0.3",
        "last_reserved_ip.1": b"fd00:244::3",
        "lock": b"",
    }
    assert path.stat().st_mode & 0o7777 == 0o755
    assert path.parent.stat().st_mode & 0o7777 == 0o755
    assert index(place).stat().st_mode & 0o7777 == 0o700
    assert {p.stat().st_mode & 0o7777 for p in path.iterdir()} == {0o600}
    assert_index_agrees(place)


def test_a_shorter_cursor_leaves_nothing_of_the_longer_one(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9"}]])
    assert [add(conf, pod(i)) for i in range(2)] == [["10.0.0.9"], ["10.0.0.10"]]
    (tmp_path / "podnet/last_reserved_ip.0").write_text("10.0.0.254")
    assert add(conf, pod(3)) == ["10.0.0.11"]
    (tmp_path / "podnet/10.0.0.9").unlink()
    (tmp_path / "podnet/last_reserved_ip.0").write_text("10.0.0.254")
    assert add(conf, pod(4)) == ["10.0.0.9"]
    assert (tmp_path / "podnet/last_reserved_ip.0").read_bytes() == b"10.0.0.9"


@pytest.mark.parametrize("nonsense", [b"", b"x", b"10.244.0", b"\xff\xfe", b"fd00::1", b"0" * 9000])
def test_a_cursor_that_is_nonsense_starts_over(
    conf: HostLocalConf, place: Place, nonsense: bytes
) -> None:
    add(conf, pod(1))
    (directory(place) / "last_reserved_ip.0").write_bytes(nonsense)
    assert add(conf, pod(2))[0] == "10.244.0.3"


@pytest.mark.parametrize(
    "attachment",
    [
        Attachment("a", "eth0"),
        Attachment("a", ""),
        Attachment("x" * 5000, "eth0"),
        Attachment("../../etc", "eth/0"),
        Attachment("ü\udcff", "\udc80"),
    ],
)
def test_content_comes_back(attachment: Attachment) -> None:
    content = encode(attachment) if attachment.ifname else attachment.container_id.encode()
    assert decode(content) == attachment
    assert decode(content + b"\n") == attachment
    assert "/" not in key(attachment)
    assert len(key(attachment)) <= 240


def test_nothing_is_held_by_an_empty_reservation() -> None:
    assert decode(None) is None
    assert decode(b"") is None
    assert decode(b" \r\n") is None


def test_entries_tell_attachments_apart() -> None:
    several = [("a", "b"), ("a:b", ""), ("a", "b.0"), ("a.0", "b"), ("a%3Ab", ""), ("", "a:b")]
    several += [("y" * 300, "e"), ("y" * 301, "e")]
    assert len({key(Attachment(*each)) for each in several}) == len(several)


# --- the index --------------------------------------------------------------------------------


def test_an_index_in_step_is_believed_without_a_listing(
    conf: HostLocalConf, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        add(conf, pod(number))

    def refuse(*args: object) -> None:
        raise AssertionError("listed")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    release(place, pod(3))
    release(place, pod(3))
    release(place, pod("never added"))
    assert add(conf, pod(99)) == ["10.244.0.22", "fd00:244::16"]
    host_local.status(conf, BOOT)
    monkeypatch.undo()
    assert_index_agrees(place)


def test_calls_cost_the_same_however_many_reservations_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in system calls, which are what takes the time."""
    counts = []
    for fill in (10, 600):
        conf = conf_of(tmp_path / str(fill), [[{"subnet": "10.244.0.0/16"}]])
        for number in range(fill):
            add(conf, pod(number))
        with pytest.MonkeyPatch.context() as patch:
            calls = [0]

            def counting(call: Callable[..., object], calls: list[int] = calls) -> object:
                def wrapped(*args: object, **kwargs: object) -> object:
                    calls[0] += 1
                    return call(*args, **kwargs)

                return wrapped

            for name in ("open", "read", "write", "close", "stat", "fstat", "link", "unlink"):
                patch.setattr(os, name, counting(getattr(os, name)))
            for name in ("symlink", "readlink", "rename", "utime", "scandir", "listdir"):
                patch.setattr(os, name, counting(getattr(os, name)))
            add(conf, pod("one more"))
            release(conf.place, pod("one more"))
            release(conf.place, pod("one more"))
            host_local.status(conf, BOOT)
            counts.append(calls[0])
    assert counts[0] == counts[1]


def test_an_attachment_may_hold_many_addresses(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    for number in range(50, 60):
        assert take_over(place, f"10.244.0.{number}", pod(1))
    assert host_local.free(place, ip_address("10.244.0.52"), BOOT) == pod(1)
    assert_index_agrees(place)
    assert len(held(place)) == 11
    release(place, pod(1))
    assert held(place) == {}
    assert_index_agrees(place)


@pytest.mark.parametrize("what", ["all", "entries", "mirrors", "one entry", "one mirror", "junk"])
def test_a_damaged_index_is_made_anew(conf: HostLocalConf, place: Place, what: str) -> None:
    for number in range(3):
        add(conf, pod(number))
    paths = [path for path in index(place).iterdir() if path.name != "boot"]
    entries = [path for path in paths if path.is_symlink()]
    mirrors = [path for path in paths if not path.is_symlink()]
    if what == "junk":
        (index(place) / "junk").write_text("x")
        (index(place) / "c9:eth0.0").symlink_to("10.244.0.2")
        (index(place) / "c8:eth0.0").symlink_to("../../etc/passwd")
        (index(place) / "link").symlink_to("x")
    for path in {
        "all": paths,
        "entries": entries,
        "mirrors": mirrors,
        "one entry": entries[:1],
        "one mirror": mirrors[:1],
        "junk": [],
    }[what]:
        path.unlink()
    before = held(place)
    release(place, pod("other"))
    assert held(place) == before
    (index(place) / "link").unlink(missing_ok=True)
    assert_index_agrees(place)


def test_a_removed_directory_starts_over(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    for path in directory(place).iterdir():
        path.unlink()
    directory(place).rmdir()
    release(place, pod(1))
    assert not directory(place).exists()
    assert add(conf, pod(1)) == ["10.244.0.2", "fd00:244::2"]
    assert_index_agrees(place)


def remove_unnoticed(place: Place, name: str) -> None:
    """By hand, without the lock, in the one moment in which a stamp hides it."""
    stamp = directory(place).stat()
    (directory(place) / name).unlink()
    os.utime(directory(place), ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_what_is_removed_by_hand_behind_the_lock_is_noticed(
    conf: HostLocalConf, place: Place
) -> None:
    """Even if the stamp hides it: an entry is never believed alone."""
    add(conf, pod(1))
    (directory(place) / "last_reserved_ip.0").write_text("")
    remove_unnoticed(place, "10.244.0.2")
    assert add(conf, pod(2))[0] == "10.244.0.2"
    release(place, pod(1))
    assert held(place) == {"10.244.0.2": pod(2), "fd00:244::3": pod(2)}
    assert_index_agrees(place)


def test_entries_of_what_is_gone_go_too(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    remove_unnoticed(place, "10.244.0.2")
    release(place, pod(1))
    assert [path.name for path in index(place).iterdir() if ":eth0." in path.name] == []
    foreign_add(place, "10.244.0.9", pod(9))
    release(place, pod(1))
    assert_index_agrees(place)


def test_a_directory_from_a_backup_is_out_of_step(conf: HostLocalConf, place: Place) -> None:
    """It carries a stamp, but not the index's."""
    add(conf, pod(1))
    foreign_delete(place, pod(1))
    foreign_add(place, "10.244.0.2", pod(2))
    os.utime(directory(place), ns=(10**18, 10**18))
    release(place, pod(2))
    assert held(place) == {}


def test_only_the_holder_releases(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    with store.opened(place.data_dir, place.network, BOOT) as opened:
        assert not opened.release(ip_address("10.244.0.2"), pod(2))
        assert not opened.release(ip_address("10.244.0.3"), pod(1))
    assert len(held(place)) == 2


def test_symbolic_links_are_not_followed(conf: HostLocalConf, place: Place, tmp_path: Path) -> None:
    add(conf, pod(1))
    target = tmp_path / "target"
    target.write_bytes(b"c7\r\neth0")
    (directory(place) / "10.244.0.3").symlink_to(target)
    (directory(place) / "10.244.0.4").mkdir()
    os.mkfifo(directory(place) / "10.244.0.5")
    release(place, pod(7))
    assert target.exists()
    assert (directory(place) / "10.244.0.3").is_symlink()
    assert add(conf, pod(2))[0] in ("10.244.0.5", "10.244.0.6")
    (directory(place) / "last_reserved_ip.0").unlink()
    (directory(place) / "last_reserved_ip.0").symlink_to(target)
    with pytest.raises(CniError) as caught:
        add(conf, pod(3))
    assert caught.value.code == Code.IO_FAILURE
    assert "last_reserved_ip.0" in caught.value.msg
    assert target.read_bytes() == b"c7\r\neth0"


# --- other writers ----------------------------------------------------------------------------


def test_a_directory_is_taken_over_as_it_is(conf: HostLocalConf, place: Place) -> None:
    foreign_add(place, "10.244.0.2", pod(1))
    foreign_add(place, "fd00:244::2", pod(1))
    foreign_add(place, "10.244.0.9", Attachment("legacy", ""))
    (directory(place) / "last_reserved_ip.0").write_text("10.244.0.8")
    assert add(conf, pod(2)) == ["10.244.0.10", "fd00:244::3"]
    assert_index_agrees(place)
    release(place, pod(1))
    release(place, pod("legacy", "eth7")._replace(container_id="legacy"))
    assert held(place) == {"10.244.0.10": pod(2), "fd00:244::3": pod(2)}
    assert_index_agrees(place)


def test_an_address_that_changed_hands_belongs_to_its_new_holder(
    conf: HostLocalConf, place: Place
) -> None:
    """Released and reserved anew by another writer, at once: the name is the same."""
    add(conf, pod(1))
    foreign_delete(place, pod(1))
    foreign_add(place, "10.244.0.2", pod(2))
    release(place, pod(1))
    assert held(place) == {"10.244.0.2": pod(2)}
    assert_index_agrees(place)
    release(place, pod(2))
    assert held(place) == {}


def test_empty_reservations_are_freed(conf: HostLocalConf, place: Place) -> None:
    small = conf_of(Path(place.data_dir), [[{"subnet": "10.244.0.0/30"}]])
    with other_writer(place) as path:
        (path / "10.244.0.2").touch()
    host_local.status(small, BOOT)
    assert add(small, pod(1)) == ["10.244.0.2"]
    with pytest.raises(CniError) as caught:
        host_local.status(small, BOOT)
    assert caught.value.code == Code.NOT_AVAILABLE


def test_the_lock_is_waited_for_and_given_up(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    with other_writer(place):
        began = time.monotonic()
        with (
            pytest.raises(CniError) as caught,
            store.opened(place.data_dir, place.network, BOOT, patience=0.05),
        ):
            pass
        assert time.monotonic() - began < 5
    assert caught.value.code == Code.TRY_AGAIN_LATER
    assert str(directory(place) / "lock") in caught.value.msg
    assert add(conf, pod(2))


def test_a_directory_replaced_while_waiting_is_opened_anew(
    conf: HostLocalConf, place: Place
) -> None:
    add(conf, pod(1))
    given: list[list[str]] = []
    with other_writer(place) as path:
        waiting = threading.Thread(target=lambda: given.append(add(conf, pod(2))))
        waiting.start()
        time.sleep(0.05)
        path.rename(path.with_name("old"))
    waiting.join()
    assert given == [["10.244.0.2", "fd00:244::2"]]
    assert set(held(place).values()) == {pod(2)}


# --- boots ------------------------------------------------------------------------------------


def test_what_an_earlier_boot_left_is_freed(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    foreign_add(place, "10.244.0.77", pod(2))  # unknown to the index: perhaps of this boot
    assert add(conf, pod(3), NEXT_BOOT) == ["10.244.0.3", "fd00:244::3"]
    assert set(held(place).values()) == {pod(2), pod(3)}
    assert_index_agrees(place)
    release(place, pod(1), NEXT_BOOT)
    add(conf, pod(4), NEXT_BOOT)
    assert set(held(place).values()) == {pod(2), pod(3), pod(4)}


def test_a_new_boot_is_noticed_in_an_index_that_is_in_step(
    conf: HostLocalConf, place: Place
) -> None:
    add(conf, pod(1))
    assert add(conf, pod(2), NEXT_BOOT) == ["10.244.0.3", "fd00:244::3"]
    assert set(held(place).values()) == {pod(2)}
    assert add(conf, pod(3), NEXT_BOOT) == ["10.244.0.4", "fd00:244::4"]
    assert set(held(place).values()) == {pod(2), pod(3)}


def test_the_first_takeover_frees_nothing(conf: HostLocalConf, place: Place) -> None:
    foreign_add(place, "10.244.0.2", pod(1))
    release(place, pod(2), NEXT_BOOT)
    assert held(place) == {"10.244.0.2": pod(1)}


def test_without_a_boot_id_nothing_is_freed(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    foreign_add(place, "10.244.0.9", pod(9))
    add(conf, pod(2), "")
    assert len(held(place)) == 5
    (index(place) / "boot").unlink()
    add(conf, pod(3), NEXT_BOOT)
    assert len(held(place)) == 7


def test_status_knows_what_an_add_would_free(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, [[{"subnet": "10.244.0.0/30"}]])
    add(conf, pod(1))
    with pytest.raises(CniError):
        host_local.status(conf, BOOT)
    host_local.status(conf, NEXT_BOOT)
    assert set(held(conf.place)) == {"10.244.0.2"}


def test_the_kernels_boot_id_is_the_default(conf: HostLocalConf, place: Place) -> None:
    host_local.add(conf, pod(1))
    host_local.add(conf, pod(2))
    assert len(held(place)) == 4
    assert os.readlink(index(place) / "boot") == store.read_boot_id()


# --- death ------------------------------------------------------------------------------------


def steps(conf: HostLocalConf) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What a process may die in: how it is prepared, and the call."""
    place = conf.place

    def nothing() -> None:
        pass

    def one() -> None:
        add(conf, pod(1))

    def foreign() -> None:
        one()
        foreign_delete(place, pod(1))
        foreign_add(place, "10.244.0.2", pod(5))
        foreign_add(place, "10.244.0.7", Attachment("c6", ""))
        with other_writer(place) as path:
            (path / "10.244.0.8").touch()

    def several() -> None:
        one()
        assert take_over(place, "10.244.0.99", pod(1))

    def rebooted() -> None:
        several()
        foreign_add(place, "10.244.0.90", pod(90))
        foreign_add(place, "10.244.0.91", pod(91))

    return {
        "first add": (nothing, one),
        "add": (one, lambda: add(conf, pod(2))),
        "release": (one, lambda: release(place, pod(1))),
        "free the first": (
            several,
            lambda: host_local.free(place, ip_address("10.244.0.2"), BOOT),
        ),
        "take over an address": (one, lambda: take_over(place, "10.244.0.99", pod(1))),
        "collect": (one, lambda: host_local.collect(place, frozenset(), BOOT)),
        "resync": (foreign, lambda: release(place, pod("x"))),
        "take over": (
            lambda: foreign_add(place, "10.244.0.2", pod(5)),
            lambda: release(place, pod("x")),
        ),
        "reboot": (rebooted, lambda: add(conf, pod(2), NEXT_BOOT)),
    }


@pytest.mark.parametrize(
    "name",
    [
        "first add",
        "add",
        "release",
        "free the first",
        "take over an address",
        "collect",
        "resync",
        "take over",
        "reboot",
    ],
)
def test_a_death_before_any_system_call_leaves_nothing_half(
    tmp_path: Path, fate: Fate, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then three survivors: one who looks, another writer, and the runtime with its DEL.

    The order of the calls lets each state be repaired; the index is never made anew for it.
    """
    monkeypatch.setattr(Directory, "_rebuild", lambda self: pytest.fail("made anew"))
    total, moment = None, 0
    while total is None or moment <= total:
        conf = conf_of(tmp_path / str(moment), DUAL)
        place = conf.place
        prepare, act = steps(conf)[name]
        prepare()
        with fate.dies_before(moment):
            act()
        if total is None or fate.calls > moment:
            total = max(total or 0, fate.calls)
        if directory(place).exists():
            assert all(c for n, c in files(place).items() if n != "10.244.0.8")
        boot = NEXT_BOOT if name == "reboot" else BOOT
        release(place, pod("nobody"), boot)
        if directory(place).exists():
            assert_index_agrees(place)
        foreign_add(place, "10.244.0.50", pod(50))
        add(conf, pod(3), boot)
        assert_index_agrees(place)
        if name == "reboot":
            assert {pod(90), pod(91)} <= set(held(place).values())
            assert pod(1) not in held(place).values()
        everybody = set(held(place).values())
        for attachment in everybody:
            release(place, attachment, boot)
        assert held(place) == {}
        assert_index_agrees(place)
        moment += 1
    assert total


def test_processes_killed_at_random_leave_nothing_half(conf: HostLocalConf, place: Place) -> None:
    chance = random.Random(7)
    for round_ in range(25):
        child = os.fork()
        if not child:
            try:
                for number in range(1000):
                    add(conf, pod(f"{round_}-{number}"))
                    if number % 3:
                        release(place, pod(f"{round_}-{number}"))
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if directory(place).exists():
            assert all(files(place).values())
    add(conf, pod("last"))
    assert_index_agrees(place)
    host_local.collect(place, frozenset({pod("last")}), BOOT)
    assert set(held(place).values()) == {pod("last")}
    assert_index_agrees(place)


# --- many at once -----------------------------------------------------------------------------


def test_fifty_processes_get_fifty_addresses(conf: HostLocalConf, place: Place) -> None:
    children = []
    for number in range(50):
        child = os.fork()
        if not child:
            code = 1
            try:
                add(conf, pod(number))
                if number % 5 == 0:
                    release(place, pod(number))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 50
    reserved = held(place)
    assert len(reserved) == 80
    assert set(reserved.values()) == {pod(number) for number in range(50) if number % 5}
    assert_index_agrees(place)


def test_threads_exclude_each_other_too(conf: HostLocalConf, place: Place) -> None:
    given: list[str] = []

    def work(worker: int) -> None:
        for number in range(5):
            given.extend(add(conf, pod(f"{worker}-{number}")))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == len(given) == 80
    assert_index_agrees(place)


# --- anything in any order --------------------------------------------------------------------

_pods = st.integers(0, 5).map(pod)
_addresses = st.integers(2, 12).map(lambda number: f"10.244.0.{number}")


class Life(RuleBasedStateMachine):
    """podwire, another writer, deaths and reboots in any order; the files are the truth."""

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.fate = Fate(self.patch)
        self.conf = conf_of(
            Path(self.folder.name), [[{"subnet": "10.244.0.0/28"}], [{"subnet": "fd00::/125"}]]
        )
        self.place = self.conf.place
        self.boot = 0
        self.live: dict[str, Attachment] = {}  # made in this boot by anybody, never deleted
        add(self.conf, pod("first"), self.now)

    @property
    def now(self) -> str:
        return f"boot-{self.boot}"

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    def forget(self, which: Callable[[Attachment], bool]) -> None:
        self.live = {a: holder for a, holder in self.live.items() if not which(holder)}

    @rule(attachment=_pods, death=st.none() | st.integers(0, 20))
    def add(self, attachment: Attachment, death: int | None) -> None:
        before = held(self.place)
        with self.fate.dies_before(death):
            try:
                given = add(self.conf, attachment, self.now)
            except CniError as e:
                assert e.code in (Code.DUPLICATE_ALLOCATION, Code.POOL_EXHAUSTED)
                if e.code == Code.DUPLICATE_ALLOCATION:
                    assert attachment in before.values()
                assert held(self.place).items() <= before.items()
            else:
                after = held(self.place)
                assert all(after[address] == attachment for address in given)
                assert self.boot or not set(given) & set(before)  # freed by a reboot, then
                assert not set(given) & set(self.live)
                self.live |= dict.fromkeys(given, attachment)

    @rule(attachment=_pods, death=st.none() | st.integers(0, 12))
    def delete(self, attachment: Attachment, death: int | None) -> None:
        self.forget(lambda holder: holder == attachment)
        with self.fate.dies_before(death):
            release(self.place, attachment, self.now)
            assert attachment not in held(self.place).values()
        if death is not None:
            release(self.place, attachment, self.now)
        assert attachment not in held(self.place).values()

    @rule(attachment=_pods, address=_addresses, again=st.booleans())
    def other_adds(self, attachment: Attachment, address: str, again: bool) -> None:
        if again:  # the same address for another attachment, at once
            with other_writer(self.place) as path:
                (path / address).unlink(missing_ok=True)
        if address not in files(self.place):
            foreign_add(self.place, address, attachment)
            self.live[address] = attachment

    @rule(attachment=_pods)
    def other_deletes(self, attachment: Attachment) -> None:
        self.forget(lambda holder: holder == attachment)
        foreign_delete(self.place, attachment)

    @rule(address=_addresses)
    def other_dies(self, address: str) -> None:
        if address not in files(self.place):
            with other_writer(self.place) as path:
                (path / address).touch()

    @rule(valid=st.frozensets(_pods), death=st.none() | st.integers(0, 12))
    def collect(self, valid: frozenset[Attachment], death: int | None) -> None:
        before = {a: p for a, p in held(self.place).items() if p in valid}
        self.forget(lambda holder: holder not in valid)
        rebooted = os.readlink(index(self.place) / "boot") != self.now
        with self.fate.dies_before(death):
            host_local.collect(self.place, valid, self.now)
            after = held(self.place)
            assert after == before or (rebooted and after.items() <= before.items())

    @rule()
    def reboot(self) -> None:
        self.boot += 1
        self.live.clear()

    @invariant()
    def no_living_pod_loses_its_address(self) -> None:
        assert self.live.items() <= held(self.place).items()

    @invariant()
    def readers_see_whole_reservations(self) -> None:
        for address, holder in held(self.place).items():
            assert holder.ifname == "eth0"
            assert address not in ("10.244.0.0", "10.244.0.1", "10.244.0.15", "fd00::", "fd00::1")

    @rule()
    def look(self) -> None:
        release(self.place, pod("nobody"), self.now)
        assert_index_agrees(self.place)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=50,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
