"""containerd's config.toml for tests: what they don't need stays off, the rest is its default."""

from __future__ import annotations

from typing import NamedTuple

from tests.support import images

# restrict_oom_score_adj: root may lack CAP_SYS_RESOURCE.
_TEXT = """
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{runc_root}"
        BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin_dir}"
    conf_dir = "{conf_dir}"
    max_conf_num = 1
"""


class Places(NamedTuple):
    """Paths, all as the daemon sees them: what it keeps (a folder in memory, for images and
    snapshots) and what lives as long as it; its socket; where runc keeps its state; runc itself;
    the network's plugins and configuration."""

    root: str
    state: str
    socket: str
    runc_root: str
    runc: str
    bin_dir: str
    conf_dir: str


def text(places: Places) -> str:
    """The whole file."""
    return _TEXT.format(pause=images.PAUSE, **places._asdict())
