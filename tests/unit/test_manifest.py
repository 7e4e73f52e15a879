"""conf/podwire.yaml and its neighbours hold what the documentation promises."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import apiserver, conflists, runtimes
from cni_plugin.client import DEFAULT_SOCKET, SILENCE_MS
from cni_plugin.tool_follow import CONF_DIR, INVENTORY
from cni_plugin.version import VERSION

yaml = pytest.importorskip("yaml", reason="PyYAML is missing: pip install '.[kubernetes]'")

_PROJECT = Path(__file__).parents[2]
_CONF = _PROJECT / "conf"

Object = dict[str, Any]


@pytest.fixture(scope="module")
def objects() -> dict[str, Object]:
    """The manifest's objects by kind: there is one of each."""
    found = [each for each in yaml.safe_load_all((_CONF / "podwire.yaml").read_text()) if each]
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Object]) -> Object:
    template: Object = objects["DaemonSet"]["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def agent(pod: Object) -> Object:
    (container,) = pod["spec"]["containers"]
    return container  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def install(pod: Object) -> Object:
    (container,) = pod["spec"]["initContainers"]
    return container  # type: ignore[no-any-return]


def mounts(container: Object) -> dict[str, bool]:
    """Path to whether it is read-only."""
    return {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}


# --- who may do what ------------------------------------------------------------------------------


def test_the_roles_have_the_least_verbs(objects: dict[str, Object]) -> None:
    assert objects["ClusterRole"]["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]
    assert objects["Role"]["metadata"]["namespace"] == "default"
    assert objects["Role"]["rules"] == [
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}
    ]


def test_the_roles_are_bound_to_the_agents_account(objects: dict[str, Object], pod: Object) -> None:
    account = objects["ServiceAccount"]["metadata"]
    assert pod["spec"]["serviceAccountName"] == account["name"]
    assert account["namespace"] == objects["DaemonSet"]["metadata"]["namespace"]
    for kind in ("Role", "ClusterRole"):
        binding = objects[f"{kind}Binding"]
        assert binding["roleRef"]["kind"] == kind
        assert binding["roleRef"]["name"] == objects[kind]["metadata"]["name"]
        assert binding["subjects"] == [
            {
                "kind": "ServiceAccount",
                "name": account["name"],
                "namespace": account["namespace"],
            }
        ]


def test_containers_have_no_more_than_they_need(agent: Object, install: Object) -> None:
    for container in (agent, install):
        context = container["securityContext"]
        assert context["privileged"] is False
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"]["drop"] == ["ALL"]
    assert "add" not in install["securityContext"]["capabilities"]
    added = agent["securityContext"]["capabilities"]["add"]
    assert added == ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]


def test_only_the_init_container_sees_the_kubelets_folder(agent: Object, install: Object) -> None:
    assert mounts(install)["/etc/kubernetes"] is True
    assert "/etc/kubernetes" not in mounts(agent)
    assert "/opt/cni/bin" not in mounts(agent)


