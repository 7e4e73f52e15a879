"""Framing between the client and the agent, without I/O; used by both ends.

One connection carries one call:

    client -> agent   request: a header, then version, environment and stdin; with its first byte
                      travels the sandbox as a file descriptor (SCM_RIGHTS), if there is one
    agent -> client   HEARTBEAT bytes while it works, then a reply: a header and a body
    client -> agent   one CONFIRMATION byte, when the body of an ADD has been written to stdout
    agent -> client   UNDONE, when no confirmation came in time: none can be sent any more then

An agent that declines has not begun anything: the client may do the work itself. After any other
end of the connection nobody knows, and the client must not.

This module keeps to what MicroPython and CPython share: no typing, no dataclasses.
"""

import struct

MAGIC = b"pdw1"  # the number changes with the framing
HEARTBEAT = b"\0"
CONFIRMATION = b"\1"
UNDONE = b"\2"

SERVED, DECLINED = 0, 1  # verdicts of a reply

LARGEST_STDIN = 16 * 1024 * 1024 + 1  # one byte more than a configuration may have
LARGEST_ENVIRON = 8 * 1024 * 1024  # more than execve(2) passes on
LARGEST_REPLY = 16 * 1024 * 1024

_REQUEST = "<4sBBHHIIQ"
_REPLY = "<4sBBHI"
REQUEST_BYTES = struct.calcsize(_REQUEST)
REPLY_BYTES = struct.calcsize(_REPLY)


class WireError(Exception):
    """What came is no frame of this protocol."""


def request(
    ipam: bool, netns_errno: int, home: int, version: str, environ: bytes, stdin: bytes
) -> bytes:
    """A request as bytes.

    `ipam`: whether the caller goes by the name podwire-ipam. `netns_errno`: why CNI_NETNS could
    not be opened, 0 when its descriptor is passed or none was named. `home`: the inode of the
    caller's own network namespace. `version`: podwire's, as text. `environ`: NAME=VALUE entries,
    each ended by a zero byte.
    """
    said = version.encode()
    header = struct.pack(
        _REQUEST,
        MAGIC,
        1 if ipam else 0,
        0,
        netns_errno,
        len(said),
        len(environ),
        len(stdin),
        home,
    )
    return header + said + environ + stdin


def request_header(data: bytes) -> tuple[bool, int, int, int, int, int]:
    """(ipam, netns errno, home, bytes of version, of environ, of stdin); raises WireError."""
    magic, ipam, _, errno, version, environ, stdin, home = struct.unpack(_REQUEST, data)
    if magic != MAGIC:
        raise WireError("not a request of this protocol")
    if environ > LARGEST_ENVIRON or stdin > LARGEST_STDIN:
        raise WireError("request larger than any can be")
    return ipam == 1, errno, home, version, environ, stdin


def reply(verdict: int, status: int, body: bytes) -> bytes:
    """A reply as bytes: `status` is the exit status, `body` what goes to stdout (SERVED), or the
    reason in UTF-8 (DECLINED)."""
    return struct.pack(_REPLY, MAGIC, verdict, status, 0, len(body)) + body


def reply_header(data: bytes) -> tuple[int, int, int]:
    """(verdict, exit status, bytes of the body); raises WireError."""
    magic, verdict, status, _, size = struct.unpack(_REPLY, data)
    if magic != MAGIC or verdict not in (SERVED, DECLINED) or size > LARGEST_REPLY:
        raise WireError("not a reply of this protocol")
    return verdict, status, size
