"""What the route watch would pass over, kept back by the kernel: nothing of pods that come and go.

A message that arrives wakes the thread that listens, and this one takes Python's lock from a call
that is just waiting for the kernel. An ADD makes some thirty messages, and none of them matters. So
a program on the socket drops them (SO_ATTACH_FILTER of socket(7); classic BPF of linux/filter.h).

Rules:
- Dropped is only what `watch.RouteWatch.word` has nothing to say of, whatever came before. What
  the program can't tell for sure it leaves to that.
- Parts of an answer (NLM_F_MULTI) pass: several lie in one datagram, and it sees the first.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from ctypes import addressof, create_string_buffer
from socket import SOL_SOCKET, socket

from cni_plugin.drift import MAIN_TABLE
from cni_plugin.kernel.messages import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTN_UNICAST,
)

_SO_ATTACH_FILTER = 26  # not in Python's socket; include/uapi/asm-generic/socket.h
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, if false, k
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: length, address
_WORD, _HALF, _BYTE = 0x20, 0x28, 0x30  # BPF_LD | BPF_ABS; more than a byte in network order
_GREATER, _AT_LEAST, _EQUAL, _ANY_BIT = 0x25, 0x35, 0x15, 0x45  # BPF_JMP | BPF_K
_RETURN = 0x06
_PASS, _DROP = 0xFFFF_FFFF, 0  # how many bytes of the message go on

_TYPE, _FLAGS, _BODY = 4, 6, 16  # struct nlmsghdr
_ATTRIBUTES = _BODY + 16  # of struct ifinfomsg, whose first one is the name
_NAME = _ATTRIBUTES + 4
_ADDRESS_SCOPE = _BODY + 3
_ROUTE = _BODY  # struct rtmsg: its bytes 1, 4, 5, 7 are length, table, protocol, type
_NEIGHBOUR_INDEX = _BODY + 4
_NLM_F_MULTI, _RTM_NEWNEIGH, _AF_BRIDGE, _SCOPE_LINK, _RTPROT_KERNEL = 0x2, 28, 7, 253, 2
_IFLA_IFNAME, _RTA_DST, _RTA_TABLE = 3, 1, 15
_LONGEST_NAME = 15
_MOST_OVERLAYS = 16

Instruction = tuple[int, str, str, int]
"""Its code, where to go on if it is true and if not ("" for what follows), and its number."""


def attach(sock: socket, overlays: Collection[int]) -> None:
    """Let the socket hear only what may matter; `overlays` are interface indexes of devices whose
    neighbours do. Takes the place of the program before, between two messages.

    Raises OSError where the kernel does not let us.
    """
    code = assembled(program(overlays))
    memory = create_string_buffer(code, len(code))
    count = len(code) // _INSTRUCTION.size
    sock.setsockopt(SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(count, addressof(memory)))


def program(overlays: Collection[int]) -> list[tuple[str, list[Instruction]]]:
    """The program in parts, each with its name; what a part does not decide the next one does."""
    return [
        (
            "kinds",
            [
                (_HALF, "", "", _FLAGS),
                (_ANY_BIT, "pass", "", _half(_NLM_F_MULTI)),
                (_HALF, "", "", _TYPE),
                (_EQUAL, "link", "", _half(RTM_NEWLINK)),
                (_EQUAL, "link", "", _half(RTM_DELLINK)),
                (_EQUAL, "address", "", _half(RTM_NEWADDR)),
                (_EQUAL, "address", "", _half(RTM_DELADDR)),
                (_EQUAL, "route", "", _half(RTM_NEWROUTE)),
                (_EQUAL, "route", "", _half(RTM_DELROUTE)),
                (_EQUAL, "neighbour", "", _half(_RTM_NEWNEIGH)),
                (_EQUAL, "neighbour", "pass", _half(RTM_DELNEIGH)),
            ],
        ),
        ("neighbour", _neighbour(overlays)),
        ("address", [(_BYTE, "", "", _ADDRESS_SCOPE), (_EQUAL, "drop", "pass", _SCOPE_LINK)]),
        ("route", _route()),
        ("link", _link()),
        *_name(),
        ("drop", [(_RETURN, "", "", _DROP)]),
        ("pass", [(_RETURN, "", "", _PASS)]),
    ]


def _neighbour(overlays: Collection[int]) -> list[Instruction]:
    if len(overlays) > _MOST_OVERLAYS:
        return [(_RETURN, "", "", _PASS)]
    return [
        (_WORD, "", "", _NEIGHBOUR_INDEX),
        *((_EQUAL, "pass", "", _word(index)) for index in overlays),
        (_RETURN, "", "", _DROP),
    ]


def _route() -> list[Instruction]:
    """Those of the main table, without the kernel's own to link-local addresses."""
    return [
        (_BYTE, "", "", _ROUTE + 4),
        (_EQUAL, "", "drop", MAIN_TABLE),
        (_BYTE, "", "", _ROUTE + 7),
        (_EQUAL, "", "drop", RTN_UNICAST),
        (_BYTE, "", "", _ROUTE + 5),
        (_EQUAL, "", "pass", _RTPROT_KERNEL),
        (_BYTE, "", "", _ROUTE + 1),
        (_EQUAL, "", "pass", 64),
        (_WORD, "", "", _ROUTE + 12),
        (_EQUAL, "", "pass", _attribute(8, _RTA_TABLE)),
        (_WORD, "", "", _ROUTE + 20),
        (_EQUAL, "", "pass", _attribute(20, _RTA_DST)),
        (_HALF, "", "", _ROUTE + 24),
        (_EQUAL, "drop", "pass", 0xFE80),
    ]


