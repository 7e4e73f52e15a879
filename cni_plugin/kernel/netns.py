"""Network namespaces: opening the sandbox a runtime names, and working inside it.

Rules:
- A path is never opened before it is known to be a regular file (nsfs files are): opening a FIFO
  blocks, opening a device may do anything.
- The namespace travels as a file descriptor, so nobody can put another file at its path meanwhile.
- The host's own namespace is no sandbox.
- `inside` changes the calling thread only and always changes it back, or ends the process: a
  thread left in a pod's namespace would do the next pod's work there.
"""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from cni_plugin.fields import shown
from cni_plugin.kernel import libc
from cni_plugin.spec import CniError, Code

_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_CLONE_NEWNET = 0x40000000
_WANTS = (errnos.EMFILE, errnos.ENFILE, errnos.ENOMEM)  # these say nothing about the path
OWN = "/proc/thread-self/ns/net"


class NotANamespaceError(CniError):
    """The path exists and is no network namespace."""


def open_sandbox(path: str) -> int:
    """A file descriptor of the network namespace at `path`; the caller closes it.

    Raises CniError: 3 when there is nothing at the path, 4 (`NotANamespaceError`) when it is no
    network namespace, 4 when it is the namespace podwire itself runs in.
    """
    return checked(_probe(path), path)


def checked(probe: int, path: str) -> int:
    """As `open_sandbox`, of a file that was opened for its name only (O_PATH); `probe` is closed.

    `path` is for messages: in the caller's mount namespace the file may be at another.
    """
    fd = _open_namespace(probe, path)
    status, own = os.fstat(fd), os.stat(OWN)
    if (status.st_dev, status.st_ino) != (own.st_dev, own.st_ino):
        return fd
    os.close(fd)
    raise CniError(
        Code.INVALID_ENVIRONMENT,
        f"CNI_NETNS: {shown(path)} is the host's own network namespace",
        "the runtime must give each pod a namespace of its own",
    )


def _probe(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as e:
        raise unreachable(path, e.errno or 0) from e
    except ValueError as e:
        raise _not_a_namespace(path, str(e)) from e


def unreachable(path: str, errno: int) -> CniError:
    """The error for a path that could not be opened. Raises OSError for a want of resources."""
    if errno in _WANTS:
        raise OSError(errno, os.strerror(errno), path)
    if errno in (errnos.ENOENT, errnos.ENOTDIR):
        return CniError(
            Code.UNKNOWN_CONTAINER,
            f"CNI_NETNS: {shown(path)} does not exist",
            "the sandbox is gone, or was never made",
        )
    return _not_a_namespace(path, os.strerror(errno))


def _open_namespace(probe: int, path: str) -> int:
    try:
        if not stat.S_ISREG(os.fstat(probe).st_mode):
            raise _not_a_namespace(path, "not a regular file")
        fd = os.open(f"/proc/self/fd/{probe}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in _WANTS:
            raise
        raise _not_a_namespace(path, os.strerror(e.errno or 0)) from e
    finally:
        os.close(probe)
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET:
            return fd
        reason = "a namespace of another kind"
    except OSError:
        reason = "a plain file"
    os.close(fd)
    raise _not_a_namespace(path, reason)


def _not_a_namespace(path: str, reason: str) -> NotANamespaceError:
    return NotANamespaceError(
        Code.INVALID_ENVIRONMENT,
        f"CNI_NETNS: {shown(path)} is no network namespace: {reason}",
        "expected a path such as /run/netns/NAME or /proc/PID/ns/net",
    )


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(fd, _CLONE_NEWNET)
    else:
        libc.call("setns", fd, _CLONE_NEWNET)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the block in the namespace `fd`. Sockets opened in it stay in that namespace."""
    own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _setns(fd)
        except OSError as e:
            raise CniError(
                Code.PERMISSION_DENIED,
                f"can't enter the pod's network namespace: {os.strerror(e.errno or 0)}",
                "podwire needs CAP_SYS_ADMIN",
            ) from e
        try:
            yield
        finally:
            try:
                _setns(own)
            except OSError:
                os._exit(1)
    finally:
        os.close(own)
