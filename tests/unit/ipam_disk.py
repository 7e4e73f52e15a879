"""What the tests of the address store share: configurations, a look at the disk, another writer."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.spec import Attachment, Request
from ipam import config, host_local, store
from ipam.config import HostLocalConf, Place
from ipam.index import key

BOOT = "11111111-1111-1111-1111-111111111111"
NEXT_BOOT = "22222222-2222-2222-2222-222222222222"
RANGES = [[{"subnet": "10.244.0.0/24"}]]
DUAL = [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:244::/64"}]]


def conf_of(data_dir: Path, ranges: Any = RANGES, **ipam: Any) -> HostLocalConf:
    """A strict configuration of the network "podnet"; `asked` is the address in CNI_ARGS."""
    asked = ipam.pop("asked", "")
    document = {
        "cniVersion": "1.0.0",
        "name": "podnet",
        "ipam": {"type": "host-local", "dataDir": str(data_dir), "ranges": ranges} | ipam,
    }
    return config.parse(
        Request(
            "ADD",
            Attachment("c", "eth0"),
            "",
            {"IP": asked},
            (),
            b"",
            document,
            "1.0.0",
            "podnet",
        )
    )


def pod(number: int | str, ifname: str = "eth0") -> Attachment:
    return Attachment(f"c{number}", ifname)


def add(conf: HostLocalConf, attachment: Attachment, boot: str = BOOT) -> list[str]:
    """The addresses that ADD gives."""
    return [str(ip.address.ip) for ip in host_local.add(conf, attachment, boot).ips]


def take_over(place: Place, address: str, attachment: Attachment) -> bool:
    """Reserve an address that the attachment has already, as `podwire ipam import` does; False
    when it is reserved. The cursors stay where they are."""
    with store.opened(place.data_dir, place.network, BOOT) as opened:
        return opened.reserve(ip_address(address), attachment, None)


def held(place: Place) -> dict[str, Attachment]:
    """The reservations as a reader without the lock sees them."""
    return {str(r.address): r.attachment for r in host_local.reservations(place)}


# --- the disk ---------------------------------------------------------------------------------


def directory(place: Place) -> Path:
    return Path(place.data_dir, place.network)


def index(place: Place) -> Path:
    return Path(place.data_dir, f".podwire-{place.network}")


def files(place: Place) -> dict[str, bytes]:
    """Everything in the directory whose name is an address."""
    found = {}
    for path in directory(place).iterdir():
        try:
            ip_address(path.name)
        except ValueError:
            continue
        found[path.name] = path.read_bytes()
    return found


def assert_index_agrees(place: Place) -> None:
    """Mirror and entry for each reservation, and nothing else."""
    reserved = held(place)
    if not reserved and not index(place).exists():
        return  # a first ADD that died before it made one, and nothing to free since
    mirrors, entries = {}, {}
    for path in index(place).iterdir():
        if path.is_symlink() and ":" in path.name:
            entries[path.name] = os.readlink(path)
        elif not path.is_symlink():
            mirrors[path.name] = path.stat().st_ino
    here = {name: (directory(place) / name).stat().st_ino for name in reserved}
    assert mirrors == here
    assert sorted(entries.values()) == sorted(reserved)
    for entry, address in entries.items():
        assert entry.rpartition(".")[0] == key(reserved[address])
    for attachment in set(reserved.values()):
        numbers = [
            int(entry.rpartition(".")[2])
            for entry in entries
            if entry.rpartition(".")[0] == key(attachment)
        ]
        assert sorted(numbers) == list(range(len(numbers)))


# --- another writer ---------------------------------------------------------------------------


@contextmanager
def other_writer(place: Place) -> Iterator[Path]:
    """The directory, under its lock, as the Go host-local takes it."""
    path = directory(place)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def foreign_add(place: Place, address: str, attachment: Attachment) -> None:
    """What the Go host-local writes; with ifname "" what its old versions wrote."""
    with other_writer(place) as path, open(path / address, "xb") as file:
        text = f"{attachment.container_id}\r\n{attachment.ifname}"
        file.write((text if attachment.ifname else attachment.container_id).encode())


def foreign_delete(place: Place, attachment: Attachment) -> None:
    with other_writer(place) as path:
        for name, content in files(place).items():
            if content == f"{attachment.container_id}\r\n{attachment.ifname}".encode():
                (path / name).unlink()


# --- death ------------------------------------------------------------------------------------

_CHANGING = ("link", "symlink", "unlink", "rename", "utime", "write", "ftruncate", "mkdir")


class Died(BaseException):
    """Stands for SIGKILL: from the chosen system call on, none has an effect any more."""


class Fate:
    """Lets the process die before its n-th changing system call; counts them otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.calls = 0
        for name in _CHANGING:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        monkeypatch.setattr(os, "open", self._wrap(os.open, os.O_CREAT))

    def _wrap(self, call: Callable[..., Any], flag: int = 0) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if flag and not (len(args) > 1 and args[1] & flag):
                return call(*args, **kwargs)
            self.calls += 1
            if self.left is not None:
                if self.left <= 0:
                    raise Died
                self.left -= 1
            return call(*args, **kwargs)

        return wrapped

    @contextmanager
    def dies_before(self, call: int | None) -> Iterator[None]:
        """The body ends, quietly, before its changing system call number `call` (from 0)."""
        self.left, self.calls = call, 0
        try:
            yield
        except Died:
            pass
        finally:
            self.left = None
