"""What a node must remember beside the kernel: small files that live as long as the kernel does.

They lie below /run/podwire, which a reboot empties like the kernel, in a folder of the network
namespace they speak of: nodes in namespaces of one machine don't see each other's. A file is
whole or absent: it is written under another name and renamed. Names are made of validated parts
(a network's name, a link's name) and never hold a slash.
"""

from __future__ import annotations

import errno as errnos
import os
import stat
from contextlib import suppress
from socket import AF_UNIX, SOCK_DGRAM, SOL_SOCKET, socket

from cni_plugin.kernel.netns import OWN
from cni_plugin.kernel.nodelock import FOLDER, make_folder
from cni_plugin.spec import CniError, Code

_SO_NETNS_COOKIE = 71  # Linux 5.14; include/uapi/asm-generic/socket.h
_UNFINISHED = "."  # how the name of a file that is being written begins
_LARGEST = 16 * 1024 * 1024


def node_key() -> str:
    """What tells the current network namespace from all others since the machine's start.

    The kernel's cookie is never given again, an inode number is: that is for older kernels.
    """
    with suppress(OSError), socket(AF_UNIX, SOCK_DGRAM) as any_socket:
        cookie = any_socket.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return f"{int.from_bytes(cookie, 'little'):x}"
    return f"i{os.stat(OWN).st_ino:x}"


class StateFolder:
    """The files of one kind; the folder is made when the first is written.

    Errors of the system are CniError 5, and 110 for a folder that belongs to somebody else.
    """

    def __init__(self, key: str, kind: str) -> None:
        """`key` is `node_key()` of the namespace; `kind` names the folder."""
        self.path = f"{FOLDER}/node-{key}/{kind}"

    def read(self, name: str) -> bytes | None:
        """The file's content, None when there is none. What is no plain file is an error, too."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO does not wait
        try:
            fd = os.open(f"{self.path}/{name}", flags)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._failure(name, e) from e
        try:
            return _read_plain(fd)
        except OSError as e:
            raise self._failure(name, e) from e
        finally:
            os.close(fd)

    def write(self, name: str, data: bytes) -> None:
        """Write the file, whole or not at all; readable by its owner alone."""
        unfinished = f"{self.path}/{_UNFINISHED}{name}.{os.getpid()}.{os.urandom(4).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                fd = os.open(unfinished, flags, 0o600)
            except FileNotFoundError:
                make_folder()
                os.makedirs(self.path, 0o700, exist_ok=True)
                fd = os.open(unfinished, flags, 0o600)
            try:
                with open(fd, "wb", buffering=0) as file:
                    _write_all(file.fileno(), data)
                os.rename(unfinished, f"{self.path}/{name}")
            except OSError:
                with suppress(OSError):
                    os.unlink(unfinished)
                raise
        except OSError as e:
            raise self._failure(name, e) from e

    def has(self, name: str) -> bool:
        """Whether there is something of this name, whatever it is."""
        try:
            os.lstat(f"{self.path}/{name}")
        except FileNotFoundError:
            return False
        except OSError as e:
            raise self._failure(name, e) from e
        return True

    def remove(self, name: str) -> bool:
        """Whether there was such a file."""
        try:
            os.unlink(f"{self.path}/{name}")
        except FileNotFoundError:
            return False
        except OSError as e:
            raise self._failure(name, e) from e
        return True

    def names(self) -> list[str]:
        """The names of the files, sorted; unfinished ones are not among them."""
        try:
            return sorted(n for n in os.listdir(self.path) if not n.startswith(_UNFINISHED))
        except FileNotFoundError:
            return []
        except OSError as e:
            raise self._failure("", e) from e

    def stamp(self) -> int:
        """Moves whenever a file comes, goes or is replaced; 0 while there is no folder (ns)."""
        try:
            return os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return 0
        except OSError as e:
            raise self._failure("", e) from e

    def _failure(self, name: str, error: OSError) -> CniError:
        forbidden = error.errno in (errnos.EACCES, errnos.EPERM)
        remedy = f"{FOLDER} must be a folder of root's that can be written, with room in it"
        if forbidden:
            remedy = (
                f"{FOLDER} is root's: run podwire as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
            )
        return CniError(
            Code.PERMISSION_DENIED if forbidden else Code.IO_FAILURE,
            f"{self.path}/{name}: {error.strerror}",
            remedy,
        )


def _read_plain(fd: int) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errnos.EINVAL, "not a plain file")
    parts: list[bytes] = []
    size = 0
    while size < _LARGEST and (part := os.read(fd, 1 << 16)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
