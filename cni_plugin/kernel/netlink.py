"""A netlink socket: several requests in one send, one acknowledgement read for all.

Rules:
- A socket belongs to the network namespace it was opened in, and serves one thread.
- The kernel works off a batch in order, before the send returns, and goes on after a failure; the
  first failure is raised, and what the others did is the caller's to undo.
- Dumps are strict (the kernel filters) and are asked for again when they were interrupted.
"""

from __future__ import annotations

import errno as errnos
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from socket import (
    AF_NETLINK,
    SO_BINDTODEVICE,
    SO_RCVTIMEO,
    SOCK_CLOEXEC,
    SOCK_RAW,
    SOL_SOCKET,
    socket,
)
from time import sleep

from cni_plugin.kernel.codec import Entry, decode
from cni_plugin.kernel.messages import NLM_F_ACK, REPLIES, Message
from cni_plugin.spec import CniError, Code
from cni_plugin.typed import Any, Self

_NETLINK_ROUTE = 0
_SOL_NETLINK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 11, 12
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR, _NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x10, 0x100, 0x200
_NLMSGERR_ATTR_MSG = 1
HEADER, ERROR = struct.Struct("=IHHII"), struct.Struct("=i")
_RECEIVE = 1 << 16  # the kernel sends 32 KiB at most
_TIMEOUT = struct.pack("@ll", 20, 0)  # it answers in microseconds; this only bounds a broken one
_DUMP_TRIES = 60  # two seconds in all
_PER_SEND = 64
_ABSENT = (errnos.ENODEV, errnos.ENOENT)
_NOTHING_THERE = (errnos.EAFNOSUPPORT, errnos.EOPNOTSUPP, errnos.ENOENT)


class KernelError(CniError):
    """The kernel refused a request: `errno` is its reason."""

    def __init__(self, errno: int, what: str, hint: str = "") -> None:
        permission = errno in (errnos.EPERM, errnos.EACCES)
        super().__init__(
            Code.PERMISSION_DENIED if permission else Code.KERNEL_REFUSED,
            f"can't {what}: {os.strerror(errno)}" + (f" ({hint})" if hint else ""),
            "podwire needs CAP_NET_ADMIN and CAP_SYS_ADMIN" if permission else "",
        )
        self.errno = errno


