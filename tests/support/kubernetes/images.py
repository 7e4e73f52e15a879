"""An image with podwire alone, without a registry: what a cluster's agent runs."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile

AGENT = "podwire.test/podwire:1"

_FOLDERS = ("dev", "etc", "proc", "run", "sys", "tmp", "var")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_agent_archive(path: str, executable: str, tags: tuple[str, ...] = (AGENT,)) -> None:
    """Write an archive, as `docker save` would, with `executable` as /podwire, its entry point."""
    layer = _layer(executable)
    digest = hashlib.sha256(layer).hexdigest()
    config = _config(digest)
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": list(tags), "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _file(archive, f"{digest}/layer.tar", layer)
        _file(archive, name, config)
        _file(archive, "manifest.json", json.dumps(manifest).encode())


def _layer(executable: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as layer:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        with open(executable, "rb") as f:
            _file(layer, "podwire", f.read(), 0o755)
    return packed.getvalue()


def _config(layer_digest: str) -> bytes:
    created = "2020-01-01T00:00:00Z"
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": created,
        "config": {"Entrypoint": ["/podwire"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": created, "created_by": "podwire tests"}],
    }
    return json.dumps(config, sort_keys=True).encode()


def _file(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
