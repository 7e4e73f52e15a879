"""The options of a node that takes part by way of etcd, checked. Reads no file but for TLS.

Errors are CniError 7 and name the option of `podwire agent`.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from cni_plugin.fields import as_network, invalid
from cni_plugin.sources.etcd_flannel import PREFIX as FLANNEL_PREFIX
from cni_plugin.sources.etcd_flannel import FlannelLayout, public_address
from cni_plugin.sources.etcd_gateway import Login
from cni_plugin.sources.etcd_layout import NODE_NAME, Layout, Own, PodwireLayout
from cni_plugin.sources.etcd_messages import Endpoint
from cni_plugin.sources.etcd_pools import Pool, whole_pool
from cni_plugin.spec import CniError, Code, IPAddress

DEFAULT_TTL = 24 * 3600
_TTL_LOW, _TTL_HIGH = 2, 9_000_000_000  # etcd's own bounds, in seconds
_CLIENT_PORT = 2379
_HOST = re.compile(rb"[A-Za-z0-9._:%-]+")
_BROADCAST = ip_address("255.255.255.255")
PODWIRE, FLANNEL = "podwire", "flannel"
_PREFIXES = {PODWIRE: "/podwire", FLANNEL: FLANNEL_PREFIX}
STATE_FILE = "/var/lib/podwire/etcd-lease.json"


class EtcdOptions(NamedTuple):
    """Made by `checked`. Paths of files are "" where there are none; `ttl` is in seconds; no
    `pools` means those that etcd has."""

    endpoints: tuple[Endpoint, ...]
    prefix: str
    pools: tuple[Pool, ...]
    node_name: str
    addresses: tuple[IPAddress, ...]
    ttl: int = DEFAULT_TTL
    form: str = PODWIRE
    cacert: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""
    state_file: str = STATE_FILE

    @classmethod
    def checked(
        cls,
        urls: str,
        node_name: str,
        addresses: Sequence[IPAddress | str],
        *,
        prefix: str = "",
        pool: str = "",
        subnet_length: str = "",
        ttl: int = DEFAULT_TTL,
        form: str = PODWIRE,
        cacert: str = "",
        cert: str = "",
        key: str = "",
        user: str = "",
        password_file: str = "",
        state_file: str = STATE_FILE,
    ) -> EtcdOptions:
        """From the words of a command line. `urls`, `pool` and `subnet_length` are lists with
        commas between; `pool` has at most one network of each family."""
        endpoints = tuple(_endpoint(url.strip()) for url in urls.split(","))
        _refuse_unknown(form, ttl)
        made = cls(
            endpoints,
            _prefix(prefix or _PREFIXES[form]),
            _pools(pool, subnet_length, form),
            node_name,
            tuple(ip_address(str(address)) for address in addresses),
            ttl,
            form,
            cacert,
            cert,
            key,
            user,
            password_file,
            state_file,
        )
        made._refuse_halves()
        _refuse_unreachable(made.addresses)
        made.layout()
        return made

    @property
    def own(self) -> Own:
        return Own(self.node_name, self.addresses)

    def layout(self) -> Layout:
        """Raises CniError 7 for a node that the layout has no place for."""
        if not NODE_NAME.fullmatch(self.node_name):
            wanted = "expected a name of letters, digits, '-', '_' and '.', a letter or digit first"
            raise invalid("--node-name", self.node_name, wanted)
        if not self.addresses:
            raise CniError(Code.INVALID_CONFIG, "this node has no address that others can reach")
        if self.form == PODWIRE:
            return PodwireLayout(self.prefix)
        public_address(self.own)
        return FlannelLayout(self.prefix)

    def tls(self) -> ssl.SSLContext | None:
        """For endpoints with https; None when there are none. Raises CniError 7."""
        if not any(endpoint.tls for endpoint in self.endpoints):
            return None
        option, path = "--etcd-cacert", self.cacert
        try:
            context = ssl.create_default_context(cafile=self.cacert or None)
            option, path = "--etcd-cert and --etcd-key", f"{self.cert} {self.key}"
            if self.cert:
                context.load_cert_chain(self.cert, self.key, _no_passphrase)
        except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise invalid(option, path, f"expected PEM files that can be read ({reason})") from e
        return context

    def login(self) -> Login | None:
        return Login(self.user, self._password) if self.user else None

    def _password(self) -> str:
        with open(self.password_file, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")

    def _refuse_halves(self) -> None:
        for option, path, other, also in (
            ("--etcd-cert", self.cert, "--etcd-key", self.key),
            ("--etcd-key", self.key, "--etcd-cert", self.cert),
            ("--etcd-user", self.user, "--etcd-password-file", self.password_file),
            ("--etcd-password-file", self.password_file, "--etcd-user", self.user),
        ):
            if path and not also:
                raise invalid(option, path, f"expected {other} beside it")
        for option, path in (("--etcd-cacert", self.cacert), ("--etcd-cert", self.cert)):
            if path and not any(endpoint.tls for endpoint in self.endpoints):
                raise invalid(option, path, "expected an endpoint with https:// in --etcd")
        if self.password_file and not os.access(self.password_file, os.R_OK):
            raise invalid("--etcd-password-file", self.password_file, "expected a readable file")


def _no_passphrase() -> str:
    """OpenSSL would ask on the terminal."""
    raise ValueError("the key has a passphrase")


def _endpoint(url: str) -> Endpoint:
    wanted = "expected URLs such as http://192.168.1.10:2379, with commas between"
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna")  # as the resolver does, which says less
    except ValueError as e:
        raise invalid("--etcd", url, wanted) from e
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    plain = plain and _HOST.fullmatch(host) is not None and min(url) > " " and "\x7f" not in url
    if parts.scheme not in ("http", "https") or port == 0 or not plain:
        raise invalid("--etcd", url, wanted)
    return Endpoint(parts.hostname or "", port or _CLIENT_PORT, parts.scheme == "https")


def _refuse_unknown(form: str, ttl: int) -> None:
    if form not in _PREFIXES:
        raise invalid("--etcd-format", form, f"expected one of {', '.join(_PREFIXES)}")
    if not _TTL_LOW <= ttl <= _TTL_HIGH:
        raise invalid("--etcd-ttl", ttl, f"expected seconds from {_TTL_LOW} to {_TTL_HIGH}")


def _refuse_unreachable(addresses: tuple[IPAddress, ...]) -> None:
    for each in addresses:
        local = each.is_loopback or (each.version == 6 and each.is_link_local)
        everybody = each.is_unspecified or each.is_multicast or each == _BROADCAST
        if local or everybody:
            wanted = "expected an address of this node's that the other nodes reach"
            raise invalid("--node-address", str(each), wanted)


def _prefix(text: str) -> str:
    found = text.rstrip("/")
    if not found.startswith("/") or not found.isprintable() or not found.isascii():
        raise invalid("--etcd-prefix", text, "expected a path such as /podwire")
    return found


def _pools(pool: str, subnet_length: str, form: str) -> tuple[Pool, ...]:
    texts = [text.strip() for text in pool.split(",")] if pool else []
    lengths = [_length(text.strip()) for text in subnet_length.split(",")] if subnet_length else []
    if form == FLANNEL and (texts or lengths):
        option, value = ("--etcd-pool", pool) if texts else ("--etcd-subnet-length", subnet_length)
        raise invalid(option, value, "a flannel network has its own, in etcd; expected none here")
    if len(lengths) > len(texts):
        wanted = "expected one number for each network of --etcd-pool"
        raise invalid("--etcd-subnet-length", subnet_length, wanted)
    found = []
    for index, text in enumerate(texts):
        length = lengths[index] if index < len(lengths) else None
        network = as_network(text, "--etcd-pool")
        found.append(whole_pool(network, length, "--etcd-pool", "--etcd-subnet-length"))
    if len({made.version for made in found}) < len(found):
        raise invalid("--etcd-pool", pool, "expected at most one network of each IP version")
    return tuple(sorted(found, key=lambda made: made.version))


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise invalid("--etcd-subnet-length", text, "expected a number such as 24")
    return int(text)
