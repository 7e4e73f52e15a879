"""A NETLINK_NETFILTER socket: nftables transactions, which are applied whole or not at all.

Rules:
- A transaction is one send: the kernel looks at all of it, then makes all of it true at once, or
  says what is wrong and changes nothing (net/netfilter/nfnetlink.c).
- Each transaction of anybody moves the ruleset's generation by one. Who knows that the generation
  is still the one that he looked at, or moved it himself, need not look again.
- The socket belongs to the network namespace it was opened in, and serves one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from socket import SOL_SOCKET

from cni_plugin.kernel.codec import Entry
from cni_plugin.kernel.messages import NLM_F_ACK, NLM_F_REQUEST, Message
from cni_plugin.kernel.netlink import ERROR, HEADER, KernelError, NetlinkSocket, hint
from cni_plugin.kernel.nftmessages import REPLIES, get_generation
from cni_plugin.spec import CniError, Code

_NETLINK_NETFILTER = 12
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR = 0x10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM_NFTABLES = 10
_BATCH_HEADER = struct.pack(">BBH", 0, 0, _SUBSYSTEM_NFTABLES)
_BATCH_GENID = struct.Struct("=HH4s")
_SO_SNDBUFFORCE = 32  # not in Python's socket; include/uapi/asm-generic/socket.h
_LARGEST = 16 * 1024 * 1024


NEEDED = (
    "the kernel needs nftables with NAT for the pods' address families: CONFIG_NF_TABLES, "
    "CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_IPV6, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_CT, "
    "CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6 (modules nf_tables, nft_chain_nat, nft_masq, ...)"
)


class NetfilterSocket(NetlinkSocket):
    """nftables of the current network namespace. Raises CniError 104 where the kernel has none."""

    def __init__(self) -> None:
        try:
            super().__init__(_NETLINK_NETFILTER, REPLIES)
        except OSError as e:
            what = f"the kernel has no netfilter by netlink: {e.strerror}"
            raise CniError(Code.KERNEL_REFUSED, what, NEEDED) from e
        self._room = 0
        self._patterns: tuple[bytes, ...] = ()

    def generation(self) -> int:
        """The number of the ruleset's generation: it moves with every transaction of anybody."""
        entry = self.get(get_generation())
        return int(entry.get_attr("NFTA_GEN_ID")) if entry is not None else 0

    def dump_with(self, message: Message, *patterns: bytes) -> list[Entry]:
        """Of what matches only that which has one of these bytes in it. The kernel lists all
        chains or none, and some nodes have tens of thousands."""
        self._patterns = patterns
        try:
            return self.dump(message)
        finally:
            self._patterns = ()

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        received = super()._receive()
        if not self._patterns:
            return received
        return (
            each
            for each in received
            if each[0] <= _NLMSG_DONE
            or each[1] & _NLM_F_DUMP_INTR
            or any(pattern in each[3] for pattern in self._patterns)
        )

    def transaction(self, messages: Sequence[Message], generation: int = 0) -> None:
        """Make all changes, or none and raise the first refusal.

        With a `generation`, only if the ruleset is still that one: KernelError ERESTART otherwise.
        """
        if messages:
            self._commit(self._send_batch(messages, generation), messages)

    def _send_batch(self, messages: Sequence[Message], generation: int) -> int:
        """Send them; the sequence number of the batch's begin."""
        begin = _BATCH_HEADER
        if generation:
            begin += _BATCH_GENID.pack(8, 1, generation.to_bytes(4, "big"))
        batch = [
            Message(begin, _BATCH_BEGIN, NLM_F_REQUEST, "begin a transaction"),
            *(m._replace(flags=m.flags & ~NLM_F_ACK) for m in messages[:-1]),
            messages[-1],
            Message(_BATCH_HEADER, _BATCH_END, NLM_F_REQUEST, "end a transaction"),
        ]
        self._make_room(sum(len(m.body) + HEADER.size for m in batch))
        return self._send(batch, as_they_are=True)

    def _make_room(self, size: int) -> None:
        if size > self._room:
            self._room = min(max(2 * size, 1 << 17), _LARGEST)
            self._socket.setsockopt(SOL_SOCKET, _SO_SNDBUFFORCE, self._room)

    def _commit(self, begin: int, messages: Sequence[Message]) -> None:
        """Read until the last message is acknowledged, or the whole was refused."""
        last = begin + len(messages)
        failure: KernelError | None = None
        while True:
            for kind, flags, sequence, payload in self._receive():
                if kind != _NLMSG_ERROR or not begin <= sequence <= last + 1:
                    continue
                errno = -ERROR.unpack_from(payload)[0]
                if errno and failure is None:
                    what = messages[max(sequence - begin - 1, 0)].what
                    failure = KernelError(errno, what, hint(flags, payload))
                if sequence in (last, begin):
                    if failure is not None:
                        raise failure
                    return