class NetlinkSocket:
    """An open netlink socket of the namespace that was current at construction.

    `protocol` is the kernel's NETLINK_* number; `replies` finds the class of a reply by its type.
    """

    def __init__(self, protocol: int, replies: Mapping[int, Any]) -> None:
        self._replies = replies
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            # Not settimeout(): that makes two system calls of each.
            self._socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIMEOUT)
            self._prepare()
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def _prepare(self) -> None:
        """Further options of the socket; OSError when the kernel has them not."""

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def port(self) -> int:
        """What notifications call the socket that made a change."""
        name: tuple[int, int] = self._socket.getsockname()
        if not name[0]:  # as before the first request
            self._socket.bind((0, 0))
            name = self._socket.getsockname()
        return name[0]

    def fileno(self) -> int:
        """The descriptor, for requests that are no netlink: see `device`."""
        return self._socket.fileno()

    def batch(self, messages: Sequence[Message], ignore: Sequence[int] = ()) -> list[Entry | None]:
        """Send all, wait until the kernel has done all, raise the first failure.

        Returns for each message what it asked for, decoded: None for a change, and for something
        that does not exist. `ignore` holds errno values that count as success.

        Many messages go in several sends: their replies must fit the receive buffer. What follows
        a failed send is not sent.
        """
        answers: list[Entry | None] = []
        for start in range(0, len(messages), _PER_SEND):
            answers += self._batch(messages[start : start + _PER_SEND], ignore)
        return answers

    def _batch(self, messages: Sequence[Message], ignore: Sequence[int]) -> list[Entry | None]:
        """The kernel answers in order, so the answer to the last message is the last of all.

        The others ask for no acknowledgement: a failure is told without.
        """
        first = self._send(messages)
        last = first + len(messages) - 1
        answers: list[Entry | None] = [None] * len(messages)
        failures: list[KernelError] = []
        while True:
            for kind, flags, sequence, payload in self._receive():
                if not first <= sequence <= last:
                    continue  # of an earlier batch, which was given up
                message = messages[sequence - first]
                if kind == _NLMSG_ERROR:
                    errno = -ERROR.unpack_from(payload)[0]
                    asked = not message.flags & NLM_F_ACK
                    if errno and errno not in ignore and not (asked and errno in _ABSENT):
                        failures.append(KernelError(errno, message.what, hint(flags, payload)))
                else:
                    answers[sequence - first] = decode(self._replies[kind], payload)
                if sequence != last:
                    continue
                if failures:
                    raise failures[0]
                return answers

    def get(self, message: Message) -> Entry | None:
        """The one object asked for, decoded; None when there is no such thing."""
        return self._batch([message], ())[0]

    def dump(self, message: Message, whole: bool = True) -> list[Entry]:
        """All objects that match, decoded. A family the kernel lacks has none.

        A change by others interrupts a dump: it is then repeated, unless `whole` is False, where
        an object that was not seen does no harm.
        """
        for attempt in range(_DUMP_TRIES):
            entries, interrupted = self._dump_once(message)
            if not interrupted or not whole:
                return entries
            sleep(0.001 * attempt)
        raise KernelError(errnos.EAGAIN, message.what, "interrupted each time it was tried")

    def _dump_once(self, message: Message) -> tuple[list[Entry], bool]:
        sequence = self._send([message])
        entries: list[Entry] = []
        interrupted = False
        while True:
            for kind, flags, number, payload in self._receive():
                if number != sequence:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    errno = -ERROR.unpack_from(payload)[0]
                    if errno and errno not in _NOTHING_THERE:
                        raise KernelError(errno, message.what, hint(flags, payload))
                    return entries, interrupted
                entries.append(decode(self._replies[kind], payload))

    def _send(self, messages: Sequence[Message], as_they_are: bool = False) -> int:
        """Send the messages as one datagram; the sequence number of the first.

        Only the last asks for an acknowledgement, unless they go as they are.
        """
        first, last = self._sequence + 1, self._sequence + len(messages)
        parts: list[bytes] = []
        for sequence, (body, kind, flags, _) in enumerate(messages, first):
            if sequence != last and not as_they_are:
                flags &= ~NLM_F_ACK
            parts += (HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0), body)
        self._sequence = last
        try:
            self._socket.send(b"".join(parts))
        except OSError as e:
            raise KernelError(e.errno or errnos.EIO, messages[0].what) from e
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The messages of one datagram as (type, flags, sequence number, payload)."""
        try:
            data = self._socket.recv(_RECEIVE)
        except OSError as e:
            raise KernelError(e.errno or errnos.ETIMEDOUT, "read the kernel's reply") from e
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            if length < HEADER.size:
                break
            yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
            offset += (length + 3) & ~3


class RouteSocket(NetlinkSocket):
    """A NETLINK_ROUTE socket: links, addresses, routes, neighbours, traffic control."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_ROUTE, REPLIES)

    def _prepare(self) -> None:
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def bind_to_device(self, name: str) -> None:
        """SO_BINDTODEVICE of socket(7): raises OSError ENODEV for a link that is not there."""
        self._socket.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, name.encode() + b"\0")


def hint(flags: int, payload: bytes) -> str:
    """The kernel's own words on a failure (extended acknowledgement); "" when it gave none."""
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    length = HEADER.unpack_from(payload, 4)[0]
    offset = 4 + (HEADER.size if flags & _NLM_F_CAPPED else (length + 3) & ~3)
    while offset + 4 <= len(payload):
        size, kind = struct.unpack_from("=HH", payload, offset)
        if size < 4:
            break
        if kind == _NLMSGERR_ATTR_MSG:
            return payload[offset + 4 : offset + size].rstrip(b"\0").decode("utf-8", "replace")
        offset += (size + 3) & ~3
    return ""
