"""Network namespaces for tests: made, entered, inspected, and removed with all that is in them.

- A namespace is a bind mount under BASE/<pid of the test run>/, never under /run/netns: the
  machine's own list stays as it is, and runs beside each other do not meet.
- It is made without another program, and entered with `nsenter --net` or setns(2), not with
  `ip netns exec`, which remounts /sys: tests make thousands.
- Removal ends every process that lives in the namespace, by its pid.
- What a run that was killed left behind is swept by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cni_plugin.kernel.nodelock import FOLDER
from cni_plugin.kernel.statefolder import node_key

BASE = "/run/podwire-tests"

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH = 0x1000, 2
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_libc = ctypes.CDLL(None, use_errno=True)
_counter = itertools.count(1)


class Namespace:
    """One network namespace. `path` is its file, as CNI_NETNS wants it; `name` is for people."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.path = os.path.join(folder, f"pwt-{os.getpid()}-{next(_counter)}-{name}")
        self._started: list[subprocess.Popen[str]] = []
        with open(self.path, "x"):
            pass
        try:
            _make(self.path)
        except BaseException:
            self.delete()
            raise

    def __repr__(self) -> str:
        return f"<netns {self.name} {self.path}>"

    # --- running things inside -----------------------------------------------------------------

    def prefix(self) -> list[str]:
        """The words before a command that make it run in this namespace."""
        return ["nsenter", f"--net={self.path}", "--"]

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess:
        """Run a command in the namespace; see `run` of this module."""
        with self.entered():  # the program has the namespace of the thread that starts it
            return run(argv, check=check, place=f"in {self.name}: ", **options)

    def batch(self, *lines: str) -> None:
        """Run commands of `ip`, in one process; the first that fails is the last."""
        self.run("ip", "-batch", "-", stdin="\n".join(lines))

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen:
        """Start a command in the namespace; it is killed when the namespace goes."""
        options = {"stdin": subprocess.DEVNULL, "text": True, **options}
        with self.entered():
            process = subprocess.Popen(argv, **options)
        self._started.append(process)
        return process

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in this namespace for the length of the block."""
        with open("/proc/thread-self/ns/net") as before:
            with open(self.path) as target:
                _setns(target.fileno())
            try:
                yield
            finally:
                _setns(before.fileno())

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket of this namespace; the caller, who stays outside, closes it."""
        with self.entered():
            return socket.socket(family, kind, proto)

    # --- looking -------------------------------------------------------------------------------

    def ip(self, *argv: str) -> list[dict[str, Any]]:
        """`ip -j -d <argv>` in the namespace, decoded; for commands that print."""
        output = self.run("ip", "-j", "-d", *argv).stdout
        return [item for item in json.loads(output or "[]") if item]

    def links(self) -> dict[str, dict[str, Any]]:
        """Every link by name, as `ip -d link` describes it."""
        return {link["ifname"]: link for link in self.ip("link", "show")}

    def addresses(self, ifname: str) -> list[str]:
        """The addresses of one link with their prefix lengths, link-local IPv6 left out."""
        return [
            f"{item['local']}/{item['prefixlen']}"
            for link in self.ip("addr", "show", "dev", ifname)
            for item in link.get("addr_info", [])
            if item.get("local") and item.get("scope") != "link"
        ]

    def routes(self, family: int = 4, table: str = "main") -> list[dict[str, Any]]:
        return self.ip(f"-{family}", "route", "show", "table", table)

    def sysctl(self, key: str) -> str:
        """The value of a network sysctl such as "net/ipv4/ip_forward", "" when there is none."""
        done = self.run("cat", f"/proc/sys/{key}", check=False)
        return done.stdout.strip()

    def state(self) -> dict[str, list[str]]:
        """Links, addresses, routes and rules in comparable form: for "as it was before"."""
        links = self.ip("addr", "show")
        state = {
            "links": sorted(link["ifname"] for link in links),
            "addresses": sorted(
                f"{link['ifname']} {item['local']}/{item['prefixlen']}"
                for link in links
                for item in link.get("addr_info", [])
                if item.get("local") and item.get("scope") != "link"
            ),
        }
        asked = "route show table main\nrule show"
        for family in ("-4", "-6"):
            shown = self.run("ip", family, "-batch", "-", stdin=asked, check=False).stdout
            lines = shown.replace(" linkdown", "").splitlines()  # comes and goes by itself
            state[f"routes and rules {family}"] = sorted(
                line.strip() for line in lines if not line.startswith("fe80::")
            )
        return state

    def processes(self) -> list[int]:
        """The pids of all processes that have a thread in the namespace (main threads only)."""
        try:
            mine = os.stat(self.path).st_ino
        except OSError:
            return []
        return [pid for pid in _pids() if _net_inode(pid) == mine]

    # --- the end -------------------------------------------------------------------------------

    def delete(self) -> None:
        """End what runs inside, then remove the namespace; calling it again does nothing."""
        for process in self._started:
            end(process)
        self._started.clear()
        if not os.path.exists(self.path):
            return
        if _is_nsfs(self.path):
            for pid in self.processes():
                _kill(pid)
            self._forget_state()
        _unmount(self.path)
        os.unlink(self.path)

    def _forget_state(self) -> None:
        """Remove what a node in this namespace remembers: nobody else would, before a reboot."""
        with self.entered():
            key = node_key()
        shutil.rmtree(f"{FOLDER}/node-{key}", ignore_errors=True)