def test_apparmor_is_off_by_field_and_by_annotation(pod: Object, agent: Object) -> None:
    name = f"container.apparmor.security.beta.kubernetes.io/{agent['name']}"
    assert pod["metadata"]["annotations"][name] == "unconfined"
    assert agent["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}


# --- it comes first, on every node ----------------------------------------------------------------


def test_it_runs_on_every_node_before_there_is_a_network(pod: Object) -> None:
    spec = pod["spec"]
    assert spec["hostNetwork"] is True
    assert spec["dnsPolicy"] == "Default"  # the cluster's DNS is made of pods
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_updates_go_a_few_nodes_at_a_time(objects: dict[str, Object], pod: Object) -> None:
    strategy = objects["DaemonSet"]["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}
    assert pod["spec"]["terminationGracePeriodSeconds"] > 110  # docs/agent.md: a call's longest


def test_selector_and_labels_agree(objects: dict[str, Object], pod: Object) -> None:
    selector = objects["DaemonSet"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod["metadata"]["labels"].items()


def test_probes_ask_the_agent(agent: Object) -> None:
    """Ready means that a pod could be added, by the file that the agent writes; alive, that it
    replies. The probe's own word comes before the kubelet loses patience, and an agent that is
    restarted has been silent for minutes: it may have been slow."""
    ready, alive = agent["readinessProbe"], agent["livenessProbe"]
    assert ready["exec"]["command"] == ["/podwire", "probe", f"{CONF_DIR}/05-podwire.conflist"]
    assert alive["exec"]["command"] == ["/podwire", "probe"]
    for probe in (ready, alive):
        assert probe["timeoutSeconds"] * 1000 > SILENCE_MS
    assert alive["periodSeconds"] * (alive["failureThreshold"] - 1) > 120


def test_a_start_is_noticed_at_once_and_may_take_as_long_as_a_silence(agent: Object) -> None:
    """Until it has succeeded nobody asks whether the agent is ready. It asks for nothing that the
    cluster gives, so an agent without a subnet is not restarted."""
    start, alive = agent["startupProbe"], agent["livenessProbe"]
    assert start["exec"]["command"] == alive["exec"]["command"]
    assert start["periodSeconds"] == 1
    assert start["failureThreshold"] >= alive["periodSeconds"] * alive["failureThreshold"]


# --- paths ----------------------------------------------------------------------------------------


def test_folders_lie_where_they_lie_on_the_node(
    pod: Object, agent: Object, install: Object
) -> None:
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    used = set()
    for container in (agent, install):
        for mount in container["volumeMounts"]:
            used.add(mount["name"])
            host = volumes[mount["name"]].get("hostPath")
            assert host is None or host == {
                "path": mount["mountPath"],
                "type": "DirectoryOrCreate",
            }
    assert used == set(volumes)


def test_the_agent_reaches_every_folder_that_it_writes(agent: Object, install: Object) -> None:
    written = {os.path.dirname(DEFAULT_SOCKET), os.path.dirname(apiserver.NOTE)}
    written |= {os.path.dirname(INVENTORY), CONF_DIR, "/var/lib/cni", *runtimes.folders(0, "")}
    assert {path for path, read_only in mounts(agent).items() if not read_only} == written
    assert os.path.dirname(apiserver.NOTE) in mounts(install)
    assert set(runtimes.folders(0, "")) <= set(mounts(install))


def test_the_network_of_the_config_map_is_the_agents_own(
    objects: dict[str, Object], agent: Object, pod: Object
) -> None:
    data = objects["ConfigMap"]["data"]
    network = json.loads(data["network.json"])
    assert network["plugins"][0].pop("backend") == "auto"  # said, since it is the one to change
    assert network == conflists.default_template()
    (option,) = (each for each in agent["args"] if each.startswith("--network="))
    assert option == "--network=/etc/podwire/network.json"
    assert "/etc/podwire" in mounts(agent)
    assert data["api-server"] == ""
    (volume,) = (each["configMap"] for each in pod["spec"]["volumes"] if "configMap" in each)
    assert volume == {"name": objects["ConfigMap"]["metadata"]["name"]}


# --- what belongs to it ---------------------------------------------------------------------------


def test_the_image_is_that_of_this_version(agent: Object, install: Object) -> None:
    assert agent["image"] == install["image"] == f"podwire:{VERSION}"
    assert agent["imagePullPolicy"] == install["imagePullPolicy"] == "IfNotPresent"


def test_the_kustomization_names_the_manifest() -> None:
    found = yaml.safe_load((_CONF / "kustomization.yaml").read_text())
    assert found["resources"] == ["podwire.yaml"]


def test_kind_leaves_the_network_to_podwire() -> None:
    found = yaml.safe_load((_CONF / "kind.yaml").read_text())
    assert found["networking"] == {"disableDefaultCNI": True, "podSubnet": "10.244.0.0/16"}
    assert [node["role"] for node in found["nodes"]] == ["control-plane", "worker", "worker"]


# --- make -----------------------------------------------------------------------------------------

_FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
case "$*" in
*"get namespace podwire"*) echo "$FOUND" ;;
*"--container-runtime containerd"*"--cni false"*) exit 64 ;; # as minikube does
esac
"""


def make(folder: Path, target: str, *programs: str, found: str = "") -> tuple[int, str, list[str]]:
    """`make TARGET` where only these programs are: exit status, stderr, what was called."""
    for name in programs:
        (folder / name).write_text(_FAKE)
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    chosen = [
        f"{name.upper()}={folder / name}" for name in ("docker", "kind", "kubectl", "minikube")
    ]
    done = subprocess.run(
        ["make", "--silent", *chosen, target],
        cwd=_PROJECT,
        env={"PATH": os.environ["PATH"], "CALLS": str(calls), "FOUND": found},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr, calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("target", "there", "missing", "url"),
    [
        ("image", (), "docker", "https://docs.docker.com/"),
        ("kind", ("docker", "kubectl"), "kind", "https://kind.sigs.k8s.io/"),
        ("kind", ("docker", "kind"), "kubectl", "https://kubernetes.io/"),
        ("minikube", ("docker", "kubectl"), "minikube", "https://minikube.sigs.k8s.io/"),
    ],
)
def test_make_says_what_is_missing(
    tmp_path: Path, target: str, there: tuple[str, ...], missing: str, url: str
) -> None:
    status, said, calls = make(tmp_path, target, *there)
    assert status != 0
    assert f"make {target}: {tmp_path / missing} is missing: {url}" in said
    assert calls == []


@pytest.mark.parametrize(("target", "context"), [("kind", "kind-podwire"), ("minikube", "podwire")])
def test_make_brings_a_cluster_up(tmp_path: Path, target: str, context: str) -> None:
    status, said, calls = make(tmp_path, target, "docker", target, "kubectl")
    assert (status, said) == (0, "")
    image = f"podwire:{VERSION}"
    assert calls[0].startswith(f"docker build --tag {image} ")
    assert any(
        call.startswith(f"{target} ") and f"load {image}" in call.replace("docker-image ", "")
        for call in calls
    )
    kubectl = [
        call.removeprefix(f"kubectl --context {context} ")
        for call in calls
        if call.startswith("kubectl")
    ]
    assert kubectl == [
        "get namespace podwire --ignore-not-found --output name",
        "apply -f conf/podwire.yaml",
        "--namespace podwire rollout status daemonset/podwire --timeout 300s",
        "wait --for condition=Ready nodes --all --timeout 300s",
    ]


def test_minikube_applies_the_manifest_itself(tmp_path: Path) -> None:
    """Its path is absolute: minikube reads it again at each later start, from wherever that is."""
    _, _, calls = make(tmp_path, "minikube", "docker", "minikube", "kubectl")
    (start,) = (call for call in calls if call.startswith("minikube start "))
    given = Path(start.split(" --cni ")[1])
    assert given.is_absolute()
    assert given.samefile(_CONF / "podwire.yaml")


def test_make_starts_agents_again_that_were_there(tmp_path: Path) -> None:
    _, _, calls = make(tmp_path, "kind", "docker", "kind", "kubectl", found="namespace/podwire")
    restart = "kubectl --context kind-podwire --namespace podwire rollout restart daemonset/podwire"
    assert (
        calls.index(restart)
        == calls.index("kubectl --context kind-podwire apply -f conf/podwire.yaml") + 1
    )
