"""etcd with TLS and client certificates, and with users."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_plugin.sources import Announcement, Away
from tests.support import require
from tests.support.etcd import Bench, Etcd, Follower, node_options, running

_HOST = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
_NODE = "extendedKeyUsage=clientAuth\n"


class Authority:
    """A certificate authority in a folder, and what it has signed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.crt"),
        )
        self.certificate = str(folder / f"{name}.crt")

    def sign(self, name: str, extensions: str) -> tuple[str, str]:
        """The paths of a certificate and of its key."""
        (self._folder / f"{name}.ext").write_text(extensions)
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/O={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        self._openssl(
            *("x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", f"{name}.ext"),
            *("-CA", self.certificate, "-CAkey", f"{self._name}.key"),
            *("-in", f"{name}.csr", "-out", f"{name}.crt"),
        )
        return str(self._folder / f"{name}.crt"), str(self._folder / f"{name}.key")

    def _openssl(self, *argv: str) -> None:
        openssl = require.program("openssl")
        subprocess.run([openssl, *argv], cwd=self._folder, check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
def secure(tmp_path: Path, authority: Authority) -> Iterator[Etcd]:
    """An etcd that wants a certificate of its clients."""
    cert, key = authority.sign("etcd", _HOST)
    options = ("--cert-file", cert, "--key-file", key, "--client-cert-auth")
    made = Etcd(
        tmp_path, options=(*options, "--trusted-ca-file", authority.certificate), scheme="https"
    )
    with running(made):
        yield made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_client_certificates(secure: Etcd, authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.sign("node-1", _NODE)
    given = {"cacert": authority.certificate, "cert": cert, "key": key}
    for _ in range(2):
        follower = Follower(node_options(tmp_path, 1, secure.url, **given))
        try:
            own = follower.listed()
            follower.source.announce(Announcement(backend="x"))
            follower.member("node-1", lambda member: member.backend == "x")
        finally:
            assert follower.stop() < 4
    assert own.backend == "x"


@pytest.mark.parametrize("wrong", ["no certificate", "another authority's", "unknown server"])
def test_certificates_that_will_not_do(
    secure: Etcd, authority: Authority, tmp_path: Path, wrong: str
) -> None:
    given = {"cacert": authority.certificate}
    if wrong != "no certificate":
        other = Authority(tmp_path, "other")
        signer = other if wrong.startswith("another") else authority
        given["cert"], given["key"] = signer.sign("node-1", _NODE)
        if wrong == "unknown server":
            given["cacert"] = other.certificate
    follower = Follower(node_options(tmp_path, 1, secure.url, **given))
    try:
        reason = follower.wait_for(Away).reason
        assert follower.pending(1) == []
    finally:
        follower.stop()
    # What a client hears of a server that wants another certificate depends on who is faster.
    assert wrong != "unknown server" or "certificate verify failed" in reason
    assert secure.url in reason


def test_users(bench: Bench) -> None:
    """And their tokens, which end with the etcd that gave them."""
    for path, body in (
        ("/v3/auth/user/add", {"name": "root", "password": "r"}),
        ("/v3/auth/user/grant", {"user": "root", "role": "root"}),
        ("/v3/auth/user/add", {"name": "podwire", "password": "secret"}),
        ("/v3/auth/role/add", {"name": "nodes"}),
        (
            "/v3/auth/role/grant",
            {
                "name": "nodes",  # all keys from "/podwire/" up to "/podwire0"
                "perm": {"permType": 2, "key": "L3BvZHdpcmUv", "range_end": "L3BvZHdpcmUw"},
            },
        ),
        ("/v3/auth/user/grant", {"user": "podwire", "role": "nodes"}),
        ("/v3/auth/enable", {}),
    ):
        bench.post(path, body)
    password = bench.folder / "password"
    password.write_text("wrong\n")
    nobody = bench.follow(3)
    assert "user name is empty" in nobody.wait_for(Away).reason
    first = bench.follow(1, user="podwire", password_file=str(password))
    assert "authentication failed" in first.wait_for(Away).reason
    password.write_text("secret\n")
    own = first.listed()
    bench.etcd.kill()
    bench.etcd.start()
    first.wait_for(Away)
    assert first.listed().pod_cidrs == own.pod_cidrs
    first.source.announce(Announcement(backend="x"))
    first.member("node-1", lambda member: member.backend == "x")
