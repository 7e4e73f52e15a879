"""Container images without a registry: busybox-static, packed as `docker save` would.

`ctr images import` and `podman load` read the archive; it is the same, bit for bit, each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile

from tests.support import require

BUSYBOX = "podwire.test/busybox:1"
PAUSE = "podwire.test/pause:1"

_COMMANDS = {BUSYBOX: ["/bin/sh"], PAUSE: ["/bin/busybox", "sleep", "2147483647"]}
_FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_archive(path: str) -> None:
    """Write an archive with both images; they share their one layer. Skips without busybox."""
    layer = _layer(require.program("busybox"))
    digest = hashlib.sha256(layer).hexdigest()
    manifest = []
    with tarfile.open(path, "w") as archive:
        _file(archive, f"{digest}/layer.tar", layer)
        for tag, command in _COMMANDS.items():
            config = _config(digest, command)
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _file(archive, name, config)
            manifest.append({"Config": name, "RepoTags": [tag], "Layers": [f"{digest}/layer.tar"]})
        _file(archive, "manifest.json", json.dumps(manifest).encode())


def _layer(busybox: str) -> bytes:
    """The file system: busybox, a link for each of its applets, and the accounts root needs."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as layer:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        with open(busybox, "rb") as f:
            _file(layer, "bin/busybox", f.read(), 0o755)
        for applet in sorted(set(applets.stdout.split()) - {"busybox"}):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, "busybox", 0o777
            layer.addfile(entry)
        _file(layer, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _file(layer, "etc/group", b"root:x:0:\n")
    return packed.getvalue()


def _config(layer_digest: str, command: list[str]) -> bytes:
    created = "2020-01-01T00:00:00Z"
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": created,
        "config": {"Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": created, "created_by": "podwire tests"}],
    }
    return json.dumps(config, sort_keys=True).encode()


def _file(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
