"""Container images without a registry: busybox-static and podwire, packed as `docker save` would.

`ctr images import` and `podman load` read the archives; each is the same, bit for bit, each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.support import require

BUSYBOX = "podwire.test/busybox:1"
PAUSE = "podwire.test/pause:1"
AGENT = "podwire.test/podwire:1"

_COMMANDS = {BUSYBOX: ["/bin/sh"], PAUSE: ["/bin/busybox", "sleep", "2147483647"]}
_FOLDERS = ("dev", "etc", "proc", "run", "sys", "tmp", "var")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Image(NamedTuple):
    """`settings`: what its configuration says of the process, in the words of the OCI."""

    tags: Sequence[str]
    settings: dict[str, Any]


def write_archive(path: str) -> None:
    """Write an archive with BUSYBOX and PAUSE, which share their layer. Skips without busybox."""
    found = [
        Image([tag], {"Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/"})
        for tag, command in _COMMANDS.items()
    ]
    _write(path, _busybox(require.program("busybox")), found)


def write_agent_archive(path: str, executable: str, tags: Sequence[str] = (AGENT,)) -> None:
    """Write an archive of an image with `executable` alone, as /podwire, its entry point."""
    with open(executable, "rb") as file:
        layer = _layer(_FOLDERS, [("podwire", file.read(), 0o755)])
    _write(path, layer, [Image(tags, {"Entrypoint": ["/podwire"], "WorkingDir": "/"})])


def _busybox(program: str) -> bytes:
    """The file system: busybox, a link for each of its applets, and the accounts root needs."""
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    with open(program, "rb") as file:
        files = [("bin/busybox", file.read(), 0o755)]
    files += [
        ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644),
        ("etc/group", b"root:x:0:\n", 0o644),
    ]
    names = sorted(set(applets.stdout.split()) - {"busybox"})
    return _layer(("bin", "root", *_FOLDERS), files, {f"bin/{name}": "busybox" for name in names})


def _layer(
    folders: Sequence[str],
    files: Sequence[tuple[str, bytes, int]],
    links: Mapping[str, str] | None = None,
) -> bytes:
    """A file system; `files`: name, content, mode. `links`: name to target."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as layer:
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        for name, data, mode in files:
            _file(layer, name, data, mode)
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            layer.addfile(entry)
    return packed.getvalue()


def _write(path: str, layer: bytes, found: Sequence[Image]) -> None:
    """An archive of images that have this one layer."""
    digest = hashlib.sha256(layer).hexdigest()
    manifest = []
    with tarfile.open(path, "w") as archive:
        _file(archive, f"{digest}/layer.tar", layer)
        for image in found:
            config = _config(digest, image.settings)
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _file(archive, name, config)
            layers = [f"{digest}/layer.tar"]
            manifest.append({"Config": name, "RepoTags": list(image.tags), "Layers": layers})
        _file(archive, "manifest.json", json.dumps(manifest).encode())


def _config(layer_digest: str, settings: dict[str, Any]) -> bytes:
    created = "2020-01-01T00:00:00Z"
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": created,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": created, "created_by": "podwire tests"}],
    }
    return json.dumps(config, sort_keys=True).encode()


def _file(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
