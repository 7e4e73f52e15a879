"""conf/podwire.yaml as a real API server takes it: nothing is refused, and nothing is dropped but
what came after that version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.controlplane import ControlPlane

_MANIFEST = Path(__file__).parents[2] / "conf" / "podwire.yaml"
_FOLDERS = {
    "Namespace": "/api/v1",
    "ServiceAccount": "/api/v1",
    "ConfigMap": "/api/v1",
    "DaemonSet": "/apis/apps/v1",
}
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
# Kubernetes 1.30; before that the annotation says the same.
_NEWER = ".spec.template.spec.containers[0].securityContext.appArmorProfile"


def path_of(each: dict[str, Any]) -> str:
    namespace = each["metadata"].get("namespace")
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{_FOLDERS.get(each['kind'], _RBAC)}{place}/{each['kind'].lower()}s"


def lost(given: Any, taken: Any, at: str = "") -> Iterator[str]:
    """The fields of `given` that `taken` does not have, or has with another value."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key, value in given.items():
            yield from lost(value, taken.get(key), f"{at}.{key}")
    elif isinstance(given, list) and isinstance(taken, list) and len(given) == len(taken):
        for index, value in enumerate(given):
            yield from lost(value, taken[index], f"{at}[{index}]")
    elif given != taken:
        yield at


def test_the_api_server_takes_the_manifest_as_it_is(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is missing: pip install .[test]")
    given = [each for each in yaml.safe_load_all(_MANIFEST.read_text()) if each]
    with ControlPlane(tmp_path) as plane:
        plane.api.create(path_of(given[0]), given[0])
        missing = []
        for each in given[1:]:
            taken = plane.api.create(f"{path_of(each)}?dryRun=All", each)
            missing += lost(each, taken)
    assert missing in ([], [_NEWER])
