"""The calls that commands and the tool make, and every way in which a disk refuses them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cni_plugin.spec import DNS, Attachment, CniError, Code
from ipam import host_local
from ipam.config import HostLocalConf, Place
from tests.unit.ipam_disk import (
    BOOT,
    DUAL,
    add,
    assert_index_agrees,
    conf_of,
    directory,
    files,
    foreign_add,
    held,
    index,
    pod,
    take_over,
)

REPOSITORY = Path(__file__).parents[2]
LEGACY = Attachment("old", "")


@pytest.fixture
def conf(tmp_path: Path) -> HostLocalConf:
    return conf_of(tmp_path / "networks", DUAL)


@pytest.fixture
def place(conf: HostLocalConf) -> Place:
    return conf.place


def refusal(call: Callable[[], object]) -> CniError:
    with pytest.raises(CniError) as caught:
        call()
    return caught.value


# --- ADD --------------------------------------------------------------------------------------


def test_the_result_holds_addresses_routes_and_dns(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(
        "# nameserver 9.9.9.9\n; x\nnameserver 10.0.0.53\n  nameserver fd00::53 trailing\n"
        "domain old.example\ndomain example.org\nsearch a.example b.example\nsearch c.example\n"
        "options ndots:5 timeout:1\nnameserver\nsortlist 1 2\n"
    )
    conf = conf_of(
        tmp_path / "networks",
        DUAL,
        routes=[{"dst": "0.0.0.0/0"}],
        resolvConf=str(tmp_path / "resolv.conf"),
    )
    result = host_local.add(conf, pod(1))
    assert [(str(ip.address), str(ip.gateway), ip.interface) for ip in result.ips] == [
        ("10.244.0.2/24", "10.244.0.1", None),
        ("fd00:244::2/64", "fd00:244::1", None),
    ]
    assert result.routes == conf.routes
    assert result.interfaces == ()
    assert result.dns == DNS(
        nameservers=("10.0.0.53", "fd00::53"),
        domain="example.org",
        search=("a.example", "b.example", "c.example"),
        options=("ndots:5", "timeout:1"),
    )


def test_a_resolv_conf_that_can_not_be_read_reserves_nothing(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    conf = conf_of(tmp_path / "networks", resolvConf=missing)
    error = refusal(lambda: add(conf, pod(1)))
    assert error.code == Code.IO_FAILURE
    assert error.msg.startswith(missing)
    assert list(tmp_path.iterdir()) == []
    assert refusal(lambda: host_local.status(conf)).code == Code.NOT_AVAILABLE
    folder = conf_of(tmp_path / "networks", resolvConf=str(tmp_path))
    assert refusal(lambda: add(folder, pod(1))).code == Code.IO_FAILURE


def test_a_refused_add_leaves_nothing(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    wanted = conf._replace(requested=(ip_address("fd00:244::2"),))
    error = refusal(lambda: add(wanted, pod(2)))
    assert error.code == Code.ADDRESS_UNAVAILABLE
    assert "fd00:244::2" in error.msg
    assert "c1 eth0" in error.msg
    assert refusal(lambda: add(conf, pod(1))).code == Code.DUPLICATE_ALLOCATION
    assert set(held(place).values()) == {pod(1)}
    assert_index_agrees(place)


def test_two_interfaces_of_a_container_are_two_attachments(
    conf: HostLocalConf, place: Place
) -> None:
    add(conf, pod(1, "eth0"))
    add(conf, pod(1, "eth1"))
    host_local.release(place, pod(1, "eth0"), BOOT)
    assert set(held(place).values()) == {pod(1, "eth1")}


def test_an_exhausted_set_is_named(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, [[{"subnet": "10.244.0.0/24"}], [{"subnet": "10.245.0.0/30"}]])
    add(conf, pod(1))
    host_local.release(conf.place, pod(1), BOOT)
    add(conf, pod(2))
    for error in (
        refusal(lambda: add(conf, pod(3))),
        refusal(lambda: host_local.status(conf, BOOT)),
    ):
        assert error.code in (Code.POOL_EXHAUSTED, Code.NOT_AVAILABLE)
        assert "range set 1: 10.245.0.1-10.245.0.2" in error.msg
    host_local.release(conf.place, pod(2), BOOT)
    assert add(conf, pod(3)) == ["10.244.0.5", "10.245.0.2"]


def test_a_long_container_id(conf: HostLocalConf, place: Place) -> None:
    long = Attachment("c" * 9000, "eth0")
    add(conf, long)
    assert refusal(lambda: add(conf, long)).code == Code.DUPLICATE_ALLOCATION
    assert_index_agrees(place)
    host_local.release(place, long, BOOT)
    assert held(place) == {}


# --- DEL and GC -------------------------------------------------------------------------------


def test_del_of_what_never_was_makes_nothing(tmp_path: Path, place: Place) -> None:
    host_local.release(place, pod(1))
    assert host_local.collect(place, frozenset()) == []
    assert host_local.reservations(place) == []
    assert host_local.free(place, ip_address("10.244.0.2")) is None
    assert not host_local.holds(place, pod(1))
    assert list(tmp_path.iterdir()) == []


def test_del_is_idempotent(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    assert host_local.holds(place, pod(1), BOOT)
    for _ in range(3):
        host_local.release(place, pod(1), BOOT)
    assert held(place) == {}
    assert not host_local.holds(place, pod(1), BOOT)


def test_a_legacy_reservation_goes_only_when_there_is_no_other(
    conf: HostLocalConf, place: Place
) -> None:
    foreign_add(place, "10.244.0.50", LEGACY)
    foreign_add(place, "10.244.0.51", Attachment("old", "eth0"))
    host_local.release(place, Attachment("old", "eth0"), BOOT)
    assert held(place) == {"10.244.0.50": LEGACY}
    host_local.release(place, Attachment("old", "eth0"), BOOT)
    assert held(place) == {}


def test_gc_keeps_what_is_valid(conf: HostLocalConf, place: Place) -> None:
    for number in range(4):
        add(conf, pod(number))
    foreign_add(place, "10.244.0.50", LEGACY)
    foreign_add(place, "10.244.0.51", Attachment("older", ""))
    valid = frozenset({pod(1), pod(3), pod(3, "eth1"), Attachment("old", "eth9")})
    assert host_local.collect(place, valid, BOOT) == [pod(0), pod(2), Attachment("older", "")]
    assert set(held(place).values()) == {pod(1), pod(3), LEGACY}
    assert host_local.collect(place, valid, BOOT) == []
    assert_index_agrees(place)


def test_gc_takes_any_names(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    odd = frozenset({Attachment("\ud800", "\0"), Attachment("", ""), pod(1)})
    assert host_local.collect(place, odd, BOOT) == []


def test_gc_goes_on_after_an_error(
    conf: HostLocalConf, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        add(conf, pod(number))
    unlink = os.unlink

    def failing(name: str, *, dir_fd: int | None = None) -> None:
        if name == "10.244.0.3" and dir_fd is not None:
            raise OSError(errno.EIO, "Input/output error", name)
        unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing)
        error = refusal(lambda: host_local.collect(place, frozenset({pod(2)}), BOOT))
    assert error.code == Code.GC_INCOMPLETE
    assert "10.244.0.3: Input/output error" in error.details
    assert set(held(place)) == {"10.244.0.3", "10.244.0.4", "fd00:244::4"}
    assert host_local.collect(place, frozenset({pod(2)}), BOOT) == [pod(1)]
    assert_index_agrees(place)


def test_what_gc_left_half_done_is_noticed(
    conf: HostLocalConf, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(conf, pod(1))
    unlink = os.unlink

    def failing(name: str, *, dir_fd: int | None = None) -> None:
        if name.startswith("c1:"):
            raise OSError(errno.EIO, "Input/output error", name)
        unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing)
        refusal(lambda: host_local.collect(place, frozenset(), BOOT))
    assert not host_local.holds(place, pod(1), BOOT)
    assert_index_agrees(place)


# --- CHECK ------------------------------------------------------------------------------------


def test_check(conf: HostLocalConf, place: Place) -> None:
    mine = [ip_address(text) for text in add(conf, pod(1))]
    theirs = ip_address(add(conf, pod(2))[0])
    elsewhere = ip_address("192.168.7.7")
    host_local.check(conf, pod(1), mine, BOOT)
    host_local.check(conf, pod(1), [elsewhere], BOOT)
    host_local.check(conf, pod(1), (), BOOT)
    for attachment, addresses in [
        (pod(1), [theirs]),
        (pod(1), [*mine, ip_address("10.244.0.99")]),
        (pod(3), []),
        (pod(3), mine),
        (pod(1, "eth1"), mine),
    ]:
        error = refusal(lambda a=attachment, b=addresses: host_local.check(conf, a, b, BOOT))  # type: ignore[misc]
        assert error.code == Code.CHECK_FAILED
    foreign_add(place, "10.244.0.50", LEGACY)
    host_local.check(conf, Attachment("old", "eth0"), [ip_address("10.244.0.50")], BOOT)


def test_check_where_nothing_was_ever_added(conf: HostLocalConf, tmp_path: Path) -> None:
    for addresses in ([], [ip_address("10.244.0.2")]):
        error = refusal(lambda a=addresses: host_local.check(conf, pod(1), a))  # type: ignore[misc]
        assert error.code == Code.CHECK_FAILED
    assert list(tmp_path.iterdir()) == []


# --- STATUS -----------------------------------------------------------------------------------


def test_status_makes_nothing(conf: HostLocalConf, tmp_path: Path) -> None:
    host_local.status(conf)
    assert list(tmp_path.iterdir()) == []


def test_status_changes_nothing(conf: HostLocalConf, place: Place) -> None:
    add(conf, pod(1))
    paths = (directory(place), index(place))
    before = [(path.stat(), sorted(path.iterdir())) for path in paths]
    host_local.status(conf, BOOT)
    after = [(path.stat(), sorted(path.iterdir())) for path in paths]
    assert [(s.st_mtime_ns, s.st_ctime_ns, names) for s, names in before] == [
        (s.st_mtime_ns, s.st_ctime_ns, names) for s, names in after
    ]


def test_status_sees_a_full_disk(conf: HostLocalConf, monkeypatch: pytest.MonkeyPatch) -> None:
    space = os.statvfs("/")
    for name in ("f_bfree", "f_ffree"):
        values = list(space)
        values[{"f_bfree": 3, "f_ffree": 6}[name]] = 0
        values[2] = values[5] = 1000
        full = os.statvfs_result(values)
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda path, full=full: full)
            error = refusal(lambda: host_local.status(conf))
        assert error.code == Code.NOT_AVAILABLE
        assert "No space left" in error.msg


# --- a disk that refuses ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["networks", "networks/podnet", "networks/podnet/lock"])
def test_something_stands_in_the_way(
    conf: HostLocalConf, place: Place, tmp_path: Path, where: str
) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "lock":
        path.mkdir()
    else:
        path.write_text("")
    calls: list[Callable[[], object]] = [lambda: add(conf, pod(1))]
    if path.name != "lock":
        calls += [
            lambda: host_local.release(place, pod(1)),
            lambda: host_local.collect(place, frozenset()),
            lambda: host_local.reservations(place),
        ]
        error = refusal(lambda: host_local.status(conf))
        assert (error.code, str(path) in error.msg) == (Code.NOT_AVAILABLE, True)
    for call in calls:
        error = refusal(call)
        assert error.code == Code.IO_FAILURE
        assert str(path) in error.msg


@pytest.mark.parametrize("name", ["networks", "networks/podnet"])
def test_a_dangling_symbolic_link_in_the_way(
    conf: HostLocalConf, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to("nowhere")
    assert refusal(lambda: add(conf, pod(1))).code == Code.IO_FAILURE
    assert refusal(lambda: host_local.status(conf)).code == Code.NOT_AVAILABLE


def test_the_directory_may_be_a_symbolic_link(conf: HostLocalConf, tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "far/away").mkdir()
    (tmp_path / "networks/podnet").symlink_to(tmp_path / "far/away")
    add(conf, pod(1))
    assert (tmp_path / "far/away/10.244.0.2").exists()
    assert (tmp_path / "far/.podwire-podnet/10.244.0.2").exists()


@pytest.mark.parametrize(
    ("number", "call", "code", "remedy"),
    [
        (errno.ENOSPC, "symlink", Code.IO_FAILURE, "free some space"),
        (errno.ENOSPC, "write", Code.IO_FAILURE, "free some space"),
        (errno.EDQUOT, "link", Code.IO_FAILURE, "quota"),
        (errno.EROFS, "link", Code.IO_FAILURE, "read-only"),
        (errno.EIO, "link", Code.IO_FAILURE, ""),
        (errno.EACCES, "symlink", Code.PERMISSION_DENIED, "root"),
        (errno.EPERM, "link", Code.IO_FAILURE, "hard links"),
        (errno.EXDEV, "link", Code.IO_FAILURE, "hard links"),
    ],
)
def test_a_system_call_that_fails(
    conf: HostLocalConf,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    call: str,
    code: int,
    remedy: str,
) -> None:
    add(conf, pod(1))
    before = files(place)

    def failing(*args: object, **kwargs: object) -> None:
        name = args[0] if isinstance(args[0], str) else None
        raise OSError(number, os.strerror(number), *([name] if name else []))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        error = refusal(lambda: add(conf, pod(2)))
    assert error.code == code
    assert error.msg.startswith(str(directory(place)))
    assert remedy in error.details
    assert files(place) == before
    add(conf, pod(2))
    assert_index_agrees(place)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_del_and_gc_work_on_a_full_disk(
    conf: HostLocalConf, place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Even for reservations that the index can't take in any more."""
    add(conf, pod(1))
    for other in range(2, 6):
        foreign_add(place, f"10.244.0.{100 + other}", pod(other))
    foreign_add(place, "10.244.0.100", LEGACY)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), args[0])

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", full)
        assert refusal(lambda: add(conf, pod(9))).code == Code.IO_FAILURE
        host_local.release(place, pod(2), BOOT)
        host_local.release(place, Attachment("old", "eth0"), BOOT)
        assert set(held(place).values()) == {pod(1), pod(3), pod(4), pod(5)}
        assert host_local.collect(place, frozenset({pod(1), pod(4)}), BOOT) == [pod(3), pod(5)]
        assert set(held(place).values()) == {pod(1), pod(4)}
    host_local.release(place, pod(4), BOOT)
    assert set(held(place).values()) == {pod(1)}
    assert_index_agrees(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who is not")
def test_without_permission() -> None:
    """In a process of its own, since root may do everything."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "networks").mkdir(mode=0o755)
        _refused_to_nobody(folder)


def _refused_to_nobody(folder: Path) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            conf = conf_of(folder / "networks")
            error = refusal(lambda: add(conf, pod(1)))
            assert error.code == Code.PERMISSION_DENIED
            assert "networks/podnet: Permission denied" in error.msg
            assert "root" in error.details
            assert refusal(lambda: host_local.status(conf)).code == Code.NOT_AVAILABLE
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


# --- the tool ---------------------------------------------------------------------------------


def test_reservations_are_listed_in_order(conf: HostLocalConf, place: Place) -> None:
    for number in range(9):
        add(conf, pod(number))
    foreign_add(place, "10.244.0.100", LEGACY)
    (directory(place) / "10.244.0.77").write_bytes(b"")
    (directory(place) / "README").write_text("c1\r\neth0")
    (directory(place) / "10.244.0.020").write_text("c1\r\neth0")
    found = host_local.reservations(place)
    assert [str(r.address) for r in found][:10] == [
        *(f"10.244.0.{i}" for i in range(2, 11)),
        "10.244.0.100",
    ]
    assert len(found) == 19
    assert found[0].attachment == pod(0)
    assert found[9].attachment == LEGACY
    assert found[0].since == int((directory(place) / "10.244.0.2").stat().st_mtime)


def test_an_address_that_is_freed(conf: HostLocalConf, place: Place) -> None:
    address = "10.244.0.40"
    assert take_over(place, address, pod(1))
    assert not take_over(place, address, pod(2))
    assert not (directory(place) / "last_reserved_ip.0").exists()
    assert add(conf, pod(3))[0] == "10.244.0.2"
    assert host_local.free(place, ip_address(address), BOOT) == pod(1)
    assert host_local.free(place, ip_address(address), BOOT) is None
    assert_index_agrees(place)


# --- start-up time ----------------------------------------------------------------------------


def test_an_add_imports_nothing_that_is_slow() -> None:
    code = "import sys; import ipam.host_local, ipam.config; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    slow = {"dataclasses", "logging", "netaddr", "pathlib", "tempfile", "shutil", "subprocess",
            "socket", "hashlib", "asyncio", "click", "pyroute2"}  # fmt: skip
    assert slow.isdisjoint(loaded)
