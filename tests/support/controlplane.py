"""A Kubernetes control plane for tests: real etcd, kube-apiserver and, on demand, the controller
manager.

The programs are looked for in $KUBEBUILDER_ASSETS, as envtest does, then on PATH. All state lies in
the test's folder, and the processes end with the test, also when its run is killed. Without a
namespace everything listens on the loopback of the run's own (tests/support/private.py).

    with ControlPlane(tmp_path, node, address="192.168.1.2", pod_cidrs=("10.244.0.0/16",)) as plane:
        plane.api.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import kubeconfig, netns, require
from tests.support.apiclient import Api, ApiError, Object
from tests.support.kubeconfig import User
from tests.support.kubeprograms import component, etcd, minor_version
from tests.support.netns import Namespace
from tests.support.programs import Programs

_DUAL_STACK = 23  # the first 1.x with both families and no gate before it
_NO_PLAIN_HTTP = 24  # the first whose controller manager has no port for that, nor the option


class ControlPlane:
    """See the module. `url`, `ca` (a file), `admin_token` and `kubeconfig` (a file) are for clients
    inside of `place`; `api` and `client` are for the test, from outside.

    `address`: where the API server listens and what it advertises. `authorization`: its
    --authorization-mode. `pod_cidrs`: given, the controller manager runs and allots a part to each
    node (/24, /64 of IPv6); two make a dual-stack cluster. `users`: beside "admin"; `tokens` has
    theirs. `api_options`: more options of kube-apiserver.
    """

    def __init__(
        self,
        folder: Path | str,
        place: Namespace | None = None,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        authorization: str = "RBAC",
        pod_cidrs: Sequence[str] = (),
        service_cidrs: Sequence[str] = ("10.96.0.0/16",),
        users: Sequence[User] = (),
        api_options: Sequence[str] = (),
    ) -> None:
        names = ("kube-apiserver", *(("kube-controller-manager",) if pod_cidrs else ()))
        self._paths = {"etcd": etcd(), **{name: component(name) for name in names}}
        self.folder, self._place = str(folder), place
        self._minor = minor_version(self._paths["kube-apiserver"])
        self._address, self._authorization = address, authorization
        self._service_cidrs, self._api_options = tuple(service_cidrs), tuple(api_options)
        self._programs = Programs(self.folder, place)
        self._port, self._etcd_port, self._peer_port = self._ports(port)
        host = f"[{address}]" if ":" in address else address
        self.url = f"https://{host}:{self._port}"
        self.etcd_url = f"http://127.0.0.1:{self._etcd_port}"
        self.ca = self.path("pki", "apiserver.crt")
        os.makedirs(self.path("pki"), mode=0o700, exist_ok=True)
        given = [User("admin", ("system:masters",)), *users]
        self.tokens = kubeconfig.write_users(self.path("tokens.csv"), given)
        self.admin_token = self.tokens["admin"]
        try:
            self._start_etcd()
            self._make_service_account_key()
            self.start_api()
            self.api = self.client(self.admin_token)
            self.kubeconfig = self.write_kubeconfig("admin", self.admin_token)
            if pod_cidrs:
                self.start_controller_manager(pod_cidrs)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- clients -------------------------------------------------------------------------------

    def client(self, token: str) -> Api:
        """A client of whoever has the token."""
        return Api(self.url, self.ca, token, self._place)

    def write_kubeconfig(self, name: str, token: str, server: str = "") -> str:
        """Write a kubeconfig of the token with the CA inside: its path."""
        path = self.path(f"{name}.kubeconfig")
        return kubeconfig.write(path, name, token, server or self.url, self.ca)

    def service_account_token(self, namespace: str, name: str, seconds: int = 3600) -> str:
        """A token of a ServiceAccount that exists, as a kubelet mounts it (TokenRequest)."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        made = self.api.create(path, {"spec": {"expirationSeconds": seconds}})
        token = made["status"]["token"]
        assert isinstance(token, str)
        return token

    def kubectl(
        self, *argv: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess:
        """Run kubectl as the admin, from inside; skips the test when there is none."""
        command = [
            *self._programs.prefix(),
            component("kubectl"),
            f"--kubeconfig={self.kubeconfig}",
            *argv,
        ]
        env = {**os.environ, "HOME": self.folder}  # for its caches
        return netns.run(command, check=check, env=env, **options)

    # --- faults --------------------------------------------------------------------------------

    def stop_api(self) -> None:
        """The API server ends, at once; its watches break."""
        self._programs.kill("kube-apiserver")

    def start_api(self) -> None:
        """Start the API server and wait until it is ready; it has the same address as before."""
        self._start(
            "kube-apiserver",
            f"--etcd-servers={self.etcd_url}",
            f"--advertise-address={self._address}",
            f"--bind-address={self._address}",
            f"--secure-port={self._port}",
            f"--cert-dir={self.path('pki')}",
            f"--token-auth-file={self.path('tokens.csv')}",
            f"--authorization-mode={self._authorization}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self.path('pki', 'sa.key')}",
            f"--service-account-key-file={self.path('pki', 'sa.key')}",
            f"--service-cluster-ip-range={','.join(self._service_cidrs)}",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            *self._dual_stack_gate(),
            *self._api_options,
        )
        netns.wait_until(lambda: self._is_ready("kube-apiserver"), timeout=120, what="API server")

    def compact_etcd(self) -> None:
        """Forget the history of all keys up to now."""
        key = base64.b64encode(b"/tests/compacted").decode()
        made = self._etcd("/v3/kv/put", {"key": key})["header"]  # beyond what anybody has seen
        self._etcd("/v3/kv/compaction", {"revision": made["revision"], "physical": True})

    def etcd_delete(self, key: str) -> None:
        """Take a key away behind the API server's back, such as /registry/minions/n1."""
        self._etcd("/v3/kv/deleterange", {"key": base64.b64encode(key.encode()).decode()})

    def resident(self, name: str) -> int:
        """The memory of one of the programs, in KiB."""
        return self._programs.resident(name)

    def cpu_seconds(self, name: str) -> float:
        """What one of the programs has computed since its start."""
        return self._programs.cpu_seconds(name)

    def close(self) -> None:
        """End all of it; calling it again does nothing."""
        self._programs.kill_all()
        if "api" in vars(self):
            self.api.close()

    # --- making it -----------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)

    def start_controller_manager(self, pod_cidrs: Sequence[str], *options: str) -> None:
        no_plain_http = ("--port=0",) if self._minor < _NO_PLAIN_HTTP else ()
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={','.join(pod_cidrs)}",
            f"--service-cluster-ip-range={','.join(self._service_cidrs)}",
            f"--service-account-private-key-file={self.path('pki', 'sa.key')}",
            f"--root-ca-file={self.ca}",
            "--leader-elect=false",
            "--secure-port=0",
            *no_plain_http,
            *self._dual_stack_gate(),
            *options,
        )

    def start_scheduler(self, config: str) -> None:
        """`config`: the kubeconfig that it is to have."""
        self._paths["kube-scheduler"] = component("kube-scheduler")
        options = ("--leader-elect=false", "--port=0", "--secure-port=0")
        self._start("kube-scheduler", f"--kubeconfig={config}", *options)

    def _dual_stack_gate(self) -> tuple[str, ...]:
        return ("--feature-gates=IPv6DualStack=true",) if self._minor < _DUAL_STACK else ()

    def _make_service_account_key(self) -> None:
        key = self.path("pki", "sa.key")
        netns.run([require.program("openssl"), "genrsa", "-out", key, "2048"])

    def _start_etcd(self) -> None:
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._start(
            "etcd",
            f"--data-dir={self.path('etcd')}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )
        netns.wait_until(lambda: self._is_ready("etcd"), timeout=60, what="etcd")

    def _start(self, name: str, *options: str) -> None:
        self._programs.start(name, self._paths[name], *options)

    def _is_ready(self, name: str) -> bool:
        self._programs.check(name)
        try:
            if name == "etcd":
                return bool(self._etcd("/v3/kv/range", {"key": "AA=="}))
            if not os.path.exists(self.ca):
                return False
            client = self.client(self.admin_token)
            try:
                # It makes that namespace a moment after it says that it is ready.
                ready = client.get("/readyz") == {"text": "ok"}
                return ready and bool(client.get("/api/v1/namespaces/default"))
            finally:
                client.close()
        except (OSError, ApiError):
            return False

    def _etcd(self, path: str, body: Object) -> Object:
        connection = http.client.HTTPConnection("127.0.0.1", self._etcd_port, timeout=10)
        try:
            with self._place.entered() if self._place else contextlib.nullcontext():
                connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != http.HTTPStatus.OK:
                raise ApiError(answer.status, text)
            decoded = json.loads(text)
            assert isinstance(decoded, dict)
            return decoded
        finally:
            connection.close()

    def _ports(self, port: int) -> tuple[int, int, int]:
        """The API server's and etcd's two; free ones of the namespace."""
        with self._place.entered() if self._place else contextlib.nullcontext():
            made = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        free = [one.getsockname()[1] for one in made]
        for one in made:
            one.close()
        return port or free[0], free[1], free[2]
