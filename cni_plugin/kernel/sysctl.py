"""Sysctls of the current network namespace, through /proc/sys/net.

/proc shows each thread the settings of its own network namespace; call from within
`netns.inside` for a pod's.
"""

from __future__ import annotations

import os

from cni_plugin.spec import CniError, Code

_ROOT = "/proc/sys/net/"


def read(name: str) -> str | None:
    """The value of "ipv6/conf/eth0/accept_ra" and the like; None where the kernel has no such."""
    try:
        fd = os.open(_ROOT + name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 256).decode("ascii", "replace").strip()
    finally:
        os.close(fd)


def write(name: str, value: str, required: bool = True) -> None:
    """Set a sysctl, unless it has the value already.

    One that does not exist (a kernel without IPv6) is an error only when `required`.
    """
    present = read(name)
    if present == value or (present is None and not required):
        return
    try:
        fd = os.open(_ROOT + name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as e:
        raise CniError(
            Code.KERNEL_REFUSED,
            f"can't set sysctl net/{name} to {value}: {os.strerror(e.errno or 0)}",
            "is /proc/sys writable, and has the kernel IPv6?",
        ) from e


def quieten(link: str) -> None:
    """No address or route for this link by router advertisements (CVE-2020-10749)."""
    for name in ("accept_ra", "autoconf"):
        write(f"ipv6/conf/{link}/{name}", "0", required=False)


def skip_dad(link: str) -> None:
    """No duplicate address detection for the link-local address either."""
    write(f"ipv6/conf/{link}/accept_dad", "0", required=False)


def enable_ipv6(link: str) -> None:
    """A runtime may have switched IPv6 off for new links; an IPv6 address needs it."""
    write(f"ipv6/conf/{link}/disable_ipv6", "0")


def announcing(link: str) -> tuple[str, str]:
    """The sysctls that make the kernel announce a link's addresses when its MAC address is set."""
    return f"ipv4/conf/{link}/arp_notify", f"ipv6/conf/{link}/ndisc_notify"


FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def forward(version: int) -> None:
    """Let the node forward packets of an IP version."""
    write(FORWARDING[version], "1")
