"""A client of the Kubernetes Container Runtime Interface, as far as the tests use it.

The messages are declared here as data (field numbers are those of k8s.io/cri-api, api.proto of
runtime.v1), so neither a .proto file nor protoc is needed; unknown fields are ignored by protobuf.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.support import images

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "runtime.v1"
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
}

# Message: fields as "name number type"; [] after a type repeats it, "map" is map<string, string>.
_MESSAGES = {
    "VersionRequest": "",
    "VersionResponse": "runtime_name 2 string, runtime_version 3 string",
    "StatusRequest": "verbose 1 bool",
    "StatusResponse": "status 1 RuntimeStatus",
    "RuntimeStatus": "conditions 1 RuntimeCondition[]",
    "RuntimeCondition": "type 1 string, status 2 bool, reason 3 string, message 4 string",
    "PodSandboxMetadata": "name 1 string, uid 2 string, namespace 3 string, attempt 4 uint32",
    "PortMapping": "protocol 1 int32, container_port 2 int32, host_port 3 int32, host_ip 4 string",
    "LinuxPodSandboxConfig": "cgroup_parent 1 string",
    "DNSConfig": "servers 1 string[], searches 2 string[], options 3 string[]",
    "PodSandboxConfig": "metadata 1 PodSandboxMetadata, hostname 2 string, log_directory 3 string,"
    " dns_config 4 DNSConfig, port_mappings 5 PortMapping[], labels 6 map, annotations 7 map,"
    " linux 8 LinuxPodSandboxConfig",
    "RunPodSandboxRequest": "config 1 PodSandboxConfig",
    "RunPodSandboxResponse": "pod_sandbox_id 1 string",
    "StopPodSandboxRequest": "pod_sandbox_id 1 string",
    "StopPodSandboxResponse": "",
    "RemovePodSandboxRequest": "pod_sandbox_id 1 string",
    "RemovePodSandboxResponse": "",
    "PodSandboxStatusRequest": "pod_sandbox_id 1 string, verbose 2 bool",
    "PodSandboxStatusResponse": "status 1 PodSandboxStatus, info 2 map",
    "PodSandboxStatus": "id 1 string, state 3 int32, network 5 PodSandboxNetworkStatus",
    "PodSandboxNetworkStatus": "ip 1 string, additional_ips 2 PodIP[]",
    "PodIP": "ip 1 string",
    "ListPodSandboxRequest": "",
    "ListPodSandboxResponse": "items 1 PodSandbox[]",
    "PodSandbox": "id 1 string, metadata 2 PodSandboxMetadata, state 3 int32",
    "ImageSpec": "image 1 string",
    "ContainerMetadata": "name 1 string, attempt 2 uint32",
    "ContainerConfig": "metadata 1 ContainerMetadata, image 2 ImageSpec, command 3 string[],"
    " log_path 11 string",
    "CreateContainerRequest": "pod_sandbox_id 1 string, config 2 ContainerConfig,"
    " sandbox_config 3 PodSandboxConfig",
    "CreateContainerResponse": "container_id 1 string",
    "StartContainerRequest": "container_id 1 string",
    "StartContainerResponse": "",
    "ExecSyncRequest": "container_id 1 string, cmd 2 string[], timeout 3 int64",
    "ExecSyncResponse": "stdout 1 bytes, stderr 2 bytes, exit_code 3 int32",
}


class Pod:
    """A pod sandbox that runs. `config` is what it was made with; containers need it again."""

    def __init__(self, client: Client, sandbox_id: str, config: dict[str, Any]) -> None:
        self.id = sandbox_id
        self._client = client
        self._config = config

    def addresses(self) -> list[str]:
        """The pod's addresses as the runtime reports them, the first being the pod IP."""
        network = self._status(verbose=False).status.network
        return [network.ip, *(item.ip for item in network.additional_ips)]

    def netns(self) -> str:
        """The path of the sandbox's network namespace, as seen by the runtime."""
        info = json.loads(self._status(verbose=True).info["info"])
        namespaces = info["runtimeSpec"]["linux"]["namespaces"]
        return next(item["path"] for item in namespaces if item["type"] == "network")

    def start(self, name: str, *command: str) -> Container:
        """Start a container of the busybox image in the pod."""
        container_id = self._client.call(
            "CreateContainer",
            pod_sandbox_id=self.id,
            sandbox_config=self._config,
            config={
                "metadata": {"name": name},
                "image": {"image": images.BUSYBOX},
                "command": command,
                "log_path": f"{name}.log",
            },
        ).container_id
        self._client.call("StartContainer", container_id=container_id)
        return Container(self._client, container_id)

    def stop(self) -> None:
        self._client.call("StopPodSandbox", pod_sandbox_id=self.id)

    def remove(self) -> None:
        self._client.call("RemovePodSandbox", pod_sandbox_id=self.id)

    def _status(self, verbose: bool) -> Any:
        return self._client.call("PodSandboxStatus", pod_sandbox_id=self.id, verbose=verbose)


