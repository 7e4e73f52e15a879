"""Names, marks and MAC addresses that are derived from an attachment.

A DEL finds what an ADD made with nothing but the attachment in hand: see
docs/adr/0004-names-marks-and-locks.md.
"""

from __future__ import annotations

from cni_plugin.spec import Attachment

try:  # hashlib loads OpenSSL, which takes 3 ms
    from _blake2 import blake2s
except ImportError:
    from hashlib import blake2s

_ALIAS_BYTES = 254  # IFALIASZ is 256, with the terminating zero that netlink carries as well


def _digest(*parts: str) -> bytes:
    return blake2s("\0".join(parts).encode("utf-8", "surrogatepass")).digest()


def host_veth_name(network: str, attachment: Attachment) -> str:
    """The name of the node's end: 44 bits of a hash, so equal for equal attachments only."""
    return "veth" + _digest(network, *attachment).hex()[:11]


def ifb_name(network: str, attachment: Attachment) -> str:
    """The name of the device through which the pod's own traffic is shaped: 48 bits of a hash."""
    return "pwi" + _digest(network, *attachment).hex()[:12]


def alias_prefix(network: str) -> str:
    """How the alias of each host veth of a network begins; GC finds the network's links by it."""
    return f"podwire {_fitted(network, 96)} "


def alias(network: str, attachment: Attachment) -> str:
    """The alias of a host veth: who it belongs to, readable in `ip link`.

    The kernel keeps 254 bytes; longer identifiers are cut and closed with a hash.
    """
    start = alias_prefix(network)
    room = _ALIAS_BYTES - len(start) - len(attachment.ifname.encode("utf-8", "surrogatepass")) - 1
    return f"{start}{_fitted(attachment.container_id, room)} {attachment.ifname}"


def attachment_of(alias: str) -> Attachment:
    """The attachment an alias names, as far as the kernel had room for it."""
    container_id, _, ifname = alias.rpartition(" ")
    return Attachment(container_id.rpartition(" ")[2], ifname)


def _fitted(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    return f"{text[: room - 17]}~{_digest(text).hex()[:16]}"


def derived_mac(*parts: str) -> str:
    """A locally administered unicast MAC address from a hash."""
    digest = bytearray(_digest("mac", *parts)[:6])
    digest[0] = (digest[0] & 0xFC) | 0x02
    return digest.hex(":")
