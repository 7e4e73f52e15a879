"""The API server's address, taken from a kubelet's kubeconfig."""

from __future__ import annotations

import json

import pytest

from cni_plugin import apiserver
from cni_plugin.spec import CniError

KUBEADM = """apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: LS0t
    server: https://192.168.77.1:6443
  name: default-cluster
users:
- name: default-auth
  user:
    client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem
"""


@pytest.fixture
def kubeconfig(tmp_path):
    def write(text):
        path = tmp_path / "kubelet.conf"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    "text",
    [
        KUBEADM,
        KUBEADM.replace("https://192.168.77.1:6443", '"https://192.168.77.1:6443"'),
        json.dumps(
            {"clusters": [{"name": "c", "cluster": {"server": "https://192.168.77.1:6443"}}]}
        ),
        "clusters: [{cluster: {insecure-skip-tls-verify: true, server: 'https://192.168.77.1:6443'}}]",
        "clusters:\n- cluster: {server: https://192.168.77.1:6443}\n",
    ],
)
def test_the_server_of_a_kubeconfig(kubeconfig, text):
    assert apiserver.in_kubeconfig(kubeconfig(text)) == "https://192.168.77.1:6443"


def test_an_ipv6_server(kubeconfig):
    text = KUBEADM.replace("192.168.77.1", "[fd00::1]")
    assert apiserver.in_kubeconfig(kubeconfig(text)) == "https://[fd00::1]:6443"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found none"),
        ("proxy-server: https://192.168.77.1:6443", "found none"),
        (KUBEADM + KUBEADM.replace("77.1", "77.9"), "found https://192.168.77.1:6443, https://"),
        (KUBEADM.replace("https://192.168.77.1:6443", "192.168.77.1"), "expected the URL"),
        (KUBEADM.replace(":6443", ":x"), "expected the URL"),
    ],
)
def test_what_is_no_server(kubeconfig, text, said):
    with pytest.raises(CniError, match=said) as refused:
        apiserver.in_kubeconfig(kubeconfig(text))
    assert refused.value.code == 7
    assert "kubelet.conf" in refused.value.msg


def test_a_note(kubeconfig, tmp_path):
    note = str(tmp_path / "run" / "api-server")
    assert apiserver.noted(note) == ""
    assert apiserver.note([str(tmp_path / "none")], note) == ""
    assert apiserver.note([str(tmp_path / "none"), kubeconfig(KUBEADM)], note) == (
        "https://192.168.77.1:6443"
    )
    assert apiserver.noted(note) == "https://192.168.77.1:6443"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["api-server"]


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(CniError) as refused:
        apiserver.in_kubeconfig(str(tmp_path))
    assert refused.value.code == 5