def _link() -> list[Instruction]:
    """Ports as the bridge tells of them; else by the name, if that is as long as our links' are."""
    return [
        (_BYTE, "", "", _BODY),
        (_EQUAL, "drop", "", _AF_BRIDGE),
        (_WORD, "", "", _ATTRIBUTES),
        (_EQUAL, "", "pass", _attribute(4 + _LONGEST_NAME + 1, _IFLA_IFNAME)),
        (_WORD, "", "", _NAME),
        (_EQUAL, "digit 4", "", int.from_bytes(b"veth", "big")),
        (_HALF, "", "", _NAME),
        (_EQUAL, "", "pass", int.from_bytes(b"pw", "big")),
        (_BYTE, "", "", _NAME + 2),
        (_EQUAL, "digit 3", "pass", ord("i")),
    ]


def _name() -> list[tuple[str, list[Instruction]]]:
    """Whether the rest of the name is hexadecimal digits."""
    return [
        (
            f"digit {position}",
            [
                (_BYTE, "", "", _NAME + position),
                (_AT_LEAST, "", "pass", ord("0")),
                (_GREATER, "pass", "", ord("f")),
                (_AT_LEAST, f"digit {position + 1}", "", ord("a")),
                (_GREATER, "pass", "", ord("9")),
            ],
        )
        for position in range(3, _LONGEST_NAME)
    ] + [(f"digit {_LONGEST_NAME}", [])]


def assembled(parts: list[tuple[str, list[Instruction]]]) -> bytes:
    """The program as the kernel takes it: jumps lead forward, by numbers of instructions."""
    places: dict[str, int] = {}
    count = 0
    for name, instructions in parts:
        places[name] = count
        count += len(instructions)
    flat = [instruction for _, instructions in parts for instruction in instructions]
    return b"".join(
        _INSTRUCTION.pack(
            code,
            places[true] - index - 1 if true else 0,
            places[false] - index - 1 if false else 0,
            number,
        )
        for index, (code, true, false, number) in enumerate(flat)
    )


def _half(number: int) -> int:
    """A number of this machine's as BPF reads it: in network order."""
    return int.from_bytes(struct.pack("=H", number), "big")


def _attribute(size: int, kind: int) -> int:
    """The head of an attribute, as a word."""
    return int.from_bytes(struct.pack("=HH", size, kind), "big")


def _word(number: int) -> int:
    return int.from_bytes(struct.pack("=I", number), "big")