class Namespaces:
    """Makes namespaces and removes them all, whatever the test did."""

    def __init__(self) -> None:
        self.folder = os.path.join(BASE, str(os.getpid()))
        wait_until(self._make_folder, what=f"folder {self.folder}")
        self._made: list[Namespace] = []

    def _make_folder(self) -> bool:
        with contextlib.suppress(FileNotFoundError):  # another run may be removing BASE just now
            os.makedirs(self.folder, exist_ok=True)
        return os.path.isdir(self.folder)

    def make(self, name: str) -> Namespace:
        namespace = Namespace(name, self.folder)
        self._made.append(namespace)
        return namespace

    def close(self) -> None:
        """Remove everything that `make` made; raises the first error after having tried all."""
        errors: list[OSError] = []
        while self._made:
            try:
                self._made.pop().delete()
            except OSError as e:
                errors.append(e)
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)
            os.rmdir(BASE)
        if errors:
            raise errors[0]


def sweep() -> None:
    """Remove what earlier runs left that were killed before they could clean up."""
    if not os.path.isdir(BASE):
        return
    for run_id in os.listdir(BASE):
        if run_id.isdigit() and os.path.exists(f"/proc/{run_id}"):
            continue
        folder = os.path.join(BASE, run_id)
        with contextlib.suppress(FileNotFoundError):  # another run may be sweeping as well
            for name in os.listdir(folder):
                _unmount(os.path.join(folder, name))
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cwd: str | None = None,
    place: str = "",
) -> subprocess.CompletedProcess:
    """Run a command and capture its text; with `check`, a failure shows what it printed, and
    `place`."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    if stdin is not None:
        given = {"input": stdin}
    done = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        cwd=cwd,
        **given,
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{place}{' '.join(argv)}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def end(process: subprocess.Popen, timeout: float = 5) -> None:
    """End one process: ask, then kill, then reap."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def wait_until(condition: Any, timeout: float = 30, what: str = "", pause: float = 0.05) -> Any:
    """Call `condition` until it returns something true, and return that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        time.sleep(pause)


def _make(path: str) -> None:
    """Bind a new namespace, whose lo is up, to a file."""
    with open("/proc/thread-self/ns/net") as before:
        _checked("unshare", _libc.unshare(_CLONE_NEWNET))
        try:
            own = b"/proc/thread-self/ns/net"
            _checked("mount", _libc.mount(own, os.fsencode(path), None, _MS_BIND, None))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
                fcntl.ioctl(asked, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
        finally:
            _setns(before.fileno())


def _setns(fd: int) -> None:
    _checked("setns", _libc.setns(fd, _CLONE_NEWNET))


def _checked(name: str, result: int) -> None:
    """`result` is that of the C library's function; below 0 it is an error."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _unmount(path: str) -> None:
    _libc.umount2(os.fsencode(path), _MNT_DETACH)  # fails on a plain file: nothing to undo


def _is_nsfs(path: str) -> bool:
    return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _net_inode(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}/ns/net") or not _net_inode(pid):
            return
        time.sleep(0.01)
