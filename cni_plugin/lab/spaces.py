"""Named network namespaces: made, entered, removed. Needs neither iproute2 nor util-linux.

A name is a bind mount below /run/netns, where `ip netns` looks as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, get_errno

from cni_plugin.kernel import messages, netns, nodelock, statefolder
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.spec import CniError, Code

FOLDER = "/run/netns"
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_END_TIMEOUT_S = 2.0


def path_of(name: str) -> str:
    return f"{FOLDER}/{name}"


def make(name: str) -> None:
    """A new namespace with its loopback up. Raises CniError 104, or 110 without the right to."""
    path = path_of(name)
    os.makedirs(FOLDER, mode=0o755, exist_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        # A thread of its own: it leaves the machine's namespace and never comes back.
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(_unshare_and_name, path).result()
    except BaseException:
        _forget(path)
        raise


def _unshare_and_name(path: str) -> None:
    _call("unshare", _CLONE_NEWNET)
    with RouteSocket() as route_socket:
        route_socket.batch([messages.link_up(1, "lo")])
    _call("mount", netns.OWN.encode(), path.encode(), None, _MS_BIND, None)


def _call(function: str, *args: object) -> None:
    """A system call by its C function."""
    if getattr(CDLL(None, use_errno=True), function)(*args):
        errno = get_errno()
        raise CniError(
            Code.KERNEL_REFUSED,
            f"network namespace: {function}: {os.strerror(errno)}",
            "the lab needs root with CAP_SYS_ADMIN, which containers lack unless privileged",
        )


def names() -> list[str]:
    """The names of all namespaces."""
    try:
        return sorted(os.listdir(FOLDER))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """Run the block in the namespace: sockets and processes that it starts belong there."""
    fd = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netns.inside(fd):
            yield
    finally:
        os.close(fd)


def enter(name: str) -> None:
    """Move this thread into the namespace for good: for a process that is about to execute."""
    with open(path_of(name), "rb") as file:
        _call("setns", file.fileno(), _CLONE_NEWNET)


def remove(name: str) -> None:
    """End the processes in the namespace and forget its name; no-op when it is gone."""
    path = path_of(name)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return
    if not _is_ours(status):
        _end_processes((status.st_dev, status.st_ino))
        _forget_state(name)
    _forget(path)


def _forget(path: str) -> None:
    libc = CDLL(None, use_errno=True)
    while libc.umount2(path.encode(), _MNT_DETACH) == 0:
        pass  # it may have been mounted over; the last call finds no mount
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _forget_state(name: str) -> None:
    """Remove what podwire remembers of a node in the namespace, which nobody enters any more."""
    with contextlib.suppress(OSError, CniError):  # an unfinished one is a plain file
        with entered(name):
            key = statefolder.node_key()
        shutil.rmtree(f"{nodelock.FOLDER}/node-{key}", ignore_errors=True)


def _is_ours(status: os.stat_result) -> bool:
    """Whether this process or the machine lives in the namespace: then nothing is ended there."""
    for own in (netns.OWN, "/proc/1/ns/net"):
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.stat(own)):
                return True
    return False


def _end_processes(namespace: tuple[int, int]) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_S
    number = signal.SIGTERM
    while pids := list(_processes(namespace)):
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.02)
        if number == signal.SIGKILL:
            return


def _processes(namespace: tuple[int, int]) -> Iterator[int]:
    """Other processes that live in the namespace."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{entry}/ns/net")
            if (status.st_dev, status.st_ino) == namespace:
                yield int(entry)
