"""The programs of Kubernetes and etcd: in $KUBEBUILDER_ASSETS, as envtest has it, else on PATH."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.support import netns, require


def component(name: str) -> str:
    """The path of a program of Kubernetes, or skip."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    if folder and os.access(os.path.join(folder, name), os.X_OK):
        return os.path.join(folder, name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: set KUBEBUILDER_ASSETS to a folder with it")
    return found


def etcd() -> str:
    """The path of etcd, or skip."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    if folder and os.access(os.path.join(folder, "etcd"), os.X_OK):
        return os.path.join(folder, "etcd")
    found = require.find_program("etcd")
    if found is None:
        pytest.skip("etcd is missing: apt-get install etcd-server")
    return found


def minor_version(program: str) -> int:
    """20 for "Kubernetes v1.20.2"."""
    printed = netns.run([program, "--version"]).stdout
    return int(printed.partition("v1.")[2].partition(".")[0])