class Container:
    """A container that runs."""

    def __init__(self, client: Client, container_id: str) -> None:
        self.id = container_id
        self._client = client

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command in the container: its exit code and all it printed."""
        done = self._client.call("ExecSync", container_id=self.id, cmd=command, timeout=20)
        return done.exit_code, (done.stdout + done.stderr).decode()


class Client:
    """Calls a runtime on a UNIX socket; each call takes `timeout` seconds at most."""

    def __init__(
        self, socket: str, cgroup_parent: str, log_folder: str, timeout: float = 60
    ) -> None:
        self._cgroup_parent = cgroup_parent
        self._log_folder = log_folder
        self._timeout = timeout
        # Go's HTTP/2 refuses the escaped path that grpc would send as the authority.
        options = [("grpc.default_authority", "localhost"), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=options)

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, **fields: Any) -> Any:
        """One call of the RuntimeService; raises grpc.RpcError as the runtime answers."""
        classes = _classes()
        stub: Callable[..., Any] = self._channel.unary_unary(
            f"/{_PACKAGE}.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=classes[f"{method}Response"].FromString,
        )
        return stub(classes[f"{method}Request"](**fields), timeout=self._timeout)

    def wait(self, seconds: float = 30) -> None:
        """Until the runtime answers."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.call("Version")
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def condition(self, kind: str) -> tuple[bool, str]:
        """A condition of the runtime, NetworkReady or RuntimeReady, with its message."""
        for item in self.call("Status").status.conditions:
            if item.type == kind:
                return item.status, item.message
        raise AssertionError(f"the runtime has no condition {kind}")

    def run_pod(
        self, name: str, host_ports: dict[int, int] | None = None, **more: dict[str, Any]
    ) -> Pod:
        """Run a pod sandbox; `host_ports` maps ports of the node to ports of the pod (TCP).

        `more` are further fields of its configuration: annotations, dns_config.
        """
        config = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default"},
            "hostname": name,
            "log_directory": self._log_folder,
            "linux": {"cgroup_parent": self._cgroup_parent},
            "port_mappings": [
                {"protocol": 0, "container_port": inner, "host_port": outer}
                for outer, inner in (host_ports or {}).items()
            ],
            **more,
        }
        return Pod(self, self.call("RunPodSandbox", config=config).pod_sandbox_id, config)


@functools.cache
def _classes() -> dict[str, Any]:
    """The message classes, made from _MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            _add_field(message, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_field(message: Any, name: str, number: str, kind: str) -> None:
    repeated = kind.endswith("[]") or kind == "map"
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    kind = kind.removesuffix("[]")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    field.type = _Field.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{kind}"
    if kind == "map":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        for key, place in (("key", 1), ("value", 2)):
            entry.field.add(
                name=key, number=place, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING
            )
        field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"
