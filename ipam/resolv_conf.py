"""resolv.conf(5), which the option ipam.resolvConf names, as a result's DNS settings."""

from __future__ import annotations

import os
from errno import EINVAL
from stat import S_ISREG

from cni_plugin.spec import DNS, CniError, Code

_BYTES = 64 * 1024


def read(path: str) -> DNS:
    """nameserver, domain, search and options of a resolv.conf(5); an empty DNS for path ""."""
    if not path:
        return DNS()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not S_ISREG(os.fstat(fd).st_mode):
                raise OSError(EINVAL, "not a regular file")
            text = os.read(fd, _BYTES).decode("utf-8", "replace")
        finally:
            os.close(fd)
    except OSError as e:
        raise CniError(
            Code.IO_FAILURE,
            f"{path}: {e.strerror}",
            "ipam.resolvConf names a file that can't be read: correct or remove it",
        ) from e
    lines = [line.split() for line in text.splitlines()]
    values = [(words[0], words[1:]) for words in lines if len(words) > 1]
    domains = [words[0] for keyword, words in values if keyword == "domain"]
    return DNS(
        nameservers=tuple(words[0] for keyword, words in values if keyword == "nameserver"),
        domain=domains[-1] if domains else "",
        search=tuple(word for keyword, words in values if keyword == "search" for word in words),
        options=tuple(word for keyword, words in values if keyword == "options" for word in words),
    )
